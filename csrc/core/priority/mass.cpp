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
  const auto most = static_cast<double>(largest(capacity));
  if (alpha == 1) return static_cast<float>(std::min(base, most));
  // In half the time, wherever float32 has the base whole.
  if (base > 1e-30 && base < 1e30 && alpha < 1) {
    return static_cast<float>(std::min<double>(std::pow(static_cast<float>(base), static_cast<float>(alpha)), most));
  }
  return static_cast<float>(std::min(std::pow(base, alpha), most));
}

}  // namespace fastreplay
