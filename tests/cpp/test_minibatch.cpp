// SPDX-License-Identifier: MIT
// Minibatches: the rows that were drawn, whole, in their places, and nothing else written; also while
// writers overwrite them half-way (pages.hpp stops the copy there).
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "pages.hpp"
#include "rows.hpp"

using fastreplay::Address;
using fastreplay::Block;
using fastreplay::Philox;
using fastreplay::ReadResult;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using fastreplay::Uint128;
using fastreplay::WordStream;

namespace {

using Status = ReadResult::Status;

constexpr Philox::Key kKey{11, 22};
constexpr std::byte kCanary{0xEE};

const std::vector<std::vector<std::size_t>> kLayouts{{4},
                                                     {1},
                                                     {1, 1, 1},
                                                     {12, 4, 4, 12, 1},
                                                     {68, 24, 4, 68, 1},
                                                     {3, 5, 7, 9, 15, 17, 31, 33},
                                                     {2, 16, 100, 127, 128, 144, 1392},
                                                     {8191, 8192, 8193},
                                                     {28224, 8, 4, 28224, 1}};

RecordLayout layout_of(const std::vector<std::size_t>& row_bytes) { return RecordLayout{rows::fields_of(row_bytes)}; }

void fill_with_canaries(const Block& block) { std::memset(block.data(), 0xEE, block.layout().num_bytes()); }

std::span<std::byte> part(const Block& block, std::size_t field, std::size_t row_bytes) {
  return {block.data() + block.layout().offsets()[field], row_bytes * block.batch_size()};
}

// Every row whose copy is whole is its ticket's, and the padding between the parts was left alone.
void check_block(const Ring& ring, const Block& block, Ticket oldest_whole = 0) {
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    const Ticket ticket = block.tickets()[row];
    if (ticket >= oldest_whole) CHECK(rows::is_row_of(ring, block, row, ticket));
  }
  std::size_t end = 0;  // of the parts so far, one after the other; between them nothing is written
  const auto check_gap = [&](std::size_t offset, std::size_t num_bytes) {
    CHECK(end <= offset);
    CHECK(std::all_of(block.data() + end, block.data() + offset, [](std::byte byte) { return byte == kCanary; }));
    end = offset + num_bytes;
  };
  for (std::size_t f = 0; f < ring.records().layout().columns().size(); ++f) {
    check_gap(block.layout().offsets()[f], ring.records().layout().columns()[f].row_bytes * block.batch_size());
  }
  check_gap(block.layout().tickets_offset(), sizeof(Ticket) * block.batch_size());
  check_gap(block.layout().num_bytes(), 0);
}

// The draws of one sample call by the letter: a row's word of the stream, and for each time that it is thrown away
// (Lemire), or that nobody has published the ticket, a word of the row's own.
class Draws {
 public:
  explicit Draws(std::uint64_t call) : call_{call}, words_{kKey, call} {}

  Ticket next(Ticket first, Ticket end, Ticket unpublished = ~Ticket{0}) {
    return of(row_++, words_.next(), 1, first, end, unpublished);
  }

  // The row's redraw `number`, from 1 on, of a row that was overwritten.
  [[nodiscard]] Ticket again(std::uint64_t row, Ticket first, Ticket end, std::uint64_t number = 1) const {
    const std::uint64_t attempt = (std::uint64_t{1} << 32) + number;
    return of(row, word(row, attempt), attempt + 1, first, end, ~Ticket{0});
  }

 private:
  [[nodiscard]] std::uint64_t word(std::uint64_t row, std::uint64_t attempt) const {
    return fastreplay::Philox::words({row + 1, call_, attempt, 0}, kKey)[0];
  }

  [[nodiscard]] Ticket of(std::uint64_t row, std::uint64_t drawn, std::uint64_t attempt, Ticket first, Ticket end,
                          Ticket unpublished) const {
    for (;; drawn = word(row, attempt++)) {
      const Uint128 product = Uint128{drawn} * (end - first);
      const Ticket ticket = first + static_cast<std::uint64_t>(product >> 64);
      if (static_cast<std::uint64_t>(product) >= (first - end) % (end - first) && ticket != unpublished) return ticket;
    }
  }

  std::uint64_t call_;
  WordStream words_;
  std::uint64_t row_ = 0;
};

void samples(const std::vector<std::size_t>& row_bytes, std::size_t capacity, std::size_t num_rows) {
  Ring ring{layout_of(row_bytes), capacity};
  rows::insert(ring, 0, num_rows);
  Sampler sampler{kKey};
  std::uint64_t call = 0;
  for (const std::size_t batch_size : {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000}) {
    if (batch_size * ring.records().layout().used_bytes() > (std::size_t{16} << 20)) continue;
    const Block block{transition_parts(ring.records().layout()), batch_size};
    fill_with_canaries(block);
    CHECK(sampler.sample(ring, block));
    check_block(ring, block);
    Draws draws{call++};
    const Ticket first = num_rows > capacity ? num_rows - capacity : 0;
    for (const Ticket ticket : block.tickets()) CHECK_EQ(ticket, draws.next(first, num_rows));
  }
  CHECK_EQ(sampler.calls(), call);
  CHECK_EQ(sampler.num_redraws(), 0U);
}

void samplers_go_on_where_they_were_left() {
  Ring ring{layout_of({8}), 100};
  rows::insert(ring, 0, 250);
  const Block block{transition_parts(ring.records().layout()), 20};
  Sampler before{kKey};
  CHECK(before.sample(ring, block));
  Sampler sampler{kKey, 41};
  sampler.count_on_from(before);
  CHECK(sampler.sample(ring, block));
  Draws draws{41};
  for (const Ticket ticket : block.tickets()) CHECK_EQ(ticket, draws.next(150, 250));
  CHECK(sampler.key() == kKey);
  CHECK_EQ(sampler.calls(), 42U);
  CHECK_EQ(sampler.num_sampled(), 40U);
  CHECK_EQ(sampler.num_redraws(), before.num_redraws());
  Sampler restored{kKey};
  restored.count_on_from(5, 6, 7);
  CHECK(restored.sample(ring, block));
  CHECK_EQ(restored.num_sampled(), 25U);
  CHECK_EQ(restored.num_redraws(), 6U);
  CHECK_EQ(restored.num_without_mass(), 7U);
}

void uniform(std::size_t num_rows) {
  Ring ring{layout_of({8}), 100};
  rows::insert(ring, 0, num_rows);
  const auto window = ring.window();
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 1000};
  std::vector<double> counts(window.published());
  for (int i = 0; i < 200; ++i) {
    CHECK(sampler.sample(ring, block));
    for (const Ticket ticket : block.tickets()) ++counts.at(ticket - window.first);
  }
  const double expected = 200'000.0 / static_cast<double>(counts.size());
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
  // Six standard deviations of chi-square above its mean.
  const auto freedom = static_cast<double>(counts.size() - 1);
  CHECK(chi_square <= freedom + 6 * std::sqrt(2 * freedom));
  CHECK_EQ(sampler.num_sampled(), 200'000U);
}

void empty_rings_cannot_be_sampled() {
  Ring ring{layout_of({8}), 10};
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 4};
  CHECK(!sampler.sample(ring, block));
  rows::insert(ring, 0, 3);
  CHECK(sampler.sample(ring, block));
  ring.clear();
  CHECK(!sampler.sample(ring, block));
  CHECK_EQ(sampler.calls(), 1U);
  CHECK_EQ(sampler.num_sampled(), 4U);
}

// Threads that share a sampler take the calls 0, 1, ... among them, each once.
void shared_samplers() {
  constexpr std::size_t kCalls = 300;
  Ring ring{layout_of({8}), 1000};
  rows::insert(ring, 0, 1000);
  Sampler sampler{kKey};
  std::vector<std::vector<Ticket>> drawn(2 * kCalls);
  const auto sample = [&](std::size_t first) {
    const Block block{transition_parts(ring.records().layout()), 3};
    for (std::size_t i = first; i < first + kCalls; ++i) {
      if (sampler.sample(ring, block)) drawn[i].assign(block.tickets().begin(), block.tickets().end());
    }
  };
  std::thread other{sample, kCalls};
  sample(0);
  other.join();
  std::vector<std::vector<Ticket>> expected;
  for (std::uint64_t call = 0; call < 2 * kCalls; ++call) {
    Draws draws{call};
    auto& tickets = expected.emplace_back();
    for (int i = 0; i < 3; ++i) tickets.push_back(draws.next(0, 1000));
  }
  std::ranges::sort(drawn);
  std::ranges::sort(expected);
  CHECK(drawn == expected);
  CHECK_EQ(sampler.num_sampled(), 6 * kCalls);
}

void reads_by_position_and_slot() {
  Ring ring{layout_of(kLayouts[4]), 50};
  for (const std::size_t num_rows : {std::size_t{20}, std::size_t{117}}) {  // part full, then full
    rows::insert(ring, ring.num_inserted(), num_rows);
    const auto window = ring.window();
    const auto size = static_cast<std::int64_t>(window.published());
    const std::vector<std::int64_t> positions{0, size - 1, -1, -size, 7, 7, size / 2};
    const Block block{transition_parts(ring.records().layout()), positions.size()};
    fill_with_canaries(block);
    const ReadResult result = read(ring, Address::kPosition, positions, block);
    CHECK(result.status == Status::kWhole);
    CHECK_EQ(result.published, window.published());
    check_block(ring, block);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const std::int64_t position = positions[i] < 0 ? positions[i] + size : positions[i];
      CHECK_EQ(block.tickets()[i], window.first + static_cast<Ticket>(position));
    }
    std::vector<std::int64_t> slots(static_cast<std::size_t>(size));
    std::iota(slots.rbegin(), slots.rend(), 0);
    const Block all{transition_parts(ring.records().layout()), slots.size()};
    fill_with_canaries(all);
    CHECK(read(ring, Address::kSlot, slots, all).status == Status::kWhole);
    check_block(ring, all);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      CHECK_EQ(ring.slot(all.tickets()[i]), static_cast<std::size_t>(slots[i]));
      CHECK(all.tickets()[i] >= window.first && all.tickets()[i] < window.end);
    }
  }
}

// Every slot of rings of every fill, some of it cleared: known if and only if it holds something.
void slots_at_every_fill() {
  for (std::size_t capacity = 1; capacity <= 5; ++capacity) {
    for (std::size_t num_cleared = 0; num_cleared < 3 * capacity; ++num_cleared) {
      for (std::size_t num_rows = 0; num_rows <= capacity + 1; ++num_rows) {
        Ring ring{layout_of({8}), capacity};
        rows::insert(ring, 0, num_cleared);
        ring.clear();
        rows::insert(ring, num_cleared, num_rows);
        const auto window = ring.window();
        const Block block{transition_parts(ring.records().layout()), 1};
        for (std::size_t slot = 0; slot < capacity; ++slot) {
          Ticket expected = window.first;
          while (expected < window.end && expected % capacity != slot) ++expected;
          const std::vector<std::int64_t> slots{static_cast<std::int64_t>(slot)};
          const ReadResult result = read(ring, Address::kSlot, slots, block);
          CHECK(result.status == (expected < window.end ? Status::kWhole : Status::kOutOfRange));
          if (expected < window.end) CHECK_EQ(block.tickets()[0], expected);
        }
      }
    }
  }
}

void out_of_range() {
  Ring ring{layout_of({8}), 10};
  const Block block{transition_parts(ring.records().layout()), 3};
  const auto fails = [&](Address address, std::int64_t bad, std::size_t row) {
    std::vector<std::int64_t> addresses{0, 0, 0};
    addresses[row] = bad;
    const ReadResult result = read(ring, address, addresses, block);
    return result.status == Status::kOutOfRange && result.row == row && result.published == ring.window().published();
  };
  CHECK(fails(Address::kPosition, 0, 0));
  CHECK(fails(Address::kPosition, -1, 0));
  CHECK(fails(Address::kSlot, 0, 0));
  rows::insert(ring, 0, 4);
  for (std::size_t row = 0; row < 3; ++row) {
    for (const std::int64_t bad : {std::int64_t{4}, std::int64_t{-5}, INT64_MAX, INT64_MIN}) {
      CHECK(fails(Address::kPosition, bad, row));
    }
    for (const std::int64_t bad :
         {std::int64_t{4}, std::int64_t{9}, std::int64_t{10}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
      CHECK(fails(Address::kSlot, bad, row));
    }
  }
}

void gathers() {
  Ring ring{layout_of(kLayouts[5]), 50};
  rows::insert(ring, 0, 120);
  const Block block{transition_parts(ring.records().layout()), 300};
  fill_with_canaries(block);
  check::Random random{3};
  for (Ticket& ticket : block.tickets()) ticket = 75 + random.below(45);
  block.tickets()[123] = 71;
  CHECK_EQ(read_tickets(ring, block), 71U);
  check_block(ring, block);
  CHECK_EQ(block.tickets()[123], 71U);
}

void runs() {
  Ring ring{layout_of(kLayouts[5]), 100};
  rows::insert(ring, 0, 130);
  const Block block{transition_parts(ring.records().layout()), 60};
  fill_with_canaries(block);
  CHECK_EQ(read_run(ring, 50, block), 30U);
  check_block(ring, block);
  for (std::size_t row = 0; row < 60; ++row) CHECK_EQ(block.tickets()[row], 50 + row);
}

// The oldest ticket is unfinished, so that commit stands still: what came after it is sampled all the same.
void a_stalled_writer_hides_only_its_own_row() {
  Ring ring{rows::page_layout(), 4};
  rows::Writer others{ring, 1, 3};
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 100};
  fill_with_canaries(block);
  rows::insert_half(ring, 0, 1, [&] {
    CHECK(!sampler.sample(ring, block));  // nothing but the unfinished row
    CHECK_EQ(sampler.calls(), 0U);
    CHECK(others.insert_each(3));
    CHECK(sampler.sample(ring, block));
    for (const Ticket ticket : block.tickets()) CHECK(ticket >= 1 && ticket <= 3);
  });
  check_block(ring, block);
}

// While rows are copied into the block, num_ahead transitions come in. Exactly the rows that they
// overwrite are drawn again, from the window as it is then.
void overwritten_rows_are_drawn_again(std::size_t num_ahead) {
  Ring ring{rows::page_layout(), 50};
  rows::insert(ring, 0, 70);
  rows::Writer writer{ring, 70, num_ahead};
  const Block block{transition_parts(ring.records().layout()), 40};
  fill_with_canaries(block);
  pages::Trap trap{part(block, 1, pages::page_bytes()), [&] { CHECK(writer.insert_each(num_ahead)); }};
  trap.close();
  Sampler sampler{kKey};
  CHECK(sampler.sample(ring, block));
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block);
  Draws draws{0};
  std::vector<Ticket> expected(40);
  for (Ticket& ticket : expected) ticket = draws.next(20, 70);
  std::uint64_t num_redraws = 0;
  for (std::size_t row = 0; row < expected.size(); ++row) {
    if (expected[row] >= 20 + num_ahead) continue;
    expected[row] = draws.again(row, 20 + num_ahead, 70 + num_ahead);
    ++num_redraws;
  }
  CHECK(std::ranges::equal(block.tickets(), expected));
  CHECK_EQ(sampler.num_redraws(), num_redraws);
  CHECK_EQ(sampler.num_sampled(), 40U);
}

// The row that was drawn again is overwritten too: it is drawn once more, and the others from the newest window.
void redrawn_rows_are_checked_too() {
  constexpr std::size_t kAhead = 60;  // more than the capacity: nothing of the window before is left
  Ring ring{rows::page_layout(), 50};
  rows::insert(ring, 0, 70);
  rows::Writer writer{ring, 70, 2 * kAhead};
  const Block block{transition_parts(ring.records().layout()), 40};
  fill_with_canaries(block);
  const std::span<std::byte> bytes = part(block, 1, pages::page_bytes());
  // A page of row 0, which is the first that is drawn again; it is closed when later rows are copied.
  pages::Trap redraw{bytes, [&] { CHECK(writer.insert_each(kAhead)); }};
  pages::Trap copy{bytes.subspan(bytes.size() / 2), [&] {
                     CHECK(writer.insert_each(kAhead));
                     redraw.close();
                   }};
  copy.close();
  Sampler sampler{kKey};
  CHECK(sampler.sample(ring, block));
  CHECK_EQ(copy.num_touches(), 1);
  CHECK_EQ(redraw.num_touches(), 1);
  check_block(ring, block);
  const Draws draws{0};
  for (std::size_t row = 0; row < 40; ++row) {
    CHECK_EQ(block.tickets()[row], draws.again(row, 20 + 2 * kAhead, 70 + 2 * kAhead, row == 0 ? 2 : 1));
  }
  CHECK_EQ(sampler.num_redraws(), 40U);
}

// As overwritten_rows_are_drawn_again(), with small rows and several checks of head within the minibatch.
void large_minibatches_are_whole(std::size_t num_ahead) {
  Ring ring{layout_of({64, 1, 12}), 3000};
  rows::insert(ring, 0, 7000);
  rows::Writer writer{ring, 7000, num_ahead};
  const Block block{transition_parts(ring.records().layout()), 1000};
  fill_with_canaries(block);
  // A page in the middle, of rows after the first check of head.
  pages::Trap trap{part(block, 0, 64).subspan(600 * 64), [&] { CHECK(writer.insert_each(num_ahead)); }};
  trap.close();
  Sampler sampler{kKey};
  CHECK(sampler.sample(ring, block));
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block);
  // What was checked before the writer came may stay; what follows is from the new window.
  CHECK(std::ranges::all_of(block.tickets(), [&](Ticket t) { return t >= 4000 && t < 7000 + num_ahead; }));
  CHECK(std::ranges::all_of(block.tickets().subspan(700), [&](Ticket t) { return t >= 4000 + num_ahead; }));
  CHECK(sampler.num_redraws() > 0);
}

// The ring is overwritten and cleared while rows are copied: a minibatch that was begun is ended, with what was
// there in the meantime. The next finds nothing, and changes nothing.
void cleared_while_sampling() {
  Ring ring{rows::page_layout(), 8};
  rows::insert(ring, 0, 8);
  rows::Writer writer{ring, 8, 8};
  const Block block{transition_parts(ring.records().layout()), 10};
  fill_with_canaries(block);
  pages::Trap trap{part(block, 1, pages::page_bytes()), [&] {
                     CHECK(writer.insert_each(8));
                     ring.clear();
                   }};
  trap.close();
  Sampler sampler{kKey};
  CHECK(sampler.sample(ring, block));
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block);
  CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket >= 8 && ticket < 16; }));
  CHECK(!sampler.sample(ring, block));
  check_block(ring, block);
  CHECK_EQ(sampler.calls(), 1U);
  CHECK_EQ(sampler.num_sampled(), 10U);
  rows::insert(ring, 16, 1);
  CHECK(sampler.sample(ring, block));
  CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket == 16; }));
}

// A writer stands half-way in ticket 21, others have finished num_others tickets after it: all but 21
// are drawn, and none more often than by chance.
void unfinished_tickets_are_not_drawn(std::size_t num_others) {
  Ring ring{rows::page_layout(), 8};
  rows::insert(ring, 0, 21);
  rows::Writer others{ring, 22, num_others};
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 100};
  const Block one{transition_parts(ring.records().layout()), 1};
  fill_with_canaries(block);
  rows::insert_half(ring, 21, 1, [&] {
    CHECK(others.insert_each(num_others));
    CHECK(sampler.sample(ring, block));
    const std::int64_t slot_of_21 = 21 % 8;
    CHECK(read(ring, Address::kSlot, {&slot_of_21, 1}, one).status == Status::kOutOfRange);
    const std::int64_t newest = -1;
    CHECK(read(ring, Address::kPosition, {&newest, 1}, one).status == Status::kWhole);
    CHECK_EQ(one.tickets()[0], 20U);
    const auto size = static_cast<std::int64_t>(7 - num_others);
    CHECK(read(ring, Address::kPosition, {&size, 1}, one).status == Status::kOutOfRange);
  });
  check_block(ring, block);
  Draws draws{0};
  for (const Ticket ticket : block.tickets()) CHECK_EQ(ticket, draws.next(14 + num_others, 22 + num_others, 21));
  CHECK_EQ(sampler.num_redraws(), 0U);
}

// One of very many can be drawn: the others are being written. It is found, at once and for every row.
void one_that_can_be_drawn(std::size_t num_unfinished, std::size_t at) {
  Ring ring{layout_of({8}), num_unfinished + 1};
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 20};
  Ticket first = 0;
  const auto reserve = [&](std::size_t count) {
    for (std::size_t left = count; left > 0;) {
      const std::size_t some = std::min(left, ring.max_rows_per_insert());
      CHECK(ring.reserve(some, std::chrono::nanoseconds{0}, first));
      left -= some;
    }
  };
  reserve(at);
  if (num_unfinished < 10'000) CHECK(!sampler.sample(ring, block));
  rows::insert(ring, at, 1);
  reserve(num_unfinished - at);
  CHECK(sampler.sample(ring, block));
  CHECK(std::ranges::all_of(block.tickets(), [&](Ticket ticket) { return ticket == at; }));
}

// The newest rows come first; those that count by their age alone are drawn, each as often as by chance.
void the_newest() {
  Ring ring{layout_of({8}), 100};
  rows::insert(ring, 0, 250);
  for (const std::size_t batch_size : {1U, 3U, 64U, 600U}) {
    for (const std::uint64_t newest : {0U, 1U, 5U, 100U, 1000U}) {
      for (const std::uint64_t newest_of : {0U, 1U, 7U, 100U, 5000U}) {
        const Block block{transition_parts(ring.records().layout()), batch_size};
        fill_with_canaries(block);
        Sampler sampler{kKey, 0, {.newest_of = newest_of, .newest = newest}};
        CHECK_EQ(sampler.sample(ring, block), batch_size);
        check_block(ring, block);
        const Ticket oldest = newest_of == 0 || newest_of > 100 ? 150 : 250 - newest_of;
        const std::size_t count = std::min<std::size_t>({newest, batch_size, 250 - oldest});
        Draws draws{0};
        for (std::size_t row = 0; row < batch_size; ++row) {
          const Ticket drawn = draws.next(oldest, 250);
          CHECK_EQ(block.tickets()[row], row < count ? 250 - count + row : drawn);
        }
      }
    }
  }
}

// An unfinished insert hides what came after it from those who ask for the newest, as from those who ask for the last.
void the_newest_beside_an_unfinished_insert() {
  Ring ring{rows::page_layout(), 50};
  rows::insert(ring, 0, 70);
  rows::Writer others{ring, 71, 5};
  const Block block{transition_parts(ring.records().layout()), 40};
  fill_with_canaries(block);
  rows::insert_half(ring, 70, 1, [&] {
    CHECK(others.insert_each(5));
    Sampler sampler{kKey, 0, {.newest_of = 4, .newest = 2}};
    CHECK_EQ(sampler.sample(ring, block), 40U);
    CHECK(block.tickets()[0] == 68 && block.tickets()[1] == 69);
    CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket >= 66 && ticket < 70; }));
  });
}

// The only slot is being written: there is nothing to draw or read.
void a_ring_of_one_being_written() {
  Ring ring{rows::page_layout(), 1};
  rows::insert(ring, 0, 5);
  Sampler sampler{kKey};
  const Block block{transition_parts(ring.records().layout()), 2};
  const std::vector<std::int64_t> oldest{0, 0};
  rows::insert_half(ring, 5, 1, [&] {
    CHECK(!sampler.sample(ring, block));
    CHECK(read(ring, Address::kPosition, oldest, block).status == Status::kOutOfRange);
    CHECK(read(ring, Address::kSlot, oldest, block).status == Status::kOutOfRange);
  });
  CHECK(sampler.sample(ring, block));
  CHECK_EQ(block.tickets()[1], 5U);
}

// The only slot is overwritten while it is copied, and its writer takes its time: a minibatch that was begun is ended.
void a_ring_of_one_overwritten_while_sampling() {
  Ring ring{rows::page_layout(), 1};
  rows::insert(ring, 0, 5);
  const Block block{transition_parts(ring.records().layout()), 2};
  fill_with_canaries(block);
  std::atomic<bool> is_copied{false};
  std::atomic<bool> is_half_way{false};
  std::thread writer{[&] {  // begun here: a handler may not begin one
    while (!is_copied) std::this_thread::yield();
    rows::insert_half(ring, 5, 1, [&is_half_way] {
      is_half_way = true;
      std::this_thread::sleep_for(std::chrono::milliseconds{50});
    });
  }};
  pages::Trap trap{part(block, 1, pages::page_bytes()), [&] {
                     is_copied = true;
                     while (!is_half_way) std::this_thread::yield();
                   }};
  trap.close();
  Sampler sampler{kKey};
  const bool is_drawn = sampler.sample(ring, block);
  writer.join();  // which checks, too: one thread at a time may
  CHECK(is_drawn);
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block);
  CHECK_EQ(block.tickets()[0], 5U);
  CHECK_EQ(block.tickets()[1], 5U);
}

// While rows are read, num_ahead transitions come in: if they overwrite one of them, all are read again,
// from the window as it is then.
void overwritten_reads_start_again(Address address, std::size_t num_ahead, bool again) {
  Ring ring{rows::page_layout(), 10};
  rows::insert(ring, 0, 25);
  rows::Writer writer{ring, 25, num_ahead};
  const std::vector<std::int64_t> addresses{3, 9, 3};
  const Block block{transition_parts(ring.records().layout()), 3};
  fill_with_canaries(block);
  pages::Trap trap{part(block, 1, pages::page_bytes()), [&] { CHECK(writer.insert_each(num_ahead)); }};
  trap.close();
  CHECK(read(ring, address, addresses, block).status == Status::kWhole);
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block);
  const Ticket first = again ? 15 + num_ahead : 15;
  for (std::size_t row = 0; row < 3; ++row) {
    const auto value = static_cast<Ticket>(addresses[row]);
    const Ticket by_slot = first + (value + 10 - first % 10) % 10;
    CHECK_EQ(block.tickets()[row], address == Address::kPosition ? first + value : by_slot);
  }
}

// Writers that overwrite the rows at every try make a read give up, and what somebody holds stays as it was.
void reads_give_up() {
  constexpr std::size_t kEnough = 20000;
  Ring ring{rows::page_layout(), 1};
  rows::insert(ring, 0, 1);
  const rows::Batch batch{ring.records().layout(), 1, 1};
  const std::vector<std::int64_t> positions{0, 0, 0};
  const Block held{transition_parts(ring.records().layout()), 3};
  std::memset(held.data(), 0x5A, held.layout().num_bytes());
  const Block block{transition_parts(ring.records().layout()), 3};
  const std::span<std::byte> bytes = part(block, 1, pages::page_bytes());
  std::size_t num_tries = 0;
  pages::Trap* first_row = nullptr;
  pages::Trap last_row{bytes.subspan(pages::page_bytes()), [&] {
                         CHECK(ring.insert(batch.rows(), 0, 1, {}));
                         if (++num_tries < kEnough) first_row->close();  // for the next try
                       }};
  pages::Trap trap{bytes, [&] { last_row.close(); }};
  first_row = &trap;
  trap.close();
  const ReadResult result = replace(ring, Address::kPosition, positions, held, block);
  CHECK(result.status == Status::kOverwritten);
  CHECK_EQ(result.published, 1U);
  CHECK(num_tries > 1 && num_tries < kEnough);
  for (std::size_t i = 0; i < held.layout().num_bytes(); ++i) CHECK(held.data()[i] == std::byte{0x5A});
}

// Writers overwrite the beginning of a run while it is read: the end is whole.
void runs_lose_their_beginning(std::size_t num_ahead) {
  Ring ring{rows::page_layout(), 10};
  rows::insert(ring, 0, 25);
  rows::Writer writer{ring, 25, num_ahead};
  const Block block{transition_parts(ring.records().layout()), 8};
  fill_with_canaries(block);
  pages::Trap trap{part(block, 1, pages::page_bytes()), [&] { CHECK(writer.insert_each(num_ahead)); }};
  trap.close();
  CHECK_EQ(read_run(ring, 16, block), 15 + num_ahead);
  CHECK_EQ(trap.num_touches(), 1);
  check_block(ring, block, 15 + num_ahead);
}

// What two samplers draw into shares of a block is what each draws into a block of its own, and nothing else is
// written.
void shares_of_a_block(const std::vector<std::size_t>& row_bytes) {
  Ring one{layout_of(row_bytes), 40};
  Ring other{layout_of(row_bytes), 60};
  rows::insert(one, 0, 40);
  rows::insert(other, 0, 55);
  const std::vector<fastreplay::Part> parts = transition_parts(one.records().layout());
  std::vector<std::size_t> places(parts.size());
  std::iota(places.begin(), places.end(), std::size_t{0});
  const Block whole{parts, 300};
  fill_with_canaries(whole);
  const Block first{whole, parts, places, 0, 29};
  const Block second{whole, parts, places, 29, 270};
  CHECK(first.layout().is_share() && !whole.layout().is_share());
  CHECK_EQ(Sampler{kKey}.sample(one, first), 29U);
  CHECK_EQ((Sampler{kKey, 5}.sample(other, second)), 270U);
  const Block alone{parts, 29};
  const Block alone_too{parts, 270};
  CHECK_EQ(Sampler{kKey}.sample(one, alone), 29U);
  CHECK_EQ((Sampler{kKey, 5}.sample(other, alone_too)), 270U);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const std::size_t num_bytes = parts[i].row_bytes;
    CHECK(std::memcmp(whole.part(i), alone.part(i), 29 * num_bytes) == 0);
    CHECK(std::memcmp(whole.part(i) + 29 * num_bytes, alone_too.part(i), 270 * num_bytes) == 0);
    const std::byte* rest = whole.part(i) + 299 * num_bytes;  // of the last row, which is nobody's
    CHECK(std::all_of(rest, rest + num_bytes, [](std::byte byte) { return byte == kCanary; }));
  }
}

void no_such_shares() {
  const std::vector<fastreplay::Part> parts = transition_parts(layout_of({4, 8}));
  const Block whole{parts, 10};
  const auto refused = [&](std::vector<std::size_t> places, std::size_t first_row, std::size_t num_rows) {
    return check::throws<std::invalid_argument>([&] { (void)Block{whole, parts, places, first_row, num_rows}; });
  };
  CHECK(!refused({0, 1, 2}, 3, 7) && !refused({0, 1, 2}, 10, 0));
  CHECK(refused({0, 1, 2}, 3, 8) && refused({0, 1, 2}, 11, 0) && refused({0, 1, 2}, 1, ~std::size_t{0}));
  CHECK(refused({0, 1}, 0, 1) && refused({0, 1, 3}, 0, 1) && refused({0, 0, 2}, 0, 1));
  const Block share{whole, parts, std::vector<std::size_t>{0, 1, 2}, 0, 5};
  CHECK(check::throws<std::invalid_argument>(
      [&] { (void)Block{share, parts, std::vector<std::size_t>{0, 1, 2}, 0, 1}; }));
}

// Epochs run on within a share: every row of one comes before any of the next.
void epochs_in_a_share() {
  Ring ring{layout_of({8}), 16};
  rows::insert(ring, 0, 10);
  const std::vector<fastreplay::Part> parts = transition_parts(ring.records().layout());
  const Block whole{parts, 64};
  const Block share{whole, parts, std::vector<std::size_t>{0, 1}, 7, 35};
  Sampler sampler{kKey, fastreplay::EpochOptions{}, fastreplay::EpochState{}};
  CHECK_EQ(sampler.sample(ring, share), 35U);
  for (std::size_t begin = 0; begin < 30; begin += 10) {
    std::vector<Ticket> epoch(share.tickets().begin() + static_cast<std::ptrdiff_t>(begin),
                              share.tickets().begin() + static_cast<std::ptrdiff_t>(begin) + 10);
    std::ranges::sort(epoch);
    for (Ticket ticket = 0; ticket < 10; ++ticket) CHECK_EQ(epoch[ticket], ticket);
  }
  for (std::size_t row = 0; row < 35; ++row) CHECK(rows::is_row_of(ring, share, row, share.tickets()[row]));
  CHECK_EQ(sampler.epochs()->state().position, 5U);
  ring.clear();
  CHECK_EQ(sampler.sample(ring, share), 0U);
}

}  // namespace

int main() {
  for (const auto& row_bytes : kLayouts) {
    samples(row_bytes, 40, 25);
    samples(row_bytes, 40, 40);
    samples(row_bytes, 40, 97);
  }
  samples({8}, 1, 3);
  samples({8}, 1000, 5000);
  samplers_go_on_where_they_were_left();
  for (const std::size_t num_rows : {1, 2, 37, 99, 100, 101, 250}) uniform(num_rows);
  empty_rings_cannot_be_sampled();
  shared_samplers();
  reads_by_position_and_slot();
  slots_at_every_fill();
  out_of_range();
  gathers();
  runs();
  for (const std::size_t num_ahead : {1, 10, 49, 50, 51, 175}) overwritten_rows_are_drawn_again(num_ahead);
  redrawn_rows_are_checked_too();
  for (const std::size_t num_ahead : {500, 3000, 7001}) large_minibatches_are_whole(num_ahead);
  cleared_while_sampling();
  for (const std::size_t num_others : {0, 1, 5, 6}) unfinished_tickets_are_not_drawn(num_others);
  for (const std::size_t at : {0U, 1U, 700U, 1000U}) one_that_can_be_drawn(1000, at);
  one_that_can_be_drawn(100'000, 77'777);
  the_newest();
  the_newest_beside_an_unfinished_insert();
  a_ring_of_one_being_written();
  a_ring_of_one_overwritten_while_sampling();
  for (const Address address : {Address::kPosition, Address::kSlot}) {
    for (const std::size_t num_ahead : {4, 10, 33}) overwritten_reads_start_again(address, num_ahead, true);
  }
  overwritten_reads_start_again(Address::kPosition, 3, false);
  reads_give_up();
  for (const std::size_t num_ahead : {0, 1, 4, 8, 30}) runs_lose_their_beginning(num_ahead);
  a_stalled_writer_hides_only_its_own_row();
  for (const auto& row_bytes : kLayouts) shares_of_a_block(row_bytes);
  no_such_shares();
  epochs_in_a_share();
  return check::result();
}
