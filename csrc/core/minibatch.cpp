// SPDX-License-Identifier: MIT
#include "minibatch.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "ring/stop_points.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

namespace {

// Rows copied between two checks of head.
constexpr std::size_t kMaxChunkRows = 256;
constexpr int kMaxTries = 1000;
constexpr int kTriesBeforeYield = 64;

struct Place {
  Ticket ticket;
  std::size_t slot;
};

// How a gather runs ahead of itself. Rows are drawn and prefetched some way ahead, into the second
// cache level: the first has too few miss buffers to overlap this many (ARCHITECTURE.md, Sampling,
// has the figures). They are copied in groups, field by field, so that a field's size is looked at
// once a group.
struct Pace {
  static constexpr std::size_t kAheadBytes = 16384;
  static constexpr std::size_t kGroupBytes = 4096;
  static constexpr std::size_t kMaxAheadRows = 64;
  static constexpr std::size_t kMaxGroupRows = 16;

  explicit Pace(const RecordLayout& layout) noexcept
      : prefetch_bytes{std::min(layout.used_bytes(), kAheadBytes)},
        ahead_rows{std::clamp<std::size_t>(kAheadBytes / layout.stride(), 1, kMaxAheadRows)},
        group_rows{std::clamp<std::size_t>(std::bit_floor(kGroupBytes / layout.stride()), 1, kMaxGroupRows)} {}

  std::size_t prefetch_bytes;  // of each record
  std::size_t ahead_rows;
  std::size_t group_rows;  // a power of two
};

// Copies the records that next() names into rows [first_row, first_row + num_rows) of the block,
// notes their tickets and returns the smallest.
template <class Next>
Ticket copy_records(const Ring& ring, const Block& block, std::size_t first_row, std::size_t num_rows,
                    Next next) noexcept {
  const Pace pace{ring.records().layout()};
  const std::span<const Column> columns{ring.records().layout().columns()};
  const std::size_t* offsets = block.layout().offsets().data();
  const std::span<Ticket> tickets = block.tickets().subspan(first_row, num_rows);
  std::array<const std::byte*, 2 * Pace::kMaxAheadRows> records;  // those fetched and not yet copied
  std::size_t fetched = 0;
  Ticket smallest = ~Ticket{0};
  compiler_barrier();
  for (std::size_t row = 0; row < num_rows; row += pace.group_rows) {
    for (const std::size_t end = std::min(num_rows, row + pace.group_rows + pace.ahead_rows); fetched < end;
         ++fetched) {
      const Place place = next();
      tickets[fetched] = place.ticket;
      smallest = std::min(smallest, place.ticket);
      const std::byte* record = ring.records().at(place.slot);
      records[fetched % records.size()] = record;
      for (std::size_t i = 0; i < pace.prefetch_bytes; i += kCacheLine) __builtin_prefetch(record + i, 0, 2);
      __builtin_prefetch(record + pace.prefetch_bytes - 1, 0, 2);
    }
    const std::span<const std::byte* const> group{records.data() + row % records.size(),
                                                  std::min(pace.group_rows, num_rows - row)};
    for (std::size_t f = 0; f < columns.size(); ++f) {
      const auto [offset, row_bytes] = columns[f];
      load_rows(block.data() + offsets[f] + (first_row + row) * row_bytes, group, offset, row_bytes);
      at_stop_point(StopPoint::kFieldCopied);
    }
  }
  return smallest;
}

// Draws published tickets of one window, which holds one at the beginning.
class Draw {
 public:
  Draw(Ring& ring, WordStream& words, const Window& window) noexcept
      : ring_{ring}, words_{words}, oldest_{window.first} {
    take(window);
  }

  // Takes the window of now; where nothing is left in it, what clear() took out since the beginning, and what came
  // and went since.
  void refresh() noexcept {
    const Window window = ring_.window_to_draw_from();
    take(window.reserved() > 0 ? window : uncleared(window));
  }

  // Draws one ticket after the other.
  void fill(std::span<Ticket> tickets) noexcept {
    for (Ticket& ticket : tickets) {
      ticket = window_.first + words_.below(window_.reserved());
      if (!ring_.is_published(ticket, window_)) [[unlikely]]
        ticket = another();
      at_stop_point(StopPoint::kRowDrawn);
    }
  }

  // Where a drawn ticket lies. Only one drawn before the latest refresh() takes a division.
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept {
    const std::uint64_t position = ticket - window_.first;
    if (position >= ring_.capacity()) [[unlikely]]
      return ring_.slot(ticket);
    const std::size_t slot = first_slot_ + position;
    return slot < ring_.capacity() ? slot : slot - ring_.capacity();
  }

 private:
  void take(const Window& window) noexcept {
    window_ = window;
    at_stop_point(StopPoint::kWindowTaken);
    first_slot_ = ring_.slot(window_.first);
  }

  // The window as it would be, had nothing been cleared since the beginning. It is never empty, as that was not.
  [[nodiscard]] Window uncleared(Window window) const noexcept {
    window.first = std::max(oldest_, window.end - std::min<Ticket>(window.end, ring_.capacity()));
    return window;
  }

  // A ticket in place of one that is being written. Should every row of the window be so (the ring is small, or was
  // cleared just now), their writers get time to finish. A draw that was begun has no other way but to its end: the
  // rows that it overwrote are the caller's, and may not be left half-way.
  [[gnu::noinline]] Ticket another() noexcept {
    for (int tries = 2;; ++tries) {
      const Ticket ticket = window_.first + words_.below(window_.reserved());
      if (ring_.is_published(ticket, window_)) return ticket;
      if (tries % kTriesBeforeYield != 0) continue;
      std::this_thread::yield();
      refresh();
      if (tries < kMaxTries * kTriesBeforeYield) continue;
      tries = 0;
      take(uncleared(window_));
    }
  }

  Ring& ring_;
  WordStream& words_;
  Ticket oldest_;
  Window window_{};
  std::size_t first_slot_ = 0;
};

// The window to draw from. It is empty where no row is published, even after writers got time to finish one.
Window window_of_published(Ring& ring) noexcept {
  Window window = ring.window_to_draw_from();
  if (window.published() > 0) [[likely]]
    return window;
  for (int tries = 0; tries < kMaxTries && window.reserved() > 0; ++tries) {
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      if (ring.is_published(ticket, window)) return window;
    }
    std::this_thread::yield();
    window = ring.window_to_draw_from();
  }
  return {.first = window.end, .end = window.end, .committed = window.end};
}

// Draws rows [first_row, first_row + num_rows) of the block and copies them. Returns the smallest ticket.
Ticket copy_drawn(const Ring& ring, Draw& draw, const Block& block, std::size_t first_row,
                  std::size_t num_rows) noexcept {
  const std::span<Ticket> tickets = block.tickets().subspan(first_row, num_rows);
  draw.fill(tickets);
  const Ticket* next = tickets.data();
  return copy_records(ring, block, first_row, num_rows, [&]() -> Place {
    const Ticket ticket = *next++;
    return {ticket, draw.slot(ticket)};
  });
}

// Replaces the rows of the chunk that were overwritten while they were copied by fresh draws from
// the whole window (taking a neighbour instead would bias). Returns their number.
std::size_t redraw(Ring& ring, Draw& draw, const Block& block, std::size_t first_row, std::size_t num_rows,
                   Ticket oldest_whole) noexcept {
  std::size_t num_redrawn = 0;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    if (block.tickets()[row] >= oldest_whole) continue;
    ++num_redrawn;
    Ticket ticket = 0;
    do {
      draw.refresh();
      ticket = copy_drawn(ring, draw, block, row, 1);
    } while (ticket < ring.oldest_whole());
  }
  return num_redrawn;
}

// The ticket of an address in the window, or `end` when it has none.
Ticket resolve(const Ring& ring, const Window& window, Address address, std::int64_t value) noexcept {
  const auto published = static_cast<std::int64_t>(window.published());
  if (address == Address::kPosition) {
    const std::int64_t position = value < 0 ? value + published : value;
    const bool known = position >= 0 && position < published;
    return known ? window.first + static_cast<Ticket>(position) : window.end;
  }
  const auto capacity = static_cast<std::int64_t>(ring.capacity());
  if (published == 0 || value < 0 || value >= capacity) return window.end;
  const Ticket newest = window.committed - 1;
  const auto newest_slot = static_cast<std::int64_t>(ring.slot(newest));
  const std::int64_t age = value <= newest_slot ? newest_slot - value : newest_slot - value + capacity;
  return age < published ? newest - static_cast<Ticket>(age) : window.end;
}

}  // namespace

Block::Block(const RecordLayout& record, std::size_t batch_size, std::span<std::byte> memory)
    : layout_{record, batch_size}, data_{memory.data()} {
  if (memory.size() < layout_.num_bytes()) throw std::invalid_argument{"the memory is too short for the minibatch"};
  if (reinterpret_cast<std::uintptr_t>(data_) % kCacheLine != 0) {
    throw std::invalid_argument{"the memory does not begin at a cache line"};
  }
}

std::uint64_t Sampler::take_call() noexcept {
  // relaxed: only that no two calls get the same number.
  return calls_.fetch_add(1, std::memory_order_relaxed);
}

bool Sampler::sample(Ring& ring, const Block& block) noexcept {
  const Window window = window_of_published(ring);
  if (window.reserved() == 0) return false;
  fill(ring, block, take_call(), window);  // a call number only where there are rows
  return true;
}

bool Sampler::sample(Ring& ring, const Block& block, std::uint64_t call) noexcept {
  const Window window = window_of_published(ring);
  if (window.reserved() == 0) return false;
  fill(ring, block, call, window);
  return true;
}

void Sampler::fill(Ring& ring, const Block& block, std::uint64_t call, const Window& window) noexcept {
  WordStream words{key_, call};
  Draw draw{ring, words, window};
  std::size_t chunk_rows = kMaxChunkRows;
  std::size_t num_redraws = 0;
  for (std::size_t row = 0; row < block.batch_size();) {
    if (row > 0) draw.refresh();
    const std::size_t num_rows = std::min(chunk_rows, block.batch_size() - row);
    const Ticket smallest = copy_drawn(ring, draw, block, row, num_rows);
    const Ticket oldest_whole = ring.oldest_whole();
    if (smallest < oldest_whole) {
      const std::size_t redrawn = redraw(ring, draw, block, row, num_rows, oldest_whole);
      num_redraws += redrawn;
      // Writers lap us within a chunk: check more often.
      if (2 * redrawn > num_rows) chunk_rows = std::max<std::size_t>(1, chunk_rows / 2);
    }
    row += num_rows;
  }
  // relaxed: statistics.
  num_sampled_.fetch_add(block.batch_size(), std::memory_order_relaxed);
  // relaxed: as above.
  if (num_redraws > 0) num_redraws_.fetch_add(num_redraws, std::memory_order_relaxed);
}

std::uint64_t Sampler::calls() const noexcept {
  // relaxed: a count that orders nothing.
  return calls_.load(std::memory_order_relaxed);
}

std::uint64_t Sampler::num_sampled() const noexcept {
  // relaxed: a statistic.
  return num_sampled_.load(std::memory_order_relaxed);
}

std::uint64_t Sampler::num_redraws() const noexcept {
  // relaxed: a statistic.
  return num_redraws_.load(std::memory_order_relaxed);
}

ReadResult read(Ring& ring, Address address, std::span<const std::int64_t> addresses, const Block& block) noexcept {
  std::uint64_t published = 0;
  for (int tries = 0; tries < kMaxTries; ++tries) {
    const Window window = ring.window();
    published = window.published();
    for (std::size_t row = 0; row < addresses.size(); ++row) {
      block.tickets()[row] = resolve(ring, window, address, addresses[row]);
      if (block.tickets()[row] == window.end) return {ReadResult::Status::kOutOfRange, row, published};
    }
    const Ticket smallest = gather(ring, block);
    if (smallest >= ring.oldest_whole()) return {ReadResult::Status::kWhole, 0, published};
  }
  return {ReadResult::Status::kOverwritten, 0, published};
}

ReadResult replace(Ring& ring, Address address, std::span<const std::int64_t> addresses, const Block& held,
                   const Block& unseen) noexcept {
  const ReadResult result = read(ring, address, addresses, unseen);
  if (result.status == ReadResult::Status::kWhole) {
    std::memcpy(held.data(), unseen.data(), held.layout().num_bytes());
  }
  return result;
}

Ticket gather(const Ring& ring, const Block& block) noexcept {
  const Ticket* ticket = block.tickets().data();
  return copy_records(ring, block, 0, block.batch_size(), [&]() -> Place {
    const Ticket next = *ticket++;
    return {next, ring.slot(next)};
  });
}

Ticket read_run(const Ring& ring, Ticket first, const Block& block) noexcept {
  std::iota(block.tickets().begin(), block.tickets().end(), first);
  (void)gather(ring, block);
  return ring.oldest_whole();
}

Ticket read_records(const Ring& ring, Ticket first, std::span<std::byte> records) noexcept {
  const std::size_t stride = ring.records().layout().stride();
  compiler_barrier();
  for (std::size_t i = 0; (i + 1) * stride <= records.size(); ++i) {
    load_row(records.data() + i * stride, ring.record(first + i), ring.records().layout().used_bytes());
  }
  compiler_barrier();
  return ring.oldest_whole();
}

}  // namespace fastreplay
