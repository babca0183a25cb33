// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing rows with what surrounds them: each row is drawn, walked from, and drawn again
// if it is to be complete and is not, attempt by attempt as by core/batch/sample.cpp. Knows no CUDA: a test runs all
// threads by turns on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch/random.hpp"
#include "followed_walk.hpp"
#include "following.h"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling_kernel.hpp"

namespace fastreplay {

// Each transition as likely as every other: UniformDraw of core/batch/draw.hpp. In steps, for one block.
struct UniformRows {
  static constexpr unsigned kThreads = 512;
  static constexpr unsigned kDrawSteps = 1;
  static constexpr std::uint64_t kFewAttempts = 256;

  struct Shared {};

  Draw draw;

  [[nodiscard]] static UniformRows of(const fastreplay_cuda_sampling& sampling) { return {Draw::of(sampling)}; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& /*shared*/) const {
    const fastreplay_cuda_window window = draw.drawn_from();
    if (step == 0 && draw.has_window && thread == 0) *draw.window = window;  // for graphs that are replayed
    if (window.size == 0) return;
    if (step == 0) {
      draw_share(draw, window, thread, kThreads);
    } else if (thread == 0) {
      count_draws(draw);
    }
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t first_row(unsigned thread) const {
    return first_row_of<kThreads>(draw, thread);
  }
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t most_attempts(const fastreplay_cuda_window& window,
                                                              std::uint64_t num_steps) const {
    return attempts_to_be_complete(window.size, num_steps);
  }

  // One more attempt of a row.
  FASTREPLAY_INLINE bool again(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt) const {
    std::uint64_t position = 0;
    const std::uint64_t word = word_of_attempt(key_of(*draw.generator), draw.generator->calls, row, attempt);
    if (!draw_below(window.size, word, position)) return false;
    as_global(draw.tickets)[row] = window.first + position;
    return true;
  }
  // The last one: among what suits, in one pass. False where nothing does.
  template <class Suits>
  FASTREPLAY_INLINE bool draw_among(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt,
                                    const Suits& suits) const {
    constexpr std::uint64_t kCounted = 1;
    Philox::Counter counter{row + 1, draw.generator->calls, attempt, kCounted};
    double total = 0;
    for (std::uint64_t position = 0; position < window.size; ++position) {
      if (!suits(position)) continue;
      total += 1;
      if (total == 1 || fraction(Philox::words(counter, key_of(*draw.generator))[0]) * total < 1) {
        as_global(draw.tickets)[row] = window.first + position;
      }
      ++counter[3];
    }
    return total > 0;
  }
  [[nodiscard]] FASTREPLAY_INLINE bool can_draw(std::uint64_t /*slot*/) const { return true; }
  FASTREPLAY_INLINE void after_redraws(unsigned /*thread*/, Shared& /*shared*/) const {}
};

// In steps, for one block: the rows are drawn as by `Rows`; walked from, and drawn again some times; where one is still
// not complete, the block counts whether anything is, and goes on only then, for what takes a thread long.
template <class Rows>
struct FollowedDraw {
  static constexpr unsigned kThreads = Rows::kThreads;
  struct Shared {
    typename Rows::Shared rows;
    std::uint64_t num_redrawn[kThreads];
    std::uint64_t num_missing[kThreads];
    std::uint64_t num_complete[kThreads];
  };

  Rows rows;
  FollowedWalk walk;
  bool is_redrawn;

  [[nodiscard]] static FollowedDraw of(const fastreplay_cuda_sampling& sampling) {
    return {Rows::of(sampling), FollowedWalk::of(sampling), sampling.following->is_redrawn != 0};
  }

  [[nodiscard]] FASTREPLAY_INLINE unsigned num_steps() const { return Rows::kDrawSteps + 4; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& shared) const {
    if (step < Rows::kDrawSteps) return rows.share(step, thread, shared.rows);
    const fastreplay_cuda_window window = rows.draw.drawn_from();
    if (window.size == 0) return;
    switch (step - Rows::kDrawSteps) {
      case 0:
        begin(window, thread, shared);
        return;
      case 1:
        shared.num_complete[thread] = sum(shared.num_missing) > 0 ? num_complete(window, thread) : 0;
        return;
      case 2:
        end(window, thread, shared);
        return;
      default:
        // Before the call is counted, whose number the rows' words have.
        if (thread == 0) rows.draw.generator->num_redraws += sum(shared.num_redrawn);
        if (thread == 0) rows.draw.generator->num_incomplete += sum(shared.num_missing);
        rows.share(Rows::kDrawSteps, thread, shared.rows);
    }
  }

 private:
  struct Complete {
    const FollowedWalk& walk;
    const fastreplay_cuda_window& window;
    FASTREPLAY_INLINE bool operator()(std::uint64_t position) const { return walk.is_complete(window, position); }
  };

  [[nodiscard]] FASTREPLAY_INLINE static std::uint64_t sum(const std::uint64_t (&numbers)[kThreads]) {
    std::uint64_t total = 0;
    for (unsigned i = 0; i < kThreads; ++i) total += numbers[i];
    return total;
  }

  FASTREPLAY_INLINE bool walk_from(const fastreplay_cuda_window& window, std::uint64_t row) const {
    return walk.walk(window, row, as_global(rows.draw.tickets)[row] - window.first);
  }

  // Attempts first, first + 1, ... up to before `last` until one is complete.
  FASTREPLAY_INLINE bool complete(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t first,
                                  std::uint64_t last) const {
    for (std::uint64_t attempt = first; attempt < last; ++attempt) {
      if (rows.again(window, row, kRedraws + attempt) && walk_from(window, row)) return true;
    }
    return false;
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t most_attempts(const fastreplay_cuda_window& window) const {
    return rows.most_attempts(window, walk.num_steps());
  }
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t few_attempts(const fastreplay_cuda_window& window) const {
    return most_attempts(window) < Rows::kFewAttempts ? most_attempts(window) : Rows::kFewAttempts;
  }

  FASTREPLAY_INLINE void begin(const fastreplay_cuda_window& window, unsigned thread, Shared& shared) const {
    std::uint64_t num_redrawn = 0;
    std::uint64_t num_missing = 0;
    for (std::uint64_t row = rows.first_row(thread); row < rows.first_row(thread + 1); ++row) {
      if (walk_from(window, row) || !is_redrawn) continue;
      ++num_redrawn;
      num_missing += complete(window, row, 1, few_attempts(window) + 1) ? 0 : 1;
    }
    shared.num_redrawn[thread] = num_redrawn;
    shared.num_missing[thread] = num_missing;
    rows.after_redraws(thread, shared.rows);
  }

  // Of the thread's share of what can be drawn.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t num_complete(const fastreplay_cuda_window& window,
                                                             unsigned thread) const {
    std::uint64_t count = 0;
    for (std::uint64_t position = thread; position < window.size; position += kThreads) {
      const bool is_drawn = rows.can_draw(walk.slot_of(window, position));
      count += is_drawn && walk.is_complete(window, position) ? 1 : 0;
    }
    return count;
  }

  // What is not complete by now stays as it is where nothing is.
  FASTREPLAY_INLINE void end(const fastreplay_cuda_window& window, unsigned thread, Shared& shared) const {
    if (shared.num_missing[thread] == 0 || sum(shared.num_complete) == 0) return;
    const std::uint64_t most = most_attempts(window);
    const Complete suits{walk, window};
    std::uint64_t num_missing = 0;
    for (std::uint64_t row = rows.first_row(thread); row < rows.first_row(thread + 1); ++row) {
      if (walk.ways()[row].is_complete || complete(window, row, few_attempts(window) + 1, most + 1)) continue;
      if (!rows.draw_among(window, row, kRedraws + most + 1, suits) || !walk_from(window, row)) ++num_missing;
    }
    shared.num_missing[thread] = num_missing;
    rows.after_redraws(thread, shared.rows);
  }
};

}  // namespace fastreplay
