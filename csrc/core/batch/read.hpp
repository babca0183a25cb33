// SPDX-License-Identifier: MIT
// Transitions that somebody names, by position, slot or ticket. Must not know Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/block.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

enum class Address {
  kPosition,  // 0 is the oldest published transition; negative counts from the newest
  kSlot,      // ticket % capacity
};

struct ReadResult {
  enum class Status {
    kWhole,
    kOutOfRange,   // addresses[row] names no published transition
    kOverwritten,  // writers overwrote a row at each of many tries
  };
  Status status;
  std::size_t row;
  std::uint64_t published;  // transitions that could be addressed
};

// Fills the block with the addressed transitions, all of one moment; addresses.size() is the block's
// batch size. Where it gives up, what the block holds is undefined.
[[nodiscard]] ReadResult read(Ring& ring, Address address, std::span<const std::int64_t> addresses,
                              const Block& block) noexcept;

// The same for what somebody holds: it has changed as a whole, or where it gives up not at all. What is read lies in
// `unseen` first, a block of the same layout that nobody sees, for a read may give up half-way.
[[nodiscard]] ReadResult replace(Ring& ring, Address address, std::span<const std::int64_t> addresses,
                                 const Block& held, const Block& unseen) noexcept;

// Copies the transitions of block.tickets() into the block and returns the smallest of the tickets: the
// copy is whole if it is not below ring.oldest_whole() afterwards. Every ticket has been published.
[[nodiscard]] Ticket read_tickets(const Ring& ring, const Block& block) noexcept;

// Copies tickets first, first + 1, ... into the block in ascending order and returns the oldest ticket
// whose copy is whole; writers may overwrite the beginning meanwhile, never the end alone.
[[nodiscard]] Ticket read_run(const Ring& ring, Ticket first, const Block& block) noexcept;

// The same for the records as they lie in the ring, one after another: as many as fit into the memory.
[[nodiscard]] Ticket read_records(const Ring& ring, Ticket first, std::span<std::byte> records) noexcept;

}  // namespace fastreplay
