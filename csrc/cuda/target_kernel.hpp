// SPDX-License-Identifier: MIT
// What one CUDA thread does of one chunk. Knows no CUDA: a test runs all threads of a block by turns on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "target/chunks.hpp"
#include "target/lerp.hpp"

namespace fastreplay {

// With kChunkElements, four 16-byte accesses of float32 a thread, all in flight at once.
inline constexpr unsigned kThreadsPerChunk = 256;

template <class T, unsigned kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

template <class T, unsigned kCount>
FASTREPLAY_INLINE bool is_aligned(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Pack<T, kCount>) == 0;
}

template <Formula kFormula, bool kHasMaster, class Target, class Online, class Real>
FASTREPLAY_INLINE void move_element(Target& target, float& master, Online online, Real factor) {
  if constexpr (kHasMaster) {
    master = lerp<true, kFormula>(master, widen(online), factor);
    narrow(master, target);
  } else {
    narrow(lerp<true, kFormula>(widen(target), widen(online), factor), target);
  }
}

// Elements [first, num_elements), every kThreadsPerChunk-th from the thread's own.
template <Formula kFormula, bool kHasMaster, class Target, class Online, class Real>
FASTREPLAY_INLINE void move_singly(const Chunk& chunk, std::uint32_t first, unsigned thread, Real factor) {
  auto* target = static_cast<Target*>(chunk.target);
  const auto* online = static_cast<const Online*>(chunk.online);
  float none = 0;
  for (std::uint32_t i = first + thread; i < chunk.num_elements; i += kThreadsPerChunk) {
    move_element<kFormula, kHasMaster>(target[i], kHasMaster ? chunk.master[i] : none, online[i], factor);
  }
}

template <Formula kFormula, bool kHasMaster, class Target, class Online, class Real>
FASTREPLAY_INLINE void move_share(const Chunk& chunk, unsigned thread, Real factor) {
  constexpr unsigned kWidest = kHasMaster || sizeof(Online) > sizeof(Target)
                                   ? (kHasMaster && sizeof(Online) < 4 ? 4 : unsigned{sizeof(Online)})
                                   : unsigned{sizeof(Target)};
  constexpr unsigned kCount = 16 / kWidest;
  using Targets = Pack<Target, kCount>;
  using Onlines = Pack<Online, kCount>;
  using Masters = Pack<float, kCount>;
  if (!is_aligned<Target, kCount>(chunk.target) || !is_aligned<Online, kCount>(chunk.online) ||
      (kHasMaster && !is_aligned<float, kCount>(chunk.master))) {
    move_singly<kFormula, kHasMaster, Target, Online>(chunk, 0, thread, factor);
    return;
  }
  const std::uint32_t num_packs = chunk.num_elements / kCount;
  auto* targets = static_cast<Targets*>(chunk.target);
  const auto* onlines = static_cast<const Onlines*>(chunk.online);
  auto* masters = reinterpret_cast<Masters*>(chunk.master);
#if defined(__CUDACC__)
#pragma unroll 4
#endif
  for (std::uint32_t i = thread; i < num_packs; i += kThreadsPerChunk) {
    Targets target{};
    Masters master{};
    if constexpr (kHasMaster || kFormula == Formula::kCopy) {
      if constexpr (kHasMaster) master = masters[i];
    } else {
      target = targets[i];
    }
    const Onlines online = onlines[i];
    for (unsigned k = 0; k < kCount; ++k) {
      move_element<kFormula, kHasMaster>(target.values[k], master.values[k], online.values[k], factor);
    }
    targets[i] = target;
    if constexpr (kHasMaster) masters[i] = master;
  }
  move_singly<kFormula, kHasMaster, Target, Online>(chunk, num_packs * kCount, thread, factor);
}

template <class Target, class Online, class Real>
FASTREPLAY_INLINE void update_share_of(const Chunk& chunk, unsigned thread, const Weight<Real>& weight) {
  const Formula formula = chunk.is_copied ? Formula::kCopy : weight.formula;
  const auto run = [&](auto has_master) {
    constexpr bool kHasMaster = decltype(has_master)::value;
    if (formula == Formula::kFromTarget) {
      move_share<Formula::kFromTarget, kHasMaster, Target, Online>(chunk, thread, weight.factor);
    } else if (formula == Formula::kFromOnline) {
      move_share<Formula::kFromOnline, kHasMaster, Target, Online>(chunk, thread, weight.factor);
    } else {
      move_share<Formula::kCopy, kHasMaster, Target, Online>(chunk, thread, weight.factor);
    }
  };
  if constexpr (sizeof(Target) == 2) {
    if (chunk.master != nullptr) return run(std::true_type{});
  }
  run(std::false_type{});
}

// The share of thread `thread` of kThreadsPerChunk. Complex tensors stay with torch.
FASTREPLAY_INLINE void update_share(const Chunk& chunk, unsigned thread, double tau) {
  const bool same = chunk.target_dtype == chunk.online_dtype;
  switch (chunk.target_dtype) {
    case Dtype::kFloat32:
      if (same) return update_share_of<float, float>(chunk, thread, Weight<float>::of(tau));
      if (chunk.online_dtype == Dtype::kBFloat16) {
        return update_share_of<float, BFloat16>(chunk, thread, Weight<float>::of(tau));
      }
      return update_share_of<float, Float16>(chunk, thread, Weight<float>::of(tau));
    case Dtype::kFloat64:
      return update_share_of<double, double>(chunk, thread, Weight<double>::of(tau));
    case Dtype::kFloat16:
      if (same) return update_share_of<Float16, Float16>(chunk, thread, Weight<float>::of(tau));
      return update_share_of<Float16, float>(chunk, thread, Weight<float>::of(tau));
    case Dtype::kBFloat16:
      if (same) return update_share_of<BFloat16, BFloat16>(chunk, thread, Weight<float>::of(tau));
      return update_share_of<BFloat16, float>(chunk, thread, Weight<float>::of(tau));
    case Dtype::kBytes:
      return move_share<Formula::kCopy, false, std::uint8_t, std::uint8_t>(chunk, thread, std::uint8_t{0});
    case Dtype::kComplex64:
    case Dtype::kComplex128:
      return;
  }
}

}  // namespace fastreplay
