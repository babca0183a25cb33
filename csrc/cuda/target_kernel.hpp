// SPDX-License-Identifier: MIT
// What one CUDA thread does of a target update. Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory_access.hpp"
#include "target/chunks.hpp"
#include "target/lerp.hpp"
#include "target_launch.hpp"

namespace fastreplay {

template <class T, unsigned kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// What is done with each element, and from where on.
template <class Real>
struct Move {
  Real factor;
  bool is_from_target;
  bool is_copied;

  FASTREPLAY_INLINE static Move of(const Weight<Real>& weight, bool is_copied) {
    return {weight.factor, weight.formula == Formula::kFromTarget, is_copied || weight.formula == Formula::kCopy};
  }

  // As lerp(), with the formula chosen by selects, so that a kernel is small: it waits for memory.
  FASTREPLAY_INLINE Real operator()(Real target, Real online) const {
    const Real moved = multiply_add<true>(factor, online - target, is_from_target ? target : online);
    return is_copied ? online : moved;
  }
};

// A chunk's tensors, from the chunk's first element on.
template <class Kind>
struct ChunkOf {
  typename Kind::Target* FASTREPLAY_RESTRICT target;
  const typename Kind::Online* FASTREPLAY_RESTRICT online;
  float* FASTREPLAY_RESTRICT master;

  FASTREPLAY_INLINE static ChunkOf of(const Entry& entry, std::uint64_t first) {
    return {as_global(static_cast<typename Kind::Target*>(entry.target)) + first,
            as_global(static_cast<const typename Kind::Online*>(entry.online)) + first,
            Kind::kHasMaster ? as_global(entry.master) + first : nullptr};
  }

  template <unsigned kCount>
  [[nodiscard]] FASTREPLAY_INLINE bool is_aligned() const {
    return reinterpret_cast<std::uintptr_t>(target) % (sizeof(*target) * kCount) == 0 &&
           reinterpret_cast<std::uintptr_t>(online) % (sizeof(*online) * kCount) == 0 &&
           reinterpret_cast<std::uintptr_t>(master) % (sizeof(float) * kCount) == 0;
  }
};

// Packs [first, num_packs), at most kInFlight for each thread, every kThreadsPerChunk-th from the thread's own: first
// all that is read, then all that is written.
template <class Kind, unsigned kCount, unsigned kInFlight>
FASTREPLAY_INLINE void move_packs(const ChunkOf<Kind>& chunk, std::uint32_t first, std::uint32_t num_packs,
                                  unsigned thread, const Move<typename Kind::Real>& move) {
  using Targets = Pack<typename Kind::Target, kCount>;
  using Onlines = Pack<typename Kind::Online, kCount>;
  using Masters = Pack<float, Kind::kHasMaster ? kCount : 1>;
  auto* FASTREPLAY_RESTRICT targets = reinterpret_cast<Targets*>(chunk.target);
  const auto* FASTREPLAY_RESTRICT onlines = reinterpret_cast<const Onlines*>(chunk.online);
  auto* FASTREPLAY_RESTRICT masters = reinterpret_cast<Masters*>(chunk.master);
  Targets target[kInFlight] = {};
  Onlines online[kInFlight] = {};
  Masters master[kInFlight] = {};
  FASTREPLAY_UNROLL
  for (unsigned k = 0; k < kInFlight; ++k) {
    const std::uint32_t i = first + thread + k * kThreadsPerChunk;
    if (i >= num_packs) continue;
    online[k] = onlines[i];
    if constexpr (Kind::kHasMaster) {
      if (!move.is_copied) master[k] = masters[i];
    } else {
      if (!move.is_copied) target[k] = targets[i];
    }
  }
  FASTREPLAY_UNROLL
  for (unsigned k = 0; k < kInFlight; ++k) {
    FASTREPLAY_UNROLL
    for (unsigned j = 0; j < kCount; ++j) {
      if constexpr (Kind::kHasMaster) {
        master[k].values[j] = move(master[k].values[j], widen(online[k].values[j]));
        narrow(master[k].values[j], target[k].values[j]);
      } else {
        narrow(move(widen(target[k].values[j]), widen(online[k].values[j])), target[k].values[j]);
      }
    }
  }
  FASTREPLAY_UNROLL
  for (unsigned k = 0; k < kInFlight; ++k) {
    const std::uint32_t i = first + thread + k * kThreadsPerChunk;
    if (i >= num_packs) continue;
    targets[i] = target[k];
    if constexpr (Kind::kHasMaster) masters[i] = master[k];
  }
}

// A thread's share of a chunk: 16 bytes of the widest of its tensors at once where all lie so, and the rest singly.
template <class Kind>
FASTREPLAY_INLINE void move_chunk(const ChunkOf<Kind>& chunk, std::uint32_t num_elements, unsigned thread,
                                  const Move<typename Kind::Real>& move) {
  constexpr unsigned kCount = Kind::kChunkElements / kThreadsPerChunk;
  std::uint32_t num_moved = 0;
  if (chunk.template is_aligned<kCount>()) {
    move_packs<Kind, kCount, 1>(chunk, 0, num_elements / kCount, thread, move);
    num_moved = num_elements / kCount * kCount;
  }
  if (num_moved < num_elements) move_packs<Kind, 1, kCount>(chunk, num_moved, num_elements, thread, move);
}

// Bytes are copied whatever tau is.
FASTREPLAY_INLINE void copy_chunk(const Entry& entry, std::uint64_t first, std::uint32_t num_bytes, unsigned thread) {
  auto* to = as_global(static_cast<std::byte*>(entry.target)) + first;
  const auto* from = as_global(static_cast<const std::byte*>(entry.online)) + first;
  std::uint32_t num_units = 0;
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % sizeof(SixteenBytes) == 0) {
    num_units = static_cast<std::uint32_t>(num_bytes / sizeof(SixteenBytes));
    if (thread < num_units)
      reinterpret_cast<SixteenBytes*>(to)[thread] = reinterpret_cast<const SixteenBytes*>(from)[thread];
  }
  const auto num_copied = static_cast<std::uint32_t>(num_units * sizeof(SixteenBytes));
  copy_units<std::uint8_t, 16, kThreadsPerChunk>(to, from, num_copied + thread, num_bytes);
}

// The share of thread `thread` of kThreadsPerChunk of one chunk of a launch.
template <class Kind, class Updates>
FASTREPLAY_INLINE void update_share(const Updates& updates, std::uint32_t chunk, unsigned thread) {
  const Entry& entry = updates.entries[entry_of(updates, chunk)];
  const std::uint32_t place = chunk - entry.first_chunk;
  const std::uint32_t most = entry.is_bytes ? kChunkBytes : Kind::kChunkElements;
  const std::uint32_t count = place + 1 == entry.num_chunks ? entry.num_in_last : most;
  const std::uint64_t first = std::uint64_t{place} * most;
  if (entry.is_bytes) {
    copy_chunk(entry, first, count, thread);
  } else {
    const auto move =
        Move<typename Kind::Real>::of(updates.share.template weight<typename Kind::Real>(), entry.is_copied);
    move_chunk<Kind>(ChunkOf<Kind>::of(entry, first), count, thread, move);
  }
}

}  // namespace fastreplay
