// SPDX-License-Identifier: MIT
// Minibatches of drawn transitions: draw, gather, check, draw again what was overwritten meanwhile. Must not know
// Python or torch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "batch/block.hpp"
#include "batch/draw.hpp"
#include "batch/epochs.hpp"
#include "batch/priority_draw.hpp"
#include "batch/random.hpp"
#include "batch/trajectory_draw.hpp"
#include "batch/windows.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// What surrounds each row of a minibatch.
struct Following {
  const Lanes& lanes;  // of the ring
  const WindowRule& rule;
  GivingUp* giving_up = nullptr;  // asked where rows are drawn again that are not complete
};

// A generator for draws, and counts of them. Several threads may share one sampler: a call number is all they take
// from it.
class Sampler {
 public:
  // One of its minibatches: which of its draws, and the exponent of the weights, where there are any.
  struct Call {
    std::uint64_t number;
    double beta = 0;
    std::size_t num_rows = 0;  // of the block's; 0 where there was nothing to draw from
    EpochState epoch{};        // before it, of draws in epochs
  };

  explicit Sampler(Philox::Key key, std::uint64_t calls = 0, const Recency& recency = {}) noexcept
      : key_{key}, recency_{recency}, calls_{calls} {}

  // Draws from each trajectory of the ring's lanes as often as from every other. They outlive this.
  Sampler(Philox::Key key, const Lanes& lanes, std::uint64_t calls = 0) noexcept : Sampler{key, calls} {
    trajectories_ = &lanes;
  }

  // Draws in proportion to the priorities of the ring's transitions, into blocks of weighted_parts(). They outlive
  // this.
  Sampler(Philox::Key key, Priorities& priorities, const PriorityOptions& options, std::uint64_t calls = 0) noexcept
      : Sampler{key, calls} {
    priorities_ = &priorities;
    options_ = options;
  }

  // Goes through what the ring holds, epoch after epoch. Throws std::bad_alloc.
  Sampler(Philox::Key key, const EpochOptions& options, const EpochState& state, std::uint64_t calls = 0)
      : Sampler{key, calls} {
    epochs_ = std::make_unique<Epochs>(key, options, state);
  }

  // Let the statistics go on from those of another sampler, or from numbers, as long as nobody knows of this one.
  void count_on_from(const Sampler& before) noexcept;
  void count_on_from(std::uint64_t num_sampled, std::uint64_t num_redraws, std::uint64_t num_without_mass) noexcept;

  // Fills the block with rows drawn from the ring's published transitions: with replacement, or in epochs. Returns how
  // many: all, or in epochs perhaps fewer; none where there is nothing to draw from, with nothing changed but where
  // rows are drawn again that are not complete, and none is, or it is given up. Such rows are not drawn in epochs. A
  // share of a block is filled: where an epoch ends, the next begins.
  [[nodiscard]] std::size_t sample(Ring& ring, const Block& block, double beta = 0,
                                   const Following* following = nullptr) noexcept;

  // The same in two steps, for draws that are made later or elsewhere and are to be those of this moment in the order
  // of calls. A call without rows gets another try.
  void take_rows(Ring& ring, const Block& block, Call& call) noexcept;
  [[nodiscard]] bool sample(Ring& ring, const Block& block, const Call& call,
                            const Following* following = nullptr) noexcept;

  // In the child after a fork.
  void begin_in_child() noexcept {
    if (epochs_) epochs_->begin_in_child();
  }

  // Whether it can draw from the ring.
  [[nodiscard]] bool draws_from(const Ring& ring) const noexcept {
    return trajectories_ == nullptr || &trajectories_->ring() == &ring;
  }
  // Whether its minibatches have weights.
  [[nodiscard]] bool draws_by_priority() const noexcept { return priorities_ != nullptr; }
  // Null where it draws with replacement.
  [[nodiscard]] const Epochs* epochs() const noexcept { return epochs_.get(); }
  [[nodiscard]] Philox::Key key() const noexcept { return key_; }
  [[nodiscard]] std::uint64_t calls() const noexcept;
  [[nodiscard]] std::uint64_t num_sampled() const noexcept;
  [[nodiscard]] std::uint64_t num_redraws() const noexcept;
  // Minibatches that were drawn uniformly because every mass was zero.
  [[nodiscard]] std::uint64_t num_without_mass() const noexcept;

 private:
  [[nodiscard]] bool fill(Ring& ring, const Block& block, const Call& call, const Window& window,
                          const Following* following) noexcept;

  Philox::Key key_;
  Recency recency_;
  const Lanes* trajectories_ = nullptr;
  Priorities* priorities_ = nullptr;
  PriorityOptions options_;
  std::unique_ptr<Epochs> epochs_;
  // Counters for samplers to add to; each only grows, none orders anything.
  std::atomic<std::uint64_t> calls_;
  std::atomic<std::uint64_t> num_sampled_{0};
  std::atomic<std::uint64_t> num_redraws_{0};
  std::atomic<std::uint64_t> num_without_mass_{0};
};

}  // namespace fastreplay
