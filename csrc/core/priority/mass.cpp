// SPDX-License-Identifier: MIT
#include "priority/mass.hpp"

#include <algorithm>
#include <cmath>

namespace fastreplay {

float MassRule::largest(std::size_t capacity) noexcept {
  return static_cast<float>(3e38 / static_cast<double>(std::max<std::size_t>(1, capacity)));
}

double MassRule::base(double p) const noexcept { return std::max(std::fabs(p) + eps, floor); }

// In double, so that the float32 is the same where the library's last bit is another.
float MassRule::mass(double base, std::size_t capacity) const noexcept {
  const double power = alpha == 1 ? base : std::pow(base, alpha);
  return static_cast<float>(std::min(power, static_cast<double>(largest(capacity))));
}

}  // namespace fastreplay
