// SPDX-License-Identifier: MIT
// From a priority to a mass, what a transition weighs in a draw. Knows nothing of where it is kept.
#pragma once

#include <cstddef>
#include <span>

namespace fastreplay {

// mass = max(|p| + eps, floor)^alpha (Schaul et al. 2016, eq. 1; with eps = 0, floor = 1, Fujimoto et al. 2020).
struct MassRule {
  double alpha;
  double eps;
  double floor;

  // The largest mass of which `capacity` have a finite float32 sum.
  [[nodiscard]] static float largest(std::size_t capacity) noexcept;

  // What the power is taken of. p is finite.
  [[nodiscard]] double base(double p) const noexcept;
  // Whether the mass is a function of the base as a float32.
  [[nodiscard]] bool is_of_floats(double base) const noexcept { return alpha < 1 && base > 1e-30 && base < 1e30; }
  // Of a base; at most largest(capacity).
  [[nodiscard]] float mass(double base, std::size_t capacity) const noexcept;
  // The same of many.
  void masses(std::span<const double> bases, std::size_t capacity, float* masses) const noexcept;

 private:
  [[nodiscard]] double of(double base) const noexcept;
};

}  // namespace fastreplay
