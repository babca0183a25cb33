// SPDX-License-Identifier: MIT
// The ring: tickets, laps, windows, statistics, clearing, restoring; and what others see and may do
// while a writer stands half-way (pages.hpp stops it there).
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <new>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "pages.hpp"
#include "ring/ring.hpp"
#include "rows.hpp"
#include "storage/copy.hpp"

using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Ticket;
using fastreplay::Window;

namespace {

RecordLayout layout() { return RecordLayout{rows::fields_of(std::vector<std::size_t>{12, 1, 8, 40})}; }

// The window without the help of commit: only lap words tell what is published.
Window blind(const Window& window) { return {.first = window.first, .end = window.end, .committed = 0}; }

bool holds(const Ring& ring, Ticket first, Ticket end) {
  for (Ticket ticket = first; ticket < end; ++ticket) {
    if (!rows::is_record_of(ring, ring.record(ticket), ticket)) return false;
  }
  return true;
}

bool are_published(const Ring& ring, const Window& window, Ticket first, Ticket end) {
  for (Ticket ticket = first; ticket < end; ++ticket) {
    if (!ring.is_published(ticket, window)) return false;
  }
  return true;
}

void check_against(Ring& ring, const std::deque<Ticket>& expected, Ticket next, std::uint64_t overwritten) {
  const Window window = ring.window();
  CHECK_EQ(window.end, next);
  CHECK_EQ(window.committed, next);
  CHECK_EQ(window.first, expected.empty() ? next : expected.front());
  CHECK_EQ(window.published(), expected.size());
  CHECK_EQ(window.reserved(), expected.size());
  CHECK(are_published(ring, window, window.first, next));
  CHECK(are_published(ring, blind(window), window.first, next));
  CHECK(!ring.is_published(next, window));
  CHECK(!ring.is_published(next + ring.capacity(), window));
  if (next > ring.capacity()) CHECK(!ring.is_published(next - ring.capacity() - 1, blind(window)));  // overwritten
  CHECK(holds(ring, window.first, next));
  CHECK_EQ(ring.oldest_whole(), next > ring.window_capacity() ? next - ring.window_capacity() : 0);
  // What is older lies there, too, as long as its slot is not taken.
  CHECK(holds(ring, next - std::min<Ticket>(next, ring.capacity()), next));
  CHECK_EQ(ring.num_inserted(), next);
  CHECK_EQ(ring.num_overwritten(), overwritten);
}

// Random operations beside a deque of the tickets that must be readable: `capacity` of them at most.
void follows_a_deque(std::size_t capacity, std::size_t num_spare = 0) {
  Ring ring{layout(), capacity + num_spare, num_spare};
  check::Random random{capacity};
  std::deque<Ticket> expected;
  std::uint64_t next = 0;
  std::uint64_t overwritten = 0;
  CHECK_EQ(ring.capacity(), capacity + num_spare);
  CHECK_EQ(ring.window_capacity(), capacity);
  CHECK_EQ(ring.num_spare(), num_spare);
  CHECK_EQ(ring.max_rows_per_insert(), std::max<std::size_t>(1, capacity / 8));
  CHECK_EQ(ring.num_bytes(), (capacity + num_spare) * (ring.records().layout().stride() + 4));
  check_against(ring, expected, next, overwritten);
  for (int turn = 0; turn < (capacity < 500 ? 300 : 40); ++turn) {
    if (random.below(20) == 0) {
      ring.clear();
      expected.clear();
    } else {
      const std::size_t num_rows = 1 + random.below(random.below(5) == 0 ? 3 * capacity : 3);
      rows::insert(ring, next, num_rows);
      for (std::size_t i = 0; i < num_rows; ++i) expected.push_back(next++);
      for (; expected.size() > capacity; ++overwritten) expected.pop_front();
    }
    check_against(ring, expected, next, overwritten);
  }
}

void tickets_have_slots() {
  Ring ring{layout(), 7};
  for (const Ticket ticket : {Ticket{0}, Ticket{6}, Ticket{7}, Ticket{20}, Ticket{1} << 60}) {
    CHECK_EQ(ring.slot(ticket), ticket % 7);
    CHECK(ring.record(ticket) == ring.records().data() + ticket % 7 * ring.records().layout().stride());
    CHECK(ring.record(ticket) == ring.records().at(ring.slot(ticket)));
  }
}

// Every number of rows at once, from every slot: over the seam and over the groups that are copied together.
void batches() {
  constexpr std::size_t kCapacity = 280;
  Ring ring{layout(), kCapacity};
  std::uint64_t next = 0;
  for (std::size_t num_rows = 1; num_rows <= ring.max_rows_per_insert(); ++num_rows) {
    for (int turn = 0; turn < 17; ++turn, next += num_rows) {
      rows::Writer writer{ring, next, num_rows};
      CHECK(writer.insert(num_rows));
    }
    CHECK(holds(ring, next - std::min(next, std::uint64_t{kCapacity}), next));
  }
}

void strided_sources() {
  const rows::Batch batch{layout(), 0, 40};
  for (const std::size_t step : {0, 1, 2, 3}) {
    Ring ring{layout(), 100};
    std::vector<fastreplay::Rows> fields;
    for (const fastreplay::Rows& field : batch.rows()) {
      fields.push_back({.data = field.data, .stride_bytes = step * field.stride_bytes});
    }
    CHECK(ring.insert(fields, 1, 12, std::chrono::seconds{1}));
    for (Ticket ticket = 0; ticket < 12; ++ticket) {
      CHECK(rows::is_record_of(ring, ring.record(ticket), step * (ticket + 1)));
    }
  }
}

// Padding is nobody's to write.
void only_fields_are_written() {
  constexpr std::byte kCanary{0xEE};
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{3, 8, 5, 18})}, 60};
  std::vector<bool> written(ring.records().layout().stride());
  for (const auto& [offset, row_bytes, num_frames] : ring.records().layout().columns()) {
    std::fill_n(written.begin() + static_cast<std::ptrdiff_t>(offset), row_bytes, true);
  }
  std::memset(ring.records().data(), 0xEE, 60 * ring.records().layout().stride());
  rows::insert(ring, 0, 130);
  CHECK(holds(ring, 70, 130));
  for (std::size_t i = 0; i < 60 * ring.records().layout().stride(); ++i) {
    if (!written[i % ring.records().layout().stride()]) CHECK(ring.records().data()[i] == kCanary);
  }
}

void windows_count() {
  CHECK_EQ((Window{.first = 5, .end = 9, .committed = 7}.reserved()), 4U);
  CHECK_EQ((Window{.first = 5, .end = 9, .committed = 7}.published()), 2U);
  CHECK_EQ((Window{.first = 5, .end = 9, .committed = 5}.published()), 0U);
  CHECK_EQ((Window{.first = 5, .end = 9, .committed = 3}.published()), 0U);
}

void restored_rings_go_on() {
  constexpr Ticket kStart = (Ticket{1} << 40) + 3;
  Ring ring{layout(), 7};
  ring.start_at(kStart);
  CHECK_EQ(ring.window().reserved(), 0U);
  CHECK_EQ(ring.window().end, kStart);
  CHECK_EQ(ring.num_inserted(), 0U);
  rows::insert(ring, kStart, 9);
  CHECK_EQ(ring.window().first, kStart + 2);
  CHECK_EQ(ring.num_inserted(), 9U);
  CHECK_EQ(ring.num_overwritten(), 2U);
  CHECK(holds(ring, kStart + 2, kStart + 9));
  ring.clear();
  CHECK_EQ(ring.window().reserved(), 0U);
  rows::insert(ring, kStart + 9, 3);
  CHECK_EQ(ring.window().first, kStart + 9);
  CHECK_EQ(ring.num_overwritten(), 2U);
}

// A lap word has 31 bits of lap. Where it wraps, the ring must not notice.
void lap_words_wrap() {
  constexpr Ticket kStart = 2 * ((Ticket{1} << 31) - 3);
  Ring ring{layout(), 2};
  ring.start_at(kStart);
  for (Ticket next = kStart; next < kStart + 12; ++next) {
    rows::insert(ring, next, 1);
    const Window window = ring.window();
    CHECK_EQ(window.committed, next + 1);
    CHECK(are_published(ring, blind(window), window.first, window.end));
    CHECK(!ring.is_published(next + 1, window));
    CHECK(holds(ring, window.first, window.end));
  }
}

// As of a pickle: the bytes lie there before anybody is told, over the seam and from any lap on.
void records_that_lie_there_are_published() {
  for (const Ticket start : {Ticket{0}, Ticket{5}, Ticket{29}, Ticket{1} << 40}) {
    Ring from{layout(), 8};
    from.start_at(start);
    rows::insert(from, start, 8);
    Ring ring{layout(), 8};
    ring.start_at(start);
    std::memcpy(ring.records().at(0), from.records().at(0), 8 * ring.records().layout().stride());
    ring.restore(5);
    const auto are_there = [&](Ticket first, Ticket end) {
      const Window window = ring.window();
      CHECK(window.first == first && window.end == end && window.committed == end);
      CHECK(are_published(ring, blind(window), first, end) && !ring.is_published(end, window));
      CHECK(holds(ring, first, end));
      CHECK_EQ(ring.num_inserted(), end - first);
      CHECK_EQ(ring.num_overwritten(), 0U);
    };
    are_there(start, start + 5);
    ring.begin_here();  // with what comes next: what is there is none of it, and stays
    are_there(start + 5, start + 5);
    CHECK(holds(ring, start, start + 5));
    ring.restore(3);
    are_there(start + 5, start + 8);
    rows::insert(ring, start + 8, 4);
    are_there(start + 5, start + 12);
  }
}

// A slot that no ticket has used yet must not pass for published, whatever the lap.
void restored_slots_are_not_published() {
  for (const Ticket lap : {Ticket{1}, Ticket{7}, (Ticket{1} << 31) - 1, Ticket{1} << 31}) {
    const Ticket start = 4 * lap + 1;
    Ring ring{rows::page_layout(), 4};
    ring.start_at(start);
    for (Ticket ticket = start; ticket < start + 4; ++ticket) {
      CHECK(!ring.is_published(ticket, Window{.first = start, .end = start + 4, .committed = start}));
    }
    rows::insert_half(ring, start, 1, [&] { CHECK_EQ(ring.window().committed, start); });
    CHECK_EQ(ring.window().committed, start + 1);
  }
}

void refused() {
  CHECK(check::throws<std::invalid_argument>([] { Ring(layout(), 0); }));
  for (const std::size_t num_spare : {std::size_t{5}, std::size_t{6}, ~std::size_t{0}}) {
    CHECK(check::throws<std::invalid_argument>([&] { Ring(layout(), 5, num_spare); }));
  }
  CHECK(check::throws<std::bad_alloc>([] { Ring(layout(), ~std::size_t{0}); }));
  CHECK(check::throws<std::bad_alloc>([] { Ring(layout(), std::size_t{1} << 62); }));
  CHECK(check::throws<std::bad_alloc>([] { Ring(layout(), std::size_t{1} << 50); }));
}

// A writer stands half-way in ticket t, of a ring that was full before. Others insert until the lap gate
// is shut: it is, until t is finished, and what it refuses takes nothing.
void the_lap_gate(std::size_t capacity) {
  const Ticket t = 2 * capacity + 1;
  Ring ring{rows::page_layout(), capacity};
  rows::insert(ring, 0, t);
  rows::Writer others{ring, t + 1, capacity + 1};
  rows::insert_half(ring, t, 1, [&] {
    CHECK_EQ(ring.window().end, t + 1);
    CHECK_EQ(ring.window().first, t + 1 - capacity);
    CHECK_EQ(ring.window().committed, t);
    CHECK(!ring.is_published(t, ring.window()));
    CHECK(holds(ring, t + 1 - capacity, t));
    CHECK(others.insert_each(capacity - 1));
    const auto start = std::chrono::steady_clock::now();
    for (const int patience_ms : {0, 20}) CHECK(!others.insert(1, std::chrono::milliseconds{patience_ms}));
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds{20});
    const Window window = ring.window();
    CHECK_EQ(window.first, t);
    CHECK_EQ(window.end, t + capacity);
    CHECK_EQ(window.committed, t);
    CHECK_EQ(window.published(), 0U);
    CHECK_EQ(ring.num_inserted(), t + capacity);
    CHECK_EQ(ring.num_overwritten(), t);
    CHECK(!ring.is_published(t, window));
    CHECK(are_published(ring, window, t + 1, t + capacity));
    CHECK(holds(ring, t + 1, t + capacity));
  });
  CHECK_EQ(ring.window().committed, t + capacity);
  CHECK(holds(ring, t, t + capacity));
  CHECK(others.insert());
  CHECK_EQ(ring.window().committed, t + capacity + 1);
  CHECK(holds(ring, t + 1, t + capacity + 1));
}

// The gate lets a batch through as a whole or not at all.
void the_lap_gate_weighs_batches() {
  Ring ring{rows::page_layout(), 64};
  rows::Writer others{ring, 1, 64};
  rows::insert_half(ring, 0, 1, [&] {
    for (int i = 0; i < 7; ++i) CHECK(others.insert(8));
    CHECK(!others.insert(8));
    CHECK_EQ(ring.num_inserted(), 57U);
    CHECK(others.insert(7));
    CHECK(!others.insert());
    CHECK_EQ(ring.num_inserted(), 64U);
  });
  CHECK(others.insert());
  CHECK_EQ(ring.window().committed, 65U);
  CHECK(holds(ring, 1, 65));
}

// Half a batch, over the seam: nobody sees a row of it, tickets after it are seen.
void batches_show_at_once() {
  constexpr std::size_t kCapacity = 32;
  constexpr Ticket kFirst = 3 * kCapacity - 2;
  Ring ring{rows::page_layout(), kCapacity};
  rows::insert(ring, 0, kFirst);
  rows::Writer others{ring, kFirst + 4, 2};
  rows::insert_half(ring, kFirst, 4, [&] {
    CHECK(others.insert(2));
    const Window window = ring.window();
    CHECK_EQ(window.committed, kFirst);
    CHECK_EQ(window.end, kFirst + 6);
    for (Ticket ticket = kFirst; ticket < kFirst + 4; ++ticket) CHECK(!ring.is_published(ticket, window));
    CHECK(are_published(ring, window, window.first, kFirst));
    CHECK(are_published(ring, blind(window), window.first, kFirst));
    CHECK(are_published(ring, window, kFirst + 4, kFirst + 6));
  });
  CHECK_EQ(ring.window().committed, kFirst + 6);
  CHECK(holds(ring, kFirst + 6 - kCapacity, kFirst + 6));
}

// A record is copied while its slot is being overwritten: the copy is torn, and known to be.
void torn_copies_are_known(std::size_t capacity) {
  const Ticket t = 2 * capacity;
  Ring ring{rows::page_layout(), capacity};
  rows::insert(ring, 0, t);
  CHECK_EQ(ring.oldest_whole(), t - capacity);
  rows::insert_half(ring, t, 1, [&] {
    CHECK(!rows::is_record_of(ring, ring.record(t), t - capacity));
    CHECK(!rows::is_record_of(ring, ring.record(t), t));
    CHECK_EQ(ring.oldest_whole(), t - capacity + 1);
  });
}

// A record whose slot is not taken yet is not given to readers where it is one of the spare ones.
void spare_records_are_not_readers(std::size_t capacity, std::size_t num_spare) {
  const Ticket t = 2 * (capacity + num_spare);
  Ring ring{rows::page_layout(), capacity + num_spare, num_spare};
  rows::insert(ring, 0, t);
  CHECK_EQ(ring.oldest_whole(), t - capacity);
  rows::insert_half(ring, t, 1, [&] {
    CHECK(!rows::is_record_of(ring, ring.record(t), t - capacity - num_spare));
    CHECK(holds(ring, t - capacity - num_spare + 1, t));
    CHECK_EQ(ring.oldest_whole(), t - capacity + 1);
    CHECK_EQ(ring.window().first, t - capacity + 1);
    CHECK_EQ(ring.num_overwritten(), t - capacity + 1);
  });
}

// In a child of which more rows are unfinished than a window holds, none is left, and it goes on.
void more_is_discarded_than_a_window_holds() {
  for (const std::size_t num_before : {3, 20}) {
    Ring ring{layout(), 12, 8};
    rows::insert(ring, 0, num_before);
    Ticket ticket = 0;
    for (int i = 0; i < 7; ++i) CHECK(ring.reserve(1, {}, ticket));
    CHECK_EQ(ring.window().first, num_before + 3);
    ring.discard_unfinished([](Ticket /*from*/, Ticket /*to*/) {});
    CHECK_EQ(ring.window().end, num_before);
    CHECK_EQ(ring.window().reserved(), 0U);
    CHECK_EQ(ring.num_overwritten(), num_before);
    rows::insert(ring, num_before, 30);
    CHECK_EQ(ring.window().reserved(), 4U);
    CHECK(holds(ring, num_before + 26, num_before + 30));
  }
}

// A writer that the gate holds back goes on as soon as it opens.
// A copier keeps writers from what it has not copied, spare records or not, and no other copier does meanwhile.
void a_copier_holds_the_gate(std::size_t capacity, std::size_t num_spare) {
  const std::size_t slots = capacity + num_spare;
  Ring ring{layout(), slots, num_spare};
  const Ticket t = 3 * slots + 1;
  rows::insert(ring, 0, t);
  rows::Writer writer{ring, t, 2 * slots + 1};
  CHECK(ring.gate() == std::pair(t, false));
  const Ticket first = t - slots;
  CHECK(ring.try_hold(first));
  CHECK(!ring.try_hold(first));
  CHECK(ring.gate() == std::pair(first, true));
  for (Ticket done = first; done < t; ++done) {
    CHECK(!writer.insert());
    CHECK_EQ(ring.window().end, done + slots);
    CHECK(holds(ring, done, done + slots));
    ring.hold_on_from(done + 1);
    CHECK(writer.insert());
  }
  CHECK(!writer.insert());
  ring.let_go();
  CHECK(writer.insert());
  CHECK(ring.gate() == std::pair(t + slots + 1, false));
  CHECK(ring.try_hold(0));
  CHECK(!writer.insert());
  ring.let_go();
}

// What a copier holds is whole whatever writers do; nobody else tells them when it is done.
void held_copies_are_whole() {
  constexpr std::size_t kCapacity = 8, kRows = 4000;
  Ring ring{layout(), kCapacity};
  rows::insert(ring, 0, kCapacity);
  CHECK(ring.try_hold(0));
  rows::Writer writer{ring, kCapacity, kRows - kCapacity};
  std::size_t num_inserted = 0;
  std::thread writing{[&] {
    while (num_inserted < kRows - kCapacity && writer.insert(1, std::chrono::seconds{30})) ++num_inserted;
  }};
  for (Ticket ticket = 0; ticket < kRows; ++ticket) {
    while (ring.window().committed <= ticket) std::this_thread::yield();
    CHECK(rows::is_record_of(ring, ring.record(ticket), ticket));
    CHECK(ring.oldest_whole() <= ticket);
    ring.hold_on_from(ticket + 1);
  }
  writing.join();
  ring.let_go();
  CHECK_EQ(num_inserted, kRows - kCapacity);
}

// Rows that are stored past the caches (storage/copy.hpp): none shows before its bytes do, nor after others' do. The
// last bytes are read first: those are the ones that a missing fence leaves behind.
void long_rows_are_whole() {
  constexpr std::size_t kRowBytes = 24'577, kBegin = kRowBytes - 512, kEnough = 3'000;
  const auto byte_of = [](Ticket ticket) { return static_cast<std::byte>(ticket % 251); };
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{1, kRowBytes})}, 64};
  std::atomic<bool> is_done{false};
  std::thread writing{[&] {
    std::vector<std::byte> row(kRowBytes);
    for (Ticket ticket = 0; !is_done.load(std::memory_order_relaxed); ++ticket) {  // relaxed: nothing hangs on it
      std::ranges::fill(row, byte_of(ticket));
      const std::array<fastreplay::Rows, 2> fields{{{row.data(), 1}, {row.data(), kRowBytes}}};
      CHECK(ring.insert(fields, 0, 1, std::chrono::seconds{30}));
    }
  }};
  std::vector<std::byte> copied(kRowBytes);
  std::size_t num_whole = 0, num_wrong = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds{2};
  while (num_whole == 0 || (num_whole < kEnough && std::chrono::steady_clock::now() < end)) {
    const Window window = ring.window();
    const Ticket ticket = window.end - 1;
    if (window.end == 0 || !ring.is_published(ticket, window)) {
      std::this_thread::yield();
      continue;
    }
    const std::byte* row = ring.record(ticket) + ring.records().layout().columns()[1].offset;
    fastreplay::load_row(copied.data() + kBegin, row + kBegin, kRowBytes - kBegin);
    fastreplay::load_row(copied.data(), row, kBegin);
    if (ring.oldest_whole() > ticket) continue;
    ++num_whole;
    num_wrong += !std::ranges::all_of(copied, [&](std::byte byte) { return byte == byte_of(ticket); });
  }
  is_done.store(true, std::memory_order_relaxed);  // relaxed: as above
  writing.join();
  CHECK_EQ(num_wrong, 0U);
}

void waiting_writers_go_on() {
  Ring ring{rows::page_layout(), 2};
  rows::Writer others{ring, 1, 2};
  std::atomic<bool> go{false};
  std::atomic<bool> done{false};
  std::thread waiting{[&] {
    // acquire: pairs with the release store of the stopped writer below.
    while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
    const bool went_in = others.insert(1, std::chrono::minutes{5});
    // release: pairs with the acquire loads below.
    done.store(went_in, std::memory_order_release);
  }};
  rows::insert_half(ring, 0, 1, [&] {
    CHECK(others.insert());
    // release: hands `others` over; pairs with the acquire load of the waiting thread.
    go.store(true, std::memory_order_release);
    std::this_thread::sleep_for(std::chrono::milliseconds{20});
    // acquire: pairs with the release store of the waiting thread.
    CHECK(!done.load(std::memory_order_acquire));
  });
  waiting.join();
  // acquire: as above.
  CHECK(done.load(std::memory_order_acquire));
  CHECK_EQ(ring.window().committed, 3U);
  CHECK(holds(ring, 1, 3));
}

// What is unfinished when the ring is cleared does not come up afterwards.
void clearing_takes_unfinished_tickets() {
  Ring ring{rows::page_layout(), 4};
  rows::insert(ring, 0, 6);
  rows::insert_half(ring, 6, 1, [&] {
    ring.clear();
    CHECK_EQ(ring.window().reserved(), 0U);
    CHECK_EQ(ring.window().published(), 0U);
  });
  CHECK_EQ(ring.window().reserved(), 0U);
  CHECK_EQ(ring.window().committed, 7U);
  CHECK_EQ(ring.num_inserted(), 7U);
  CHECK_EQ(ring.num_overwritten(), 3U);
  rows::insert(ring, 7, 1);
  CHECK_EQ(ring.window().published(), 1U);
  CHECK(holds(ring, 7, 8));
}

}  // namespace

int main() {
  for (const std::size_t capacity : {1, 2, 3, 7, 8, 9, 64, 100, 1000}) follows_a_deque(capacity);
  for (const std::size_t capacity : {1, 2, 8, 100}) {
    for (const std::size_t num_spare : {1, 3, 50}) follows_a_deque(capacity, num_spare);
  }
  tickets_have_slots();
  batches();
  strided_sources();
  only_fields_are_written();
  windows_count();
  restored_rings_go_on();
  lap_words_wrap();
  records_that_lie_there_are_published();
  restored_slots_are_not_published();
  refused();
  for (const std::size_t capacity : {1, 2, 3, 7, 64}) {
    the_lap_gate(capacity);
    torn_copies_are_known(capacity);
    for (const std::size_t num_spare : {1, 5}) spare_records_are_not_readers(capacity, num_spare);
  }
  more_is_discarded_than_a_window_holds();
  the_lap_gate_weighs_batches();
  batches_show_at_once();
  for (const std::size_t capacity : {1, 2, 7, 64}) {
    for (const std::size_t num_spare : {0, 1, 5}) a_copier_holds_the_gate(capacity, num_spare);
  }
  held_copies_are_whole();
  long_rows_are_whole();
  waiting_writers_go_on();
  clearing_takes_unfinished_tickets();
  return check::result();
}
