// SPDX-License-Identifier: MIT
// The arithmetic of one element of a target update, for the CPU and for CUDA. Knows no table and no thread.
#pragma once

#include <cstdint>

#include "halves.hpp"
#include "inline.hpp"

namespace fastreplay {

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

template <class Real>
FASTREPLAY_INLINE void narrow(Real value, Real& result) {
  result = value;
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
