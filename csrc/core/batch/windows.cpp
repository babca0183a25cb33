// SPDX-License-Identifier: MIT
#include "batch/windows.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "batch/gather.hpp"
#include "ring/stop_points.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

namespace {

// Of links, that are asked for before the first of them is looked at: nothing then lies between one prefetch and the
// next, and the processor has as many on their way as it can. (64 of them took half as long again out of memory.)
constexpr std::size_t kLinesAhead = 1024;

// Tells each part that the rule makes but its ways, and the bytes of a row.
template <class Tell>
void tell_made(const WindowRule& rule, const RecordLayout& record, Tell tell) noexcept {
  for (const WindowRule::Taken& taken : rule.taken) {
    for (std::size_t i = 0; i < taken.fields.size(); ++i) {
      tell(taken.parts[i], record.columns()[taken.fields[i]], taken.num_given());
    }
  }
  const auto tell_bytes = [&](std::size_t part, std::size_t num_bytes) { tell(part, Column{0, num_bytes}, 1); };
  for (const WindowRule::Said& said : rule.said) tell_bytes(said.part, said.steps.count);
  if (rule.sums) {
    for (const SumRule::Sum& sum : rule.sums->sums) tell_bytes(sum.part, sum.of.column.row_bytes);
    tell_bytes(rule.sums->discount_part, rule.sums->is_discount_double ? sizeof(double) : sizeof(float));
  }
}

// How many of the steps come before one.
std::size_t reached(const Steps& steps, std::int64_t step) noexcept {
  if (step <= steps.first) return 0;
  const auto distance = static_cast<std::size_t>(step - steps.first);
  return std::min(steps.count, steps.stride == 1 ? distance : (distance + steps.stride - 1) / steps.stride);
}

// Which of the steps are there: from one to before another.
std::pair<std::size_t, std::size_t> there(const Steps& steps, const Way& way) noexcept {
  return {reached(steps, -std::int64_t{way.num_before}), reached(steps, std::int64_t{way.num_after} + 1)};
}

}  // namespace

bool fits(const WindowRule& rule, const RecordLayout& record, const BatchLayout& layout) noexcept {
  const std::vector<Part>& parts = layout.parts();
  if (rule.ways_part >= parts.size() || parts[rule.ways_part].source != Source::kMade) return false;
  const std::size_t num_kept_after = rule.taken.empty() ? 0 : rule.most_after;
  const std::size_t ways_bytes = parts[rule.ways_part].row_bytes;
  if (ways_bytes < Ways::row_bytes(rule.most_before + num_kept_after + 1) || ways_bytes % sizeof(Ticket) != 0)
    return false;
  std::size_t num_unmade = 1;  // of the rule's parts, those that are not there; its ways are
  tell_made(rule, record, [&](std::size_t, const Column&, std::size_t) { ++num_unmade; });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].source != Source::kMade) continue;
    std::size_t num_makers = i == rule.ways_part ? 1 : 0;
    bool is_right = true;
    tell_made(rule, record, [&](std::size_t part, const Column& of_step, std::size_t num_steps) {
      if (part != i) return;
      ++num_makers;
      const std::size_t step_bytes = parts[i].row_bytes / num_steps;
      is_right = step_bytes * num_steps == parts[i].row_bytes && makes(parts[i].conversion, step_bytes, of_step);
    });
    if (num_makers != 1 || !is_right) return false;
    --num_unmade;
  }
  return num_unmade == 0;
}

std::optional<Ticket> newest_complete(const Ring& ring, const Lanes& lanes, const WindowRule& rule, Ticket first,
                                      Ticket end) noexcept {
  const Window window{.first = first, .end = end, .committed = end};
  const Walks walks{ring, lanes, window, rule.most_before, rule.most_after};
  for (Ticket ticket = end; ticket > first;) {
    if (const std::optional<Ticket> oldest = walks.oldest_if_complete(--ticket)) return oldest;
  }
  return std::nullopt;
}

Windows::Windows(Ring& ring, const Lanes& lanes, const WindowRule& rule, const Block& block, std::size_t num_rows,
                 const ShiftDraw& shifts) noexcept
    : ring_{ring},
      lanes_{lanes},
      rule_{rule},
      block_{block},
      ways_{block.part(rule.ways_part), block.layout().parts()[rule.ways_part].row_bytes, rule.most_before},
      shifts_{shifts},
      num_rows_{block.layout().is_share() ? block.layout().whole_rows() : num_rows} {}

Ticket Windows::copy(std::size_t first_row, std::size_t num_rows) const noexcept {
  walk(first_row, num_rows);
  const RowsOfParts rows{.first = first_row, .num = num_rows};
  std::size_t row = first_row;
  copy(block_.layout().copied_at_start(), rows, shifts_, [&] { return ways_.slots(row++)[0]; });
  row = first_row;
  copy(block_.layout().copied_at_end(), rows, shifts_, [&] { return ways_[row++].last_slot; });
  for (const WindowRule::Taken& taken : rule_.taken) take(taken, first_row, num_rows);
  if (rule_.sums) DiscountedSums{ring_, lanes_, *rule_.sums, block_, ways_}.make(first_row, num_rows);
  for (const WindowRule::Said& said : rule_.said) say(said, first_row, num_rows);
  Ticket least = ~Ticket{0};
  for (row = first_row; row < first_row + num_rows; ++row) least = std::min(least, rank(row));
  return least;
}

void Windows::walk(std::size_t first_row, std::size_t num_rows) const noexcept {
  const std::span<const Ticket> tickets = block_.tickets().subspan(first_row, num_rows);
  const Window window = ring_.window_to_draw_from();
  const Walks walks{ring_, lanes_, window, rule_.most_before, rule_.most_after};
  std::array<Place, kMostRows> begins;
  begins[0] = walks.begin(tickets[0]);
  const Walks::Span span = walks.span(walks.gap_around(begins[0], lanes_.num_lanes()));
  std::size_t asked = 0;
  const auto ask_next = [&]() -> std::size_t {
    if (asked == num_rows) return kLinesAhead;
    begins[asked] = walks.begin(tickets[asked]);
    return walks.ask(begins[asked++], span);
  };
  for (std::size_t num_lines = 0; num_lines < kLinesAhead;) num_lines += ask_next();
  for (std::size_t row = 0; row < num_rows; row += Walks::kRowsTogether) {
    const std::size_t together = std::min(Walks::kRowsTogether, num_rows - row);
    walks.walk(ways_, first_row + row, tickets.subspan(row, together), {begins.data() + row, together}, ask_next);
    for (std::size_t i = 0; !rule_.taken.empty() && i < together; ++i) pad(first_row + row + i);
  }
}

// Lets steps that are not there have the slots of the nearest that are.
void Windows::pad(std::size_t row) const noexcept {
  const Way& way = ways_[row];
  std::uint32_t* slots = ways_.slots(row);
  // Asked first, as of most rows all steps are there: 2 % of what a short sequence takes.
  if (way.num_after < rule_.most_after) {
    std::fill(slots + way.num_after + 1, slots + rule_.most_after + 1, way.last_slot);
  }
  if (way.num_before < rule_.most_before) {
    std::fill(slots - rule_.most_before, slots - way.num_before, way.first_slot);
  }
}

template <class NextSlot>
void Windows::copy(std::span<const Copied> fields, const RowsOfParts& rows, const ShiftDraw& shifts,
                   NextSlot next_slot) const noexcept {
  const Records& records = ring_.records();
  gather_fields<Distance::kFar>(records.layout().columns(), records.frames(), fields, block_.data(), rows, shifts,
                                [&] { return records.at(next_slot()); });
}

void Windows::take(const WindowRule::Taken& taken, std::size_t first_row, std::size_t num_rows) const noexcept {
  std::array<Copied, 16> fields;
  for (std::size_t begin = 0; begin < taken.fields.size(); begin += fields.size()) {
    const std::size_t num_fields = std::min(fields.size(), taken.fields.size() - begin);
    for (std::size_t i = 0; i < num_fields; ++i) fields[i] = copied(taken.fields[begin + i], taken.parts[begin + i]);
    take({fields.data(), num_fields}, taken, first_row, num_rows);
  }
  if (!taken.pads_with_zeros) return;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) put_zeros(taken, row);
}

// A field that is given of steps.
Copied Windows::copied(std::size_t field, std::size_t part) const noexcept {
  const std::size_t row_bytes = step_bytes(field, part);
  const auto offset = static_cast<std::size_t>(begin_of(part, row_bytes) - block_.data());
  const Conversion& conversion = block_.layout().parts()[part].conversion;
  return {.field = field, .row_bytes = row_bytes, .offset = offset, .conversion = conversion};
}

std::size_t Windows::step_bytes(std::size_t field, std::size_t part) const noexcept {
  const std::size_t stored_bytes = ring_.records().layout().columns()[field].row_bytes;
  return block_.layout().parts()[part].conversion.given_bytes(stored_bytes);
}

void Windows::take(std::span<const Copied> fields, const WindowRule::Taken& taken, std::size_t first_row,
                   std::size_t num_rows) const noexcept {
  if (taken.is_first_only) {
    const auto next_slot = [&, row = first_row]() mutable { return first_slot(taken.steps, row++); };
    return copy(fields, {.first = first_row, .num = num_rows}, shifts_, next_slot);
  }
  const std::size_t count = taken.steps.count, stride = taken.steps.stride;
  const std::uint32_t* first_slots = ways_.slots(first_row) + taken.steps.first;
  ShiftDraw shifts = shifts_;
  if (rule_.is_time_major) {
    shifts.num_apart = num_rows_;
    for (std::size_t i = 0; i < num_rows; ++i, first_slots += ways_.num_apart()) {
      const auto next_slot = [slot = first_slots, stride]() mutable { return *std::exchange(slot, slot + stride); };
      copy(fields, {.first = first_row + i, .num = count, .num_apart = num_rows_}, shifts, next_slot);
    }
    return;
  }
  shifts.num_steps = count;
  const auto next_slot = [count, stride, apart = ways_.num_apart(), first_slots, slot = first_slots,
                          left = count]() mutable {
    const std::uint32_t found = *slot;
    slot += stride;
    if (--left == 0) {
      slot = first_slots += apart;
      left = count;
    }
    return found;
  };
  copy(fields, {.first = first_row * count, .num = num_rows * count}, shifts, next_slot);
}

// Of the first of the steps that is there, or else of the nearest one.
std::uint32_t Windows::first_slot(const Steps& steps, std::size_t row) const noexcept {
  const auto [begin, end] = there(steps, ways_[row]);
  return ways_.slots(row)[steps.at(begin < end ? begin : 0)];
}

void Windows::put_zeros(const WindowRule::Taken& taken, std::size_t row) const noexcept {
  const auto [begin, end] = there(taken.steps, ways_[row]);
  const std::size_t count = taken.steps.count;
  for (std::size_t i = 0; i < taken.fields.size(); ++i) {
    const std::size_t num_bytes = step_bytes(taken.fields[i], taken.parts[i]);
    std::byte* part = begin_of(taken.parts[i], num_bytes);
    fill(part, num_bytes, row, count, 0, begin, std::byte{0});
    fill(part, num_bytes, row, count, end, count, std::byte{0});
  }
}

void Windows::say(const WindowRule::Said& said, std::size_t first_row, std::size_t num_rows) const noexcept {
  const Steps& steps = said.steps;
  const std::size_t count = steps.count;
  std::byte* part = begin_of(said.part, 1);
  // Of most rows all is there.
  const std::byte of_most{said.what != Saying::kFirst};
  if (rule_.is_time_major) {
    for (std::size_t k = 0; k < count; ++k) std::fill_n(part + k * num_rows_ + first_row, num_rows, of_most);
  } else {
    std::fill_n(part + first_row * count, num_rows * count, of_most);
  }
  const std::size_t first_trained = said.what == Saying::kTrained ? reached(steps, 0) : 0;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    const Way& way = ways_[row];
    const bool is_as_most = said.what == Saying::kFirst ? !way.begins
                                                        : first_trained == 0 && way.num_before == rule_.most_before &&
                                                              way.num_after == rule_.most_after;
    if (is_as_most) continue;
    auto [begin, end] = there(steps, way);
    if (said.what == Saying::kFirst) {
      const bool is_there = begin < end && steps.at(begin) == -std::int64_t{way.num_before};
      fill(part, 1, row, count, begin, is_there ? begin + 1 : begin, std::byte{1});
    } else {
      fill(part, 1, row, count, 0, std::min(end, std::max(begin, first_trained)), std::byte{0});
      fill(part, 1, row, count, end, count, std::byte{0});
    }
  }
}

// Of a share of a block, whose rows are not the first, the rows of a step begin elsewhere than all steps of a row do.
std::byte* Windows::begin_of(std::size_t part, std::size_t step_bytes) const noexcept {
  if (!rule_.is_time_major) return block_.part(part);
  return block_.part(part) - block_.layout().first_row() * (block_.layout().parts()[part].row_bytes - step_bytes);
}

void Windows::fill(std::byte* part, std::size_t step_bytes, std::size_t row, std::size_t count, std::size_t begin,
                   std::size_t end, std::byte value) const noexcept {
  if (begin == end) return;
  if (!rule_.is_time_major) {
    std::fill_n(part + (row * count + begin) * step_bytes, (end - begin) * step_bytes, value);
    return;
  }
  std::byte* step = part + (begin * num_rows_ + row) * step_bytes;
  for (std::size_t k = begin; k < end; ++k, step += num_rows_ * step_bytes) std::fill_n(step, step_bytes, value);
}

bool Windows::suits(Ticket ticket, const Window& window) const noexcept {
  return suits_all() ||
         Walks{ring_, lanes_, window, rule_.most_before, rule_.most_after}.is_complete(ticket, trail(ticket, window));
}

// That of the ticket's lane, in this window.
Trail& Windows::trail(Ticket ticket, const Window& window) const noexcept {
  const std::size_t num_lanes = lanes_.num_lanes();
  const bool is_same = trails_.window.first == window.first && trails_.window.end == window.end;
  if (!trails_.of_lanes) {
    trails_.of_lanes.reset(new (std::nothrow) Trail[num_lanes]);
  } else if (!is_same) {
    std::fill_n(trails_.of_lanes.get(), num_lanes, Trail{});
  }
  trails_.window = window;
  trails_.none = {};
  const std::uint32_t lane = lanes_.links().lane(ring_.slot(ticket));
  return trails_.of_lanes && lane < num_lanes ? trails_.of_lanes[lane] : trails_.none;
}

}  // namespace fastreplay
