// SPDX-License-Identifier: MIT
#include "batch/read.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "batch/gather.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

namespace {

constexpr int kMaxCopies = 1000;

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

ReadResult read(Ring& ring, Address address, std::span<const std::int64_t> addresses, const Block& block) noexcept {
  std::uint64_t published = 0;
  for (int tries = 0; tries < kMaxCopies; ++tries) {
    const Window window = ring.window();
    published = window.published();
    for (std::size_t row = 0; row < addresses.size(); ++row) {
      block.tickets()[row] = resolve(ring, window, address, addresses[row]);
      if (block.tickets()[row] == window.end) return {ReadResult::Status::kOutOfRange, row, published};
    }
    const Ticket smallest = read_tickets(ring, block);
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

Ticket read_tickets(const Ring& ring, const Block& block) noexcept {
  Ticket smallest = ~Ticket{0};
  const Ticket* next = block.tickets().data();
  gather(ring.records(), block.layout().copied(), block, 0, block.batch_size(), [&] {
    const Ticket ticket = *next++;
    smallest = std::min(smallest, ticket);
    return ring.slot(ticket);
  });
  return smallest;
}

Ticket read_run(const Ring& ring, Ticket first, const Block& block) noexcept {
  std::iota(block.tickets().begin(), block.tickets().end(), first);
  (void)read_tickets(ring, block);
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
