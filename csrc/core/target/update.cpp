// SPDX-License-Identifier: MIT
#include "target/update.hpp"

#include <cstring>
#include <type_traits>

#include "target/lerp.hpp"

// Run-time dispatch by hand rather than by target_clones: those need ifunc, which musl lacks and which
// runs before ThreadSanitizer is ready.
#if defined(__x86_64__) && defined(__GNUC__)
#define FASTREPLAY_X86 1
#endif

namespace fastreplay {

namespace {

#if defined(__aarch64__)
constexpr bool kBaselineFuses = true;
#else
constexpr bool kBaselineFuses = false;
#endif

template <bool kFused, Formula kFormula, class Target, class Online, class Real>
FASTREPLAY_INLINE void move(Target* __restrict target, const Online* __restrict online, std::size_t count,
                            Real factor) {
  for (std::size_t i = 0; i < count; ++i) {
    narrow(lerp<kFused, kFormula>(widen(target[i]), widen(online[i]), factor), target[i]);
  }
}

template <bool kFused, Formula kFormula, class Target, class Online>
FASTREPLAY_INLINE void move_master(Target* __restrict target, float* __restrict master, const Online* __restrict online,
                                   std::size_t count, float factor) {
  for (std::size_t i = 0; i < count; ++i) {
    master[i] = lerp<kFused, kFormula>(master[i], widen(online[i]), factor);
    narrow(master[i], target[i]);
  }
}

struct Weights {
  Weight<float> single;
  Weight<double> twice;
};

template <bool kFused, Formula kFormula, class Target, class Online, class Real>
FASTREPLAY_INLINE void update_formula(const Chunk& chunk, Real factor) {
  auto* target = static_cast<Target*>(chunk.target);
  const auto* online = static_cast<const Online*>(chunk.online);
  if constexpr (sizeof(Target) == 2) {
    if (chunk.master != nullptr) {
      move_master<kFused, kFormula>(target, chunk.master, online, chunk.num_elements, factor);
      return;
    }
  }
  move<kFused, kFormula>(target, online, chunk.num_elements, factor);
}

template <bool kFused, class Target, class Online, class Real>
FASTREPLAY_INLINE void update_pair(const Chunk& chunk, const Weight<Real>& weight) {
  const Formula formula = chunk.is_copied ? Formula::kCopy : weight.formula;
  if (formula == Formula::kFromTarget) {
    update_formula<kFused, Formula::kFromTarget, Target, Online>(chunk, weight.factor);
  } else if (formula == Formula::kFromOnline) {
    update_formula<kFused, Formula::kFromOnline, Target, Online>(chunk, weight.factor);
  } else if (std::is_same_v<Target, Online> && chunk.master == nullptr) {
    std::memcpy(chunk.target, chunk.online, chunk.num_elements * sizeof(Target));
  } else {
    update_formula<kFused, Formula::kCopy, Target, Online>(chunk, weight.factor);
  }
}

// Not inlined into the levels that fuse: GCC makes fused multiply-adds of complex products even where
// contraction is off.
[[gnu::noinline]] void update_complex(const Chunk& chunk, const Weights& weights) {
  if (chunk.target_dtype == Dtype::kComplex64) {
    update_pair<false, Complex<float>, Complex<float>>(chunk, weights.single);
  } else {
    update_pair<false, Complex<double>, Complex<double>>(chunk, weights.twice);
  }
}

template <bool kFused>
FASTREPLAY_INLINE void update_chunk(const Chunk& chunk, const Weights& weights) {
  const bool same = chunk.target_dtype == chunk.online_dtype;
  switch (chunk.target_dtype) {
    case Dtype::kFloat32:
      if (same) return update_pair<kFused, float, float>(chunk, weights.single);
      if (chunk.online_dtype == Dtype::kBFloat16) return update_pair<kFused, float, BFloat16>(chunk, weights.single);
      return update_pair<kFused, float, Float16>(chunk, weights.single);
    case Dtype::kFloat64:
      return update_pair<kFused, double, double>(chunk, weights.twice);
    case Dtype::kFloat16:
      if (same) return update_pair<kFused, Float16, Float16>(chunk, weights.single);
      return update_pair<kFused, Float16, float>(chunk, weights.single);
    case Dtype::kBFloat16:
      if (same) return update_pair<kFused, BFloat16, BFloat16>(chunk, weights.single);
      return update_pair<kFused, BFloat16, float>(chunk, weights.single);
    case Dtype::kComplex64:
    case Dtype::kComplex128:
      return update_complex(chunk, weights);
    case Dtype::kBytes:
      std::memcpy(chunk.target, chunk.online, chunk.num_elements);
  }
}

template <bool kFused>
FASTREPLAY_INLINE void update_all(std::span<const Chunk> chunks, double tau) {
  const Weights weights{Weight<float>::of(tau), Weight<double>::of(tau)};
  for (const Chunk& chunk : chunks) update_chunk<kFused>(chunk, weights);
}

template <bool kFused, class Real>
FASTREPLAY_INLINE void average_pair(const Chunk& chunk, Real keep, Real take) {
  auto* __restrict target = static_cast<Real*>(chunk.target);
  const auto* __restrict online = static_cast<const Real*>(chunk.online);
  const std::size_t count = chunk.num_elements;
  for (std::size_t i = 0; i < count; ++i) target[i] = scaled_sum<kFused>(target[i], online[i], keep, take);
}

template <bool kFused>
FASTREPLAY_INLINE void average_all(std::span<const Chunk> chunks, double keep, double take) {
  for (const Chunk& chunk : chunks) {
    if (chunk.target_dtype == Dtype::kFloat64) {
      average_pair<kFused, double>(chunk, keep, take);
    } else {
      average_pair<kFused, float>(chunk, static_cast<float>(keep), static_cast<float>(take));
    }
  }
}

void update_baseline(std::span<const Chunk> chunks, double tau) { update_all<kBaselineFuses>(chunks, tau); }

void average_baseline(std::span<const Chunk> chunks, double keep, double take) {
  average_all<kBaselineFuses>(chunks, keep, take);
}

#if defined(FASTREPLAY_X86)
[[gnu::target("avx2,fma,f16c,bmi,bmi2")]] void update_avx2(std::span<const Chunk> chunks, double tau) {
  update_all<true>(chunks, tau);
}

[[gnu::target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]] void update_avx512(
    std::span<const Chunk> chunks, double tau) {
  update_all<true>(chunks, tau);
}

[[gnu::target("avx2,fma,f16c,bmi,bmi2")]] void average_avx2(std::span<const Chunk> chunks, double keep, double take) {
  average_all<true>(chunks, keep, take);
}

[[gnu::target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]] void average_avx512(
    std::span<const Chunk> chunks, double keep, double take) {
  average_all<true>(chunks, keep, take);
}
#endif

}  // namespace

Level best_level() noexcept {
#if defined(FASTREPLAY_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
      __builtin_cpu_supports("bmi2")) {
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return has_avx512 ? Level::kAvx512 : Level::kAvx2;
  }
#endif
  return Level::kBaseline;
}

void update(std::span<const Chunk> chunks, double tau, Level level) noexcept {
#if defined(FASTREPLAY_X86)
  if (level == Level::kAvx512) return update_avx512(chunks, tau);
  if (level == Level::kAvx2) return update_avx2(chunks, tau);
#else
  (void)level;
#endif
  update_baseline(chunks, tau);
}

void average(std::span<const Chunk> chunks, double keep, double take, Level level) noexcept {
#if defined(FASTREPLAY_X86)
  if (level == Level::kAvx512) return average_avx512(chunks, keep, take);
  if (level == Level::kAvx2) return average_avx2(chunks, keep, take);
#else
  (void)level;
#endif
  average_baseline(chunks, keep, take);
}

}  // namespace fastreplay
