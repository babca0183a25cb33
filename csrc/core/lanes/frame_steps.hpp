// SPDX-License-Identifier: MIT
// A table of steps whose observations are put together from frames (lanes/frames.hpp): a step of all environments comes
// after the other, and environments are the lanes. For one thread; must not know Python or random draws.
//
// Step s of environment e lies in slot (s * num_envs + e) % capacity of a ring. The table's rows are fewer than the
// ring has, by its spare ones, so that a row of the table moves through the ring.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lanes/frames.hpp"
#include "ring/ring.hpp"
#include "steps/step_table.hpp"

namespace fastreplay {

class FrameSteps final : public StepTable {
 public:
  // Of an unused ring that outlives this. Throws std::invalid_argument where slots or spare ones are no whole steps,
  // there are no frames, or as StepTable.
  FrameSteps(Ring& ring, std::size_t num_envs, std::size_t num_observations);

  // Where the next step goes, unless it begins anew.
  [[nodiscard]] std::size_t next_row() const noexcept { return next_row_; }
  // How many rows have a step: the next_row() - 1, - 2, ..., modulo num_rows().
  [[nodiscard]] std::size_t num_stored() const noexcept { return num_stored_; }

  // Lets the steps that were laid into the ring, all of them whole, be the newest rows; nobody has looked at this yet.
  void go_on(std::size_t next_row) noexcept;

  // In another row than next_row() it is the first step, and all others are forgotten.
  void store(std::size_t row, std::span<const Rows> fields) noexcept override;

  [[nodiscard]] bool locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                            std::uint64_t* slots) const noexcept override;

 private:
  // Lets n-step transitions end at the newest step.
  void end_at_newest() noexcept;
  // Throws std::invalid_argument, as above.
  [[nodiscard]] static std::size_t rows_of(const Ring& ring, std::size_t num_envs);
  // The first slot of so many steps before the next.
  [[nodiscard]] std::uint64_t slot_before(std::size_t num_steps) const noexcept;

  Ring& ring_;
  Frames frames_;
  std::size_t next_slot_ = 0;
  std::size_t next_row_ = 0;
  std::size_t num_stored_ = 0;
  std::vector<Rows> columns_;  // room for those of a step
};

}  // namespace fastreplay
