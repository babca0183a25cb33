// SPDX-License-Identifier: MIT
#include "priority/sums.hpp"

#include <algorithm>

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
  changed_.reserve(num_nodes(num_groups));
}

template <class Reduce>
void Tree<Reduce>::set(std::size_t group, float value) noexcept {
  levels_.front().values[group] = value;
  const auto node = static_cast<std::uint32_t>(group / kFanout);
  if (changed_.empty() || changed_.back() != node) changed_.push_back(node);  // within what was reserved
}

template <class Reduce>
void Tree<Reduce>::finish() noexcept {
  if (changed_.empty()) return;
  for (std::size_t level = 0; level + 1 < levels_.size(); ++level) {
    std::size_t num_above = 0;
    for (const std::uint32_t node : changed_) {
      levels_[level + 1].values[node] =
          Reduce::of(levels_[level].values + node * kFanout, levels_[level].prefixes + node * kFanout);
      const auto above = static_cast<std::uint32_t>(node / kFanout);
      if (num_above == 0 || changed_[num_above - 1] != above) changed_[num_above++] = above;
    }
    changed_.resize(num_above);
  }
  total_ = Reduce::of(levels_.back().values, levels_.back().prefixes);
  changed_.clear();
}

template class Tree<Sum>;
template class Tree<Smallest>;

// Level by level for all targets, so that what one needs is on its way while another is looked for.
void Sums::find(std::span<double> targets, std::uint32_t* groups) const noexcept {
  for (std::size_t i = 0; i < targets.size(); ++i) groups[i] = 0;
  for (std::size_t level = levels_.size(); level-- > 0;) {
    const float* prefixes = levels_[level].prefixes;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      groups[i] = static_cast<std::uint32_t>(groups[i] * kFanout +
                                             find_child<kFanout>(prefixes + groups[i] * kFanout, targets[i]));
      if (level > 0) __builtin_prefetch(levels_[level - 1].prefixes + groups[i] * kFanout);
    }
  }
}

}  // namespace fastreplay
