// SPDX-License-Identifier: MIT
#include "priority/mass.hpp"

#include <algorithm>
#include <cmath>

#include "priority/power.hpp"

namespace fastreplay {

float MassRule::largest(std::size_t capacity) noexcept {
  return static_cast<float>(3e38 / static_cast<double>(std::max<std::size_t>(1, capacity)));
}

double MassRule::base(double p) const noexcept { return std::max(std::fabs(p) + eps, floor); }

float MassRule::mass(double base, std::size_t capacity) const noexcept {
  float mass = 0;
  masses({&base, 1}, capacity, &mass);
  return mass;
}

void MassRule::masses(std::span<const double> bases, std::size_t capacity, float* masses) const noexcept {
  const std::size_t count = bases.size();
  const float most = largest(capacity);
  // Of floats, which is faster, wherever float32 has the bases whole.
  bool are_floats = true;
  for (const double base : bases) are_floats &= is_of_floats(base);
  if (are_floats) [[likely]] {
    for (std::size_t i = 0; i < count; ++i) masses[i] = static_cast<float>(bases[i]);
    raise({masses, count}, static_cast<float>(alpha));
    for (std::size_t i = 0; i < count; ++i) masses[i] = std::min(masses[i], most);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) masses[i] = static_cast<float>(std::min<double>(of(bases[i]), most));
}

double MassRule::of(double base) const noexcept {
  if (alpha == 1) return base;
  if (is_of_floats(base)) return power(static_cast<float>(base), static_cast<float>(alpha));
  return std::pow(base, alpha);
}

}  // namespace fastreplay
