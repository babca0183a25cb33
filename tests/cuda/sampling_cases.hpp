// SPDX-License-Identifier: MIT
// Minibatches drawn on a device beside the same draws on the CPU, bit for bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../cpp/check.hpp"
#include "../cpp/converted.hpp"
#include "../cpp/pieces_there.hpp"
#include "batch/random.hpp"
#include "device.hpp"
#include "following.h"
#include "sampling.h"
#include "storage/record_layout.hpp"

namespace sampling_cases {

using cuda::Array;
using cuda::Bytes;

// Records on the device, with every byte of the slot's own, and a window of them. The first two fields may be stacks of
// frames: those of records, or such as lie beside them, in an allocation of their own.
class Records {
 public:
  static constexpr std::size_t kCapacity = 100;

  Records(const std::vector<std::size_t>& row_bytes, std::uint64_t num_inserted, std::size_t num_frames = 0)
      : layout{fields_of(row_bytes), groups_of(num_frames)},
        host(kCapacity * layout.stride()),
        first{num_inserted > kCapacity ? num_inserted - kCapacity : 0},
        size{std::min<std::uint64_t>(num_inserted, kCapacity)},
        records{host.size()},
        window{sizeof(fastreplay_cuda_window)},
        rooms{host_rooms.size()} {
    check::Random random{num_inserted};
    for (std::byte& byte : host) byte = static_cast<std::byte>(random.below(256));
    for (std::byte& byte : host_rooms) byte = static_cast<std::byte>(random.below(256));
    if (num_frames > 0) put_places(random);
    records.set(host);
    rooms.set(host_rooms);
  }

  void put_row(std::byte* to, std::size_t slot, std::size_t field) const {
    const auto& [offset, row_bytes, num_frames] = layout.columns()[field];
    const std::byte* from = host.data() + slot * layout.stride() + offset;
    if (num_frames == 0) {
      std::memcpy(to, from, row_bytes);
      return;
    }
    const std::size_t frame_bytes = row_bytes / num_frames;
    for (std::size_t i = 0; i < num_frames; ++i) {
      std::uint64_t place = 0;
      std::memcpy(&place, from + i * sizeof place, sizeof place);
      const std::byte* frame = place < host.size() ? host.data() + place : host_rooms.data() + (place - first_room());
      std::memcpy(to + i * frame_bytes, frame, frame_bytes);
    }
  }

  [[nodiscard]] fastreplay_cuda_window window_of(std::uint64_t num_tickets) const {
    return {.first = first, .size = num_tickets, .first_slot = first % kCapacity};
  }

  fastreplay::RecordLayout layout;
  Bytes host;
  std::uint64_t first, size;
  Array records, window;

 private:
  static constexpr std::size_t kRooms = 7;

  static std::vector<fastreplay::FrameGroup> groups_of(std::size_t num_frames) {
    if (num_frames == 0) return {};
    return {{.fields = {0, 1}, .num_frames = num_frames}};
  }
  // How far it is from the first record, modulo 2^64.
  [[nodiscard]] std::uint64_t first_room() const {
    return reinterpret_cast<std::uintptr_t>(rooms.at()) - reinterpret_cast<std::uintptr_t>(records.at());
  }
  void put_places(check::Random& random) {
    const auto& [group, frame_bytes, column, extra_offset] = layout.frames()[0];
    for (std::size_t slot = 0; slot < kCapacity; ++slot) {
      for (std::size_t i = 0; i < 2 * group.num_frames; ++i) {
        const bool is_beside = random.below(3) == 0;
        const std::uint64_t place = is_beside
                                        ? first_room() + random.below(kRooms) * frame_bytes
                                        : random.below(kCapacity) * layout.stride() + layout.columns()[column].offset;
        const std::size_t field = i / group.num_frames;
        std::memcpy(
            host.data() + slot * layout.stride() + layout.columns()[field].offset + i % group.num_frames * sizeof place,
            &place, sizeof place);
      }
    }
  }

  static std::vector<fastreplay::FieldSize> fields_of(const std::vector<std::size_t>& row_bytes) {
    std::vector<fastreplay::FieldSize> fields;
    for (const std::size_t bytes : row_bytes) {
      const std::size_t alignment = bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
      fields.push_back({.row_bytes = bytes, .alignment = alignment});
    }
    return fields;
  }

  Bytes host_rooms = Bytes(layout.frames().empty() ? 16 : kRooms * layout.frames()[0].frame_bytes);
  Array rooms;
};

// One part a field and one of tickets, each at a multiple of 256 bytes; fields in pieces as fastreplay.gpu cuts them.
struct Minibatch {
  struct Part {
    std::size_t offset, num_bytes;
  };
  static constexpr std::size_t kPieceBytes = 2048;

  // Fields that a conversion suits are given so.
  Minibatch(const Records& records, std::size_t batch_size_, const fastreplay::Conversion& conversion = {})
      : batch_size{batch_size_} {
    std::size_t offset = 0;
    const auto place = [&](std::size_t part_bytes) {
      parts.push_back({offset, part_bytes});
      offset = fastreplay::round_up(offset + part_bytes, 256);
    };
    for (std::size_t field = 0; field < records.layout.num_fields(); ++field) {
      const auto& [_, row_bytes, num_frames] = records.layout.columns()[field];
      const std::size_t frame_bytes = row_bytes / std::max<std::size_t>(num_frames, 1);
      conversions.push_back(conversion.suits(frame_bytes) ? conversion : fastreplay::Conversion{});
      const std::size_t piece_bytes = kPieceBytes / conversions.back().given_bytes(4) * 4;
      const auto of = pieces_there::pieces_of(records.layout, field, offset, piece_bytes, conversions.back());
      pieces.insert(pieces.end(), of.begin(), of.end());
      place(batch_size * conversions.back().given_bytes(row_bytes));
    }
    place(batch_size * sizeof(std::uint64_t));
    num_bytes = parts.back().offset + parts.back().num_bytes;  // not one more
  }

  // What a call with this number draws.
  [[nodiscard]] Bytes expected(const Records& records, fastreplay::Philox::Key key, std::uint64_t call) const {
    Bytes block(num_bytes, kPoison);
    fastreplay::WordStream words{key, call};
    for (std::size_t row = 0; row < batch_size; ++row) {
      const std::uint64_t ticket = records.first + words.below(records.size);
      for (std::size_t f = 0; f < records.layout.num_fields(); ++f) {
        Bytes stored(records.layout.columns()[f].row_bytes);
        records.put_row(stored.data(), ticket % Records::kCapacity, f);
        const Bytes given = conversions[f].is_none()
                                ? stored
                                : check::converted(conversions[f], stored, {.key = key, .call = call}, row, f);
        std::ranges::copy(given, block.data() + parts[f].offset + row * given.size());
      }
      std::memcpy(block.data() + parts.back().offset + row * sizeof ticket, &ticket, sizeof ticket);
    }
    return block;
  }

  [[nodiscard]] bool is(const Array& block, const Bytes& wanted) const {
    return std::ranges::all_of(parts, [&](const Part& part) {
      const Bytes found = block.get(part.offset, part.num_bytes);
      return std::memcmp(found.data(), wanted.data() + part.offset, part.num_bytes) == 0;
    });
  }

  static constexpr std::byte kPoison{0xEE};
  std::size_t batch_size, num_bytes;
  std::vector<Part> parts;
  std::vector<fastreplay_cuda_piece> pieces;
  std::vector<fastreplay::Conversion> conversions;
};

inline void set_window(const cuda::Stream& stream, const Records& records, std::uint64_t size) {
  const fastreplay_cuda_window now = records.window_of(size);
  cuda::ok(fastreplay_cuda_set_window(0, stream.get(), records.window.at<fastreplay_cuda_window>(), &now),
           "fastreplay_cuda_set_window");
}

inline constexpr fastreplay::Philox::Key kKey{5, 6};

// A generator of that key that has made so many calls.
inline Array generator_after(std::uint64_t calls) {
  return Array{cuda::bytes_of(std::vector{fastreplay_cuda_generator{.key = {kKey[0], kKey[1]},
                                                                    .calls = calls,
                                                                    .num_sampled = 0,
                                                                    .num_without_mass = 0,
                                                                    .num_redraws = 0,
                                                                    .num_incomplete = 0}})};
}

// Calls one after the other: with a window of their own, from the one set before, with nothing to draw, and out of a
// graph. Where a window does not wrap the block holds nothing that was written, so that initcheck sees what is read too
// early; else it is poisoned, and nothing between the parts may change.
inline void draws_as_on_the_cpu(const Records& records, std::size_t batch_size,
                                const fastreplay::Conversion& conversion = {}) {
  const bool has_poison = records.first != 0;
  const Minibatch minibatch{records, batch_size, conversion};
  const Array block{minibatch.num_bytes};
  const Array generator = generator_after(7);
  std::vector<fastreplay_cuda_piece> pieces = minibatch.pieces;
  fastreplay_cuda_window now = records.window_of(records.size);
  fastreplay_cuda_sampling sampling{.now = &now,
                                    .window = records.window.at<fastreplay_cuda_window>(),
                                    .generator = generator.at<fastreplay_cuda_generator>(),
                                    .records = records.records.at(),
                                    .stride = records.layout.stride(),
                                    .capacity = Records::kCapacity,
                                    .pieces = pieces.data(),
                                    .num_pieces = pieces.size(),
                                    .block = block.at(),
                                    .tickets_offset = minibatch.parts.back().offset,
                                    .batch_size = batch_size,
                                    .weighing = nullptr,
                                    .following = nullptr,
                                    .trajectories = nullptr};
  const cuda::Stream stream;
  const auto queue = [&] { cuda::ok(fastreplay_cuda_sample(0, stream.get(), &sampling), "fastreplay_cuda_sample"); };
  const auto expect = [&](std::uint64_t call) {
    cuda::finish();
    const Bytes wanted = minibatch.expected(records, kKey, call);
    CHECK(minibatch.is(block, wanted));
    if (has_poison) CHECK(block.get() == wanted);
  };
  if (has_poison) block.set(Bytes(minibatch.num_bytes, Minibatch::kPoison));
  cuda::finish();
  queue();
  expect(7);
  sampling.now = nullptr;
  queue();
  expect(8);
  set_window(stream, records, 0);
  queue();
  expect(8);  // as it was
  const cuda::Graph from_what_is_set{stream, queue};
  sampling.now = &now;
  const cuda::Graph from_its_own{stream, queue};
  // Neither graph needs anything of the host's that it was captured with.
  std::memset(static_cast<void*>(pieces.data()), 0xEE, pieces.size() * sizeof pieces[0]);
  now = {.first = ~0ULL, .size = ~0ULL, .first_slot = ~0ULL};
  set_window(stream, records, records.size);
  from_what_is_set.replay(stream);
  expect(9);
  from_its_own.replay(stream);
  expect(10);
  fastreplay_cuda_generator end{};
  const Bytes found = generator.get();
  std::memcpy(&end, found.data(), sizeof end);
  CHECK_EQ(end.calls, 11U);
  CHECK_EQ(end.num_sampled, 4 * batch_size);
}

// Trajectories of some lengths, one after another in one lane, in a window that wraps: where each begins, and its
// tickets.
class Trajectories {
 public:
  static constexpr std::uint64_t kCapacity = 100, kFirst = 130, kSize = 90;

  explicit Trajectories(const std::vector<std::uint64_t>& lengths) : links_(kCapacity, fastreplay_cuda_link{77, 88}) {
    std::uint64_t ticket = kFirst;
    for (std::size_t i = 0; ticket < kFirst + kSize; ++i) {
      const std::uint64_t length = std::min(lengths[i % lengths.size()], kFirst + kSize - ticket);
      begins_.push_back(ticket);
      for (const std::uint64_t end = ticket + length; ticket < end; ++ticket) {
        const bool is_first = ticket == begins_.back() && ticket > kFirst;  // what is before the window is a gap away
        links_[ticket % kCapacity] = {is_first ? 0U : 1U, ticket + 1 < end ? 1U : 0xFFFF'FFFFU};
      }
    }
    begins_.push_back(ticket);
  }

  [[nodiscard]] const std::vector<fastreplay_cuda_link>& links() const { return links_; }

  // What a row draws: core/batch/trajectory_draw.hpp, where no attempt is thrown away.
  [[nodiscard]] std::uint64_t expected(fastreplay::Philox::Key key, std::uint64_t call, std::uint64_t row) const {
    for (std::uint64_t attempt = 0; attempt <= 2 * kSize; ++attempt) {
      const std::uint64_t word = attempt > 0 ? fastreplay::word_of_attempt(key, call, row, attempt)
                                             : fastreplay::WordStream::block(key, call, row / 4)[row % 4];
      const auto found = std::ranges::find(begins_, kFirst + drawn_below(kSize, word));
      if (found == begins_.end()) continue;
      const std::uint64_t number = fastreplay::Philox::words({row + 1, call, ~attempt, 0}, key)[0];
      return *found + drawn_below(found[1] - found[0], number);
    }
    return ~std::uint64_t{0};
  }

 private:
  static std::uint64_t drawn_below(std::uint64_t bound, std::uint64_t word) {
    std::uint64_t drawn = 0;
    CHECK(fastreplay::draw_below(bound, word, drawn));
    return drawn;
  }

  std::vector<fastreplay_cuda_link> links_;
  std::vector<std::uint64_t> begins_;  // and the window's end
};

inline void draws_over_trajectories(std::size_t batch_size) {
  const Trajectories trajectories{{3, 1, 7, 20}};
  const Array links{cuda::bytes_of(trajectories.links())};
  const Array block{batch_size * sizeof(std::uint64_t)};
  const Array window{sizeof(fastreplay_cuda_window)};
  const Array generator = generator_after(3);
  const fastreplay_cuda_window now{Trajectories::kFirst, Trajectories::kSize,
                                   Trajectories::kFirst % Trajectories::kCapacity};
  const fastreplay_cuda_sampling sampling{.now = &now,
                                          .window = window.at<fastreplay_cuda_window>(),
                                          .generator = generator.at<fastreplay_cuda_generator>(),
                                          .records = nullptr,
                                          .stride = 0,
                                          .capacity = Trajectories::kCapacity,
                                          .pieces = nullptr,
                                          .num_pieces = 0,
                                          .block = block.at(),
                                          .tickets_offset = 0,
                                          .batch_size = batch_size,
                                          .weighing = nullptr,
                                          .following = nullptr,
                                          .trajectories = links.at<fastreplay_cuda_link>()};
  const cuda::Stream stream;
  for (std::uint64_t call = 3; call < 5; ++call) {
    cuda::ok(fastreplay_cuda_sample(0, stream.get(), &sampling), "fastreplay_cuda_sample");
    cuda::finish();
    std::vector<std::uint64_t> expected(batch_size);
    for (std::size_t row = 0; row < batch_size; ++row) expected[row] = trajectories.expected(kKey, call, row);
    CHECK(block.get() == cuda::bytes_of(expected));
  }
}

inline void check_sampling(bool is_brief) {
  cuda::ok(fastreplay_cuda_prepare_sampling(0), "fastreplay_cuda_prepare_sampling");
  const std::vector<std::vector<std::size_t>> shapes{
      {68, 24, 68, 4, 4, 1},
      {1},
      {3, 2, 5},
      {28224, 8, 28224, 4, 4},
      std::vector<std::size_t>(210, 6),  // more pieces than one launch takes
  };
  for (const std::size_t batch_size : {1, 513}) draws_over_trajectories(batch_size);
  for (const std::size_t num_frames : {1, 2, 4}) {  // frames of 17, of 24 and of 2,500 bytes
    const std::size_t row_bytes = num_frames == 1 ? 17 : num_frames == 2 ? 48 : 10000;
    draws_as_on_the_cpu(Records{{row_bytes, row_bytes, 8, 1}, 250, num_frames}, 257);
  }
  // Images of 84 by 84 bytes, and of 3 by 7 numbers of 2 bytes: converted, shifted, both; some are frames.
  for (const std::uint16_t most : {std::uint16_t{0}, std::uint16_t{1}, std::uint16_t{2}}) {
    for (const auto from :
         {fastreplay::Numbers::kAsGiven, fastreplay::Numbers::kUInt8, fastreplay::Numbers::kBFloat16}) {
      const bool is_two = from == fastreplay::Numbers::kBFloat16;
      fastreplay::Conversion conversion{.from = from,
                                        .then = fastreplay::Then::kDivide,
                                        .factor = 255,
                                        .shift = {.most = most, .number_bytes = 1, .height = 84, .width = 84}};
      if (is_two) conversion.shift = {.most = most, .number_bytes = 2, .height = 3, .width = 7};
      draws_as_on_the_cpu(Records{{28224, 8, 84, 42, 6}, 250}, 65, conversion);
      draws_as_on_the_cpu(Records{{28224, 28224, 84, 8}, 250, 4}, 65, conversion);
    }
  }
  for (const auto& row_bytes : shapes) {
    for (const std::uint64_t num_inserted : {1, 60, 100, 250}) {  // the last ones' window wraps
      const Records records{row_bytes, num_inserted};
      for (const std::size_t batch_size : {1, 257, 5000}) {
        if (batch_size * row_bytes[0] > 1 << 23) continue;
        if (is_brief && (batch_size == 5000 || num_inserted == 60)) continue;
        draws_as_on_the_cpu(records, batch_size);
      }
    }
  }
}

}  // namespace sampling_cases
