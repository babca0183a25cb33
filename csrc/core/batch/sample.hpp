// SPDX-License-Identifier: MIT
// Minibatches of drawn transitions: draw, gather, check, draw again what was overwritten meanwhile. Must not know
// Python or torch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "batch/block.hpp"
#include "batch/draw.hpp"
#include "batch/random.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Fills the block with transitions drawn from the ring, and returns how many of them had to be drawn again. What was
// begun is ended: rows that are overwritten meanwhile are drawn again, after a clear() from what it took out; it waits
// for a writer only where every row of the ring is being written.
std::size_t sample(Ring& ring, UniformDraw& draw, const Block& block) noexcept;

// A generator for draws, and counts of them. Several threads may share one sampler: a call number is all they take
// from it.
class Sampler {
 public:
  explicit Sampler(Philox::Key key, std::uint64_t calls = 0, std::uint64_t num_sampled = 0,
                   std::uint64_t num_redraws = 0) noexcept
      : key_{key}, calls_{calls}, num_sampled_{num_sampled}, num_redraws_{num_redraws} {}

  // Fills the block with rows drawn uniformly, with replacement, from the ring's published transitions. Returns false,
  // with nothing changed, when nothing is published.
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

}  // namespace fastreplay
