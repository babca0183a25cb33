// SPDX-License-Identifier: MIT
// What a launch of a target update is given, and how pairs become launches. Knows no CUDA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "inline.hpp"
#include "target/chunks.hpp"
#include "target/lerp.hpp"

namespace fastreplay {

// A chunk is what a warp moves, 16 bytes a thread of the widest of its tensors: small networks are spread over many
// multiprocessors, and a bias takes no more than a warp.
inline constexpr unsigned kThreadsPerChunk = 32;
inline constexpr unsigned kChunksPerBlock = 8;
inline constexpr std::uint32_t kChunkBytes = 16 * kThreadsPerChunk;

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

// tau, as a launch is given it.
struct Share {
  const void* tau_on_device;  // null: the weights are of the host's
  bool tau_is_double;
  Weight<float> of_singles;
  Weight<double> of_doubles;

  static Share of(double tau, const void* tau_on_device, bool tau_is_double) {
    return {tau_on_device, tau_is_double, Weight<float>::of(tau), Weight<double>::of(tau)};
  }

  template <class Real>
  [[nodiscard]] FASTREPLAY_INLINE Weight<Real> weight() const {
    if (tau_on_device != nullptr) {
      return Weight<Real>::of(tau_is_double ? *static_cast<const double*>(tau_on_device)
                                            : *static_cast<const float*>(tau_on_device));
    }
    if constexpr (std::is_same_v<Real, double>) {
      return of_doubles;
    } else {
      return of_singles;
    }
  }
};

// A launch's parameters: pairs of one kind, and of bytes, by value. So a captured graph has a copy.
template <std::size_t kParameterBytes>
struct UpdatesOf {
  static constexpr unsigned kMaxEntries = (kParameterBytes - sizeof(Share) - 8) / sizeof(Entry);

  Share share;
  std::uint32_t num_entries;
  std::uint32_t num_chunks;
  Entry entries[kMaxEntries];
};
// What any CUDA takes as parameters, and what those from 12.1 on take.
using Updates = UpdatesOf<4096>;
using ManyUpdates = UpdatesOf<32764>;

// Which entry a chunk of the launch belongs to.
template <class Updates>
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
  static constexpr std::uint32_t kChunkElements = kChunkBytes / kWidestBytes;
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

// Takes as many pairs from the front as one launch moves. Returns how many blocks it needs, 0 where they are empty.
template <class Updates>
[[nodiscard]] std::uint32_t take_launch(std::span<const Pair>& pairs, Updates& updates) {
  constexpr std::uint64_t kMaxChunks = 0xFFFFFFFF - kChunksPerBlock;
  const Pair& first = pairs.front();
  const std::uint64_t chunk_elements =
      visit_kind(first.chunk, [](auto kind) { return decltype(kind)::kChunkElements; });
  std::uint32_t& num_chunks = updates.num_chunks;
  updates.num_entries = updates.num_chunks = 0;
  while (!pairs.empty() && updates.num_entries < Updates::kMaxEntries && go_together(first.chunk, pairs[0].chunk)) {
    const auto& [chunk, num_elements] = pairs.front();
    const bool is_bytes = chunk.target_dtype == Dtype::kBytes;
    const std::uint64_t most = is_bytes ? kChunkBytes : chunk_elements;
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
  return (num_chunks + kChunksPerBlock - 1) / kChunksPerBlock;
}

}  // namespace fastreplay
