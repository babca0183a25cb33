// SPDX-License-Identifier: MIT
#include "batch/discounted_sums.hpp"

#include <algorithm>
#include <cstring>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

template <class Number>
Number load(const std::byte* field, std::size_t element) noexcept {
  std::byte bytes[sizeof(Number)];
  load_row(bytes, field + element * sizeof(Number), sizeof(Number));
  Number number;
  std::memcpy(&number, bytes, sizeof number);
  return number;
}

void store(std::byte* place, double value, bool is_double) noexcept {
  const auto rounded = static_cast<float>(value);
  if (is_double) {
    std::memcpy(place, &value, sizeof value);
  } else {
    std::memcpy(place, &rounded, sizeof rounded);
  }
}

}  // namespace

DiscountedSums::DiscountedSums(const Ring& ring, const Lanes& lanes, const SumRule& rule, const Block& block,
                               const Ways& ways) noexcept
    : ring_{ring}, links_{lanes.links()}, rule_{rule}, block_{block}, ways_{ways} {
  for (const SumRule::Sum& each : rule.sums) extent_.add(each.of.column);
  for (const FloatField& each : rule.stored_discount) extent_.add(each.column);
}

double DiscountedSums::number(const FloatField& of, std::size_t slot, std::size_t element) const noexcept {
  const std::byte* field = ring_.records().at(slot) + of.column.offset;
  return of.is_double ? load<double>(field, element) : static_cast<double>(load<float>(field, element));
}

inline double DiscountedSums::next_weight(double weight, std::size_t slot) const noexcept {
  weight *= rule_.gamma;
  for (const FloatField& discount : rule_.stored_discount) weight *= number(discount, slot, 0);
  return weight;
}

// Tells each step's slot and weight. Returns the weight of what comes after.
template <class At>
double DiscountedSums::weigh(std::size_t row, At at) const noexcept {
  const std::uint32_t num_steps = ways_[row].num_after + 1;
  if (num_steps > ways_.num_kept()) return weigh_far(row, at);
  const std::uint32_t* slots = ways_.slots(row);
  double weight = 1;
  for (std::uint32_t k = 0; k < num_steps; ++k) {
    at(slots[k], weight);
    weight = next_weight(weight, slots[k]);
  }
  return weight;
}

// The same where not all slots were kept: goes the same way again. Where it was overwritten meanwhile, so was the row.
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

void DiscountedSums::make(std::size_t first_row, std::size_t num_rows) const noexcept {
  std::size_t asked = 0;
  for (std::size_t i = 0; i < num_rows; ++i) {
    for (const std::size_t end = std::min(num_rows, i + kAheadRows); asked < end; ++asked) {
      const std::size_t num_steps = std::min<std::size_t>(ways_[first_row + asked].num_after + 1, ways_.num_kept());
      const std::uint32_t* slots = ways_.slots(first_row + asked);
      for (std::size_t k = 0; k < num_steps; ++k) extent_.prefetch(ring_.records().at(slots[k]));
    }
    make(first_row + i);
  }
}

void DiscountedSums::make(std::size_t row) const noexcept {
  double weight = 0;
  for (const SumRule::Sum& each : rule_.sums) {
    const std::size_t row_bytes = each.of.column.row_bytes;
    const std::size_t num_bytes = each.of.is_double ? sizeof(double) : sizeof(float);
    for (std::size_t element = 0; element < row_bytes / num_bytes; ++element) {
      double total = 0;
      weight = weigh(row, [&](std::size_t slot, double weight_of_step) {
        total += weight_of_step * number(each.of, slot, element);
      });
      store(block_.part(each.part) + row * row_bytes + element * num_bytes, total, each.of.is_double);
    }
  }
  if (rule_.sums.empty()) weight = weigh(row, [](std::size_t, double) {});
  const std::size_t num_bytes = rule_.is_discount_double ? sizeof(double) : sizeof(float);
  store(block_.part(rule_.discount_part) + row * num_bytes, weight, rule_.is_discount_double);
}

}  // namespace fastreplay
