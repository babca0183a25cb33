// SPDX-License-Identifier: MIT
// Layouts of minibatches: parts that are aligned and disjoint, and sizes that are refused.
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "batch/layout.hpp"
#include "check.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using fastreplay::BatchLayout;
using fastreplay::FieldSize;
using fastreplay::Part;
using fastreplay::RecordLayout;
using fastreplay::round_up;
using fastreplay::Source;

namespace {

constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();

std::vector<FieldSize> random_fields(check::Random& random) {
  std::vector<FieldSize> fields(1 + random.below(12));
  for (FieldSize& field : fields) field = {.row_bytes = 1 + random.below(500), .alignment = 1};
  return fields;
}

void check_transitions(const RecordLayout& record, std::size_t batch_size) {
  const BatchLayout layout{transition_parts(record), batch_size};
  CHECK_EQ(layout.batch_size(), batch_size);
  CHECK_EQ(layout.offsets().size(), record.columns().size() + 1);
  std::size_t end = 0;
  for (std::size_t f = 0; f < record.columns().size(); ++f) {
    CHECK_EQ(layout.offsets()[f], round_up(end, 256));
    end = layout.offsets()[f] + record.columns()[f].row_bytes * batch_size;
  }
  CHECK_EQ(layout.tickets_offset(), round_up(end, 256));
  CHECK_EQ(layout.num_bytes(), round_up(layout.tickets_offset() + sizeof(std::uint64_t) * batch_size, 256));
}

void transitions() {
  check::Random random{2};
  for (int turn = 0; turn < 300; ++turn) {
    const RecordLayout record{random_fields(random)};
    for (const std::size_t batch_size : {std::size_t{0}, std::size_t{1}, std::size_t{256}, 1 + random.below(1000)}) {
      check_transitions(record, batch_size);
    }
  }
}

// Parts of every source, in any order: what is copied of the first record, then of the last; the rest is room.
void sources() {
  const std::vector<Part> parts{{Source::kEnd, 68, 0},
                                {Source::kMade, 4},
                                {Source::kStart, 1, 1},
                                {Source::kTicket, sizeof(std::uint64_t)},
                                {Source::kStart, 68, 0}};
  const BatchLayout layout{parts, 10};
  CHECK(layout.parts() == parts);
  CHECK(layout.offsets() == (std::vector<std::size_t>{0, 768, 1024, 1280, 1536}));
  CHECK_EQ(layout.tickets_offset(), 1280U);
  CHECK_EQ(layout.num_bytes(), 2304U);
  CHECK_EQ(layout.copied().size(), 3U);
  CHECK_EQ(layout.copied_at_start().size(), 2U);
  CHECK_EQ(layout.copied_at_start()[0].offset, 1024U);
  CHECK_EQ(layout.copied_at_start()[1].offset, 1536U);
  CHECK_EQ(layout.copied_at_end()[0].offset, 0U);
  const FieldSize large{.row_bytes = 68, .alignment = 4};
  const FieldSize small{.row_bytes = 1, .alignment = 1};
  CHECK(layout.fits(RecordLayout{{large, small}}));
  CHECK(layout.fits(RecordLayout{{large, small, small}}));
  CHECK(!layout.fits(RecordLayout{{large}}));
  CHECK(!layout.fits(RecordLayout{{small, large}}));
  CHECK(check::throws<std::invalid_argument>([] { BatchLayout({{Source::kStart, 4, 0}}, 10); }));
}

// What one of several fills: each part where the block has its rows of it, whatever the block has beside, in any order.
void shares() {
  const BatchLayout whole{
      {{Source::kStart, 68, 0}, {Source::kMade, 4}, {Source::kTicket, sizeof(std::uint64_t)}, {Source::kStart, 8, 1}},
      100};
  const std::vector<Part> parts{
      {Source::kTicket, sizeof(std::uint64_t)}, {Source::kStart, 68, 3}, {Source::kEnd, 5, 0}};
  const std::vector<std::size_t> places{2, 0, 3};  // the last has room for more
  for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 100}, {30, 70}, {30, 20}, {100, 0}}) {
    const BatchLayout share{whole, parts, places, first, count};
    CHECK(share.is_share());
    CHECK_EQ(share.batch_size(), count);
    CHECK_EQ(share.first_row(), first);
    CHECK_EQ(share.whole_rows(), 100U);
    CHECK_EQ(share.tickets_offset(), whole.offsets()[2] + first * sizeof(std::uint64_t));
    CHECK_EQ(share.offsets()[1], whole.offsets()[0] + first * 68);
    CHECK_EQ(share.offsets()[2], whole.offsets()[3] + first * 8);
    CHECK_EQ(share.copied_at_start()[0].offset, share.offsets()[1]);
    CHECK_EQ(share.copied_at_end()[0].offset, share.offsets()[2]);
    CHECK(!share.has_made_parts());
    CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(share, parts, places, 0, 1); }));
  }
  const std::vector<std::size_t> beyond{2, 0, 4};
  const std::vector<std::size_t> narrow{2, 3, 0};
  const std::vector<std::size_t> few{2, 0};
  for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{0, 101}, {30, 71}, {101, 0}, {kLargest, 2}}) {
    CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(whole, parts, places, first, count); }));
  }
  for (const auto& wrong : {beyond, narrow, few}) {
    CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(whole, parts, wrong, 0, 1); }));
  }
}

void refused_blocks() {
  const RecordLayout record{{{.row_bytes = 68, .alignment = 4}, {.row_bytes = 1, .alignment = 1}}};
  const RecordLayout huge{{{.row_bytes = kLargest / 16, .alignment = 1}}};
  for (const std::size_t batch_size : {kLargest, kLargest / 2, kLargest / 69, kLargest / 77, std::size_t{1} << 57}) {
    CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(transition_parts(record), batch_size); }));
  }
  CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(transition_parts(huge), 3); }));
  CHECK(check::throws<std::invalid_argument>([&] { BatchLayout(transition_parts(huge), 17); }));
}

}  // namespace

int main() {
  transitions();
  sources();
  shares();
  refused_blocks();
  return check::result();
}
