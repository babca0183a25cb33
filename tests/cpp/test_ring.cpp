// SPDX-License-Identifier: MIT
// The ring on one thread: tickets, laps, windows, statistics, clearing, restoring; and the lap gate.
#include <chrono>
#include <deque>
#include <new>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "ring.hpp"
#include "rows.hpp"

using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Ticket;
using fastreplay::Window;

namespace {

RecordLayout layout() { return RecordLayout{rows::fields_of(std::vector<std::size_t>{12, 1, 8, 40})}; }

// Random operations beside a deque of the tickets that must be readable.
void follows_a_deque(std::size_t capacity) {
  Ring ring{layout(), capacity};
  check::Random random{capacity};
  std::deque<Ticket> expected;
  std::uint64_t next = 0;
  std::uint64_t overwritten = 0;
  CHECK_EQ(ring.max_rows_per_insert(), std::max<std::size_t>(1, capacity / 8));
  for (int turn = 0; turn < 300; ++turn) {
    if (random.below(20) == 0) {
      ring.clear();
      expected.clear();
    } else {
      const std::size_t num_rows = 1 + random.below(random.below(5) == 0 ? 3 * capacity : 3);
      rows::insert(ring, next, num_rows);
      for (std::size_t i = 0; i < num_rows; ++i) expected.push_back(next++);
      for (; expected.size() > capacity; ++overwritten) expected.pop_front();
    }
    const Window window = ring.window();
    CHECK_EQ(window.end, next);
    CHECK_EQ(window.committed, next);
    CHECK_EQ(window.published(), expected.size());
    CHECK_EQ(window.reserved(), expected.size());
    if (!expected.empty()) CHECK_EQ(window.first, expected.front());
    for (const Ticket ticket : expected) {
      CHECK(ring.is_published(ticket, window));
      CHECK(rows::is_record_of(ring, ring.record(ticket), ticket));
      CHECK_EQ(ring.slot(ticket), ticket % capacity);
    }
    // The lap words say the same without the help of commit.
    const Window blind{.first = window.first, .end = window.end, .committed = 0};
    for (const Ticket ticket : expected) CHECK(ring.is_published(ticket, blind));
    CHECK(!ring.is_published(next, blind));
    CHECK_EQ(ring.oldest_whole(), next > capacity ? next - capacity : 0);
    CHECK_EQ(ring.num_inserted(), next);
    CHECK_EQ(ring.num_overwritten(), overwritten);
  }
}

void strided_sources() {
  Ring ring{layout(), 100};
  const rows::Batch batch{ring.layout(), 0, 10};
  std::vector<fastreplay::Rows> every_second;
  for (const fastreplay::Rows& field : batch.rows()) {
    every_second.push_back({.data = field.data, .stride_bytes = 2 * field.stride_bytes});
  }
  CHECK(ring.insert(every_second, 1, 4, std::chrono::seconds{1}));
  for (Ticket ticket = 0; ticket < 4; ++ticket) {
    CHECK(rows::is_record_of(ring, ring.record(ticket), 2 * (ticket + 1)));
  }
}

void restored_rings_go_on() {
  constexpr Ticket kStart = (Ticket{1} << 40) + 3;
  Ring ring{layout(), 7};
  ring.start_at(kStart);
  CHECK_EQ(ring.window().reserved(), 0U);
  rows::insert(ring, kStart, 9);
  CHECK_EQ(ring.window().first, kStart + 2);
  CHECK_EQ(ring.num_inserted(), 9U);
  CHECK_EQ(ring.num_overwritten(), 2U);
  for (Ticket ticket = kStart + 2; ticket < kStart + 9; ++ticket) {
    CHECK(rows::is_record_of(ring, ring.record(ticket), ticket));
  }
}

// A lap word has 31 bits of lap. Where it wraps, the ring must not notice.
void lap_words_wrap() {
  Ring ring{layout(), 2};
  ring.start_at(2 * ((Ticket{1} << 31) - 3));
  rows::insert(ring, 2 * ((Ticket{1} << 31) - 3), 12);
  const Window window = ring.window();
  CHECK_EQ(window.published(), 2U);
  const Window blind{.first = window.first, .end = window.end, .committed = 0};
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    CHECK(ring.is_published(ticket, blind));
    CHECK(rows::is_record_of(ring, ring.record(ticket), ticket));
  }
}

void refused() {
  CHECK(check::throws<std::invalid_argument>([] { Ring(layout(), 0); }));
  CHECK(check::throws<std::bad_alloc>([] { Ring(layout(), std::size_t{1} << 62); }));
  CHECK(check::throws<std::bad_alloc>([] { Ring(layout(), std::size_t{1} << 50); }));
}

}  // namespace

int main() {
  for (const std::size_t capacity : {1, 2, 3, 7, 8, 9, 64, 100}) follows_a_deque(capacity);
  strided_sources();
  restored_rings_go_on();
  lap_words_wrap();
  refused();
  return check::result();
}
