// SPDX-License-Identifier: MIT
// n steps as one: their discounted sums. Knows nothing of how rows are drawn, or of what else is copied.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch/block.hpp"
#include "batch/gather.hpp"
#include "batch/walks.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Numbers of floating point in a record.
struct FloatField {
  Column column;
  bool is_double;  // else float
};

// With w(0) = 1 and w(k + 1) = w(k) * gamma * d(k), in this order, where d(k) is the stored discount of step k (1 if
// none is): of the m steps that are there, the sum of w(k) * r(k), k ascending, and w(m), in double.
struct SumRule {
  struct Sum {
    FloatField of;
    std::size_t part;  // where the sums go, as the record has them
  };

  double gamma;
  std::vector<Sum> sums;
  std::vector<FloatField> stored_discount;  // one of one number, or none
  std::size_t discount_part;                // where w(m) goes
  bool is_discount_double;
};

class DiscountedSums {
 public:
  DiscountedSums(const Ring& ring, const Lanes& lanes, const SumRule& rule, const Block& block,
                 const Ways& ways) noexcept;

  // Makes those of rows first_row, first_row + 1, ..., over all steps of their ways.
  void make(std::size_t first_row, std::size_t num_rows) const noexcept;

 private:
  static constexpr std::size_t kRowsTogether = 16;
  static constexpr std::size_t kMostNear = 8;
  // Of steps 0, 1, ..., and of what comes after the last of them.
  using Weights = std::array<double, kMostNear + 1>;

  void ask(std::size_t first_row, std::size_t num_rows) const noexcept;
  template <class Tell>
  void each_sum(Tell tell) const noexcept;
  void make_together(std::size_t first_row, std::size_t num_rows) const noexcept;
  void make_far(std::size_t row) const noexcept;
  void weigh(std::size_t row, Weights& weights) const noexcept;
  template <class At>
  double weigh_far(std::size_t row, At at) const noexcept;
  [[nodiscard]] double next_weight(double weight, std::size_t slot) const noexcept;
  // Of rows whose slots are kept; from the weights of one to those of the next.
  template <class Number>
  void sum(const SumRule::Sum& what, std::size_t first_row, std::size_t num_rows, const Weights* weights,
           std::size_t weights_apart) const noexcept;
  template <class Number>
  void sum_far(const SumRule::Sum& what, std::size_t row) const noexcept;
  void put_discount(std::size_t row, double weight) const noexcept;

  const Ring& ring_;
  const Lanes::Links& links_;
  const SumRule& rule_;
  const Block& block_;
  const Ways& ways_;
  std::size_t num_near_;  // steps whose slots are kept
  Extent extent_;         // of what is summed of a record
  Weights weights_;       // of all rows, where no discount is stored
};

}  // namespace fastreplay
