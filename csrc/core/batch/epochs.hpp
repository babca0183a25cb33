// SPDX-License-Identifier: MIT
// Which rows: every transition of a moment once, in an order that a key gives, then those of the next moment. Knows
// nothing of what is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

#include "batch/draw.hpp"
#include "batch/permutation.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// How far the epochs have got: the order has nothing else to remember.
struct EpochState {
  std::uint64_t epoch = 0;
  Ticket first = 0;            // oldest of its transitions
  std::uint64_t size = 0;      // how many they are; 0 before the first epoch
  std::uint64_t position = 0;  // how many of them had their turn
};

struct EpochOptions {
  bool is_shuffled = true;  // else the oldest comes first
  bool drops_last = false;  // an epoch's last rows, where they are fewer than a minibatch
};

// Any thread may take rows; each goes to one of them. What was overwritten or cleared before its turn is left out.
class Epochs {
 public:
  Epochs(Philox::Key key, const EpochOptions& options, const EpochState& state) noexcept;

  // The next rows: as many as there is room for, fewer where an epoch ends and drops nothing; 0 where the ring holds
  // none, or too few. `before` becomes the state before them.
  [[nodiscard]] std::size_t take(Ring& ring, std::span<Ticket> tickets, EpochState& before) noexcept;
  // The next row, in place of one that was overwritten on its way; false where the ring holds none.
  [[nodiscard]] bool replace(Ring& ring, Ticket& ticket) noexcept;

  // Lets the statistic go on from that of others, as long as nobody knows of these.
  void count_on_from(const Epochs& before) noexcept { num_left_out_ = before.num_left_out(); }

  // In the child after a fork: nobody holds the lock, and what another thread was at is as far as it got.
  void begin_in_child() noexcept;

  [[nodiscard]] EpochState state() const noexcept;
  [[nodiscard]] bool drops_last() const noexcept { return options_.drops_last; }
  // Rows that had no turn, as they were gone.
  [[nodiscard]] std::uint64_t num_left_out() const noexcept;

 private:
  [[nodiscard]] bool begin_epoch(Ring& ring, std::size_t least) noexcept;
  [[nodiscard]] std::size_t walk(Ring& ring, std::span<Ticket> tickets) noexcept;
  void set_order() noexcept;

  const Philox::Key key_;
  const EpochOptions options_;

  mutable std::mutex mutex_;  // guards what follows
  EpochState state_;
  Permutation order_;
  std::uint64_t num_left_out_ = 0;
};

// The rows of one minibatch, which have their tickets.
class EpochDraw {
 public:
  EpochDraw(Ring& ring, Epochs& epochs, Philox::Key key, std::uint64_t call, std::span<Ticket> tickets) noexcept
      : ring_{ring}, epochs_{epochs}, key_{key}, call_{call}, tickets_{tickets} {}

  // What sample() asks of a draw.
  void fill(std::size_t /*first_row*/, std::size_t /*num_rows*/) const noexcept {}
  // Any will do: rows that have to suit are not drawn in epochs.
  [[nodiscard]] bool again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept { return ring_.slot(ticket); }

 private:
  Ring& ring_;
  Epochs& epochs_;
  Philox::Key key_;
  std::uint64_t call_;
  std::span<Ticket> tickets_;
};

}  // namespace fastreplay
