// SPDX-License-Identifier: MIT
#include "batch/n_steps.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "batch/gather.hpp"
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

bool fits(const NStepRule& rule, const BatchLayout& layout) noexcept {
  const auto is_made = [&parts = layout.parts()](std::size_t part, std::size_t row_bytes) {
    return part < parts.size() && parts[part].source == Source::kMade && parts[part].row_bytes == row_bytes;
  };
  const auto num_made = std::ranges::count(layout.parts(), Source::kMade, &Part::source);
  return static_cast<std::size_t>(num_made) == rule.sums.size() + 1 &&
         is_made(rule.discount_part, rule.is_discount_double ? sizeof(double) : sizeof(float)) &&
         std::ranges::all_of(rule.sums,
                             [&](const NStepRule::Sum& sum) { return is_made(sum.part, sum.of.column.row_bytes); });
}

inline void NSteps::prefetch_summed(std::size_t slot) const noexcept {
  const std::byte* record = ring_.records().at(slot);
  for (const NStepRule::Sum& each : rule_.sums) __builtin_prefetch(record + each.of.column.offset, 0, 2);
  for (const FloatField& each : rule_.stored_discount) __builtin_prefetch(record + each.column.offset, 0, 2);
}

// All rows by one step, then by the next, so that none waits for memory: what a step needs was asked for when the one
// before was taken.
void NSteps::follow(const Window& window, std::span<Walk> walks) const noexcept {
  for (Walk& walk : walks) look_ahead(walk);
  bool goes_on = true;
  while (goes_on) {
    goes_on = false;
    for (Walk& walk : walks) {
      if (walk.gap == 0) continue;
      if (step(window, walk)) {
        look_ahead(walk);
      } else {
        walk.gap = 0;
      }
      if (walk.gap == 0) {
        at_end_.prefetch(ring_.records().at(walk.last.slot));
      } else {
        goes_on = true;
      }
    }
  }
}

// One step further, if there is one. What a link says counts if the successor says the same of what comes before it: it
// is published then, of the same lane and trajectory.
bool NSteps::step(const Window& window, Walk& walk) const noexcept {
  const Place next = links_.later(walk.last, walk.gap);
  const Ticket ticket = walk.ticket + walk.gap;
  if (!ring_.is_published(ticket, window) || links_.before(next.slot) != walk.gap) return false;
  walk = {.last = next, .ticket = ticket, .num_steps = walk.num_steps + 1, .gap = walk.gap};
  return true;
}

// Where the next step is said to be.
void NSteps::look_ahead(Walk& walk) const noexcept {
  walk.gap = 0;
  if (walk.num_steps == rule_.num_steps) return;
  const Gap gap = links_.after(walk.last);
  if (!is_gap(gap) || gap >= ring_.capacity()) return;
  walk.gap = gap;
  const std::size_t slot = links_.later(walk.last, gap).slot;
  links_.prefetch(slot);
  prefetch_summed(slot);
}

double NSteps::number(const FloatField& of, std::size_t slot, std::size_t element) const noexcept {
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

// Goes the same way again, which by now is near, and tells each step's slot and weight. Where it was overwritten
// meanwhile, so was the row. Returns the weight of what comes after.
template <class At>
double NSteps::weigh(Place begin, std::uint32_t num_steps, At at) const noexcept {
  double weight = 1;
  for (Place place = begin;;) {
    at(place.slot, weight);
    weight *= rule_.gamma;
    for (const FloatField& discount : rule_.stored_discount) weight *= number(discount, place.slot, 0);
    if (--num_steps == 0) return weight;
    const Gap gap = links_.after(place);
    if (is_gap(gap) && gap < ring_.capacity()) place = links_.later(place, gap);
  }
}

void NSteps::sum(std::size_t row, Place begin, std::uint32_t num_steps) const noexcept {
  double weight = 0;
  for (const NStepRule::Sum& each : rule_.sums) {
    const std::size_t row_bytes = each.of.column.row_bytes;
    const std::size_t num_bytes = each.of.is_double ? sizeof(double) : sizeof(float);
    for (std::size_t element = 0; element < row_bytes / num_bytes; ++element) {
      double total = 0;
      weight = weigh(begin, num_steps, [&](std::size_t slot, double weight_of_step) {
        total += weight_of_step * number(each.of, slot, element);
      });
      store(block_.part(each.part) + row * row_bytes + element * num_bytes, total, each.of.is_double);
    }
  }
  if (rule_.sums.empty()) weight = weigh(begin, num_steps, [](std::size_t, double) {});
  const std::size_t num_bytes = rule_.is_discount_double ? sizeof(double) : sizeof(float);
  store(block_.part(rule_.discount_part) + row * num_bytes, weight, rule_.is_discount_double);
}

Ticket NSteps::copy(std::size_t first_row, std::size_t num_rows) const noexcept {
  const std::span<const Ticket> tickets = block_.tickets().subspan(first_row, num_rows);
  const Window window = ring_.window_to_draw_from();
  const Place oldest = links_.place(window.first);
  std::array<Place, kMostRows> begins;
  std::size_t fetched = 0;
  for (std::size_t row = 0; row < num_rows; row += kRowsTogether) {
    for (const std::size_t end = std::min(num_rows, row + 2 * kRowsTogether); fetched < end; ++fetched) {
      const std::uint64_t position = tickets[fetched] - window.first;
      begins[fetched] = position < ring_.capacity() ? links_.later(oldest, position) : links_.place(tickets[fetched]);
      links_.prefetch(begins[fetched].slot);
      prefetch_summed(begins[fetched].slot);
      at_start_.prefetch(ring_.records().at(begins[fetched].slot));
    }
    copy_together(window, first_row + row, std::span{begins}.subspan(row, std::min(kRowsTogether, num_rows - row)));
  }
  return *std::ranges::min_element(tickets);
}

// Rows first_row, first_row + 1, ..., of which what is at their beginnings has been asked for.
void NSteps::copy_together(const Window& window, std::size_t first_row, std::span<const Place> begins) const noexcept {
  std::array<Walk, kRowsTogether> walks;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    walks[i] = {.last = begins[i], .ticket = block_.tickets()[first_row + i], .num_steps = 1, .gap = 0};
  }
  follow(window, std::span{walks}.first(begins.size()));
  const std::span<const Column> columns{ring_.records().layout().columns()};
  const Place* begin = begins.data();
  gather_fields<Distance::kNear>(columns, block_.layout().copied_at_start(), block_.data(), first_row, begins.size(),
                                 [&] { return ring_.records().at((begin++)->slot); });
  for (std::size_t i = 0; i < begins.size(); ++i) sum(first_row + i, begins[i], walks[i].num_steps);
  const Walk* walk = walks.data();
  gather_fields<Distance::kNear>(columns, block_.layout().copied_at_end(), block_.data(), first_row, begins.size(),
                                 [&] { return ring_.records().at((walk++)->last.slot); });
}

}  // namespace fastreplay
