// SPDX-License-Identifier: MIT
#include "lanes/frame_steps.hpp"

#include <chrono>
#include <stdexcept>

namespace fastreplay {

FrameSteps::FrameSteps(Ring& ring, std::size_t num_envs)
    : ring_{ring},
      frames_{ring},
      num_envs_{num_envs},
      num_rows_{num_envs == 0 ? 0 : ring.window_capacity() / num_envs},
      num_ring_rows_{num_envs == 0 ? 0 : ring.capacity() / num_envs} {
  if (num_rows_ == 0 || num_rows_ * num_envs != ring.window_capacity() ||
      num_ring_rows_ * num_envs != ring.capacity() || ring.num_spare() < num_envs || ring.num_reserved() != 0 ||
      ring.records().layout().frames().empty()) {
    throw std::invalid_argument{"the ring does not consist of steps with frames in common"};
  }
  const RecordLayout& layout = ring.records().layout();
  columns_.resize(layout.num_fields() + layout.frames().size());
}

void FrameSteps::store(std::size_t row, std::span<const Rows> fields) noexcept {
  if (row != next_row_) {
    ring_.clear();
    next_row_ = row;
    num_stored_ = 0;
  }
  Ticket first = 0;
  // Nobody else has tickets, so that the gate is never shut for long.
  while (!ring_.reserve(num_envs_, std::chrono::nanoseconds::zero(), first)) {
  }
  const Ring::Claim claim{ring_, first, num_envs_};
  ring_.write(frames_.stored_as_given(fields, columns_), 0, claim.slot(), num_envs_);
  for (std::size_t env = 0; env < num_envs_; ++env) {
    const Ticket ticket = first + env;
    frames_.begin(ticket, num_stored_ == 0 ? Frames::kNone : ticket - num_envs_, fields, env);
  }
  next_row_ = row + 1 == num_rows_ ? 0 : row + 1;
  if (num_stored_ < num_rows_) ++num_stored_;
}

bool FrameSteps::locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                        std::uint64_t* slots) const noexcept {
  const auto num_rows = static_cast<std::int64_t>(num_rows_);
  const auto num_envs = static_cast<std::int64_t>(num_envs_);
  const std::size_t next_ring_row = ring_.num_reserved() / num_envs_ % num_ring_rows_;
  bool is_stored = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t row = rows[i] < 0 ? rows[i] + num_rows : rows[i];
    is_stored &= row >= 0 && row < num_rows && envs[i] >= 0 && envs[i] < num_envs;
    const auto from = static_cast<std::size_t>(row);  // steps before the next: in [1, num_rows]
    const std::size_t before = from < next_row_ ? next_row_ - from : next_row_ + num_rows_ - from;
    is_stored &= before <= num_stored_;
    const std::size_t ring_row =
        next_ring_row >= before ? next_ring_row - before : next_ring_row + num_ring_rows_ - before;
    slots[i] = static_cast<std::uint64_t>(ring_row) * num_envs_ + static_cast<std::uint64_t>(envs[i]);
  }
  return is_stored;
}

}  // namespace fastreplay
