// SPDX-License-Identifier: MIT
// The kernels that draw and gather on a CUDA device: all their threads, by turns on the CPU, beside the CPU's sampler.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "batch/random.hpp"
#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "following_there.hpp"
#include "pieces_there.hpp"
#include "ring/ring.hpp"
#include "rows.hpp"
#include "sampling_kernel.hpp"

using fastreplay::Block;
using fastreplay::Conversion;
using fastreplay::Numbers;
using fastreplay::Part;
using fastreplay::Philox;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Then;
using fastreplay::WordStream;

namespace {

constexpr Philox::Key kKey{5, 6};

// Each field in pieces of at most piece_bytes.
std::vector<fastreplay_cuda_piece> pieces_of(const Ring& ring, const Block& block, std::size_t piece_bytes) {
  std::vector<fastreplay_cuda_piece> pieces;
  for (std::size_t f = 0; f < ring.records().layout().columns().size(); ++f) {
    const auto of = pieces_there::pieces_of(ring.records().layout(), f, block.layout().offsets()[f], piece_bytes,
                                            block.layout().parts()[f].conversion);
    pieces.insert(pieces.end(), of.begin(), of.end());
  }
  return pieces;
}

// Transitions whose fields are given out otherwise, each in another way.
std::vector<Part> converted_parts(const RecordLayout& layout) {
  std::vector<Part> parts = transition_parts(layout);
  for (std::size_t f = 0; f < layout.columns().size(); ++f) {
    Conversion& conversion = parts[f].conversion;
    conversion = {.from = static_cast<Numbers>(1 + f % 7), .then = static_cast<Then>(f % 3), .factor = 255.0F};
    if (parts[f].row_bytes % conversion.number_bytes() != 0) conversion = {};
    parts[f].row_bytes = conversion.given_bytes(parts[f].row_bytes);
  }
  return parts;
}

// The same of images of 3 by 4 numbers, some of which are shifted, and not converted.
std::vector<Part> shifted_parts(const RecordLayout& layout) {
  std::vector<Part> parts = converted_parts(layout);
  for (std::size_t f = 0; f < layout.columns().size(); ++f) {
    Conversion& conversion = parts[f].conversion;
    if (f % 2 == 0) conversion = {};
    const std::size_t bytes = f % 2 == 0 ? std::size_t{1} << f / 2 % 5 : conversion.number_bytes();
    const std::size_t row_bytes = layout.columns()[f].row_bytes;
    if (f != 3 && row_bytes % (12 * bytes) == 0) {
      conversion.shift = {.most = static_cast<std::uint16_t>(1 + f % 2),
                          .number_bytes = static_cast<std::uint16_t>(bytes),
                          .height = 3,
                          .width = 4};
    }
    parts[f].row_bytes = conversion.given_bytes(row_bytes);
  }
  return parts;
}

using PartsOf = std::vector<Part> (*)(const RecordLayout& layout);

void test_the_same_minibatches_as_on_the_cpu(const std::vector<std::size_t>& row_bytes, std::size_t num_rows,
                                             std::size_t piece_bytes, PartsOf parts_of = fastreplay::transition_parts) {
  Ring ring{RecordLayout{rows::fields_of(row_bytes)}, 100};
  rows::insert(ring, 0, num_rows);
  check::Random random{num_rows};
  const std::uint64_t first = ring.window().first;
  const fastreplay_cuda_window now{
      .first = first, .size = ring.window().reserved(), .first_slot = first % ring.capacity()};
  fastreplay_cuda_window window{};
  fastreplay_cuda_generator generator{.key = {kKey[0], kKey[1]},
                                      .calls = 7,
                                      .num_sampled = 0,
                                      .num_without_mass = 0,
                                      .num_redraws = 0,
                                      .num_incomplete = 0};
  Sampler sampler{kKey, 7};
  for (const std::size_t batch_size : {1, 3, 4, 5, 64, 1023, 1025, 2500}) {
    const Block expected{parts_of(ring.records().layout()), batch_size};
    const Block found{parts_of(ring.records().layout()), batch_size};
    const auto pieces = pieces_of(ring, found, piece_bytes);
    // As a draw of now, then as a graph that is replayed: from the window that is there.
    const fastreplay_cuda_sampling sampling{.now = sampler.calls() == 7 ? &now : nullptr,
                                            .window = &window,
                                            .generator = &generator,
                                            .records = ring.records().data(),
                                            .stride = ring.records().layout().stride(),
                                            .capacity = ring.capacity(),
                                            .pieces = pieces.data(),
                                            .num_pieces = pieces.size(),
                                            .block = found.data(),
                                            .tickets_offset = found.layout().tickets_offset(),
                                            .batch_size = batch_size,
                                            .weighing = nullptr,
                                            .following = nullptr,
                                            .trajectories = nullptr};
    following_there::sample_alone(sampling, random);
    CHECK(sampler.sample(ring, expected));
    CHECK(std::memcmp(found.data(), expected.data(), expected.layout().num_bytes()) == 0);
    CHECK_EQ(generator.calls, sampler.calls());
    CHECK_EQ(generator.num_sampled, sampler.num_sampled());
  }
}

// Half of all words are thrown away below 2^63 + 1: each row then takes words of its own.
void test_words_that_are_thrown_away() {
  constexpr std::uint64_t kBound = (std::uint64_t{1} << 63) + 1;
  for (const std::size_t batch_size : {1, 2, 9, 1500}) {
    std::vector<std::uint64_t> tickets(batch_size);
    fastreplay_cuda_window window{.first = 1000, .size = kBound, .first_slot = 0};
    fastreplay_cuda_generator generator{.key = {kKey[0], kKey[1]},
                                        .calls = 3,
                                        .num_sampled = 0,
                                        .num_without_mass = 0,
                                        .num_redraws = 0,
                                        .num_incomplete = 0};
    fastreplay_cuda_sampling sampling{};
    sampling.window = &window;
    sampling.generator = &generator;
    sampling.block = tickets.data();
    sampling.batch_size = batch_size;
    check::Random random{batch_size};
    following_there::sample_alone(sampling, random);
    WordStream words{kKey, 3};
    for (std::uint64_t row = 0; row < batch_size; ++row) {
      std::uint64_t word = words.next(), position = 0;
      for (std::uint64_t attempt = 1; !fastreplay::draw_below(kBound, word, position); ++attempt) {
        word = Philox::words({row + 1, 3, attempt, 0}, kKey)[0];
      }
      CHECK_EQ(tickets[row], 1000 + position);
    }
  }
}

void test_an_empty_window_leaves_all_as_it_was() {
  std::vector<std::uint64_t> tickets(10, 77);
  fastreplay_cuda_window window{.first = 1000, .size = 0, .first_slot = 0};
  fastreplay_cuda_generator generator{
      .key = {1, 2}, .calls = 3, .num_sampled = 4, .num_without_mass = 0, .num_redraws = 0, .num_incomplete = 0};
  fastreplay_cuda_sampling sampling{};
  sampling.window = &window;
  sampling.generator = &generator;
  sampling.block = tickets.data();
  sampling.batch_size = tickets.size();
  check::Random random{1};
  following_there::sample_alone(sampling, random);
  CHECK(tickets == std::vector<std::uint64_t>(10, 77));
  CHECK_EQ(generator.calls, 3U);
}

// What is sent to a device: records as they lie, whole from the oldest that was not overwritten meanwhile.
void test_records_in_order() {
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{12, 4, 1})}, 100};
  rows::insert(ring, 0, 250);
  const std::size_t stride = ring.records().layout().stride();
  std::vector<std::byte> records(30 * stride + stride / 2);
  CHECK_EQ(fastreplay::read_records(ring, 190, records), 150U);
  for (std::size_t i = 0; i < 30; ++i) {
    CHECK(std::memcmp(records.data() + i * stride, ring.record(190 + i), ring.records().layout().used_bytes()) == 0);
  }
  CHECK(std::all_of(records.begin() + static_cast<std::ptrdiff_t>(30 * stride), records.end(),
                    [](std::byte byte) { return byte == std::byte{0}; }));
}

}  // namespace

int main() {
  for (const std::size_t num_rows : {1, 60, 100, 250}) {
    for (const std::size_t piece_bytes : {1, 5, 64, 2048}) {
      test_the_same_minibatches_as_on_the_cpu({68, 24, 68, 4, 1}, num_rows, piece_bytes);
    }
    test_the_same_minibatches_as_on_the_cpu({1}, num_rows, 2048);
    test_the_same_minibatches_as_on_the_cpu({3, 2}, num_rows, 2048);
    test_the_same_minibatches_as_on_the_cpu({4000, 16, 8}, num_rows, 2048);
    test_the_same_minibatches_as_on_the_cpu({32, 16, 256}, num_rows, 2048);
    for (const std::size_t piece_bytes : {1, 5, 64, 2048}) {
      test_the_same_minibatches_as_on_the_cpu({68, 24, 2, 68, 4, 1, 3, 4000}, num_rows, piece_bytes, converted_parts);
      const std::vector<std::size_t> images{24, 36, 48, 12, 96, 60, 4800, 5, 384, 72, 36, 24, 24};
      test_the_same_minibatches_as_on_the_cpu(images, num_rows, piece_bytes, shifted_parts);
    }
  }
  test_words_that_are_thrown_away();
  test_an_empty_window_leaves_all_as_it_was();
  test_records_in_order();
  return check::result();
}
