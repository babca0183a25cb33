// SPDX-License-Identifier: MIT
// Which rows: each in proportion to its mass (Schaul et al. 2016), with what it weighs in a loss. Knows nothing of what
// is copied.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/block.hpp"
#include "batch/draw.hpp"
#include "batch/random.hpp"
#include "priority/priorities.hpp"

namespace fastreplay {

// How weights relate to each other. N * P of a row is how many times as likely it is as by a uniform draw.
enum class Normalize : std::uint8_t {
  kNone,    // weight = (N * P)^-beta
  kBatch,   // divided by the largest of the minibatch
  kBuffer,  // divided by the largest that any transition of the buffer would have
};

struct PriorityOptions {
  bool is_stratified = true;  // row i of B falls into the i-th of B shares of the mass
  Normalize normalize = Normalize::kBatch;
  double uniform_mix = 0;  // share of rows that are drawn uniformly
};

// The draws of one call, for a block of weighted_parts(). Row i's first attempt takes the call's i-th word, attempt
// k >= 1 the first of counter (i + 1, call, k, 0): no row depends on another's redraws.
class PriorityDraw {
 public:
  PriorityDraw(Ring& ring, Priorities& priorities, const PriorityOptions& options, Philox::Key key, std::uint64_t call,
               double beta, const Window& window, const Block& block) noexcept;

  // Draws all rows: tickets, probabilities, and what weights are made of. Where every mass is zero, uniformly from
  // what is published; returns whether it was so. The window has something that is published.
  bool begin() noexcept;
  // Draws a row anew, from everything. `attempt` is the number of its latest attempt. Returns false where nothing is
  // suitable, which it asks only after many attempts.
  [[nodiscard]] bool again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;
  // What sample() asks of a draw: all rows are drawn already.
  void fill(std::size_t /*first_row*/, std::size_t /*num_rows*/) const noexcept {}
  // Without a division but where a row was drawn before the latest turn.
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept {
    const std::uint64_t position = ticket - first_;
    if (position >= ring_.capacity()) [[unlikely]]
      return ring_.slot(ticket);
    const std::size_t slot = first_slot_ + position;
    return slot < ring_.capacity() ? slot : slot - ring_.capacity();
  }
  // Makes the weights, once all rows are whole.
  void weigh() noexcept;

 private:
  static constexpr std::size_t kRowsTogether = 256;

  // First attempts that have a target.
  struct Targets {
    std::array<double, kRowsTogether> values;
    std::array<std::size_t, kRowsTogether> rows;
    std::size_t count = 0;
  };

  [[nodiscard]] Philox::Counter words(std::size_t row, std::uint64_t attempt, std::uint64_t purpose) const noexcept {
    return Philox::words({row + 1, call_, attempt, purpose}, key_);
  }
  [[nodiscard]] bool is_uniform(std::size_t row, std::uint64_t attempt) const noexcept;
  void find(Priorities::Turn& turn, Targets& targets) noexcept;
  bool draw_again(Priorities::Turn& turn, std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;
  [[nodiscard]] bool draw(Priorities::Turn& turn, std::size_t row, std::uint64_t attempt, bool is_by_mass) noexcept;
  [[nodiscard]] bool draw_counted(const Priorities::Turn& turn, std::size_t row, std::uint64_t attempt, bool is_by_mass,
                                  const Suitable& suitable) noexcept;
  [[nodiscard]] bool draw_uniformly(const Priorities::Turn& turn, std::size_t row, std::uint64_t word) noexcept;
  void take(const Priorities::Turn& turn) noexcept;
  void set(std::size_t row, Ticket ticket, float mass) noexcept;
  // N * P.
  [[nodiscard]] double times_as_likely(float mass) const noexcept {
    return by_chance_ + by_mass_ * static_cast<double>(mass);
  }

  Ring& ring_;
  Priorities& priorities_;
  PriorityOptions options_;
  Philox::Key key_;
  std::uint64_t call_;
  double beta_;
  Ticket oldest_;
  std::span<Ticket> tickets_;
  float* weights_;  // N * P until weigh()
  float* probabilities_;
  // Of the latest turn: its oldest ticket, N, and what makes N * P of a mass.
  Ticket first_ = 0;
  std::size_t first_slot_ = 0;
  double count_ = 1;
  double share_ = 1;  // 1 / N
  double by_chance_ = 1;
  double by_mass_ = 0;
  double rarest_ = 1;  // N * P of the transition with the smallest mass, for kBuffer
};

}  // namespace fastreplay
