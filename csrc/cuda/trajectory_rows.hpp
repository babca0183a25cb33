// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing rows over trajectories: TrajectoryDraw of core/batch/trajectory_draw.hpp, word
// for word. Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <cstdint>

#include "batch/random.hpp"
#include "inline.hpp"
#include "linked_slots.hpp"
#include "memory_access.hpp"
#include "sampling.h"
#include "sampling_kernel.hpp"

namespace fastreplay {

// In steps, for one block, as UniformRows: the rows, then the call is counted.
struct TrajectoryRows {
  static constexpr unsigned kThreads = 512;
  static constexpr unsigned kDrawSteps = 1;
  static constexpr std::uint64_t kFewAttempts = 4096;  // most are looks that find no beginning

  struct Shared {};

  Draw draw;
  LinkedSlots linked;

  [[nodiscard]] static TrajectoryRows of(const fastreplay_cuda_sampling& sampling) {
    return {Draw::of(sampling), {sampling.trajectories, sampling.capacity}};
  }

  [[nodiscard]] FASTREPLAY_INLINE unsigned num_steps() const { return kDrawSteps + 1; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& /*shared*/) const {
    const fastreplay_cuda_window window = draw.drawn_from();
    if (step == 0 && draw.has_window && thread == 0) *draw.window = window;  // for graphs that are replayed
    if (window.size == 0) return;
    if (step == 0) {
      for (std::uint64_t row = first_row(thread); row < first_row(thread + 1); ++row) draw_row(window, row);
    } else if (thread == 0) {
      count_draws(draw);
    }
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t first_row(unsigned thread) const {
    return first_row_of<kThreads>(draw, thread);
  }

  // Attempts before what suits is counted.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t most_attempts(const fastreplay_cuda_window& window,
                                                              std::uint64_t /*num_steps*/) const {
    return 2 * window.size;
  }

  // One more attempt of a row: a trajectory, if it falls on its beginning, and one of its steps.
  FASTREPLAY_INLINE bool again(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt) const {
    std::uint64_t position = 0;
    if (!draw_below(window.size, word_of(draw, row, attempt), position)) return false;
    LinkedSlots::Place at = linked.place(window, position);
    if (!begins(at)) return false;
    const Philox::Counter counter{row + 1, draw.generator->calls, ~attempt, 0};
    std::uint64_t number = 0;
    if (!draw_below(length(window, at), Philox::words(counter, key_of(*draw.generator))[0], number)) return false;
    for (; number > 0 && linked.go_later(window, at); --number) {
    }
    as_global(draw.tickets)[row] = window.first + at.position;
    return true;
  }
  // The last one: among what suits, in one pass, in which each trajectory has the same mass. False where nothing does.
  template <class Suits>
  FASTREPLAY_INLINE bool draw_among(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt,
                                    const Suits& suits) const {
    constexpr std::uint64_t kCounted = 1;
    Philox::Counter counter{row + 1, draw.generator->calls, attempt, kCounted};
    double total = 0;
    for (std::uint64_t position = 0; position < window.size; ++position) {
      LinkedSlots::Place at = linked.place(window, position);
      if (!begins(at)) continue;
      const double share = 1 / static_cast<double>(length(window, at));
      do {
        if (!suits(at.position)) continue;
        total += share;
        if (total == share || fraction(Philox::words(counter, key_of(*draw.generator))[0]) * total < share) {
          as_global(draw.tickets)[row] = window.first + at.position;
        }
        ++counter[3];
      } while (linked.go_later(window, at));
    }
    return total > 0;
  }
  [[nodiscard]] FASTREPLAY_INLINE bool can_draw(std::uint64_t /*slot*/) const { return true; }
  FASTREPLAY_INLINE void after_redraws(unsigned /*thread*/, Shared& /*shared*/) const {}

 private:
  struct All {
    FASTREPLAY_INLINE bool operator()(std::uint64_t /*position*/) const { return true; }
  };

  FASTREPLAY_INLINE void draw_row(const fastreplay_cuda_window& window, std::uint64_t row) const {
    const std::uint64_t most = most_attempts(window, 1);
    for (std::uint64_t attempt = 0; attempt <= most; ++attempt) {
      if (again(window, row, attempt)) return;
    }
    draw_among(window, row, most + 1, All{});
  }

  // Whether what is there of a trajectory begins with it.
  [[nodiscard]] FASTREPLAY_INLINE bool begins(const LinkedSlots::Place& at) const {
    const Gap gap = linked.before(at.slot);
    return !is_gap(gap) || gap > at.position;
  }
  // Of what is there from a step on.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t length(const fastreplay_cuda_window& window,
                                                       LinkedSlots::Place at) const {
    std::uint64_t count = 1;
    while (linked.go_later(window, at)) ++count;
    return count;
  }
};

}  // namespace fastreplay
