// SPDX-License-Identifier: MIT
// Which slots of a ring have the steps of a table whose observations are put together from frames (lanes/frames.hpp):
// a step of all environments comes after the other, and environments are the lanes. For one thread; must not know
// Python, random draws or minibatches.
//
// Slots are steps by environments, as in StepTable, which gathers them: step s of environment e lies in slot
// (s * num_envs + e) % capacity. The table's rows are fewer than the ring has, by its spare ones, so that a row of the
// table moves through the ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lanes/frames.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

class FrameSteps {
 public:
  // Of an unused ring that outlives this. Throws std::invalid_argument where slots or spare ones are no whole steps, or
  // there are no frames.
  FrameSteps(Ring& ring, std::size_t num_envs);

  [[nodiscard]] std::size_t num_rows() const noexcept { return num_rows_; }
  // Where the next step goes, unless it begins anew.
  [[nodiscard]] std::size_t next_row() const noexcept { return next_row_; }
  // How many rows have a step: the next_row() - 1, - 2, ..., modulo num_rows().
  [[nodiscard]] std::size_t num_stored() const noexcept { return num_stored_; }

  // Stores a step of num_envs rows of each field, of which one without data is left as it was. In another row than
  // next_row() it is the first, and all others are forgotten. row < num_rows().
  void store(std::size_t row, std::span<const Rows> fields) noexcept;

  // Slot of each (row, env); rows count from the end where negative, as NumPy's. False where one has no step.
  [[nodiscard]] bool locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                            std::uint64_t* slots) const noexcept;

 private:
  Ring& ring_;
  Frames frames_;
  std::size_t num_envs_;
  std::size_t num_rows_;
  std::size_t num_ring_rows_;
  std::size_t next_row_ = 0;
  std::size_t num_stored_ = 0;
  std::vector<Rows> columns_;  // room for those of a step
};

}  // namespace fastreplay
