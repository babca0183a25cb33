// SPDX-License-Identifier: MIT
#include "lanes/frame_steps.hpp"

#include <chrono>
#include <stdexcept>

namespace fastreplay {

FrameSteps::FrameSteps(Ring& ring, std::size_t num_envs, std::size_t num_observations)
    : StepTable{ring.records(), num_envs, num_observations, rows_of(ring, num_envs)}, ring_{ring}, frames_{ring} {
  if (shares_observations()) throw std::invalid_argument{"the next observations are not stored"};
  const RecordLayout& layout = ring.records().layout();
  columns_.resize(layout.num_fields() + layout.frames().size());
}

std::size_t FrameSteps::rows_of(const Ring& ring, std::size_t num_envs) {
  if (num_envs == 0 || ring.window_capacity() % num_envs != 0 || ring.capacity() % num_envs != 0 ||
      ring.num_spare() < num_envs || ring.num_reserved() != 0 || ring.records().layout().frames().empty()) {
    throw std::invalid_argument{"the ring does not consist of steps with frames in common"};
  }
  return ring.window_capacity() / num_envs;
}

void FrameSteps::store(std::size_t row, std::span<const Rows> fields) noexcept {
  if (row != next_row_) {
    ring_.clear();
    next_row_ = row;
    num_stored_ = 0;
  }
  Ticket first = 0;
  // Nobody else has tickets, so that the gate is never shut for long.
  while (!ring_.reserve(num_envs(), std::chrono::nanoseconds::zero(), first)) {
  }
  const Ring::Claim claim{ring_, first, num_envs()};
  ring_.write(frames_.stored_as_given(fields, columns_), 0, claim.slot(), num_envs());
  for (std::size_t env = 0; env < num_envs(); ++env) {
    const Ticket ticket = first + env;
    frames_.begin(ticket, num_stored_ == 0 ? Frames::kNone : ticket - num_envs(), fields, env);
  }
  next_slot_ = ring_.slot(first + num_envs());
  next_row_ = row + 1 == num_rows() ? 0 : row + 1;
  if (num_stored_ < num_rows()) ++num_stored_;
  end_at_newest();
}

void FrameSteps::go_on(std::size_t next_row) noexcept {
  next_slot_ = ring_.slot(ring_.num_reserved());
  next_row_ = next_row;
  num_stored_ = ring_.window().published() / num_envs();
  frames_.count();
  if (num_stored_ > 0) end_at_newest();
}

void FrameSteps::end_at_newest() noexcept {
  if (num_stored_ < num_rows()) {
    follow_newest_by_nothing(slot_before(1));
  } else {
    follow_newest_by(slot_before(1), slot_before(num_rows()));
  }
}

bool FrameSteps::locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                        std::uint64_t* slots) const noexcept {
  const auto num_rows = static_cast<std::int64_t>(this->num_rows());
  const auto num_envs = static_cast<std::int64_t>(this->num_envs());
  bool is_stored = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t row = rows[i] < 0 ? rows[i] + num_rows : rows[i];
    is_stored &= row >= 0 && row < num_rows && envs[i] >= 0 && envs[i] < num_envs;
    const auto from = static_cast<std::size_t>(row);  // steps before the next: in [1, num_rows]
    const std::size_t before = from < next_row_ ? next_row_ - from : next_row_ + this->num_rows() - from;
    is_stored &= before <= num_stored_;
    slots[i] = slot_before(before) + static_cast<std::uint64_t>(envs[i]);
  }
  return is_stored;
}

std::uint64_t FrameSteps::slot_before(std::size_t num_steps) const noexcept {
  const std::size_t num_before = num_steps * num_envs();
  return next_slot_ >= num_before ? next_slot_ - num_before : next_slot_ + num_slots() - num_before;
}

}  // namespace fastreplay
