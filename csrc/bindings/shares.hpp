// SPDX-License-Identifier: MIT
// What one of several fills of a block, as Python says it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "batch/block.hpp"
#include "batch/layout.hpp"

namespace fastreplay {

// The parts of a share of blocks of a layout, and their places among the block's.
class BlockShare {
 public:
  BlockShare(std::vector<Part> parts, std::vector<std::size_t> places)
      : parts_{std::move(parts)}, places_{std::move(places)} {}

  // Some rows of a block, which outlives them.
  [[nodiscard]] Block of(const Block& whole, std::size_t first_row, std::size_t num_rows) const {
    return {whole, parts_, places_, first_row, num_rows};
  }

 private:
  std::vector<Part> parts_;
  std::vector<std::size_t> places_;
};

// Where a block says whose each row is, and what rows weigh, kNone where it does not.
struct ShareMarks {
  static constexpr std::size_t kNone = ~std::size_t{0};

  // Throws std::invalid_argument where the block has no such parts.
  ShareMarks(const Block& block, std::int64_t source_part, std::int64_t weight_part)
      : block{block},
        source{checked(source_part, sizeof(std::int64_t))},
        weight{weight_part < 0 ? kNone : checked(weight_part, sizeof(float))} {}

  // Of rows that are in the block.
  void set(std::int64_t member, std::size_t first_row, std::size_t num_rows, bool has_weights) const noexcept {
    std::fill_n(reinterpret_cast<std::int64_t*>(block.part(source)) + first_row, num_rows, member);
    if (weight == kNone || has_weights) return;
    std::fill_n(reinterpret_cast<float*>(block.part(weight)) + first_row, num_rows, 1.0F);
  }

  const Block& block;
  const std::size_t source;
  const std::size_t weight;

 private:
  [[nodiscard]] std::size_t checked(std::int64_t part, std::size_t row_bytes) const {
    const auto& parts = block.layout().parts();
    const auto place = static_cast<std::size_t>(part);
    if (place >= parts.size() || parts[place].row_bytes != row_bytes) throw std::invalid_argument{"no such marks"};
    return place;
  }
};

}  // namespace fastreplay
