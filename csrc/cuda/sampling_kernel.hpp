// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing and gathering a minibatch, and what a launch is given. Knows no CUDA: a test
// runs all threads by turns on the CPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/conversion.hpp"
#include "batch/random.hpp"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

// One block draws: 4 rows a thread and pass.
inline constexpr unsigned kDrawThreads = 256;
inline constexpr unsigned kGatherThreads = 256;
// At most so many threads copy one piece of one row.
inline constexpr unsigned kMaxLanes = 32;

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

FASTREPLAY_INLINE Philox::Key key_of(const fastreplay_cuda_generator& generator) {
  return {generator.key[0], generator.key[1]};
}

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

// Attempts of a row that is to be complete, before what suits is counted: as many as have as many steps as there are
// transitions, max_attempts() of core/batch/draw.hpp.
FASTREPLAY_INLINE std::uint64_t most_attempts_of(const fastreplay_cuda_window& window, std::uint64_t num_steps) {
  constexpr std::uint64_t kLeast = 64;
  const std::uint64_t most = window.size / num_steps;
  return most > kLeast ? most : kLeast;
}

FASTREPLAY_INLINE void count_draws(const Draw& draw) {
  ++draw.generator->calls;
  draw.generator->num_sampled += draw.batch_size;
}

// A piece in a kernel's parameters.
struct GatheredPiece {
  std::uint64_t record_offset;
  std::uint64_t block_offset;
  std::uint64_t row_bytes;
  std::uint64_t place_offset;  // where is_of_frame
  std::uint32_t num_units;
  std::uint8_t unit_bytes;  // 16, 8, 4 or 1: as many as lie aligned in every row on both sides
  std::uint8_t lanes_log2;  // a small piece's rows share a warp
  bool is_of_frame;
  Numbers from;  // kAsGiven: it is copied. Else a unit is a number
  Then then;
  float factor;

  [[nodiscard]] static GatheredPiece of(const fastreplay_cuda_piece& piece, const std::byte* records,
                                        std::uint64_t stride, const std::byte* block) {
    const std::uint64_t places = reinterpret_cast<std::uintptr_t>(records) | reinterpret_cast<std::uintptr_t>(block) |
                                 stride | piece.record_offset | piece.block_offset | piece.row_bytes | piece.num_bytes |
                                 piece.frame_alignment;
    const Conversion conversion{.from = static_cast<Numbers>(piece.converting & 0xFF),
                                .then = static_cast<Then>(piece.converting >> 8 & 0xFF),
                                .factor = std::bit_cast<float>(static_cast<std::uint32_t>(piece.converting >> 16))};
    const std::uint8_t unit_bytes = conversion.from != Numbers::kAsGiven
                                        ? static_cast<std::uint8_t>(conversion.number_bytes())
                                    : places % 16 == 0 ? 16
                                    : places % 8 == 0  ? 8
                                    : places % 4 == 0  ? 4
                                                       : 1;
    const auto num_units = static_cast<std::uint32_t>(piece.num_bytes / unit_bytes);
    const unsigned num_lanes = std::min(std::bit_ceil(num_units), kMaxLanes);
    return {.record_offset = piece.record_offset,
            .block_offset = piece.block_offset,
            .row_bytes = piece.row_bytes,
            .place_offset = piece.place_offset,
            .num_units = num_units,
            .unit_bytes = unit_bytes,
            .lanes_log2 = static_cast<std::uint8_t>(std::countr_zero(num_lanes)),
            .is_of_frame = piece.frame_alignment != 0,
            .from = conversion.from,
            .then = conversion.then,
            .factor = conversion.factor};
  }

  // Of a row, as it is given.
  [[nodiscard]] FASTREPLAY_INLINE std::uint32_t given_bytes() const {
    return num_units * (from == Numbers::kAsGiven ? unit_bytes : std::uint32_t{sizeof(float)});
  }

  // Where it is copied from, of the record that begins so many bytes after the first. Where no piece of a launch is of
  // frames, its kernel has none of it (40 registers in place of 32).
  template <bool kHasFrames>
  [[nodiscard]] FASTREPLAY_INLINE const std::byte* source(const std::byte* records, std::uint64_t offset) const {
    if constexpr (!kHasFrames) return records + offset + record_offset;
    if (is_of_frame) offset = *reinterpret_cast<const std::uint64_t*>(records + offset + place_offset);
    // By numbers: a frame may lie in other memory than the records, before it, too.
    return as_global(reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(records) + offset)) +
           record_offset;
  }
};

// A gather's parameters: every piece of every row, by value, whatever becomes of the caller's.
struct Gather {
  static constexpr unsigned kMaxPieces = 80;

  const fastreplay_cuda_window* window;
  const std::uint64_t* tickets;
  const std::byte* records;
  std::uint64_t stride;
  std::uint64_t capacity;
  std::byte* block;
  std::uint64_t batch_size;
  unsigned num_pieces;
  GatheredPiece pieces[kMaxPieces];

  explicit Gather(const fastreplay_cuda_sampling& sampling)
      : window{sampling.window},
        tickets{Draw::of(sampling).tickets},
        records{static_cast<const std::byte*>(sampling.records)},
        stride{sampling.stride},
        capacity{sampling.capacity},
        block{static_cast<std::byte*>(sampling.block)},
        batch_size{sampling.batch_size},
        num_pieces{0} {}

  // Takes as many from the front as one launch copies; those pieces' threads are as many blocks in x for each in y.
  // Returns how many threads the largest needs.
  [[nodiscard]] std::uint64_t take(std::span<const fastreplay_cuda_piece>& rest) {
    std::uint64_t num_threads = 0;
    for (num_pieces = 0; num_pieces < kMaxPieces && !rest.empty(); rest = rest.subspan(1)) {
      pieces[num_pieces] = gathered(rest.front());
      num_threads = std::max(num_threads, batch_size << pieces[num_pieces].lanes_log2);
      ++num_pieces;
    }
    return num_threads;
  }

 private:
  [[nodiscard]] GatheredPiece gathered(const fastreplay_cuda_piece& piece) const {
    return GatheredPiece::of(piece, records, stride, block);
  }
};

// Copies a lane's share of a piece, which is one unit where there are fewer than a warp's lanes.
template <class Unit>
FASTREPLAY_INLINE void copy_piece(std::byte* to, const std::byte* from, std::uint32_t lane, std::uint32_t num_units) {
  if (num_units > kMaxLanes) {
    copy_units<Unit, std::min<unsigned>(64 / sizeof(Unit), 16), kMaxLanes>(to, from, lane, num_units);
  } else if (lane < num_units) {
    reinterpret_cast<Unit*>(to)[lane] = reinterpret_cast<const Unit*>(from)[lane];
  }
}

// Converts a lane's share of a piece, of which a unit is a number.
FASTREPLAY_INLINE void convert_share(const GatheredPiece& piece, std::byte* to, const std::byte* from,
                                     std::uint32_t lane) {
  with_types({.from = piece.from, .then = piece.then}, [&](auto number, auto then) {
    using Number = decltype(number);
    auto* FASTREPLAY_RESTRICT given = reinterpret_cast<float*>(to);
    const auto* FASTREPLAY_RESTRICT stored = reinterpret_cast<const Number*>(from);
    for (std::uint32_t i = lane; i < piece.num_units; i += kMaxLanes) {
      given[i] = converted<decltype(then)::value>(stored[i], piece.factor);
    }
  });
}

FASTREPLAY_INLINE void copy_share(const GatheredPiece& piece, std::byte* to, const std::byte* from,
                                  std::uint32_t lane) {
  if (piece.from != Numbers::kAsGiven) {
    convert_share(piece, to, from, lane);
  } else if (piece.unit_bytes == 16) {
    copy_piece<SixteenBytes>(to, from, lane, piece.num_units);
  } else if (piece.unit_bytes == 8) {
    copy_piece<std::uint64_t>(to, from, lane, piece.num_units);
  } else if (piece.unit_bytes == 4) {
    copy_piece<std::uint32_t>(to, from, lane, piece.num_units);
  } else {
    copy_piece<std::uint8_t>(to, from, lane, piece.num_units);
  }
}

// Copies what falls to a thread, of those in x, of one piece.
template <bool kHasFrames = true>
FASTREPLAY_INLINE void gather_share(const Gather& gather, std::uint64_t thread, unsigned number) {
  const GatheredPiece& piece = gather.pieces[number];
  const std::uint64_t row = thread >> piece.lanes_log2;
  if (row >= gather.batch_size) return;
  const unsigned num_lanes = 1U << piece.lanes_log2;
  const auto lane = static_cast<std::uint32_t>(thread) & (num_lanes - 1);
  // Without a division: a window has no more tickets than there are slots.
  std::uint64_t slot = gather.window->first_slot + (as_global(gather.tickets)[row] - gather.window->first);
  if (slot >= gather.capacity) slot -= gather.capacity;
  const std::byte* from = piece.source<kHasFrames>(as_global(gather.records), slot * gather.stride);
  std::byte* to = as_global(gather.block) + piece.block_offset + row * piece.row_bytes;
  copy_share(piece, to, from, lane);
}

}  // namespace fastreplay
