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

// What rows ask for before the first of them is copied is to be in the near caches still.
constexpr std::size_t kNearBytes = 32768;

// Tells each part that the rule makes but its ways, and the bytes of a row.
template <class Tell>
void tell_made(const WindowRule& rule, const RecordLayout& record, Tell tell) noexcept {
  for (const WindowRule::Taken& taken : rule.taken) {
    for (std::size_t i = 0; i < taken.fields.size(); ++i) {
      tell(taken.parts[i], taken.num_given() * record.columns()[taken.fields[i]].row_bytes);
    }
  }
  for (const WindowRule::Said& said : rule.said) tell(said.part, said.steps.count);
  if (rule.sums) {
    for (const SumRule::Sum& sum : rule.sums->sums) tell(sum.part, sum.of.column.row_bytes);
    tell(rule.sums->discount_part, rule.sums->is_discount_double ? sizeof(double) : sizeof(float));
  }
}

// How many of the steps come before one.
std::size_t reached(const Steps& steps, std::int64_t step) noexcept {
  if (step <= steps.first) return 0;
  const auto stride = static_cast<std::int64_t>(steps.stride);
  return std::min(steps.count, static_cast<std::size_t>((step - steps.first + stride - 1) / stride));
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
  tell_made(rule, record, [&](std::size_t, std::size_t) { ++num_unmade; });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].source != Source::kMade) continue;
    std::size_t num_makers = i == rule.ways_part ? 1 : 0;
    bool is_right = true;
    tell_made(rule, record, [&](std::size_t part, std::size_t row_bytes) {
      if (part != i) return;
      ++num_makers;
      is_right = row_bytes == parts[i].row_bytes;
    });
    if (num_makers != 1 || !is_right) return false;
    --num_unmade;
  }
  return num_unmade == 0;
}

std::optional<Ticket> newest_complete(const Ring& ring, const Lanes& lanes, const WindowRule& rule, Ticket first,
                                      Ticket end) noexcept {
  struct Nothing {
    void on_way(std::size_t /*slot*/) const noexcept {}
    void at_last(std::size_t /*slot*/) const noexcept {}
  };
  const Window window{.first = first, .end = end, .committed = end};
  const Nothing ahead;
  const Walks walks{ring, lanes, window, rule.most_before, rule.most_after, ahead};
  for (Ticket ticket = end; ticket > first;) {
    if (const std::optional<Ticket> oldest = walks.oldest_if_complete(--ticket)) return oldest;
  }
  return std::nullopt;
}

// Asks for what is copied of records.
struct Windows::Ahead {
  const Windows& windows;

  [[gnu::always_inline]] void on_way(std::size_t slot) const noexcept {
    windows.on_way_.prefetch(windows.ring_.records().at(slot));
  }
  [[gnu::always_inline]] void at_last(std::size_t slot) const noexcept {
    windows.at_end_.prefetch(windows.ring_.records().at(slot));
  }
};

// Records on their way to places of a block that are equally far apart: some at a time, field by field.
class Windows::Line {
 public:
  Line(const Windows& windows, const WindowRule::Taken& taken, std::size_t num_apart) noexcept
      : windows_{windows}, taken_{taken}, num_apart_{num_apart} {}
  ~Line() { copy(); }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  // What is added from here on goes to this place, counted in rows of its field, and on.
  void begin(std::size_t place) noexcept {
    copy();
    place_ = place;
  }
  void add(std::size_t slot) noexcept {
    records_[num_added_] = windows_.ring_.records().at(slot);
    if (windows_.rows_together_ == 1) windows_.on_way_.prefetch(records_[num_added_]);
    if (++num_added_ == kTogether) copy();
  }

 private:
  static constexpr std::size_t kTogether = 64;

  void copy() noexcept {
    const std::span<const std::byte* const> records{records_.data(), num_added_};
    for (std::size_t i = 0; i < taken_.fields.size() && num_added_ > 0; ++i) {
      const Column& column = windows_.ring_.records().layout().columns()[taken_.fields[i]];
      std::byte* first = windows_.begin_of(taken_.parts[i], column.row_bytes) + place_ * column.row_bytes;
      if (num_apart_ == 1) {
        load_field(first, records, column, windows_.ring_.records().at(0));
      } else {
        load_field_apart(first, num_apart_, records, column, windows_.ring_.records().at(0));
      }
      at_stop_point(StopPoint::kFieldCopied);
    }
    place_ += num_added_ * num_apart_;
    num_added_ = 0;
  }

  const Windows& windows_;
  const WindowRule::Taken& taken_;
  const std::size_t num_apart_;
  std::size_t place_ = 0;
  std::size_t num_added_ = 0;
  std::array<const std::byte*, kTogether> records_;
};

Windows::Windows(Ring& ring, const Lanes& lanes, const WindowRule& rule, const Block& block,
                 std::size_t num_rows) noexcept
    : ring_{ring},
      lanes_{lanes},
      rule_{rule},
      block_{block},
      ways_{block.part(rule.ways_part), block.layout().parts()[rule.ways_part].row_bytes, rule.most_before},
      num_rows_{block.layout().is_share() ? block.layout().whole_rows() : num_rows},
      rows_together_{Walks<Ahead>::kRowsTogether} {
  const std::span<const Column> columns{ring.records().layout().columns()};
  for (const Copied& each : block.layout().copied_at_start()) at_start_.add(columns[each.field]);
  for (const Copied& each : block.layout().copied_at_end()) at_end_.add(columns[each.field]);
  if (rule.sums) {
    for (const SumRule::Sum& each : rule.sums->sums) on_way_.add(each.of.column);
    for (const FloatField& each : rule.sums->stored_discount) on_way_.add(each.column);
  }
  std::size_t num_taken = 0;
  std::size_t frames_bytes = 0;
  for (const WindowRule::Taken& taken : rule.taken) {
    num_taken = std::max(num_taken, taken.steps.count);
    for (const std::size_t field : taken.fields) {
      on_way_.add(columns[field]);
      if (columns[field].num_frames > 0) frames_bytes += columns[field].row_bytes;
    }
  }
  if (num_taken > 0) {
    const std::size_t step_bytes = on_way_.num_bytes() + frames_bytes;
    rows_together_ = std::clamp<std::size_t>(kNearBytes / (num_taken * step_bytes), 1, rows_together_);
  }
}

Ticket Windows::copy(std::size_t first_row, std::size_t num_rows) const noexcept {
  const std::span<const Ticket> tickets = block_.tickets().subspan(first_row, num_rows);
  const Window window = ring_.window_to_draw_from();
  const Ahead ahead{*this};
  const Walks walks{ring_, lanes_, window, rule_.most_before, rule_.most_after, ahead};
  std::array<Place, kMostRows> begins;
  std::size_t fetched = 0;
  for (std::size_t row = 0; row < num_rows; row += rows_together_) {
    for (const std::size_t end = std::min(num_rows, row + 2 * rows_together_); fetched < end; ++fetched) {
      begins[fetched] = walks.begin(tickets[fetched]);
      lanes_.links().prefetch(begins[fetched].slot);
      ahead.on_way(begins[fetched].slot);
      at_start_.prefetch(ring_.records().at(begins[fetched].slot));
    }
    copy_together(walks, first_row + row, std::span{begins}.subspan(row, std::min(rows_together_, num_rows - row)));
  }
  Ticket least = ~Ticket{0};
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) least = std::min(least, rank(row));
  return least;
}

// Rows first_row, first_row + 1, ..., of which what is at their beginnings has been asked for.
template <class Walking>
void Windows::copy_together(const Walking& walks, std::size_t first_row, std::span<const Place> begins) const noexcept {
  const std::size_t num_rows = begins.size();
  walks.walk(ways_, first_row, block_.tickets().subspan(first_row, num_rows), begins);
  const std::span<const Column> columns{ring_.records().layout().columns()};
  const Place* begin = begins.data();
  gather_fields<Distance::kNear>(columns, ring_.records().at(0), block_.layout().copied_at_start(), block_.data(),
                                 first_row, num_rows, [&] { return ring_.records().at((begin++)->slot); });
  std::size_t row = first_row;
  gather_fields<Distance::kNear>(columns, ring_.records().at(0), block_.layout().copied_at_end(), block_.data(),
                                 first_row, num_rows, [&] { return ring_.records().at(ways_[row++].last_slot); });
  for (const WindowRule::Taken& taken : rule_.taken) take(taken, first_row, num_rows);
  if (rule_.sums) {
    const DiscountedSums sums{ring_, lanes_, *rule_.sums, block_, ways_};
    for (std::size_t i = 0; i < num_rows; ++i) sums.make(first_row + i, begins[i]);
  }
  for (const WindowRule::Said& said : rule_.said) {
    for (std::size_t i = 0; i < num_rows; ++i) say(said, first_row + i);
  }
}

void Windows::take(const WindowRule::Taken& taken, std::size_t first_row, std::size_t num_rows) const noexcept {
  const std::size_t count = taken.num_given();
  std::array<std::pair<std::size_t, std::size_t>, Walks<Ahead>::kRowsTogether> ranges;
  std::array<std::size_t, Walks<Ahead>::kRowsTogether> first_steps{};
  for (std::size_t i = 0; i < num_rows; ++i) {
    auto& [begin, end] = ranges[i] = there(taken.steps, ways_[first_row + i]);
    if (taken.is_first_only && begin < end) first_steps[i] = std::exchange(begin, 0);
  }
  const auto slot = [&](std::size_t i, std::size_t k) -> std::size_t {
    const auto [begin, end] = ranges[i];
    return k < begin ? ways_[first_row + i].first_slot
           : k < end ? ways_.slots(first_row + i)[taken.steps.at(first_steps[i] + k)]
                     : ways_[first_row + i].last_slot;
  };
  compiler_barrier();
  // The longer lines of the two, where steps follow each other.
  if (rule_.is_time_major && num_rows >= count) {
    Line line{*this, taken, 1};
    for (std::size_t k = 0; k < count; ++k) {
      line.begin(k * num_rows_ + first_row);
      for (std::size_t i = 0; i < num_rows; ++i) line.add(slot(i, k));
    }
  } else {
    Line line{*this, taken, rule_.is_time_major ? num_rows_ : 1};
    line.begin(first_row * count);
    for (std::size_t i = 0; i < num_rows; ++i) {
      if (rule_.is_time_major) line.begin(first_row + i);
      for (std::size_t k = 0; k < count; ++k) line.add(slot(i, k));
    }
  }
  if (!taken.pads_with_zeros) return;
  for (std::size_t i = 0; i < num_rows; ++i) put_zeros(taken, first_row + i);
}

void Windows::put_zeros(const WindowRule::Taken& taken, std::size_t row) const noexcept {
  const auto [begin, end] = there(taken.steps, ways_[row]);
  const std::size_t count = taken.steps.count;
  for (std::size_t i = 0; i < taken.fields.size(); ++i) {
    const std::size_t step_bytes = ring_.records().layout().columns()[taken.fields[i]].row_bytes;
    std::byte* part = begin_of(taken.parts[i], step_bytes);
    fill(part, step_bytes, row, count, 0, begin, std::byte{0});
    fill(part, step_bytes, row, count, end, count, std::byte{0});
  }
}

void Windows::say(const WindowRule::Said& said, std::size_t row) const noexcept {
  const Way& way = ways_[row];
  auto [begin, end] = there(said.steps, way);
  if (said.what == Saying::kTrained) begin = std::min(end, std::max(begin, reached(said.steps, 0)));
  if (said.what == Saying::kFirst) {
    const bool is_there = way.begins && begin < end && said.steps.at(begin) == -std::int64_t{way.num_before};
    end = is_there ? begin + 1 : begin;
  }
  std::byte* part = begin_of(said.part, 1);
  fill(part, 1, row, said.steps.count, 0, said.steps.count, std::byte{0});
  fill(part, 1, row, said.steps.count, begin, end, std::byte{1});
}

// Of a share of a block, whose rows are not the first, the rows of a step begin elsewhere than all steps of a row do.
std::byte* Windows::begin_of(std::size_t part, std::size_t step_bytes) const noexcept {
  if (!rule_.is_time_major) return block_.part(part);
  return block_.part(part) - block_.layout().first_row() * (block_.layout().parts()[part].row_bytes - step_bytes);
}

void Windows::fill(std::byte* part, std::size_t step_bytes, std::size_t row, std::size_t count, std::size_t begin,
                   std::size_t end, std::byte value) const noexcept {
  if (!rule_.is_time_major) {
    std::fill_n(part + (row * count + begin) * step_bytes, (end - begin) * step_bytes, value);
    return;
  }
  std::byte* step = part + (begin * num_rows_ + row) * step_bytes;
  for (std::size_t k = begin; k < end; ++k, step += num_rows_ * step_bytes) std::fill_n(step, step_bytes, value);
}

bool Windows::suits(Ticket ticket, const Window& window) const noexcept {
  const Ahead ahead{*this};
  return suits_all() || Walks{ring_, lanes_, window, rule_.most_before, rule_.most_after, ahead}.is_complete(
                            ticket, trail(ticket, window));
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
