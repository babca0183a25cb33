// SPDX-License-Identifier: MIT
// A thread that fills minibatch blocks ahead of those who take them. Must not know Python, torch or
// CUDA: what is to happen to a block once it is filled is a function pointer.
//
//   push: a free block and its draw's number -> [pushed] -> [being filled] -> [filled] -> take
//
// Blocks come out in the order in which they went in. Their call numbers are taken by push(), so that what
// each minibatch holds depends on the order of pushes, not on who fills them and when. The thread does, ahead
// of the consumer; a consumer who comes before the thread has begun fills the block itself: it would wait for
// a gather in any case, and where no core is free for the thread, for much longer.
//
// To wait for the oldest block and to take it are two calls, and only the second changes anything for the
// consumer: one that is interrupted between them finds the block where it was.
//
// Ownership: any thread may call anything at any time (consumers); a block that several wait for goes to the one
// that takes it. All counts and the outcome are guarded by mutex_; news_ is not, being a hint (see wait_for_news).
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "batch/block.hpp"
#include "batch/sample.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

class Prefetcher {
 public:
  // Called after a block was filled, by the thread that did, with the context that push() got: it may start the
  // copy to another device. Returns 0, or an error number of its own. Null for nothing.
  using Send = int (*)(void* context);

  enum class Outcome {
    kFilled,   // the oldest block is filled and sent
    kPending,  // patience ran out first
    kEmpty,    // the ring held nothing when a block was to be filled; nothing is filled before retry()
    kFailed,   // send() failed; nothing is filled any more
    kStopped,  // stop() was called
  };

  // Who draws the rows of a block, or a share of them, with what surrounds each, if anything does.
  struct Member {
    Ring& ring;
    Sampler& sampler;
    const Following* following = nullptr;
  };

  // What a member is to fill of one block, null for nothing, and the exponent of its weights, if it has any.
  struct Piece {
    const Block* block;
    double beta = 0;
  };

  // Starts the thread. `depth` is how many blocks may be in it at once, at least 1. What the members are made of
  // outlives this. Throws std::invalid_argument on depth 0 or without members, std::system_error where no thread can be
  // had.
  Prefetcher(std::vector<Member> members, std::size_t depth, Send send);
  Prefetcher(Ring& ring, Sampler& sampler, std::size_t depth, Send send, const Following* following = nullptr)
      : Prefetcher{{{.ring = ring, .sampler = sampler, .following = following}}, depth, send} {}
  ~Prefetcher() { stop(); }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Gives a block to be filled, as one piece for each member, which outlive its being taken or stop(). Throws
  // std::logic_error where `depth` blocks are in already, or they are not as many as the members.
  void push(std::span<const Piece> pieces, void* context);
  void push(const Block& block, void* context, double beta = 0) {
    const Piece piece{.block = &block, .beta = beta};
    push({&piece, 1}, context);
  }

  struct Oldest {
    Outcome outcome;
    std::uint64_t number;      // of the block, counting from the first that was pushed
    std::size_t num_rows = 0;  // that were filled
  };

  // Waits until the oldest block is filled, or says why it cannot be. Fills it if the thread has not begun to, and no
  // row has to be complete, else waits for `patience` at most; without patience it does neither.
  [[nodiscard]] Oldest await(std::chrono::nanoseconds patience);

  // A member's call for the oldest block that it has a piece of, if there is one and it had something to draw from.
  [[nodiscard]] std::optional<Sampler::Call> oldest_call(std::size_t member = 0) const;

  // Rows that a member has drawn of blocks that nobody has taken.
  [[nodiscard]] std::size_t num_rows_ahead(std::size_t member = 0) const;

  // Takes block `number` out if it is the oldest and filled. False, with nothing changed, where it is not (any more),
  // and after stop().
  [[nodiscard]] bool take(std::uint64_t number);

  // Lets the block for which the ring was empty be filled again, with the same call number.
  void retry();

  // Ends the thread: after the blocks that it and consumers are filling, but a long search for rows that are complete
  // is given up; and before the next. Nothing is written to any block from then on.
  void stop() noexcept;

  // What send() returned, after kFailed.
  [[nodiscard]] int error() const;

 private:
  enum class State { kPushed, kBeingFilled, kFilled };

  // What a member draws of a block.
  struct Turn {
    const Block* block;
    Sampler::Call call;

    [[nodiscard]] bool is_taken() const noexcept { return block == nullptr || call.num_rows > 0; }
  };

  struct Job {
    std::vector<Turn> turns;
    void* context = nullptr;
    State state = State::kPushed;
  };

  void run() noexcept;
  [[nodiscard]] Job* next_to_fill() noexcept;
  [[nodiscard]] bool take_rows(Job& job) noexcept;
  [[nodiscard]] bool draw(const Job& job) noexcept;
  [[nodiscard]] bool may_search() const noexcept;
  [[nodiscard]] std::unique_lock<std::mutex> fill(Job& job, std::unique_lock<std::mutex> lock) noexcept;
  [[nodiscard]] Job* oldest() noexcept;
  [[nodiscard]] bool is_stopped() const noexcept;
  [[nodiscard]] std::unique_lock<std::mutex> locked() const;
  [[nodiscard]] std::unique_lock<std::mutex> wait_for_news(std::unique_lock<std::mutex> lock) const;
  void tell_news() noexcept;

  const std::vector<Member> members_;
  const Send send_;
  const std::chrono::nanoseconds spin_;

  mutable std::mutex mutex_;
  std::condition_variable work_;  // for the thread: a push, a retry, the end
  std::condition_variable done_;  // for consumers: a block is filled or cannot be
  std::vector<Job> jobs_;         // job n lies at n % depth
  std::uint64_t num_pushed_ = 0;
  std::uint64_t num_taken_ = 0;
  Outcome outcome_ = Outcome::kFilled;  // while it is anything else, nothing is filled
  int error_ = 0;
  bool is_stopped_ = false;

  // Counts the changes of what the mutex guards. Written by all, read by who spins.
  std::atomic<std::uint64_t> news_{0};

  std::mutex joining_;  // for those who call stop() at once
  std::thread thread_;
};

}  // namespace fastreplay
