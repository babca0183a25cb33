// SPDX-License-Identifier: MIT
#include "priority/power.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include "inline.hpp"
#include "priority/avx2.hpp"

namespace fastreplay {

namespace {

// Where neither the number nor its power leaves what a double's and a float's exponent have room for. Others are for
// the library.
constexpr float kSmallest = 1e-30F;
constexpr float kLargest = 1e30F;
constexpr float kLargestExponent = 1.25F;  // 1e30^1.25 < 2^127

constexpr bool is_moderate(float value) noexcept { return value >= kSmallest && value <= kLargest; }

constexpr std::uint64_t kMantissaBits = 52;
constexpr std::uint64_t kTwoTo52 = 0x4330'0000'0000'0000;     // a double whose last bits count ones
constexpr double kWhole = 0x1.8p52;                           // added, it leaves no fraction
constexpr std::uint64_t kRootOfHalf = 0x3FE6'A09E'667F'3BCD;  // where mantissas begin, so that they surround 1
constexpr std::uint64_t kBias = 1024;                         // keeps what is shifted positive

// log2(m) = s (c0 + c1 s^2 + ...), s = (m - 1) / (m + 1): the series of the area tangent, to 2e-12 for |s| <= 0.172.
constexpr std::array<double, 7> kLog2 = [] {
  std::array<double, 7> terms{};
  for (std::size_t i = 0; i < terms.size(); ++i) terms[i] = 2 * std::numbers::log2e / static_cast<double>(2 * i + 1);
  return terms;
}();

// 2^f = 1 + d1 f + d2 f^2 + ...: the exponential series, to 7e-12 for |f| <= 1/2.
constexpr std::array<double, 10> kExp2 = [] {
  std::array<double, 10> terms{1};
  for (std::size_t i = 1; i < terms.size(); ++i) {
    terms[i] = terms[i - 1] * std::numbers::ln2 / static_cast<double>(i);
  }
  return terms;
}();

// Terms of even and of odd order by themselves, so that fewer wait for each other.
template <std::size_t kCount>
FASTREPLAY_INLINE double polynomial(const std::array<double, kCount>& terms, double x) noexcept {
  const double square = x * x;
  double last = terms[kCount - 1];
  double other = terms[kCount - 2];
  for (std::size_t i = kCount - 2; i >= 2; i -= 2) {
    last = last * square + terms[i - 1];
    other = other * square + terms[i - 2];
  }
  return kCount % 2 == 0 ? other + x * last : last * square + terms[0] + x * other;
}

// Of a moderate value: without a branch, a call or a conversion that vectors lack.
FASTREPLAY_INLINE float power_of_moderate(float value, double exponent) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(value));
  const std::uint64_t twos = (bits - kRootOfHalf + (kBias << kMantissaBits)) >> kMantissaBits;
  const auto mantissa = std::bit_cast<double>(bits - (twos << kMantissaBits) + (kBias << kMantissaBits));
  const double whole = std::bit_cast<double>(kTwoTo52 | twos) - (0x1p52 + static_cast<double>(kBias));
  const double ratio = (mantissa - 1) / (mantissa + 1);
  const double power = exponent * (whole + ratio * polynomial(kLog2, ratio * ratio));
  const double rounded = power + kWhole;
  const double scaled = polynomial(kExp2, power - (rounded - kWhole));
  const std::uint64_t scale = std::bit_cast<std::uint64_t>(rounded) << kMantissaBits;
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<std::uint64_t>(scaled) + scale));
}

FASTREPLAY_INLINE void raise_moderate(std::span<float> values, double exponent) noexcept {
  float* const each = values.data();
  const std::size_t count = values.size();
  for (std::size_t i = 0; i < count; ++i) each[i] = power_of_moderate(each[i], exponent);
}

FASTREPLAY_AVX2 void raise_avx2(std::span<float> values, double exponent) noexcept { raise_moderate(values, exponent); }

void raise_baseline(std::span<float> values, double exponent) noexcept { raise_moderate(values, exponent); }

}  // namespace

float power(float value, float exponent) noexcept {
  if (exponent <= kLargestExponent && is_moderate(value)) [[likely]]
    return power_of_moderate(value, static_cast<double>(exponent));
  return static_cast<float>(std::pow(static_cast<double>(value), static_cast<double>(exponent)));
}

void raise(std::span<float> values, float exponent) noexcept {
  bool are_moderate = exponent <= kLargestExponent;
  for (const float value : values) are_moderate &= is_moderate(value);
  if (are_moderate) [[likely]]
    return (has_avx2() ? raise_avx2 : raise_baseline)(values, static_cast<double>(exponent));
  for (float& value : values) value = power(value, exponent);
}

}  // namespace fastreplay
