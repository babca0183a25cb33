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
  // Links that lie in the records were looked at there, and the numbers lie beside them, mostly.
  const bool asks = links_.num_bytes() > 0;
  const std::size_t end = first_row + num_rows;
  const auto together = [end](std::size_t row) { return std::min(kRowsTogether, end - row); };
  if (asks) ask(first_row, together(first_row));
  for (std::size_t row = first_row; row < end;) {
    const std::size_t num = together(row);
    if (asks) ask(row + num, together(row + num));
    make_together(row, num);
    row += num;
  }
}

// Of the steps between the first and the last, of which other fields are copied. Inlined by force: GCC drops calls of a
// function that only prefetches.
[[gnu::always_inline]] inline void DiscountedSums::ask(std::size_t first_row, std::size_t num_rows) const noexcept {
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    const std::size_t num_after = std::min<std::size_t>(ways_[row].num_after, num_near_);
    const std::uint32_t* slots = ways_.slots(row);
    for (std::size_t k = 1; k < num_after; ++k) extent_.prefetch(ring_.records().at(slots[k]));
  }
}

// Tells each sum, with a number of its kind.
template <class Tell>
void DiscountedSums::each_sum(Tell tell) const noexcept {
  for (const SumRule::Sum& each : rule_.sums) each.of.is_double ? tell(each, double{}) : tell(each, float{});
}

void DiscountedSums::make_together(std::size_t first_row, std::size_t num_rows) const noexcept {
  std::array<Weights, kRowsTogether> of_rows;
  const bool are_same = rule_.stored_discount.empty();
  const Weights* const weights = are_same ? &weights_ : of_rows.data();
  const std::size_t weights_apart = are_same ? 0 : 1;
  for (std::size_t i = 0; !are_same && i < num_rows; ++i) weigh(first_row + i, of_rows[i]);
  each_sum([&]<class Number>(const SumRule::Sum& what, Number) {
    sum<Number>(what, first_row, num_rows, weights, weights_apart);
  });
  for (std::size_t i = 0; i < num_rows; ++i) {
    const std::size_t num_steps = ways_[first_row + i].num_after + std::size_t{1};
    if (num_steps <= num_near_) {
      put_discount(first_row + i, weights[i * weights_apart][num_steps]);
    } else {
      make_far(first_row + i);
    }
  }
}

void DiscountedSums::weigh(std::size_t row, Weights& weights) const noexcept {
  const std::size_t num_steps = std::min<std::size_t>(ways_[row].num_after + std::size_t{1}, num_near_);
  const std::uint32_t* slots = ways_.slots(row);
  weights[0] = 1;
  for (std::size_t k = 0; k < num_steps; ++k) weights[k + 1] = next_weight(weights[k], slots[k]);
}

template <class Number>
void DiscountedSums::sum(const SumRule::Sum& what, std::size_t first_row, std::size_t num_rows, const Weights* weights,
                         std::size_t weights_apart) const noexcept {
  const Ways ways = ways_;  // ours, so that no store of a sum may change it
  const std::size_t stride = ring_.records().layout().stride(), row_bytes = what.of.column.row_bytes;
  const std::size_t num_near = num_near_;
  const std::byte* const numbers = ring_.records().at(0) + what.of.column.offset;
  std::byte* sums = block_.part(what.part) + first_row * row_bytes;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row, weights += weights_apart, sums += row_bytes) {
    const std::size_t num_steps = ways[row].num_after + std::size_t{1};
    if (num_steps > num_near) continue;
    const std::uint32_t* slots = ways.slots(row);
    for (std::size_t at = 0; at < row_bytes; at += sizeof(Number)) {
      double total = 0;
      for (std::size_t k = 0; k < num_steps; ++k)
        total += (*weights)[k] * load<Number>(numbers + slots[k] * stride + at);
      store<Number>(sums + at, total);
    }
  }
}

// The same of a row of which not all slots were kept.
void DiscountedSums::make_far(std::size_t row) const noexcept {
  each_sum([&]<class Number>(const SumRule::Sum& what, Number) { sum_far<Number>(what, row); });
  put_discount(row, weigh_far(row, [](std::size_t, double) {}));
}

template <class Number>
void DiscountedSums::sum_far(const SumRule::Sum& what, std::size_t row) const noexcept {
  const Column& column = what.of.column;
  std::byte* sums = block_.part(what.part) + row * column.row_bytes;
  for (std::size_t at = 0; at < column.row_bytes; at += sizeof(Number)) {
    double total = 0;
    weigh_far(row, [&](std::size_t slot, double weight) {
      total += weight * load<Number>(ring_.records().at(slot) + column.offset + at);
    });
    store<Number>(sums + at, total);
  }
}

// Goes the same way again, and tells each step's slot and weight. Returns the weight of what comes after. Where the way
// was overwritten meanwhile, so was the row.
template <class At>
double DiscountedSums::weigh_far(std::size_t row, At at) const noexcept {
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

void DiscountedSums::put_discount(std::size_t row, double weight) const noexcept {
  std::byte* discounts = block_.part(rule_.discount_part);
  if (rule_.is_discount_double) {
    store<double>(discounts + row * sizeof(double), weight);
  } else {
    store<float>(discounts + row * sizeof(float), weight);
  }
}

}  // namespace fastreplay
