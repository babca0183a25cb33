// SPDX-License-Identifier: MIT
#include "target/chunks.hpp"

#include <algorithm>

namespace fastreplay {

namespace {

bool is_half(Dtype dtype) { return dtype == Dtype::kFloat16 || dtype == Dtype::kBFloat16; }

}  // namespace

std::size_t size_of(Dtype dtype) noexcept {
  switch (dtype) {
    case Dtype::kFloat32:
      return 4;
    case Dtype::kFloat64:
    case Dtype::kComplex64:
      return 8;
    case Dtype::kFloat16:
    case Dtype::kBFloat16:
      return 2;
    case Dtype::kComplex128:
      return 16;
    case Dtype::kBytes:
      break;
  }
  return 1;
}

bool is_supported(const Chunk& pair) noexcept {
  if (pair.master != nullptr && !is_half(pair.target_dtype)) return false;
  if (pair.target_dtype == pair.online_dtype) return true;
  return (pair.target_dtype == Dtype::kFloat32 && is_half(pair.online_dtype)) ||
         (is_half(pair.target_dtype) && pair.online_dtype == Dtype::kFloat32);
}

std::vector<Chunk> chunks_of(std::span<const Pair> pairs) {
  std::size_t count = 0;
  for (const Pair& pair : pairs) count += pair.num_elements / kChunkElements + 1;
  std::vector<Chunk> chunks;
  chunks.reserve(count);
  for (const Pair& pair : pairs) {
    // Bytes are cut to as much memory as float32.
    const std::size_t most = pair.chunk.target_dtype == Dtype::kBytes ? 4 * kChunkElements : kChunkElements;
    for (std::size_t first = 0; first < pair.num_elements; first += most) {
      Chunk chunk = pair.chunk;
      chunk.target = static_cast<std::byte*>(chunk.target) + first * size_of(chunk.target_dtype);
      chunk.online = static_cast<const std::byte*>(chunk.online) + first * size_of(chunk.online_dtype);
      if (chunk.master != nullptr) chunk.master += first;
      chunk.num_elements = static_cast<std::uint32_t>(std::min(most, pair.num_elements - first));
      chunks.push_back(chunk);
    }
  }
  return chunks;
}

}  // namespace fastreplay
