// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing a minibatch by priority: PriorityDraw of core/batch/priority_draw.hpp, word for
// word. Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "batch/random.hpp"
#include "inline.hpp"
#include "mass_tree.hpp"
#include "masses.h"
#include "memory_access.hpp"
#include "sampling_kernel.hpp"

namespace fastreplay {

// In steps, for one block: how many rows are drawn by mass, the rows, their weights. A thread has rows that follow each
// other, so that the strata before its own are those of the threads before.
struct WeighedDraw {
  static constexpr unsigned kThreads = 512;
  static constexpr unsigned kDrawSteps = 2;
  static constexpr std::uint64_t kFewAttempts = 256;

  struct Shared {
    std::uint64_t num_by_mass[kThreads];
    float least[kThreads];  // N * P of the thread's rows
  };

  Draw draw;
  MassTree tree;
  double uniform_mix;
  double beta;
  std::uint64_t normalize;
  float* weights;  // N * P until the last step
  float* probabilities;
  bool is_stratified;

  [[nodiscard]] static WeighedDraw of(const fastreplay_cuda_sampling& sampling) {
    const fastreplay_cuda_weighing& weighing = *sampling.weighing;
    auto* block = static_cast<std::byte*>(sampling.block);
    return {.draw = Draw::of(sampling),
            .tree = MassTree::of(weighing.masses),
            .uniform_mix = weighing.uniform_mix,
            .beta = weighing.beta,
            .normalize = weighing.normalize,
            .weights = reinterpret_cast<float*>(block + weighing.weights_offset),
            .probabilities = reinterpret_cast<float*>(block + weighing.probabilities_offset),
            .is_stratified = weighing.is_stratified != 0};
  }

  [[nodiscard]] FASTREPLAY_INLINE unsigned num_steps() const { return kDrawSteps + 1; }

  FASTREPLAY_INLINE void share(unsigned step, unsigned thread, Shared& shared) const {
    const fastreplay_cuda_window window = draw.drawn_from();
    const Population population = population_of(window);
    if (step == 0) {
      if (draw.has_window && thread == 0) *draw.window = window;  // for the gather, and for graphs that are replayed
      shared.num_by_mass[thread] = population.is_mixed ? count_by_mass(thread) : 0;
    } else if (window.size == 0) {
      return;
    } else if (step == 1) {
      draw_rows(window, population, thread, shared);
      after_redraws(thread, shared);
    } else {
      weigh(divisor(population, shared), thread);
      if (thread > 0) return;
      count_draws(draw);
      if (population.total == 0) ++draw.generator->num_without_mass;
    }
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t first_row(unsigned thread) const {
    return first_row_of<kThreads>(draw, thread);
  }
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t most_attempts(const fastreplay_cuda_window& window,
                                                              std::uint64_t num_steps) const {
    return attempts_to_be_complete(window.size, num_steps);
  }

  // What FollowedDraw asks for. One more attempt of a row.
  FASTREPLAY_INLINE bool again(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt) const {
    const Population population = population_of(window);
    const std::uint64_t word = word_of_attempt(key_of(*draw.generator), draw.generator->calls, row, attempt);
    if (population.total == 0 || (population.is_mixed && is_uniform(row, attempt))) {
      std::uint64_t position = 0;
      const bool is_drawn = draw_below(window.size, word, position);
      if (is_drawn) set(window, population, row, position);
      return is_drawn;
    }
    const std::uint64_t slot = tree.find(fraction(word) * population.total);
    if (!(as_global(tree.leaves)[slot] > 0)) return false;
    set(window, population, row, slot - window.first_slot + (slot < window.first_slot ? tree.capacity : 0));
    return true;
  }
  // The last one: among what suits. False where nothing that does can be drawn.
  template <class Suits>
  FASTREPLAY_INLINE bool draw_among(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt,
                                    const Suits& suits) const {
    const Population population = population_of(window);
    const bool is_by_mass = population.total > 0 && !(population.is_mixed && is_uniform(row, attempt));
    std::uint64_t position = window.size;
    find_counted(window, row, attempt, is_by_mass, suits, position);
    if (position < window.size) set(window, population, row, position);
    return position < window.size;
  }
  [[nodiscard]] FASTREPLAY_INLINE bool can_draw(std::uint64_t slot) const {
    return tree.population().total == 0 || uniform_mix > 0 || as_global(tree.leaves)[slot] > 0;
  }
  FASTREPLAY_INLINE void after_redraws(unsigned thread, Shared& shared) const {
    float least = INFINITY;
    for (std::uint64_t row = first_row(thread); row < first_row(thread + 1); ++row) {
      const float likely = as_global(weights)[row];
      if (likely < least) least = likely;
    }
    shared.least[thread] = least;
  }

 private:
  struct All {
    FASTREPLAY_INLINE bool operator()(std::uint64_t /*position*/) const { return true; }
  };

  // What is drawn from, and what makes N * P of a mass.
  struct Population {
    double total;
    double share;  // 1 / N
    double by_chance;
    double by_mass;
    double rarest;  // N * P of the transition with the smallest mass
    bool is_mixed;

    [[nodiscard]] FASTREPLAY_INLINE double times_as_likely(float mass) const {
      return by_chance + by_mass * static_cast<double>(mass);
    }
  };

  // The last word of the counter of what decides whether a row is drawn uniformly, and of the first of what is counted.
  static constexpr std::uint64_t kMixture = 1;
  static constexpr std::uint64_t kCounted = 2;

  [[nodiscard]] FASTREPLAY_INLINE Population population_of(const fastreplay_cuda_window& window) const {
    const DevicePopulation masses = tree.population();
    const bool counts_all = masses.total == 0 || uniform_mix > 0;
    const std::uint64_t least = counts_all ? window.size : masses.count;
    const auto count = static_cast<double>(least > 0 ? least : 1);
    Population made{.total = masses.total,
                    .share = 1 / count,
                    .by_chance = masses.total == 0 ? 1 : uniform_mix,
                    .by_mass = masses.total == 0 ? 0 : (1 - uniform_mix) * count / masses.total,
                    .rarest = 1,
                    .is_mixed = masses.total > 0 && uniform_mix > 0};
    const bool has_zeros = uniform_mix > 0 && static_cast<double>(masses.count) < count;
    made.rarest = made.times_as_likely(has_zeros ? 0 : masses.smallest);
    return made;
  }

  [[nodiscard]] FASTREPLAY_INLINE bool is_uniform(std::uint64_t row, std::uint64_t attempt) const {
    const Philox::Counter counter{row + 1, draw.generator->calls, attempt, kMixture};
    return fraction(Philox::words(counter, key_of(*draw.generator))[0]) < uniform_mix;
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t count_by_mass(unsigned thread) const {
    std::uint64_t count = 0;
    for (std::uint64_t row = first_row(thread); row < first_row(thread + 1); ++row) count += is_uniform(row, 0) ? 0 : 1;
    return count;
  }

  FASTREPLAY_INLINE void draw_rows(const fastreplay_cuda_window& window, const Population& population, unsigned thread,
                                   const Shared& shared) const {
    std::uint64_t stratum = first_row(thread);
    std::uint64_t num_strata = draw.batch_size;
    if (population.is_mixed) {
      stratum = num_strata = 0;
      for (unsigned i = 0; i < kThreads; ++i) {
        if (i < thread) stratum += shared.num_by_mass[i];
        num_strata += shared.num_by_mass[i];
      }
    }
    const double share = is_stratified ? population.total / static_cast<double>(num_strata) : population.total;
    for (std::uint64_t row = first_row(thread); row < first_row(thread + 1); ++row) {
      draw_row(window, population, row, is_stratified ? static_cast<double>(stratum) : 0, share);
      stratum += population.is_mixed && is_uniform(row, 0) ? 0 : 1;
    }
  }

  // Attempts until one succeeds: a target may fall on a leaf without mass, if seldom.
  FASTREPLAY_INLINE void draw_row(const fastreplay_cuda_window& window, const Population& population, std::uint64_t row,
                                  double before, double share) const {
    for (std::uint64_t attempt = 0;; ++attempt) {
      const std::uint64_t word = word_of(draw, row, attempt);
      std::uint64_t position = 0;
      if (population.total == 0 || (population.is_mixed && is_uniform(row, attempt))) {
        if (draw_below(window.size, word, position)) return set(window, population, row, position);
      } else if (attempt > kMostAttempts) {
        find_counted(window, row, attempt, true, All{}, position);
        return set(window, population, row, position);
      } else {
        const std::uint64_t slot =
            tree.find(attempt == 0 ? (before + fraction(word)) * share : fraction(word) * population.total);
        if (as_global(tree.leaves)[slot] > 0) {
          return set(window, population, row,
                     slot - window.first_slot + (slot < window.first_slot ? tree.capacity : 0));
        }
      }
    }
  }

  // draw_counted() of core/batch/draw.hpp: in one pass over all that is there. Where nothing can be drawn, the position
  // stays.
  template <class Suits>
  FASTREPLAY_INLINE void find_counted(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t attempt,
                                      bool is_by_mass, const Suits& suits, std::uint64_t& found) const {
    double total = 0;
    Philox::Counter counter{row + 1, draw.generator->calls, attempt, kCounted};
    for (std::uint64_t position = 0; position < window.size; ++position) {
      const double mass = is_by_mass ? static_cast<double>(as_global(tree.leaves)[slot_of(window, position)]) : 1;
      if (mass == 0 || !suits(position)) continue;
      const bool is_first = total == 0;
      total += mass;
      if (is_first || fraction(Philox::words(counter, key_of(*draw.generator))[0]) * total < mass) found = position;
      ++counter[3];
    }
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t slot_of(const fastreplay_cuda_window& window,
                                                        std::uint64_t position) const {
    const std::uint64_t slot = window.first_slot + position;
    return slot < tree.capacity ? slot : slot - tree.capacity;
  }

  FASTREPLAY_INLINE void set(const fastreplay_cuda_window& window, const Population& population, std::uint64_t row,
                             std::uint64_t position) const {
    const double likely = population.times_as_likely(as_global(tree.leaves)[slot_of(window, position)]);
    as_global(draw.tickets)[row] = window.first + position;
    as_global(weights)[row] = static_cast<float>(likely);
    as_global(probabilities)[row] = static_cast<float>(likely * population.share);
  }

  [[nodiscard]] FASTREPLAY_INLINE float divisor(const Population& population, const Shared& shared) const {
    if (normalize == 0) return 1;
    if (normalize == 2) return static_cast<float>(population.rarest);
    float least = shared.least[0];
    for (unsigned i = 1; i < kThreads; ++i) least = shared.least[i] < least ? shared.least[i] : least;
    return least;
  }

  FASTREPLAY_INLINE void weigh(float divisor, unsigned thread) const {
    for (std::uint64_t row = first_row(thread); row < first_row(thread + 1); ++row) {
      float& weight = as_global(weights)[row];
      weight = std::pow(divisor / weight, static_cast<float>(beta));
    }
  }
};

}  // namespace fastreplay
