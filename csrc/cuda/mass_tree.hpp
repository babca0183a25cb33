// SPDX-License-Identifier: MIT
// Masses in a device's memory, and a tree of their sums: sixteen leaves a group, sixteen groups a node, and so on up to
// one. Knows no CUDA and no minibatches.
//
// The sums are those of core/priority, in its order, so that a draw by the same word from the same masses falls on the
// same leaf. A node is always made anew from what is below it, never adjusted by a difference.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "inline.hpp"
#include "masses.h"
#include "memory_access.hpp"

namespace fastreplay {

// What |p| + eps weighs: MassRule of core/priority/mass.hpp. Where that takes the power of floats, here it is the
// double power of the same ones, as a device's float functions are further from the CPU's.
struct DeviceMassRule {
  double alpha;
  double eps;
  double floor;
  double most;  // a mass, so that the sum of all is finite

  [[nodiscard]] FASTREPLAY_INLINE double base(double p) const {
    const double shifted = std::fabs(p) + eps;
    return shifted < floor ? floor : shifted;
  }
  [[nodiscard]] FASTREPLAY_INLINE float mass(double base) const {
    const bool is_float = base > 1e-30 && base < 1e30 && alpha < 1;
    const double exponent = is_float ? static_cast<double>(static_cast<float>(alpha)) : alpha;
    const double power =
        alpha == 1 ? base : std::pow(is_float ? static_cast<double>(static_cast<float>(base)) : base, exponent);
    return static_cast<float>(power < most ? power : most);
  }
};

// The sixteen prefix sums of a node's values: make_prefixes() of core/priority/node.hpp, lane by lane.
class Prefixes {
 public:
  static constexpr unsigned kCount = 16;

  FASTREPLAY_INLINE explicit Prefixes(const float* values) {
    const auto* fours = reinterpret_cast<const Four*>(values);
    float carry = 0;
    FASTREPLAY_UNROLL
    for (unsigned i = 0; i < kCount / 4; ++i) {
      const Four four = fours[i];
      const float first_two = four.values[1] + four.values[0];
      sums_[4 * i] = four.values[0] + carry;
      sums_[4 * i + 1] = first_two + carry;
      sums_[4 * i + 2] = four.values[2] + four.values[1] + four.values[0] + carry;
      sums_[4 * i + 3] = four.values[3] + four.values[2] + first_two + carry;
      carry = sums_[4 * i + 3];
    }
  }

  [[nodiscard]] FASTREPLAY_INLINE float sum() const { return sums_[kCount - 1]; }

  // find_child() of core/priority/node.hpp.
  FASTREPLAY_INLINE unsigned find(double& target) const {
    const auto largest = std::bit_cast<float>(std::bit_cast<std::uint32_t>(sum()) - 1);
    const auto given = static_cast<float>(target);
    const float at = largest < given ? largest : given;
    unsigned child = kCount - 1;
    float before = sums_[kCount - 2];
    FASTREPLAY_UNROLL
    for (unsigned i = kCount - 1; i-- > 0;) {
      if (!(sums_[i] > at)) continue;
      child = i;
      before = i > 0 ? sums_[i - 1] : 0;
    }
    const double rest = target - static_cast<double>(before);
    target = rest > 0 ? rest : 0;
    return child;
  }

 private:
  struct alignas(16) Four {
    float values[4];
  };
  float sums_[kCount];
};

// What all masses make together.
struct DevicePopulation {
  double total;         // 0 where every mass is zero
  float smallest;       // of those above zero; 0 where there are none
  std::uint64_t count;  // of those above zero
};

// Level 0 are the leaves; the last has one node. Each level begins at a multiple of 64 bytes and ends with zeros.
class MassTree {
 public:
  static constexpr unsigned kMaxLevels = 16;

  [[nodiscard]] static MassTree of(const fastreplay_cuda_masses& masses) {
    auto* memory = static_cast<std::byte*>(masses.memory);
    MassTree tree{.leaves = reinterpret_cast<float*>(memory + FASTREPLAY_CUDA_FIRST_MASS),
                  .state = reinterpret_cast<fastreplay_cuda_mass_state*>(memory),
                  .capacity = masses.capacity,
                  .rule = {.alpha = masses.alpha,
                           .eps = masses.eps,
                           .floor = masses.floor,
                           .most = static_cast<float>(3e38 / static_cast<double>(masses.capacity))},
                  .sums = nullptr,
                  .smallest = nullptr,
                  .counts = nullptr,
                  .num_levels = 0,
                  .begin = {}};
    const std::uint64_t num_nodes = tree.make_levels();
    tree.sums = tree.leaves + padded(masses.capacity);
    tree.smallest = tree.sums + num_nodes;
    tree.counts = reinterpret_cast<std::uint32_t*>(tree.smallest + num_nodes);
    return tree;
  }

  [[nodiscard]] static std::uint64_t num_bytes(std::uint64_t capacity) {
    MassTree tree{};
    tree.capacity = capacity;
    return FASTREPLAY_CUDA_FIRST_MASS + (padded(capacity) + 3 * tree.make_levels()) * sizeof(float);
  }

  // Makes the nodes of one level, from 1 to num_levels, anew, of which a leaf is part. Those below are done.
  FASTREPLAY_INLINE void repair(unsigned level, std::uint64_t slot) const { make(level, slot >> 4 * level); }

  // The same for `num_slots` leaves from one on, shared among a block's threads.
  FASTREPLAY_INLINE void repair_run(unsigned level, std::uint64_t first, std::uint64_t num_slots, unsigned thread,
                                    unsigned num_threads) const {
    if (num_slots == 0) return;
    const std::uint64_t last = (first + num_slots - 1) >> 4 * level;
    for (std::uint64_t node = (first >> 4 * level) + thread; node <= last; node += num_threads) make(level, node);
  }

  [[nodiscard]] FASTREPLAY_INLINE DevicePopulation population() const {
    const std::uint64_t top = begin[num_levels - 1];
    return {.total = as_global(sums)[top], .smallest = as_global(smallest)[top], .count = as_global(counts)[top]};
  }

  // The slot that a target in [0, total) falls on.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t find(double target) const {
    std::uint64_t node = 0;
    for (unsigned level = num_levels - 1; level > 0; --level) {
      node = node * 16 + Prefixes{as_global(sums) + begin[level - 1] + node * 16}.find(target);
    }
    return node * 16 + Prefixes{as_global(leaves) + node * 16}.find(target);
  }

  float* leaves;
  fastreplay_cuda_mass_state* state;
  std::uint64_t capacity;
  DeviceMassRule rule;
  float* sums;            // of all nodes, level 1 first
  float* smallest;        // mass above zero, 0 where there is none
  std::uint32_t* counts;  // leaves above zero
  unsigned num_levels;
  std::uint64_t begin[kMaxLevels];  // where level i + 1 begins among the nodes

  [[nodiscard]] static constexpr std::uint64_t padded(std::uint64_t count) { return (count + 15) / 16 * 16; }

 private:
  // Returns how many nodes there are, with what fills levels up.
  [[nodiscard]] std::uint64_t make_levels() {
    std::uint64_t num_nodes = 0;
    num_levels = 0;
    std::uint64_t count = capacity;
    do {
      count = padded(count) / 16;
      begin[num_levels++] = num_nodes;
      num_nodes += padded(count);
    } while (count > 1);
    return num_nodes;
  }

  FASTREPLAY_INLINE void make(unsigned level, std::uint64_t node) const {
    const std::uint64_t below = level > 1 ? begin[level - 2] + node * 16 : node * 16;
    const float* values = (level > 1 ? as_global(sums) : as_global(leaves)) + below;
    const float* least = level > 1 ? as_global(smallest) + below : values;
    float found = 0;
    std::uint32_t count = 0;
    for (unsigned i = 0; i < 16; ++i) {
      const float value = least[i];
      if (value > 0 && (found == 0 || value < found)) found = value;
      count += level > 1 ? as_global(counts)[below + i] : value > 0 ? 1U : 0U;
    }
    const std::uint64_t place = begin[level - 1] + node;
    as_global(sums)[place] = Prefixes{values}.sum();
    as_global(smallest)[place] = found;
    as_global(counts)[place] = count;
  }
};

}  // namespace fastreplay
