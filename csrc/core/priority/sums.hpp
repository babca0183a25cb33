// SPDX-License-Identifier: MIT
// Values of groups of leaves, of sixteen of these each, and so on up to one. For one thread at a time. Knows nothing of
// leaves, laps or windows.
//
// A node of sixteen float32 is one cache line. It is always made anew from what is below, never adjusted by a
// difference: after any number of updates the tree is the one that would be built from the same leaves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "priority/node.hpp"
#include "storage/region.hpp"

namespace fastreplay {

// How sixteen values become one, what is kept beside them for searches, and what a group is that has none.
struct Sum {
  static constexpr float kNothing = 0;
  static constexpr bool kHasPrefixes = true;
  static float of(const float* values, float* prefixes) noexcept { return make_prefixes(values, prefixes); }
};

struct Smallest {
  static constexpr float kNothing = std::numeric_limits<float>::infinity();
  static constexpr bool kHasPrefixes = false;
  static float of(const float* values, float* /*prefixes*/ = nullptr) noexcept {
    return *std::min_element(values, values + kFanout);
  }
};

template <class Reduce>
class Tree {
 public:
  // Of num_groups groups, without any where there are to be no values. Throws std::bad_alloc.
  explicit Tree(std::size_t num_groups);

  [[nodiscard]] std::size_t num_bytes() const noexcept { return memory_.num_bytes(); }
  [[nodiscard]] float total() const noexcept { return total_; }
  [[nodiscard]] float of_group(std::size_t group) const noexcept { return levels_.front().values[group]; }

  // So many groups are finished together, at most.
  static constexpr std::size_t kTogether = 256;

  // Takes the value of a group, to be finished.
  void set(std::size_t group, float value) noexcept { levels_.front().values[group] = value; }
  // Makes anew what lies above groups that were set, in ascending order.
  void finish(std::span<const std::uint32_t> groups) noexcept;

 protected:
  struct Level {
    float* values;
    float* prefixes;  // of each node; the values where there are none
    std::size_t num_values;
  };

  std::vector<Level> levels_;  // the groups first; the last has at most sixteen values

 private:
  static constexpr std::size_t num_nodes(std::size_t num_values) noexcept {
    return (num_values + kFanout - 1) / kFanout;
  }

  Region memory_;
  float total_ = Reduce::kNothing;
};

extern template class Tree<Sum>;
extern template class Tree<Smallest>;

// Sums of masses: where a target between 0 and the total falls.
class Sums : public Tree<Sum> {
 public:
  using Tree::Tree;

  // A target in [0, total()), which is above 0, is looked for in two steps: the node of groups that it falls on, of
  // many targets together, and the group of that node. What is left of it in what was found takes its place.
  void find_nodes(std::span<double> targets, std::uint32_t* nodes) const noexcept;
  FASTREPLAY_INLINE std::uint32_t find_group(std::uint32_t node, double& target) const noexcept {
    return child_of(levels_.front(), node, target);
  }
  void prefetch(std::size_t group) const noexcept { __builtin_prefetch(&levels_.front().values[group]); }

 private:
  FASTREPLAY_INLINE static std::uint32_t child_of(const Level& level, std::uint32_t node, double& target) noexcept {
    return static_cast<std::uint32_t>(node * kFanout + find_child(level.prefixes + node * kFanout, target));
  }
  void find_here(std::span<double> targets, std::uint32_t* nodes) const noexcept;
  void find_avx2(std::span<double> targets, std::uint32_t* nodes) const noexcept;
};

}  // namespace fastreplay
