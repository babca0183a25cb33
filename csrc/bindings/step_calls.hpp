// SPDX-License-Identifier: MIT
// The C++ that fastreplay/adapters/native_step_table.pyx calls: plain functions over pointers. Must not know Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

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

inline bool discounted_sums(const float* rewards, const float* discounts, const std::uint8_t* is_counted, float* sums,
                            std::size_t count, std::size_t num_steps) noexcept {
  return discounted_sums({rewards, count * num_steps}, {discounts, num_steps}, is_counted, sums);
}

inline void store(StepTable& table, std::size_t row, const Rows* fields, std::size_t num_fields) noexcept {
  table.store(row, {fields, num_fields});
}

}  // namespace fastreplay
