// SPDX-License-Identifier: MIT
// Records as a table of rows and environments, one row a step of a vector environment, for an adapter that is their
// only user and keeps the cursor itself. For one thread; must not know Python, rings or random draws.
//
// The transition of environment e in row r lies in slot r * num_envs + e; with frames in common rows move through the
// slots (lanes/frame_steps.hpp). Its columns are, in this order:
// the observation's, action, reward, done, timeout, then the next observation's. The last are left out where
// the next observation is the observation of the row after. reward, done and timeout are one float32 each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batch/block.hpp"
#include "batch/gather.hpp"
#include "batch/layout.hpp"
#include "storage/records.hpp"

namespace fastreplay {

class StepTable {
 public:
  // The records' columns are num_observations for the observation, and the rest as above. Throws
  // std::invalid_argument where their number or the capacity does not fit, or they have frames in common.
  StepTable(Records& records, std::size_t num_envs, std::size_t num_observations);
  virtual ~StepTable() = default;
  StepTable(const StepTable&) = delete;
  StepTable& operator=(const StepTable&) = delete;

  [[nodiscard]] Records& records() const noexcept { return records_; }
  [[nodiscard]] std::size_t num_rows() const noexcept { return num_rows_; }
  // Of what store() takes.
  [[nodiscard]] std::size_t num_fields() const noexcept { return columns_.size(); }
  [[nodiscard]] std::size_t row_bytes(std::size_t field) const noexcept { return columns_[field].row_bytes; }
  [[nodiscard]] std::size_t num_envs() const noexcept { return num_envs_; }
  [[nodiscard]] bool shares_observations() const noexcept { return shares_; }

  // Of the minibatches that are gathered: the observation's, action, the next observation's, reward, done, slots.
  [[nodiscard]] const std::vector<Part>& parts() const noexcept { return parts_; }

  // Stores a row. fields: the observation's, action, reward, done, timeout, the next observation's, num_envs
  // rows each; a field without data is left as it was. row < num_rows().
  virtual void store(std::size_t row, std::span<const Rows> fields) noexcept;

  // Slot of each (row, env); rows count from the end where negative, as NumPy's. False where one is out of range, or
  // has no step and cannot be read.
  [[nodiscard]] virtual bool locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                                    std::uint64_t* slots) const noexcept;

  // Copies the transitions in the slots that the block has for tickets; done is done * (1 - timeout). `ends` is room
  // for as many. The block is made of parts().
  void gather(const Block& block, std::uint64_t* ends) const noexcept;

  // Copies over the desired goals of as many of the block's last rows what the steps in the slots achieved: part
  // `achieved` of their next observations over part `desired`, of rows as long, of both observations of a row. Of a
  // table whose observations are not shared.
  void gather_goals(const Block& block, std::span<const std::uint64_t> slots, std::size_t achieved,
                    std::size_t desired) const noexcept;

  // As gather() for n-step transitions: from each slot on, up to num_steps >= 1 steps of its environment, until the
  // first that is done or timed out. Next observation and done are those of the last step, the reward the first's;
  // rewards[i * num_steps + k] is that of step k, is_counted[...] whether it belongs, and counts[i] how many do. No
  // step leads beyond newest_row, nor into a row that has no step: what did not end there is cut off there.
  void gather_n_steps(const Block& block, std::uint64_t* ends, std::size_t num_steps, std::size_t newest_row,
                      float* rewards, std::uint8_t* is_counted, float* counts) const noexcept;

 protected:
  // Of num_rows that move through more slots, which may have frames in common.
  StepTable(Records& records, std::size_t num_envs, std::size_t num_observations, std::size_t num_rows);

  [[nodiscard]] std::size_t num_slots() const noexcept { return num_slots_; }
  // By the first slots of their environments: the row after the newest is the oldest, wherever that lies.
  void follow_newest_by(std::uint64_t newest, std::uint64_t oldest) noexcept {
    jump_from_ = newest;
    jump_to_ = oldest;
    stop_ = num_slots_;
  }
  // The same where there is none after it.
  void follow_newest_by_nothing(std::uint64_t newest) noexcept {
    jump_from_ = num_slots_;
    stop_ = newest;
  }

 private:
  using Slots = std::span<const std::uint64_t>;

  [[nodiscard]] bool is_in_row(std::uint64_t slot, std::uint64_t first) const noexcept {
    return slot - first < num_envs_;  // of a first slot that is num_slots_, none is
  }
  [[nodiscard]] std::uint64_t after(std::uint64_t slot) const noexcept {
    if (is_in_row(slot, jump_from_)) return slot - jump_from_ + jump_to_;
    const std::uint64_t next = slot + num_envs_;
    return next < num_slots_ ? next : next - num_slots_;
  }
  [[nodiscard]] std::uint64_t first_slot(std::size_t row) const noexcept;
  [[nodiscard]] float load(const Column& column, std::uint64_t slot) const noexcept;
  [[nodiscard]] float timeout_at(std::uint64_t slot, std::uint64_t newest) const noexcept;
  [[nodiscard]] float* dones(const Block& block) const noexcept;
  // Rows of the block from first_row on.
  template <Distance kDistance>
  void copy(std::span<const Copied> fields, const Block& block, std::size_t first_row, Slots slots) const noexcept;
  void prefetch_store(std::size_t slot) const noexcept;
  void follow(Slots starts, std::uint64_t* ends, std::size_t num_steps, std::uint64_t newest, float* rewards,
              std::uint8_t* is_counted, float* counts) const noexcept;
  std::size_t follow_one(std::uint64_t slot, std::uint64_t& end, std::size_t num_steps, std::uint64_t newest,
                         float* rewards, std::uint8_t* is_counted) const noexcept;

  Records& records_;
  std::size_t num_envs_;
  std::size_t num_slots_;
  std::size_t num_rows_;
  // First slots of rows, num_slots_ for none: from which one does not go on with the next slots, but those at jump_to_;
  // and from which none goes on.
  std::uint64_t jump_from_;
  std::uint64_t jump_to_ = 0;
  std::uint64_t stop_;
  std::size_t num_observations_;
  bool shares_;
  std::vector<Column> columns_;  // in the order of store(); the observation's twice where it is shared
  std::vector<Part> parts_;
  Column reward_;
  Column done_;
  Column timeout_;
};

// sums[i] = the sum over k, in order, of rewards[i * n + k] * discounts[k] * is_counted[i * n + k], n the number of
// discounts. False where a sum is not finite.
[[nodiscard]] bool discounted_sums(std::span<const float> rewards, std::span<const float> discounts,
                                   const std::uint8_t* is_counted, float* sums) noexcept;

}  // namespace fastreplay
