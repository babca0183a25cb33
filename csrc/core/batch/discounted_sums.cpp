// SPDX-License-Identifier: MIT
#include "batch/discounted_sums.hpp"

#include <algorithm>
#include <cstring>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

template <class Number>
double load(const std::byte* place) noexcept {
  std::byte bytes[sizeof(Number)];
  load_row(bytes, place, sizeof bytes);
  Number number;
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

template <class Number>
void store(std::byte* place, double value) noexcept {
  const auto rounded = static_cast<Number>(value);
  std::memcpy(place, &rounded, sizeof rounded);
}

}  // namespace

DiscountedSums::DiscountedSums(const Ring& ring, const Lanes& lanes, const SumRule& rule, const Block& block,
                               const Ways& ways) noexcept
    : ring_{ring},
      links_{lanes.links()},
      rule_{rule},
      block_{block},
      ways_{ways},
      num_near_{std::min<std::size_t>(ways.num_kept(), kMostNear)} {
  for (const SumRule::Sum& each : rule.sums) extent_.add(each.of.column);
  for (const FloatField& each : rule.stored_discount) extent_.add(each.column);
  weights_[0] = 1;
  for (std::size_t k = 0; k < num_near_; ++k) weights_[k + 1] = weights_[k] * rule.gamma;
}

double DiscountedSums::next_weight(double weight, std::size_t slot) const noexcept {
  weight *= rule_.gamma;
  for (const auto& [column, is_double] : rule_.stored_discount) {
    const std::byte* discount = ring_.records().at(slot) + column.offset;
    weight *= is_double ? load<double>(discount) : load<float>(discount);
  }
  return weight;
}

void DiscountedSums::make(std::size_t first_row, std::size_t num_rows) const noexcept {
  std::size_t asked = first_row;
  // Links that lie in the records were looked at there, and the numbers lie beside them, mostly.
  const std::size_t end_asked = links_.num_bytes() == 0 ? first_row : first_row + num_rows;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    for (const std::size_t end = std::min(end_asked, row + kAheadRows); asked < end; ++asked) ask(asked);
    if (ways_[row].num_after < num_near_) {
      make_near(row);
    } else {
      make_far(row);
    }
  }
}

// Of the steps between the first and the last, of which other fields are copied. Inlined by force: GCC drops calls of a
// function that only prefetches.
[[gnu::always_inline]] inline void DiscountedSums::ask(std::size_t row) const noexcept {
  const std::size_t num_after = std::min<std::size_t>(ways_[row].num_after, num_near_);
  const std::uint32_t* slots = ways_.slots(row);
  for (std::size_t k = 1; k < num_after; ++k) extent_.prefetch(ring_.records().at(slots[k]));
}

void DiscountedSums::make_near(std::size_t row) const noexcept {
  const std::span<const std::uint32_t> slots{ways_.slots(row), ways_[row].num_after + std::size_t{1}};
  Weights of_row;
  const bool are_same = rule_.stored_discount.empty();  // of all rows
  const Weights& weights = are_same ? weights_ : of_row;
  of_row[0] = 1;
  for (std::size_t k = 0; !are_same && k < slots.size(); ++k) of_row[k + 1] = next_weight(of_row[k], slots[k]);
  sum(row, [&](auto add) {
    for (std::size_t k = 0; k < slots.size(); ++k) add(slots[k], weights[k]);
  });
  put_discount(row, weights[slots.size()]);
}

// The same where not all slots were kept.
void DiscountedSums::make_far(std::size_t row) const noexcept {
  sum(row, [&](auto add) { weigh(row, add); });
  put_discount(row, weigh(row, [](std::size_t, double) {}));
}

// Goes the same way again, and tells each step's slot and weight. Returns the weight of what comes after. Where the way
// was overwritten meanwhile, so was the row.
template <class At>
double DiscountedSums::weigh(std::size_t row, At at) const noexcept {
  std::uint32_t num_steps = ways_[row].num_after + 1;
  double weight = 1;
  for (Lanes::Links::Place place = links_.place(block_.tickets()[row]);;) {
    at(place.slot, weight);
    weight = next_weight(weight, place.slot);
    if (--num_steps == 0) return weight;
    const Gap gap = links_.after(place);
    if (is_gap(gap) && gap < ring_.capacity()) place = links_.later(place, gap);
  }
}

// Of all that is summed of a row; tell(add) has add(slot, weight) called for each step.
template <class Tell>
void DiscountedSums::sum(std::size_t row, Tell tell) const noexcept {
  for (const SumRule::Sum& each : rule_.sums) {
    if (each.of.is_double) {
      sum<double>(each, row, tell);
    } else {
      sum<float>(each, row, tell);
    }
  }
}

template <class Number, class Tell>
void DiscountedSums::sum(const SumRule::Sum& what, std::size_t row, Tell tell) const noexcept {
  const std::size_t stride = ring_.records().layout().stride();
  const Column& column = what.of.column;
  const std::byte* numbers = ring_.records().at(0) + column.offset;
  std::byte* sums = block_.part(what.part) + row * column.row_bytes;
  for (std::size_t at = 0; at < column.row_bytes; at += sizeof(Number)) {
    double total = 0;
    tell([&](std::size_t slot, double weight) { total += weight * load<Number>(numbers + slot * stride + at); });
    store<Number>(sums + at, total);
  }
}

void DiscountedSums::put_discount(std::size_t row, double weight) const noexcept {
  std::byte* discounts = block_.part(rule_.discount_part);
  if (rule_.is_discount_double) {
    store<double>(discounts + row * sizeof(double), weight);
  } else {
    store<float>(discounts + row * sizeof(float), weight);
  }
}

}  // namespace fastreplay
