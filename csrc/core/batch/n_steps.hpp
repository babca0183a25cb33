// SPDX-License-Identifier: MIT
// What surrounds a row: up to n steps of its trajectory, their discounted sum, and the record that they end at. Knows
// nothing of how rows are drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batch/block.hpp"
#include "batch/gather.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Numbers of floating point in a record.
struct FloatField {
  Column column;
  bool is_double;  // else float
};

// With w(0) = 1 and w(k + 1) = w(k) * gamma * d(k), in this order, where d(k) is the stored discount of step k (1 if
// none is): of the m steps that are there, at most num_steps, the sum of w(k) * r(k), k ascending, and w(m), in double.
struct NStepRule {
  struct Sum {
    FloatField of;
    std::size_t part;  // where the sums go, as the record has them
  };

  std::size_t num_steps;
  double gamma;
  std::vector<Sum> sums;
  std::vector<FloatField> stored_discount;  // one of one number, or none
  std::size_t discount_part;                // where w(m) goes
  bool is_discount_double;
};

// Whether a block of records of this layout has the parts that the rule makes, and no others to be made.
[[nodiscard]] bool fits(const NStepRule& rule, const BatchLayout& layout) noexcept;

// The rows of one minibatch that begin at drawn tickets. Fewer steps than num_steps are there where the trajectory ends
// or is cut, or where its next transition has not come yet.
class NSteps {
 public:
  static constexpr std::size_t kMostRows = 256;  // that are copied at once

  NSteps(Ring& ring, const Lanes& lanes, const NStepRule& rule, const Block& block) noexcept
      : ring_{ring}, links_{lanes.links()}, rule_{rule}, block_{block} {
    const std::span<const Column> columns{ring.records().layout().columns()};
    for (const Copied& each : block.layout().copied_at_start()) at_start_.add(columns[each.field]);
    for (const Copied& each : block.layout().copied_at_end()) at_end_.add(columns[each.field]);
  }

  // Copies rows [first_row, first_row + num_rows), at most kMostRows, whose tickets are in the block. Returns the
  // smallest: the copies are whole if it is not below ring.oldest_whole() afterwards, for what follows it is newer. Any
  // thread may copy other rows meanwhile.
  Ticket copy(std::size_t first_row, std::size_t num_rows) const noexcept;

 private:
  using Place = Lanes::Links::Place;

  // How far a row got, and where its next step is said to be.
  struct Walk {
    Place last;
    Ticket ticket;
    std::uint32_t num_steps;
    Gap gap;  // 0 for nowhere
  };

  static constexpr std::size_t kRowsTogether = 32;

  void copy_together(const Window& window, std::size_t first_row, std::span<const Place> begins) const noexcept;
  void follow(const Window& window, std::span<Walk> walks) const noexcept;
  [[nodiscard]] bool step(const Window& window, Walk& walk) const noexcept;
  void look_ahead(Walk& walk) const noexcept;
  [[gnu::always_inline]] void prefetch_summed(
      std::size_t slot) const noexcept;  // else its calls are dropped, as Extent's
  void sum(std::size_t row, Place begin, std::uint32_t num_steps) const noexcept;
  template <class At>
  double weigh(Place begin, std::uint32_t num_steps, At at) const noexcept;
  [[nodiscard]] double number(const FloatField& of, std::size_t slot, std::size_t element) const noexcept;

  Ring& ring_;
  const Lanes::Links& links_;
  const NStepRule& rule_;
  const Block& block_;
  Extent at_start_;  // of what is copied
  Extent at_end_;
};

}  // namespace fastreplay
