// SPDX-License-Identifier: MIT
// What one CUDA thread does of making a minibatch whose rows have been walked from: fields of steps are copied, it is
// said which steps are there, sums are made. Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/ways.hpp"
#include "followed_walk.hpp"
#include "following.h"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling_kernel.hpp"

namespace fastreplay {

// A piece in a kernel's parameters.
template <class Copied>
struct FollowedPiece {
  Copied copied;
  std::int64_t first_step;
  std::uint32_t num_steps;
  std::uint32_t stride;
  fastreplay_cuda_making making;
};

// A gather's parameters, by value, of one kind of pieces.
template <class Copied = GatheredPiece>
struct FollowedGather {
  static constexpr unsigned kMaxPieces = Copied::kMostFollowed;

  const fastreplay_cuda_window* window;
  const fastreplay_cuda_generator* generator;
  const std::byte* records;
  std::uint64_t stride;
  std::byte* block;
  std::uint64_t batch_size;
  FollowedWalk walk;
  bool is_time_major;
  double gamma;
  std::uint64_t discount_bytes;
  std::uint64_t discount_offset;
  unsigned num_pieces;
  FollowedPiece<Copied> pieces[kMaxPieces];

  explicit FollowedGather(const fastreplay_cuda_sampling& sampling)
      : window{sampling.window},
        generator{sampling.generator},
        records{static_cast<const std::byte*>(sampling.records)},
        stride{sampling.stride},
        block{static_cast<std::byte*>(sampling.block)},
        batch_size{sampling.batch_size},
        walk{FollowedWalk::of(sampling)},
        is_time_major{sampling.following->is_time_major != 0},
        gamma{sampling.following->gamma},
        discount_bytes{sampling.following->discount_bytes},
        discount_offset{sampling.following->discount_offset},
        num_pieces{0} {}

  // Takes as many of its kind from the front as one launch makes. Returns how many threads the largest needs.
  [[nodiscard]] std::uint64_t take(std::span<const fastreplay_cuda_made>& rest) {
    std::uint64_t num_threads = 0;
    for (num_pieces = 0; num_pieces < kMaxPieces && !rest.empty(); rest = rest.subspan(1)) {
      if (!Copied::takes(rest.front().piece)) continue;
      const FollowedPiece<Copied>& piece = pieces[num_pieces++] = piece_of(rest.front());
      num_threads = std::max(num_threads, (batch_size * piece.num_steps) << piece.copied.lanes_log2);
    }
    return num_threads;
  }

 private:
  [[nodiscard]] FollowedPiece<Copied> piece_of(const fastreplay_cuda_made& made) const {
    FollowedPiece<Copied> of{.copied = Copied::of(made.piece, records, stride, block),
                             .first_step = made.first_step,
                             .num_steps = static_cast<std::uint32_t>(made.num_steps),
                             .stride = static_cast<std::uint32_t>(made.stride),
                             .making = static_cast<fastreplay_cuda_making>(made.making)};
    if (of.making > FASTREPLAY_CUDA_OF_FIRST) of.copied.lanes_log2 = 0;  // a thread for each number
    return of;
  }
};

// One of a piece's steps of one row.
struct FollowedStep {
  Way way;
  std::int64_t step;
  bool is_before;  // the first that is there
  bool is_after;   // the last

  template <class Copied>
  FASTREPLAY_INLINE FollowedStep(const FollowedPiece<Copied>& piece, const Ways& ways, std::uint64_t row,
                                 std::uint32_t number)
      : way{ways[row]},
        step{piece.first_step + static_cast<std::int64_t>(number) * piece.stride},
        is_before{step < -std::int64_t{way.num_before}},
        is_after{step > std::int64_t{way.num_after}} {}

  [[nodiscard]] FASTREPLAY_INLINE bool is_there() const { return !is_before && !is_after; }
  [[nodiscard]] FASTREPLAY_INLINE bool is_first() const {
    return is_there() && way.begins && step == -std::int64_t{way.num_before};
  }
  // Of the step, or the nearest that is there.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t slot(const Ways& ways, std::uint64_t row) const {
    return is_before ? way.first_slot : is_after ? way.last_slot : ways.slots(row)[step];
  }
};

FASTREPLAY_INLINE double number_at(const std::byte* place, bool is_double) {
  return is_double ? *reinterpret_cast<const double*>(place)
                   : static_cast<double>(*reinterpret_cast<const float*>(place));
}

FASTREPLAY_INLINE void put_number(std::byte* place, double number, bool is_double) {
  if (is_double) {
    *reinterpret_cast<double*>(place) = number;
  } else {
    *reinterpret_cast<float*>(place) = static_cast<float>(number);
  }
}

// DiscountedSums of core/batch/discounted_sums.hpp, in its order: of one number of a field, or of none, where what is
// asked for is what all steps discount.
template <class Copied>
FASTREPLAY_INLINE void make_sum(const FollowedGather<Copied>& gather, const FollowedPiece<Copied>& piece,
                                std::uint64_t row, std::uint32_t element) {
  const bool is_discount =
      piece.making == FASTREPLAY_CUDA_DISCOUNT_FLOAT || piece.making == FASTREPLAY_CUDA_DISCOUNT_DOUBLE;
  const bool is_double = piece.making == FASTREPLAY_CUDA_SUM_DOUBLES || piece.making == FASTREPLAY_CUDA_DISCOUNT_DOUBLE;
  const std::uint64_t num_bytes = is_double ? sizeof(double) : sizeof(float);
  const Ways ways = gather.walk.ways();
  const std::uint32_t num_after = ways[row].num_after;
  std::uint64_t slot = ways.slots(row)[0];
  double weight = 1;
  double total = 0;
  for (std::uint32_t k = 0;; ++k) {
    const std::byte* record = as_global(gather.records) + slot * gather.stride;
    if (!is_discount) {
      total += weight * number_at(record + piece.copied.record_offset + element * num_bytes, is_double);
    }
    weight *= gather.gamma;
    if (gather.discount_bytes > 0) {
      weight *= number_at(record + gather.discount_offset, gather.discount_bytes == sizeof(double));
    }
    if (k == num_after) break;
    slot = gather.walk.next(slot);
  }
  std::byte* to = as_global(gather.block) + piece.copied.block_offset + row * piece.copied.row_bytes;
  put_number(to + element * num_bytes, is_discount ? weight : total, is_double);
}

template <class Copied>
FASTREPLAY_INLINE void put_zeros(const Copied& piece, std::byte* to, std::uint32_t lane) {
  const std::uint32_t num_bytes = piece.given_bytes();
  for (std::uint32_t i = lane; i < num_bytes; i += 1U << piece.lanes_log2) to[i] = std::byte{0};
}

// Of the first of a piece's steps that is there: as Windows::take() of core/batch/windows.cpp.
template <class Copied>
FASTREPLAY_INLINE std::uint64_t first_slot_there(const FollowedPiece<Copied>& piece, const Ways& ways,
                                                 std::uint64_t row) {
  const Way& way = ways[row];
  const std::int64_t num_missing = -std::int64_t{way.num_before} - piece.first_step;
  const std::uint64_t first =
      num_missing > 0 ? (static_cast<std::uint64_t>(num_missing) + piece.stride - 1) / piece.stride : 0;
  if (first >= piece.num_steps) return way.first_slot;
  const FollowedStep step{piece, ways, row, static_cast<std::uint32_t>(first)};
  return step.is_after && first > 0 ? way.first_slot : step.slot(ways, row);
}

// Copies, or makes, what falls to a thread, of those in x, of one piece.
template <bool kHasFrames = true, class Copied = GatheredPiece>
FASTREPLAY_INLINE void follow_share(const FollowedGather<Copied>& gather, std::uint64_t thread, unsigned number) {
  const FollowedPiece<Copied>& piece = gather.pieces[number];
  const bool is_one = piece.making == FASTREPLAY_CUDA_OF_FIRST;  // num_steps are looked at, one is given
  const std::uint32_t num_given = is_one ? 1 : piece.num_steps;
  const std::uint64_t made = thread >> piece.copied.lanes_log2;
  const std::uint64_t row = made / num_given;
  if (row >= gather.batch_size) return;
  const auto step_number = static_cast<std::uint32_t>(made - row * num_given);
  if (piece.making >= FASTREPLAY_CUDA_SUM_FLOATS) return make_sum(gather, piece, row, step_number);
  const Ways ways = gather.walk.ways();
  const FollowedStep step{piece, ways, row, step_number};
  const std::uint64_t place = gather.is_time_major ? step_number * gather.batch_size + row : made;
  std::byte* to = as_global(gather.block) + piece.copied.block_offset + place * piece.copied.row_bytes;
  std::uint64_t slot = 0;
  switch (piece.making) {
    case FASTREPLAY_CUDA_SAY_THERE:
      *to = std::byte{step.is_there()};
      return;
    case FASTREPLAY_CUDA_SAY_TRAINED:
      *to = std::byte{step.is_there() && step.step >= 0};
      return;
    case FASTREPLAY_CUDA_SAY_FIRST:
      *to = std::byte{step.is_first()};
      return;
    case FASTREPLAY_CUDA_OF_START:
      slot = ways.slots(row)[0];
      break;
    case FASTREPLAY_CUDA_OF_END:
      slot = step.way.last_slot;
      break;
    case FASTREPLAY_CUDA_OF_FIRST:
      slot = first_slot_there(piece, ways, row);
      break;
    default:
      slot = step.slot(ways, row);
  }
  const auto lane = static_cast<std::uint32_t>(thread) & ((1U << piece.copied.lanes_log2) - 1);
  if (piece.making == FASTREPLAY_CUDA_OF_STEPS_OR_0 && !step.is_there()) return put_zeros(piece.copied, to, lane);
  const std::byte* from = piece.copied.template source<kHasFrames>(as_global(gather.records), slot * gather.stride);
  give_share(piece.copied, to, from, lane, *gather.generator, row);
}

}  // namespace fastreplay
