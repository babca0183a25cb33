// SPDX-License-Identifier: MIT
// The C++ that _step_ring.pyx calls: plain functions over pointers. Must not know Python.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "capsule.hpp"
#include "records.hpp"
#include "step_ring.hpp"

namespace fastreplay {

// Where the parts of a minibatch go: at offsets from the beginning of a block.
class Outputs {
 public:
  void put(std::byte* place) { places_.push_back(place); }
  [[nodiscard]] std::span<std::byte* const> places() const noexcept { return places_; }

 private:
  std::vector<std::byte*> places_;
};

inline void gather(const StepRing& ring, const Slot* slots, std::size_t count, const Outputs& outputs,
                   Slot* ends) noexcept {
  ring.gather({slots, count}, outputs.places(), ends);
}

inline void gather_n_steps(const StepRing& ring, const Slot* slots, std::size_t count, const Outputs& outputs,
                           Slot* ends, std::size_t num_steps, std::size_t newest_row, float* rewards,
                           std::uint8_t* is_counted, float* counts) noexcept {
  ring.gather_n_steps({slots, count}, outputs.places(), ends, num_steps, newest_row, rewards, is_counted, counts);
}

inline bool discounted_sums(const float* rewards, const float* discounts, const std::uint8_t* is_counted, float* sums,
                            std::size_t count, std::size_t num_steps) noexcept {
  return discounted_sums({rewards, count * num_steps}, {discounts, num_steps}, is_counted, sums);
}

inline bool locate(const StepRing& ring, const std::int64_t* rows, const std::int64_t* envs, std::size_t count,
                   Slot* slots) noexcept {
  return ring.locate({rows, count}, envs, slots);
}

inline void store(StepRing& ring, std::size_t row, const Rows* fields, std::size_t num_fields) noexcept {
  ring.store(row, {fields, num_fields});
}

// To float32, rounding to nearest. False where a finite number became infinite, of which NumPy warns.
inline bool narrow(const void* from, float* to, std::size_t count) noexcept {
  const auto* values = static_cast<const double*>(from);
  bool is_infinite = false;
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = static_cast<float>(values[i]);
    is_infinite |= std::isinf(to[i]);
  }
  if (!is_infinite) return true;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::isinf(to[i]) && !std::isinf(values[i])) return false;
  }
  return true;
}

inline void from_flags(const void* from, float* to, std::size_t count) noexcept {
  const auto* flags = static_cast<const std::uint8_t*>(from);
  for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<float>(flags[i]);
}

}  // namespace fastreplay
