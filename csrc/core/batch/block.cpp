// SPDX-License-Identifier: MIT
#include "batch/block.hpp"

#include <cstdint>
#include <stdexcept>

namespace fastreplay {

Block::Block(std::vector<Part> parts, std::size_t batch_size, std::span<std::byte> memory)
    : layout_{std::move(parts), batch_size}, data_{memory.data()} {
  if (memory.size() < layout_.num_bytes()) throw std::invalid_argument{"the memory is too short for the minibatch"};
  if (reinterpret_cast<std::uintptr_t>(data_) % kCacheLine != 0) {
    throw std::invalid_argument{"the memory does not begin at a cache line"};
  }
}

}  // namespace fastreplay
