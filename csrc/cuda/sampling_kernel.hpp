// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing and gathering a minibatch, and what a launch is given. Knows no CUDA: a test
// runs all threads by turns on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/random.hpp"
#include "gathered_piece.hpp"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling.h"
#include "shifted_piece.hpp"

namespace fastreplay {

// One block draws: 4 rows a thread and pass.
inline constexpr unsigned kDrawThreads = 256;
inline constexpr unsigned kGatherThreads = 256;

// A draw's parameters.
struct Draw {
  fastreplay_cuda_window now;  // of has_window
  fastreplay_cuda_window* window;
  fastreplay_cuda_generator* generator;
  std::uint64_t* tickets;
  std::uint64_t batch_size;
  bool has_window;

  [[nodiscard]] static Draw of(const fastreplay_cuda_sampling& sampling) {
    return {
        .now = sampling.now != nullptr ? *sampling.now : fastreplay_cuda_window{},
        .window = sampling.window,
        .generator = sampling.generator,
        .tickets = reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(sampling.block) + sampling.tickets_offset),
        .batch_size = sampling.batch_size,
        .has_window = sampling.now != nullptr};
  }

  [[nodiscard]] FASTREPLAY_INLINE fastreplay_cuda_window drawn_from() const { return has_window ? now : *window; }
};

// Draws the tickets of the rows whose words fall to the thread.
FASTREPLAY_INLINE void draw_share(const Draw& draw, const fastreplay_cuda_window& window, unsigned thread,
                                  unsigned num_threads = kDrawThreads) {
  const std::uint64_t call = draw.generator->calls;
  const Philox::Key key = key_of(*draw.generator);
  std::uint64_t* tickets = as_global(draw.tickets);
  for (std::uint64_t i = thread; i * WordStream::kBlockWords < draw.batch_size; i += num_threads) {
    const Philox::Counter words = WordStream::block(key, call, i);
    for (std::size_t k = 0; k < WordStream::kBlockWords; ++k) {
      const std::uint64_t row = i * WordStream::kBlockWords + k;
      if (row >= draw.batch_size) break;
      std::uint64_t position = 0;
      std::uint64_t word = words[k];
      for (std::uint64_t attempt = 1; !draw_below(window.size, word, position); ++attempt) {
        word = word_of_attempt(key, call, row, attempt);
      }
      tickets[row] = window.first + position;
    }
  }
}

// The word of a row's attempt.
FASTREPLAY_INLINE std::uint64_t word_of(const Draw& draw, std::uint64_t row, std::uint64_t attempt) {
  const Philox::Key key = key_of(*draw.generator);
  const std::uint64_t call = draw.generator->calls;
  if (attempt > 0) return word_of_attempt(key, call, row, attempt);
  const Philox::Counter words = WordStream::block(key, call, row / WordStream::kBlockWords);
  const std::uint64_t place = row % WordStream::kBlockWords;
  return place == 0 ? words[0] : place == 1 ? words[1] : place == 2 ? words[2] : words[3];
}

// Of the rows of a thread, where each has some that follow each other.
template <unsigned kThreads>
FASTREPLAY_INLINE std::uint64_t first_row_of(const Draw& draw, unsigned thread) {
  const std::uint64_t first = (draw.batch_size + kThreads - 1) / kThreads * thread;
  return first < draw.batch_size ? first : draw.batch_size;
}

FASTREPLAY_INLINE void count_draws(const Draw& draw) {
  ++draw.generator->calls;
  draw.generator->num_sampled += draw.batch_size;
}

// A gather's parameters: every piece of every row, by value, whatever becomes of the caller's; of one kind of pieces.
template <class Copied = GatheredPiece>
struct Gather {
  static constexpr unsigned kMaxPieces = Copied::kMostGathered;

  const fastreplay_cuda_window* window;
  const fastreplay_cuda_generator* generator;
  const std::uint64_t* tickets;
  const std::byte* records;
  std::uint64_t stride;
  std::uint64_t capacity;
  std::byte* block;
  std::uint64_t batch_size;
  unsigned num_pieces;
  Copied pieces[kMaxPieces];

  explicit Gather(const fastreplay_cuda_sampling& sampling)
      : window{sampling.window},
        generator{sampling.generator},
        tickets{Draw::of(sampling).tickets},
        records{static_cast<const std::byte*>(sampling.records)},
        stride{sampling.stride},
        capacity{sampling.capacity},
        block{static_cast<std::byte*>(sampling.block)},
        batch_size{sampling.batch_size},
        num_pieces{0} {}

  // Takes as many of its kind from the front as one launch copies; those pieces' threads are as many blocks in x for
  // each in y. Returns how many threads the largest needs, 0 where there is none.
  [[nodiscard]] std::uint64_t take(std::span<const fastreplay_cuda_piece>& rest) {
    std::uint64_t num_threads = 0;
    for (num_pieces = 0; num_pieces < kMaxPieces && !rest.empty(); rest = rest.subspan(1)) {
      if (!Copied::takes(rest.front())) continue;
      const Copied& piece = pieces[num_pieces++] = Copied::of(rest.front(), records, stride, block);
      num_threads = std::max(num_threads, batch_size << piece.lanes_log2);
    }
    return num_threads;
  }
};

// Copies what falls to a thread, of those in x, of one piece.
template <bool kHasFrames = true, class Copied = GatheredPiece>
FASTREPLAY_INLINE void gather_share(const Gather<Copied>& gather, std::uint64_t thread, unsigned number) {
  const Copied& piece = gather.pieces[number];
  const std::uint64_t row = thread >> piece.lanes_log2;
  if (row >= gather.batch_size) return;
  const unsigned num_lanes = 1U << piece.lanes_log2;
  const auto lane = static_cast<std::uint32_t>(thread) & (num_lanes - 1);
  // Without a division: a window has no more tickets than there are slots.
  std::uint64_t slot = gather.window->first_slot + (as_global(gather.tickets)[row] - gather.window->first);
  if (slot >= gather.capacity) slot -= gather.capacity;
  const std::byte* from = piece.template source<kHasFrames>(as_global(gather.records), slot * gather.stride);
  std::byte* to = as_global(gather.block) + piece.block_offset + row * piece.row_bytes;
  give_share(piece, to, from, lane, *gather.generator, row);
}

}  // namespace fastreplay
