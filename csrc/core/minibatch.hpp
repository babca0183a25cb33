// SPDX-License-Identifier: MIT
// From the ring into one contiguous block: uniform draws, reads by position or slot. Must not know
// Python or torch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/block_layout.hpp"
#include "random.hpp"
#include "ring/ring.hpp"
#include "storage/region.hpp"

namespace fastreplay {

// Memory for one minibatch: every field (batch_size, row_bytes), then the tickets.
class Block {
 public:
  Block(const RecordLayout& record, std::size_t batch_size)  // throws std::invalid_argument, std::bad_alloc
      : layout_{record, batch_size}, owned_{layout_.num_bytes()}, data_{owned_.data()} {}
  // In memory that somebody else owns and keeps (page-locked, say): at least layout().num_bytes() at a
  // multiple of kCacheLine, or std::invalid_argument is thrown.
  Block(const RecordLayout& record, std::size_t batch_size, std::span<std::byte> memory);

  [[nodiscard]] const BlockLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::size_t batch_size() const noexcept { return layout_.batch_size(); }
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::span<Ticket> tickets() const noexcept {
    return {reinterpret_cast<Ticket*>(data_ + layout_.tickets_offset()), batch_size()};
  }

 private:
  BlockLayout layout_;
  Region owned_;
  std::byte* data_;
};

// Draws uniform minibatches. Several threads may share one sampler: a call number is all they take
// from it.
class Sampler {
 public:
  explicit Sampler(Philox::Key key, std::uint64_t calls = 0, std::uint64_t num_sampled = 0,
                   std::uint64_t num_redraws = 0) noexcept
      : key_{key}, calls_{calls}, num_sampled_{num_sampled}, num_redraws_{num_redraws} {}

  // Fills the block with rows drawn uniformly, with replacement, from the ring's published
  // transitions. Returns false, with nothing changed, when nothing is published. What was begun is ended: rows that
  // are overwritten meanwhile are drawn again, after a clear() from what it took out; it waits for a writer only where
  // every row of the ring is being written.
  [[nodiscard]] bool sample(Ring& ring, const Block& block) noexcept;

  // The same in two steps, for draws that are made later or elsewhere and are to be those of this
  // moment in the order of calls.
  [[nodiscard]] std::uint64_t take_call() noexcept;
  [[nodiscard]] bool sample(Ring& ring, const Block& block, std::uint64_t call) noexcept;

  [[nodiscard]] Philox::Key key() const noexcept { return key_; }
  [[nodiscard]] std::uint64_t calls() const noexcept;
  [[nodiscard]] std::uint64_t num_sampled() const noexcept;
  [[nodiscard]] std::uint64_t num_redraws() const noexcept;

 private:
  void fill(Ring& ring, const Block& block, std::uint64_t call, const Window& window) noexcept;

  Philox::Key key_;
  // Counters for samplers to add to; each only grows, none orders anything.
  std::atomic<std::uint64_t> calls_;
  std::atomic<std::uint64_t> num_sampled_;
  std::atomic<std::uint64_t> num_redraws_;
};

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

// Copies the records of block.tickets() into the block and returns the smallest of the tickets: the
// copy is whole if it is not below ring.oldest_whole() afterwards. Every ticket has been published.
[[nodiscard]] Ticket gather(const Ring& ring, const Block& block) noexcept;

// Copies tickets first, first + 1, ... into the block in ascending order and returns the oldest ticket
// whose copy is whole; writers may overwrite the beginning meanwhile, never the end alone.
[[nodiscard]] Ticket read_run(const Ring& ring, Ticket first, const Block& block) noexcept;

// The same for the records as they lie in the ring, one after another: as many as fit into the memory.
[[nodiscard]] Ticket read_records(const Ring& ring, Ticket first, std::span<std::byte> records) noexcept;

}  // namespace fastreplay
