// SPDX-License-Identifier: MIT
// What one CUDA thread does where masses change: by an update, or because transitions came and went. Knows no CUDA: a
// test runs all threads by turns on the CPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "inline.hpp"
#include "mass_tree.hpp"
#include "masses.h"
#include "memory_access.hpp"

namespace fastreplay {

// An update in steps, for one block: claims, masses, then the tree's levels, one after the other.
//
// The last of equal tickets is to win, whatever the threads' order, so each element first claims its leaf: by its
// position with the sign set, which as an integer is above every mass and every claim of an element before it. Nobody
// reads leaves until all is done.
struct MassUpdate {
  static constexpr unsigned kThreads = 512;

  struct Shared {
    double largest[kThreads];
    std::uint32_t num_applied[kThreads];
    std::uint32_t num_refused[kThreads];
  };

  MassTree tree;
  const fastreplay_cuda_window* window;
  const std::int64_t* tickets;
  const void* priorities;
  std::uint64_t count;
  std::int64_t* result;
  bool is_double;

  [[nodiscard]] static MassUpdate of(const fastreplay_cuda_update& update) {
    return {.tree = MassTree::of(update.masses),
            .window = update.window,
            .tickets = update.tickets,
            .priorities = update.priorities,
            .count = update.count,
            .result = update.result,
            .is_double = update.is_double != 0};
  }

  [[nodiscard]] FASTREPLAY_INLINE unsigned num_steps() const { return 2 + tree.num_levels; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& shared) const {
    const fastreplay_cuda_window now = *window;
    if (step == 0) {
      claim(now, thread);
    } else if (step == 1) {
      apply(now, thread, shared);
    } else {
      for (std::uint64_t i = thread; i < count; i += kThreads) {
        std::uint64_t slot = 0;
        if (is_in(now, i, slot) && std::isfinite(priority(i))) tree.repair(step - 1, slot);
      }
      if (step + 1 == num_steps() && thread == 0) report(shared);
    }
  }

 private:
  static constexpr std::uint32_t kClaim = std::uint32_t{1} << 31;

  // Whether an element's transition is in the window, and its slot.
  FASTREPLAY_INLINE bool is_in(const fastreplay_cuda_window& now, std::uint64_t i, std::uint64_t& slot) const {
    const std::uint64_t position = static_cast<std::uint64_t>(as_global(tickets)[i]) - now.first;
    slot = now.first_slot + position;
    if (slot >= tree.capacity) slot -= tree.capacity;
    return position < now.size;
  }

  [[nodiscard]] FASTREPLAY_INLINE double priority(std::uint64_t i) const {
    return is_double ? as_global(static_cast<const double*>(priorities))[i]
                     : static_cast<double>(as_global(static_cast<const float*>(priorities))[i]);
  }

  FASTREPLAY_INLINE void claim(const fastreplay_cuda_window& now, unsigned thread) const {
    for (std::uint64_t i = thread; i < count; i += kThreads) {
      std::uint64_t slot = 0;
      if (!is_in(now, i, slot) || !std::isfinite(priority(i))) continue;
      raise(reinterpret_cast<std::uint32_t*>(tree.leaves) + slot, kClaim | static_cast<std::uint32_t>(i));
    }
  }

  FASTREPLAY_INLINE void apply(const fastreplay_cuda_window& now, unsigned thread, Shared& shared) const {
    double largest = 0;
    std::uint32_t num_applied = 0;
    std::uint32_t num_refused = 0;
    for (std::uint64_t i = thread; i < count; i += kThreads) {
      std::uint64_t slot = 0;
      const double p = priority(i);
      if (!std::isfinite(p)) {
        ++num_refused;
      } else if (is_in(now, i, slot)) {
        ++num_applied;
        const double base = tree.rule.base(p);
        if (base > largest) largest = base;
        float& leaf = as_global(tree.leaves)[slot];
        if (std::bit_cast<std::uint32_t>(leaf) == (kClaim | static_cast<std::uint32_t>(i))) leaf = tree.rule.mass(base);
      }
    }
    shared.largest[thread] = largest;
    shared.num_applied[thread] = num_applied;
    shared.num_refused[thread] = num_refused;
  }

  FASTREPLAY_INLINE void report(const Shared& shared) const {
    double largest = tree.state->largest;
    std::int64_t num_applied = 0;
    std::int64_t num_refused = 0;
    for (unsigned i = 0; i < kThreads; ++i) {
      if (shared.largest[i] > largest) largest = shared.largest[i];
      num_applied += shared.num_applied[i];
      num_refused += shared.num_refused[i];
    }
    tree.state->largest = largest;
    tree.state->num_refused += static_cast<std::uint64_t>(num_refused);
    result[0] = num_applied;
    result[1] = static_cast<std::int64_t>(count) - num_applied - num_refused;
  }
};

// What came and went, in steps, for one block: leaves, then the tree's levels.
struct MassSettling {
  static constexpr unsigned kThreads = 512;

  struct Shared {};

  // Slots without the ring's end between them.
  struct Run {
    std::uint64_t first;
    std::uint64_t num_slots;
  };

  MassTree tree;
  Run lost[2];
  Run arrived[2];

  [[nodiscard]] static MassSettling of(const fastreplay_cuda_settling& settling) {
    MassSettling made{.tree = MassTree::of(settling.masses), .lost = {}, .arrived = {}};
    made.cut(settling.first_lost, settling.num_lost, made.lost);
    made.cut(settling.first_new, settling.num_new, made.arrived);
    return made;
  }

  [[nodiscard]] FASTREPLAY_INLINE unsigned num_steps() const { return 1 + tree.num_levels; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& /*shared*/) const {
    if (step == 0) {
      const float newest = tree.rule.mass(tree.state->largest);
      for (const Run& run : lost) {
        for (std::uint64_t i = thread; i < run.num_slots; i += kThreads) as_global(tree.leaves)[run.first + i] = 0;
      }
      for (const Run& run : arrived) {
        for (std::uint64_t i = thread; i < run.num_slots; i += kThreads) settle(run.first + i, newest);
      }
      return;
    }
    for (const Run& run : lost) tree.repair_run(step, run.first, run.num_slots, thread, kThreads);
    for (const Run& run : arrived) tree.repair_run(step, run.first, run.num_slots, thread, kThreads);
  }

 private:
  void cut(std::uint64_t first, std::uint64_t num_slots, Run (&runs)[2]) const {
    const std::uint64_t before_end = tree.capacity - first;
    runs[0] = {.first = first, .num_slots = num_slots < before_end ? num_slots : before_end};
    runs[1] = {.first = 0, .num_slots = num_slots - runs[0].num_slots};
  }

  FASTREPLAY_INLINE void settle(std::uint64_t slot, float newest) const {
    float& leaf = as_global(tree.leaves)[slot];
    if (!std::signbit(leaf)) return;
    const float least = -leaf;
    leaf = newest > least ? newest : least;
  }
};

}  // namespace fastreplay
