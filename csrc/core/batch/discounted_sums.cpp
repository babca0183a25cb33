// SPDX-License-Identifier: MIT
#include "batch/discounted_sums.hpp"

#include <cstring>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

void store(std::byte* place, double value, bool is_double) noexcept {
  const auto rounded = static_cast<float>(value);
  if (is_double) {
    std::memcpy(place, &value, sizeof value);
  } else {
    std::memcpy(place, &rounded, sizeof rounded);
  }
}

}  // namespace

double DiscountedSums::number(const FloatField& of, std::size_t slot, std::size_t element) const noexcept {
  const std::size_t num_bytes = of.is_double ? sizeof(double) : sizeof(float);
  std::byte bytes[sizeof(double)];
  load_row(bytes, ring_.records().at(slot) + of.column.offset + element * num_bytes, num_bytes);
  double wide = 0;
  float narrow = 0;
  if (of.is_double) {
    std::memcpy(&wide, bytes, sizeof wide);
    return wide;
  }
  std::memcpy(&narrow, bytes, sizeof narrow);
  return static_cast<double>(narrow);
}

inline double DiscountedSums::next_weight(double weight, std::size_t slot) const noexcept {
  weight *= rule_.gamma;
  for (const FloatField& discount : rule_.stored_discount) weight *= number(discount, slot, 0);
  return weight;
}

// Tells each step's slot and weight. Returns the weight of what comes after.
template <class At>
double DiscountedSums::weigh(std::size_t row, Place begin, At at) const noexcept {
  const std::uint32_t num_steps = ways_[row].num_after + 1;
  if (num_steps > ways_.num_kept()) return weigh_far(begin, num_steps, at);
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
double DiscountedSums::weigh_far(Place begin, std::uint32_t num_steps, At at) const noexcept {
  double weight = 1;
  for (Place place = begin;;) {
    at(place.slot, weight);
    weight = next_weight(weight, place.slot);
    if (--num_steps == 0) return weight;
    const Gap gap = links_.after(place);
    if (is_gap(gap) && gap < ring_.capacity()) place = links_.later(place, gap);
  }
}

void DiscountedSums::make(std::size_t row, Place begin) const noexcept {
  double weight = 0;
  for (const SumRule::Sum& each : rule_.sums) {
    const std::size_t row_bytes = each.of.column.row_bytes;
    const std::size_t num_bytes = each.of.is_double ? sizeof(double) : sizeof(float);
    for (std::size_t element = 0; element < row_bytes / num_bytes; ++element) {
      double total = 0;
      weight = weigh(row, begin, [&](std::size_t slot, double weight_of_step) {
        total += weight_of_step * number(each.of, slot, element);
      });
      store(block_.part(each.part) + row * row_bytes + element * num_bytes, total, each.of.is_double);
    }
  }
  if (rule_.sums.empty()) weight = weigh(row, begin, [](std::size_t, double) {});
  const std::size_t num_bytes = rule_.is_discount_double ? sizeof(double) : sizeof(float);
  store(block_.part(rule_.discount_part) + row * num_bytes, weight, rule_.is_discount_double);
}

}  // namespace fastreplay
