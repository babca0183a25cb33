// SPDX-License-Identifier: MIT
// Functions that are compiled once more for processors with AVX2, and which of the two a processor has: what is in the
// one is inlined into both. Without fused operations, so that the bits are the same.
#pragma once

namespace fastreplay {

#if defined(__x86_64__) && defined(__GNUC__)
#define FASTREPLAY_AVX2 [[gnu::target("avx2,bmi,bmi2")]]
inline bool has_avx2() noexcept {
  static const bool has =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  return has;
}
#else
#define FASTREPLAY_AVX2
constexpr bool has_avx2() noexcept { return false; }
#endif

}  // namespace fastreplay
