// SPDX-License-Identifier: MIT
#include "priority/sums.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "priority/avx2.hpp"

namespace fastreplay {

template <class Reduce>
Tree<Reduce>::Tree(std::size_t num_groups) {
  std::size_t num_values = 0;
  for (std::size_t n = num_groups;; n = num_nodes(n)) {
    levels_.push_back({.values = nullptr, .prefixes = nullptr, .num_values = n});
    num_values += num_nodes(n) * kFanout;
    if (n <= kFanout) break;
  }
  memory_ = Region{num_values * sizeof(float) * (Reduce::kHasPrefixes ? 2 : 1)};
  auto* values = reinterpret_cast<float*>(memory_.data());
  if (Reduce::kNothing != 0) std::fill_n(values, num_values, Reduce::kNothing);
  for (Level& level : levels_) {
    level.values = values;
    level.prefixes = Reduce::kHasPrefixes ? values + num_values : values;
    values += num_nodes(level.num_values) * kFanout;
  }
}

template <class Reduce>
void Tree<Reduce>::finish(std::span<const std::uint32_t> groups) noexcept {
  std::array<std::uint32_t, kTogether> nodes;  // above the level at hand, each once
  std::size_t num_nodes = 0;
  const auto add = [&](std::uint32_t below) {
    const auto node = static_cast<std::uint32_t>(below / kFanout);
    // Written in any case, and kept where it is another: whether it is cannot be foreseen.
    nodes[num_nodes] = node;
    num_nodes += num_nodes == 0 || nodes[num_nodes - 1] != node ? 1 : 0;
  };
  for (const std::uint32_t group : groups) add(group);
  for (std::size_t i = 0; i + 1 < levels_.size(); ++i) {
    const Level level = levels_[i];
    float* const above = levels_[i + 1].values;
    const std::size_t count = std::exchange(num_nodes, 0);
    for (std::size_t j = 0; j < count; ++j) {
      const std::uint32_t node = nodes[j];
      above[node] = Reduce::of(level.values + node * kFanout, level.prefixes + node * kFanout);
      add(node);
    }
  }
  if (!groups.empty()) total_ = Reduce::of(levels_.back().values, levels_.back().prefixes);
}

template class Tree<Sum>;
template class Tree<Smallest>;

// Level by level for all targets, so that what one needs is on its way while another is looked for.
FASTREPLAY_INLINE void Sums::find_here(std::span<double> targets, std::uint32_t* nodes) const noexcept {
  for (std::size_t i = 0; i < targets.size(); ++i) nodes[i] = 0;
  for (std::size_t level = levels_.size(); --level > 0;) {
    const float* const below = levels_[level - 1].prefixes;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      nodes[i] = child_of(levels_[level], nodes[i], targets[i]);
      __builtin_prefetch(below + nodes[i] * kFanout);
    }
  }
}

FASTREPLAY_AVX2 void Sums::find_avx2(std::span<double> targets, std::uint32_t* nodes) const noexcept {
  find_here(targets, nodes);
}

void Sums::find_nodes(std::span<double> targets, std::uint32_t* nodes) const noexcept {
  has_avx2() ? find_avx2(targets, nodes) : find_here(targets, nodes);
}

}  // namespace fastreplay
