// SPDX-License-Identifier: MIT
// The table of a target update: pairs of tensors, cut into chunks. Knows neither networks nor what is done with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fastreplay {

enum class Dtype : std::uint8_t { kFloat32, kFloat64, kFloat16, kBFloat16, kComplex64, kComplex128, kBytes };

// Two tensors of equally many elements that lie in memory in the same order without gaps, or equally
// many bytes (kBytes: copied whatever tau is). With a master, the float32 master is what moves, and the
// float16 or bfloat16 target is written from it.
struct Chunk {
  void* target;
  const void* online;
  float* master;  // null without one
  std::uint32_t num_elements;
  Dtype target_dtype;
  Dtype online_dtype;
  bool is_copied;  // whatever tau is
};
static_assert(sizeof(Chunk) == 32);

// A pair of whole tensors, which may be larger than a chunk.
struct Pair {
  Chunk chunk;  // its num_elements is not used
  std::size_t num_elements;
};

// Elements of a chunk on the CPU: 5 ns of overhead for 400 ns of work.
inline constexpr std::size_t kChunkElements = 4096;

// Whether there is a kernel for this pair. Equal dtypes; float32 from a 16-bit float; a 16-bit float from
// float32; a master only under a 16-bit target.
[[nodiscard]] bool is_supported(const Chunk& pair) noexcept;

[[nodiscard]] std::size_t size_of(Dtype dtype) noexcept;

// Cuts pairs, each supported, into chunks of at most kChunkElements. No chunk is empty.
[[nodiscard]] std::vector<Chunk> chunks_of(std::span<const Pair> pairs);

}  // namespace fastreplay
