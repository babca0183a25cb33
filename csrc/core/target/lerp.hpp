// SPDX-License-Identifier: MIT
// The arithmetic of one element of a target update, for the CPU and for CUDA. Knows no table and no thread.
#pragma once

#include <bit>
#include <cstdint>

#include "inline.hpp"

namespace fastreplay {

// Storage of the 16-bit floats. Arithmetic on them is done in float, as torch does.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};
template <class Real>
struct Complex {
  Real re, im;
};

// The type in which an element of type T is computed.
template <class T>
struct Compute {
  using Type = float;
};
template <>
struct Compute<double> {
  using Type = double;
};
template <class Real>
struct Compute<Complex<Real>> {
  using Type = Complex<Real>;
};

template <class Real>
FASTREPLAY_INLINE Real widen(Real value) {
  return value;
}

FASTREPLAY_INLINE float widen(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

FASTREPLAY_INLINE float widen(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  const std::uint32_t magnitude = value.bits & 0x7FFF;
  // Subnormal numbers count 2^-24; the exponent of others is moved from bias 15 to 127, or to the one
  // of infinities and NaN.
  const std::uint32_t small = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24F);
  const std::uint32_t large = (magnitude << 13) + (magnitude < 0x7C00 ? 112U << 23 : 224U << 23);
  return std::bit_cast<float>(sign | (magnitude < 0x0400 ? small : large));
}

// Rounds to nearest, ties to even.
template <class Real>
FASTREPLAY_INLINE void narrow(Real value, Real& result) {
  result = value;
}

FASTREPLAY_INLINE void narrow(float value, BFloat16& result) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;  // adding to a NaN could carry it to an infinity
  result.bits = static_cast<std::uint16_t>(is_nan ? 0x7FC0 : rounded);
}

FASTREPLAY_INLINE void narrow(float value, Float16& result) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFF;
  // Below 2^-14 the result counts 2^-24, the last place of a float32 near one half: adding rounds to it.
  const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - (126U << 23);
  const std::uint32_t normal = (magnitude - (112U << 23) + 0x0FFF + ((magnitude >> 13) & 1)) >> 13;
  std::uint32_t half = magnitude < (113U << 23) ? small : normal;
  half = magnitude >= 0x477FF000 ? 0x7C00 : half;  // from 65520 on, the nearest is infinity
  half = magnitude > 0x7F800000 ? 0x7E00 : half;   // NaN
  result.bits = static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000));
}

// What is done with every element, from tau. As in torch, the weight is rounded to the type of the
// computation first, and from one half on the formula starts at the online value, so that the last
// step lands on it.
enum class Formula : std::uint8_t {
  kFromTarget,  // t + w * (s - t), |w| < 1/2
  kFromOnline,  // s + (w - 1) * (s - t)
  kCopy,        // tau = 1: exactly s, whatever t holds, NaN included
};

template <class Real>
struct Weight {
  Real factor;  // w or w - 1
  Formula formula;

  FASTREPLAY_INLINE static Weight of(double tau) {
    const Real weight = static_cast<Real>(tau);
    if (tau == 1.0) return {Real{0}, Formula::kCopy};
    if (weight < Real{0.5} && weight > Real{-0.5}) return {weight, Formula::kFromTarget};
    return {weight - Real{1}, Formula::kFromOnline};
  }
};

// One rounding where the machine multiplies and adds in one instruction, two where torch, too, has none.
template <bool kFused, class Real>
FASTREPLAY_INLINE Real multiply_add(Real factor, Real value, Real base) {
  if constexpr (!kFused) {
    return factor * value + base;
  } else if constexpr (sizeof(Real) == sizeof(float)) {
    return __builtin_fmaf(factor, value, base);
  } else {
    return __builtin_fma(factor, value, base);
  }
}

template <bool kFused, Formula kFormula, class Real>
FASTREPLAY_INLINE Real lerp(Real target, Real online, Real factor) {
  if constexpr (kFormula == Formula::kCopy) {
    return online;
  } else {
    return multiply_add<kFused>(factor, online - target, kFormula == Formula::kFromTarget ? target : online);
  }
}

// A complex product with a real factor as torch computes it: never fused, and with the factor's zero
// imaginary part, which turns infinities into NaN.
template <bool kFused, Formula kFormula, class Real>
FASTREPLAY_INLINE Complex<Real> lerp(Complex<Real> target, Complex<Real> online, Real factor) {
  if constexpr (kFormula == Formula::kCopy) return online;
  const Complex<Real> base = kFormula == Formula::kFromTarget ? target : online;
  const Complex<Real> way{online.re - target.re, online.im - target.im};
  constexpr Real kZero{0};
  return {(factor * way.re - kZero * way.im) + base.re, (factor * way.im + kZero * way.re) + base.im};
}

// The average as Stable-Baselines3 computes it with two operations of torch: the target is scaled, and
// rounded, before the online value comes in. tau = 1 is no exception: a NaN of the target's stays.
template <bool kFused, class Real>
FASTREPLAY_INLINE Real scaled_sum(Real target, Real online, Real keep, Real take) {
  return multiply_add<kFused>(take, online, keep * target);
}

}  // namespace fastreplay
