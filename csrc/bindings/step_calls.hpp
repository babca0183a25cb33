// SPDX-License-Identifier: MIT
// The C++ that fastreplay/adapters/native_step_table.pyx calls: plain functions over pointers. Must not know Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bounds.hpp"
#include "capsule.hpp"
#include "gil.hpp"
#include "lanes/frame_steps.hpp"
#include "steps/step_table.hpp"

namespace fastreplay {

// Whether a block is what the table gathers into.
inline bool fits(const StepTable& table, const Block& block) noexcept {
  return block.layout().parts() == table.parts();
}

inline std::size_t num_bytes(const Block& block) noexcept { return block.layout().num_bytes(); }

// Chooses the rows of the block. False where one is out of range, or has no step.
inline bool locate(const StepTable& table, const std::int64_t* rows, const std::int64_t* envs,
                   const Block& block) noexcept {
  return table.locate({rows, block.batch_size()}, envs, block.tickets().data());
}

// Whether parts of observations can be goals: what was achieved in the next one, and what is desired in both.
inline bool has_goals(const StepTable& table, std::size_t achieved, std::size_t desired,
                      std::size_t num_observations) noexcept {
  return achieved < num_observations && desired < num_observations && !table.shares_observations() &&
         table.parts()[achieved].row_bytes == table.parts()[desired].row_bytes;
}

// False as locate(). Throws std::bad_alloc.
inline bool gather_goals(const StepTable& table, const Block& block, const std::int64_t* rows, const std::int64_t* envs,
                         std::size_t count, std::size_t achieved, std::size_t desired) {
  std::vector<std::uint64_t> slots(count);
  if (!table.locate({rows, count}, envs, slots.data())) return false;
  table.gather_goals(block, slots, achieved, desired);
  return true;
}

inline bool discounted_sums(const float* rewards, const float* discounts, const std::uint8_t* is_counted, float* sums,
                            std::size_t count, std::size_t num_steps) noexcept {
  return discounted_sums({rewards, count * num_steps}, {discounts, num_steps}, is_counted, sums);
}

inline void store(StepTable& table, std::size_t row, const Rows* fields, std::size_t num_fields) noexcept {
  table.store(row, {fields, num_fields});
}

}  // namespace fastreplay
