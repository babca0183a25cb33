// SPDX-License-Identifier: MIT
// Powers of many numbers at once. Knows nothing of what they are.
//
// In double, by additions and multiplications in one order: the same bits from one number and from many, on every
// machine, and rounded correctly but for one number in some thousands.
#pragma once

#include <span>

namespace fastreplay {

// value^exponent. value >= 0, exponent >= 0.
[[nodiscard]] float power(float value, float exponent) noexcept;

// The same of each, in place.
void raise(std::span<float> values, float exponent) noexcept;

}  // namespace fastreplay
