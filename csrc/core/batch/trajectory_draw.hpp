// SPDX-License-Identifier: MIT
// Which rows: each trajectory as likely as every other, then each of its transitions, of what is there. Knows nothing
// of what is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/draw.hpp"
#include "batch/random.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// The draws of one call, as UniformDraw's. A row is looked for among all transitions until one is found that begins
// what is there of a trajectory, which takes as many looks as these are long, on average; then the trajectory is
// walked.
class TrajectoryDraw {
 public:
  TrajectoryDraw(Ring& ring, const Lanes& lanes, Philox::Key key, std::uint64_t call, const Window& window,
                 std::span<Ticket> tickets) noexcept;

  void fill(std::size_t first_row, std::size_t num_rows) noexcept;
  [[nodiscard]] bool again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept { return ring_.slot(ticket); }

 private:
  using Place = Lanes::Links::Place;
  struct Step {
    Ticket ticket;
    Place place;
  };

  [[nodiscard]] bool begins(const Step& step) const noexcept;
  [[nodiscard]] bool go_on(Step& step) const noexcept;
  [[nodiscard]] bool draw(std::size_t row, std::uint64_t attempt, std::uint64_t word,
                          const Suitable& suitable) noexcept;
  [[nodiscard]] bool draw_counted(std::size_t row, std::uint64_t attempt, const Suitable& suitable) noexcept;
  [[nodiscard]] bool another(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;
  void refresh() noexcept;

  Ring& ring_;
  const Lanes::Links& links_;
  Philox::Key key_;
  std::uint64_t call_;
  std::span<Ticket> tickets_;
  WordStream words_;
  Ticket oldest_;
  Window window_;
};

}  // namespace fastreplay
