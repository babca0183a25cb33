// SPDX-License-Identifier: MIT
// What a launch of a target update is given, and how pairs become launches. Knows no CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "inline.hpp"
#include "target/chunks.hpp"
#include "target/lerp.hpp"

namespace fastreplay {

// With kChunkElements, four 16-byte accesses of float32 a thread, all in flight at once.
inline constexpr unsigned kThreadsPerChunk = 256;
// Bytes are cut to as much memory as float32.
inline constexpr std::uint32_t kChunkBytes = 4 * kChunkElements;

// A pair in a kernel's parameters.
struct Entry {
  void* target;
  const void* online;
  float* master;              // null without one
  std::uint32_t first_chunk;  // of the launch
  std::uint32_t num_chunks;
  std::uint32_t num_in_last;  // elements
  bool is_bytes;
  bool is_copied;  // whatever tau is
};

// A launch's parameters: pairs of one kind, and of bytes, by value. So a captured graph has a copy.
struct Updates {
  static constexpr unsigned kMaxEntries = 101;

  double tau_of_host;
  const void* tau_on_device;  // null: tau_of_host is it
  bool tau_is_double;
  std::uint32_t num_entries;
  Entry entries[kMaxEntries];

  [[nodiscard]] FASTREPLAY_INLINE double tau() const {
    if (tau_on_device == nullptr) return tau_of_host;
    return tau_is_double ? *static_cast<const double*>(tau_on_device) : *static_cast<const float*>(tau_on_device);
  }
};

// Which entry a chunk of the launch belongs to.
FASTREPLAY_INLINE std::uint32_t entry_of(const Updates& updates, std::uint32_t chunk) {
  std::uint32_t first = 0;
  for (std::uint32_t count = updates.num_entries; count > 1;) {
    const std::uint32_t half = count / 2;
    if (updates.entries[first + half].first_chunk <= chunk) first += half;
    count -= half;
  }
  return first;
}

// Dtypes of a pair: a kernel each, which a compiler and an instruction cache have an easier time with than with one
// that holds them all.
template <class Target_, class Online_, bool kHasMaster_>
struct KindOf {
  using Target = Target_;
  using Online = Online_;
  using Real = typename Compute<Target>::Type;
  static constexpr bool kHasMaster = kHasMaster_;
  static constexpr unsigned kWidestBytes =
      std::max({unsigned{sizeof(Target)}, unsigned{sizeof(Online)}, kHasMaster ? 4U : 1U});
};

// Calls the visitor with the kind of a pair that is no complex one. One of bytes goes with any.
template <class Visitor>
auto visit_kind(const Chunk& pair, Visitor visitor) {
  const bool is_same = pair.target_dtype == pair.online_dtype;
  const auto visit_half = [&]<class Half>(Half) {
    if (pair.master != nullptr) {
      return is_same ? visitor(KindOf<Half, Half, true>{}) : visitor(KindOf<Half, float, true>{});
    }
    return is_same ? visitor(KindOf<Half, Half, false>{}) : visitor(KindOf<Half, float, false>{});
  };
  if (pair.target_dtype == Dtype::kFloat16) return visit_half(Float16{});
  if (pair.target_dtype == Dtype::kBFloat16) return visit_half(BFloat16{});
  if (pair.target_dtype == Dtype::kFloat64) return visitor(KindOf<double, double, false>{});
  if (pair.online_dtype == Dtype::kFloat16) return visitor(KindOf<float, Float16, false>{});
  if (pair.online_dtype == Dtype::kBFloat16) return visitor(KindOf<float, BFloat16, false>{});
  return visitor(KindOf<float, float, false>{});
}

[[nodiscard]] inline bool go_together(const Chunk& first, const Chunk& other) {
  return other.target_dtype == Dtype::kBytes ||
         (other.target_dtype == first.target_dtype && other.online_dtype == first.online_dtype &&
          (other.master == nullptr) == (first.master == nullptr));
}

// Takes as many pairs from the front as one launch moves. Returns its number of chunks, 0 where they are empty.
[[nodiscard]] inline std::uint32_t take_launch(std::span<const Pair>& pairs, Updates& updates) {
  constexpr std::uint64_t kMaxChunks = 0x7FFFFFFF;  // as many blocks as a launch may have
  const Pair& first = pairs.front();
  std::uint32_t num_chunks = 0;
  updates.num_entries = 0;
  while (!pairs.empty() && updates.num_entries < Updates::kMaxEntries && go_together(first.chunk, pairs[0].chunk)) {
    const auto& [chunk, num_elements] = pairs.front();
    const bool is_bytes = chunk.target_dtype == Dtype::kBytes;
    const std::uint64_t most = is_bytes ? kChunkBytes : std::uint64_t{kChunkElements};
    const std::uint64_t count = (num_elements + most - 1) / most;
    if (num_chunks > 0 && num_chunks + count > kMaxChunks) break;
    if (count > 0) {
      updates.entries[updates.num_entries++] = {
          .target = chunk.target,
          .online = chunk.online,
          .master = chunk.master,
          .first_chunk = num_chunks,
          .num_chunks = static_cast<std::uint32_t>(count),
          .num_in_last = static_cast<std::uint32_t>(num_elements - (count - 1) * most),
          .is_bytes = is_bytes,
          .is_copied = chunk.is_copied};
      num_chunks += static_cast<std::uint32_t>(count);
    }
    pairs = pairs.subspan(1);
  }
  return num_chunks;
}

}  // namespace fastreplay
