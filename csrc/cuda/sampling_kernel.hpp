// SPDX-License-Identifier: MIT
// What one CUDA thread does of drawing and gathering a minibatch. Knows no CUDA: a test runs all threads by turns on
// the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch/random.hpp"
#include "inline.hpp"
#include "sampling.h"

namespace fastreplay {

// One block draws: 4 rows a thread and pass.
inline constexpr unsigned kDrawThreads = 256;
// So many threads copy one piece of one row.
inline constexpr unsigned kLanes = 32;
inline constexpr unsigned kGatherThreads = 256;

FASTREPLAY_INLINE std::uint64_t* tickets_of(const fastreplay_cuda_sampling& sampling) {
  return reinterpret_cast<std::uint64_t*>(static_cast<std::byte*>(sampling.block) + sampling.tickets_offset);
}

FASTREPLAY_INLINE Philox::Key key_of(const fastreplay_cuda_generator& generator) {
  return {generator.key[0], generator.key[1]};
}

// Draws the tickets of the rows whose words fall to the thread. Returns false where a word was to be thrown away
// (2^-44 a row at a million transitions): then the words of all later rows are others, and draw_in_order() is to
// be called by one thread for all.
FASTREPLAY_INLINE bool draw_share(const fastreplay_cuda_sampling& sampling, unsigned thread) {
  const auto [first, size] = *sampling.window;
  const std::uint64_t call = sampling.generator->calls;
  std::uint64_t* tickets = tickets_of(sampling);
  bool are_drawn = true;
  for (std::uint64_t i = thread; i * WordStream::kBlockWords < sampling.batch_size; i += kDrawThreads) {
    const Philox::Counter words = WordStream::block(key_of(*sampling.generator), call, i);
    for (std::size_t k = 0; k < WordStream::kBlockWords; ++k) {
      const std::uint64_t row = i * WordStream::kBlockWords + k;
      if (row >= sampling.batch_size) break;
      std::uint64_t position = 0;
      are_drawn = draw_below(size, words[k], position) && are_drawn;
      tickets[row] = first + position;
    }
  }
  return are_drawn;
}

FASTREPLAY_INLINE void draw_in_order(const fastreplay_cuda_sampling& sampling) {
  const auto [first, size] = *sampling.window;
  WordStream words{key_of(*sampling.generator), sampling.generator->calls};
  for (std::uint64_t row = 0; row < sampling.batch_size; ++row) tickets_of(sampling)[row] = first + words.below(size);
}

FASTREPLAY_INLINE void count_draws(const fastreplay_cuda_sampling& sampling) {
  ++sampling.generator->calls;
  sampling.generator->num_sampled += sampling.batch_size;
}

template <class Unit>
FASTREPLAY_INLINE void copy_units(std::byte* to, const std::byte* from, std::uint64_t num_bytes, unsigned lane) {
  const std::uint64_t num_units = num_bytes / sizeof(Unit);
  for (std::uint64_t i = lane; i < num_units; i += kLanes) {
    reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
  }
  for (std::uint64_t i = num_units * sizeof(Unit) + lane; i < num_bytes; i += kLanes) to[i] = from[i];
}

struct alignas(16) SixteenBytes {
  std::uint64_t low, high;
};

// Copies one piece of one row, whose ticket is drawn: `unit` counts the pieces of all rows, row by row.
FASTREPLAY_INLINE void gather_share(const fastreplay_cuda_sampling& sampling, std::uint64_t unit, unsigned lane) {
  const std::uint64_t row = unit / sampling.num_pieces;
  const fastreplay_cuda_piece& piece = sampling.pieces[unit % sampling.num_pieces];
  const std::uint64_t slot = tickets_of(sampling)[row] % sampling.capacity;
  const auto* from = static_cast<const std::byte*>(sampling.records) + slot * sampling.stride + piece.record_offset;
  auto* to = static_cast<std::byte*>(sampling.block) + piece.block_offset + row * piece.row_bytes;
  const auto places = reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to);
  if (places % sizeof(SixteenBytes) == 0) {
    copy_units<SixteenBytes>(to, from, piece.num_bytes, lane);
  } else if (places % sizeof(std::uint32_t) == 0) {
    copy_units<std::uint32_t>(to, from, piece.num_bytes, lane);
  } else {
    copy_units<std::uint8_t>(to, from, piece.num_bytes, lane);
  }
}

}  // namespace fastreplay
