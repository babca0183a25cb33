// SPDX-License-Identifier: MIT
// A ring seen as rows of num_envs transitions, one row a step of a vector environment, for an adapter that
// is the ring's only user and keeps the cursor itself: no tickets, no laps. Must not know Python, random
// draws or blocks.
//
// The transition of environment e in row r lies at slot r * num_envs + e. Its columns are, in this order:
// the observation's, action, reward, done, timeout, then the next observation's. The last are left out where
// the next observation is the observation of the row after. reward, done and timeout are one float32 each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "ring/ring.hpp"
#include "storage/record_layout.hpp"

namespace fastreplay {

using Slot = std::uint64_t;

class StepRing {
 public:
  // The ring's columns are num_observations for the observation, and the rest as above. Throws
  // std::invalid_argument where their number or the ring's capacity does not fit.
  StepRing(Ring& ring, std::size_t num_envs, std::size_t num_observations);

  [[nodiscard]] std::size_t num_rows() const noexcept { return num_rows_; }
  // Of what store() takes.
  [[nodiscard]] std::size_t num_fields() const noexcept { return columns_.size(); }
  [[nodiscard]] std::size_t row_bytes(std::size_t field) const noexcept { return columns_[field].row_bytes; }
  [[nodiscard]] std::size_t num_envs() const noexcept { return num_envs_; }
  [[nodiscard]] bool shares_observations() const noexcept { return shares_; }

  // Stores a row. fields: the observation's, action, reward, done, timeout, the next observation's, num_envs
  // rows each; a field without data is left as it was. row < num_rows().
  void store(std::size_t row, std::span<const Rows> fields) noexcept;

  // Slot of each (row, env); rows count from the end where negative, as NumPy's. False where one is out of range.
  [[nodiscard]] bool locate(std::span<const std::int64_t> rows, const std::int64_t* envs, Slot* slots) const noexcept;

  // Copies the transitions at slots to outputs: the observation's, action, the next observation's, reward, and
  // done * (1 - timeout). `ends` is room for as many slots.
  void gather(std::span<const Slot> slots, std::span<std::byte* const> outputs, Slot* ends) const noexcept;

  // The same for n-step transitions: from slots[i] on, up to num_steps >= 1 steps of its environment, until the
  // first that is done or timed out. Next observation and done are those of the last step. Outputs are as above,
  // without the reward; instead, rewards[i * num_steps + k] is that of step k, is_counted[...] whether it belongs,
  // and counts[i] how many do. No step leads beyond newest_row: what did not end there is cut off there.
  void gather_n_steps(std::span<const Slot> slots, std::span<std::byte* const> outputs, Slot* ends,
                      std::size_t num_steps, std::size_t newest_row, float* rewards, std::uint8_t* is_counted,
                      float* counts) const noexcept;

 private:
  // A field of a minibatch: a column of the record that a row starts at, or of the one it ends at.
  struct Taken {
    Column column;
    bool at_end;
  };

  [[nodiscard]] Slot after(Slot slot) const noexcept {
    const Slot next = slot + num_envs_;
    return next < num_rows_ * num_envs_ ? next : next - num_rows_ * num_envs_;
  }
  [[nodiscard]] float load(const Column& column, Slot slot) const noexcept;
  [[nodiscard]] float timeout_at(Slot slot, std::size_t newest_row) const noexcept;
  // Into the outputs from first_row on.
  void copy(std::span<const Taken> taken, std::span<std::byte* const> outputs, std::size_t first_row,
            std::span<const Slot> starts, const Slot* ends) const noexcept;
  void resolve(std::span<const Slot> slots, Slot* ends, std::size_t num_steps, std::size_t newest_row, float* rewards,
               std::uint8_t* is_counted, float* counts) const noexcept;

  Ring& ring_;
  std::size_t num_envs_;
  std::size_t num_rows_;
  std::size_t num_observations_;
  bool shares_;
  std::vector<Column> columns_;       // in the order of store(); the observation's twice where it is shared
  std::vector<Taken> taken_;          // by gather(), without done
  std::vector<Taken> taken_n_steps_;  // by gather_n_steps(), without done
  Column reward_;
  Column done_;
  Column timeout_;
};

// sums[i] = the sum over k, in order, of rewards[i * n + k] * discounts[k] * is_counted[i * n + k], n the number of
// discounts. False where a sum is not finite.
[[nodiscard]] bool discounted_sums(std::span<const float> rewards, std::span<const float> discounts,
                                   const std::uint8_t* is_counted, float* sums) noexcept;

}  // namespace fastreplay
