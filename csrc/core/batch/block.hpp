// SPDX-License-Identifier: MIT
// The memory of one minibatch. Knows nothing of who fills it, or of whose it is.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "batch/layout.hpp"
#include "ring/ring.hpp"
#include "storage/region.hpp"

namespace fastreplay {

class Block {
 public:
  Block(std::vector<Part> parts, std::size_t batch_size)  // throws std::invalid_argument, std::bad_alloc
      : layout_{std::move(parts), batch_size}, owned_{layout_.num_bytes()}, data_{owned_.data()} {}
  // In memory that somebody else owns and keeps (page-locked, say): at least layout().num_bytes() at a
  // multiple of kCacheLine, or std::invalid_argument is thrown.
  Block(std::vector<Part> parts, std::size_t batch_size, std::span<std::byte> memory);
  // Some rows of another block, which outlives this (BatchLayout).
  Block(const Block& whole, std::vector<Part> parts, std::span<const std::size_t> places, std::size_t first_row,
        std::size_t num_rows)
      : layout_{whole.layout_, std::move(parts), places, first_row, num_rows}, owned_{}, data_{whole.data_} {}

  [[nodiscard]] const BatchLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::size_t batch_size() const noexcept { return layout_.batch_size(); }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::byte* part(std::size_t i) const noexcept { return data_ + layout_.offsets()[i]; }
  [[nodiscard]] std::span<Ticket> tickets() const noexcept {
    return {reinterpret_cast<Ticket*>(data_ + layout_.tickets_offset()), batch_size()};
  }

 private:
  BatchLayout layout_;
  Region owned_;
  std::byte* data_;
};

}  // namespace fastreplay
