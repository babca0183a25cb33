// SPDX-License-Identifier: MIT
#include "storage/records.hpp"

#include <limits>
#include <new>
#include <stdexcept>
#include <utility>

namespace fastreplay {

namespace {

std::size_t checked_bytes(std::size_t capacity, std::size_t stride) {
  if (capacity == 0) throw std::invalid_argument{"capacity must be positive"};
  if (stride > std::numeric_limits<std::ptrdiff_t>::max() / capacity) throw std::bad_alloc{};
  return capacity * stride;
}

FrameMemory frames_in(const Region& region, std::size_t num_bytes_beside) {
  const bool has_any = num_bytes_beside > 0;
  return {region.data(), has_any ? region.sparse() + num_bytes_beside : region.data() + region.num_bytes()};
}

}  // namespace

Records::Records(RecordLayout layout, std::size_t capacity, Memory& memory)
    : layout_{std::move(layout)},
      capacity_{capacity},
      region_{memory.take(checked_bytes(capacity, layout_.stride()), checked_bytes(capacity, layout_.extra_bytes()))},
      frames_{frames_in(region_, capacity * layout_.extra_bytes())},
      paging_{memory.paging()} {}

}  // namespace fastreplay
