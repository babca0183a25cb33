// SPDX-License-Identifier: MIT
// Minibatches: the rows that were drawn, whole, in their places, and nothing else written.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "minibatch.hpp"
#include "rows.hpp"

using fastreplay::Address;
using fastreplay::Block;
using fastreplay::Philox;
using fastreplay::ReadResult;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using fastreplay::WordStream;

namespace {

constexpr Philox::Key kKey{11, 22};
constexpr std::byte kCanary{0xEE};

const std::vector<std::vector<std::size_t>> kLayouts{{4},
                                                     {1},
                                                     {12, 4, 4, 12, 1},
                                                     {68, 24, 4, 68, 1},
                                                     {3, 5, 7, 9, 15, 17, 31, 33},
                                                     {2, 16, 100, 128, 144, 1392},
                                                     {28224, 8, 4, 28224}};

void fill_with_canaries(const Block& block) { std::memset(block.data(), 0xEE, block.layout().num_bytes()); }

// Every row is its ticket's, and the padding between the parts was left alone.
void check_block(const Ring& ring, const Block& block) {
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    CHECK(rows::is_row_of(ring, block, row, block.tickets()[row]));
  }
  std::vector<std::size_t> ends;
  for (std::size_t f = 0; f < ring.layout().columns().size(); ++f) {
    ends.push_back(block.layout().offsets()[f] + ring.layout().columns()[f].row_bytes * block.batch_size());
  }
  ends.push_back(block.layout().tickets_offset() + sizeof(Ticket) * block.batch_size());
  for (std::size_t part = 0; part < ends.size(); ++part) {
    const std::size_t next = part + 2 < ends.size()   ? block.layout().offsets()[part + 1]
                             : part + 1 < ends.size() ? block.layout().tickets_offset()
                                                      : block.layout().num_bytes();
    CHECK(std::all_of(block.data() + ends[part], block.data() + next, [](std::byte b) { return b == kCanary; }));
  }
}

void samples(const std::vector<std::size_t>& row_bytes, std::size_t capacity, std::size_t num_rows) {
  Ring ring{RecordLayout{rows::fields_of(row_bytes)}, capacity};
  rows::insert(ring, 0, num_rows);
  Sampler sampler{kKey};
  std::uint64_t call = 0;
  for (const std::size_t batch_size : {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 600}) {
    const Block block{ring.layout(), batch_size};
    fill_with_canaries(block);
    CHECK(sampler.sample(ring, block));
    check_block(ring, block);
    WordStream words{kKey, call++};
    const auto window = ring.window();
    for (const Ticket ticket : block.tickets()) CHECK_EQ(ticket, window.first + words.below(window.published()));
  }
  CHECK_EQ(sampler.calls(), call);
  CHECK_EQ(sampler.num_redraws(), 0U);
}

void uniform() {
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{8})}, 100};
  rows::insert(ring, 0, 250);
  Sampler sampler{kKey};
  const Block block{ring.layout(), 1000};
  std::vector<double> counts(100);
  for (int i = 0; i < 100; ++i) {
    CHECK(sampler.sample(ring, block));
    for (const Ticket ticket : block.tickets()) ++counts.at(ticket - 150);
  }
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - 1000) * (count - 1000) / 1000;
  CHECK(chi_square < 99 + 6 * std::sqrt(2 * 99.0));
  CHECK_EQ(sampler.num_sampled(), 100000U);
}

void empty_rings_cannot_be_sampled() {
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{8})}, 10};
  Sampler sampler{kKey};
  const Block block{ring.layout(), 4};
  CHECK(!sampler.sample(ring, block));
  rows::insert(ring, 0, 3);
  CHECK(sampler.sample(ring, block));
  ring.clear();
  CHECK(!sampler.sample(ring, block));
  CHECK_EQ(sampler.calls(), 1U);
  CHECK_EQ(sampler.num_sampled(), 4U);
}

void reads_by_position_and_slot() {
  Ring ring{RecordLayout{rows::fields_of(kLayouts[3])}, 50};
  for (const std::size_t num_rows : {std::size_t{20}, std::size_t{117}}) {  // part full, then full
    rows::insert(ring, ring.num_inserted(), num_rows);
    const auto window = ring.window();
    const auto size = static_cast<std::int64_t>(window.published());
    const std::vector<std::int64_t> positions{0, size - 1, -1, -size, 7, 7, size / 2};
    const Block block{ring.layout(), positions.size()};
    fill_with_canaries(block);
    CHECK(read(ring, Address::kPosition, positions, block).status == ReadResult::Status::kWhole);
    check_block(ring, block);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const std::int64_t position = positions[i] < 0 ? positions[i] + size : positions[i];
      CHECK_EQ(block.tickets()[i], window.first + static_cast<Ticket>(position));
    }
    std::vector<std::int64_t> slots(static_cast<std::size_t>(size));
    std::iota(slots.rbegin(), slots.rend(), 0);
    const Block all{ring.layout(), slots.size()};
    fill_with_canaries(all);
    CHECK(read(ring, Address::kSlot, slots, all).status == ReadResult::Status::kWhole);
    check_block(ring, all);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      CHECK_EQ(ring.slot(all.tickets()[i]), static_cast<std::size_t>(slots[i]));
      CHECK(all.tickets()[i] >= window.first && all.tickets()[i] < window.end);
    }
  }
}

void out_of_range() {
  Ring ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{8})}, 10};
  const Block block{ring.layout(), 2};
  const auto fails = [&](Address address, std::int64_t bad) {
    const ReadResult result = read(ring, address, std::vector<std::int64_t>{0, bad}, block);
    return result.status == ReadResult::Status::kOutOfRange && result.row == 1;
  };
  CHECK(read(ring, Address::kPosition, std::vector<std::int64_t>{0, 0}, block).status ==
        ReadResult::Status::kOutOfRange);
  rows::insert(ring, 0, 4);
  for (const std::int64_t bad : {std::int64_t{4}, std::int64_t{-5}, INT64_MAX, INT64_MIN}) {
    CHECK(fails(Address::kPosition, bad));
  }
  for (const std::int64_t bad :
       {std::int64_t{4}, std::int64_t{9}, std::int64_t{10}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
    CHECK(fails(Address::kSlot, bad));
  }
}

void runs() {
  Ring ring{RecordLayout{rows::fields_of(kLayouts[4])}, 100};
  rows::insert(ring, 0, 130);
  const Block block{ring.layout(), 60};
  fill_with_canaries(block);
  CHECK_EQ(read_run(ring, 50, block), 30U);
  check_block(ring, block);
  CHECK_EQ(block.tickets().front(), 50U);
  CHECK_EQ(block.tickets().back(), 109U);
}

}  // namespace

int main() {
  for (const auto& row_bytes : kLayouts) {
    samples(row_bytes, 40, 25);
    samples(row_bytes, 40, 40);
    samples(row_bytes, 40, 97);
  }
  samples({8}, 1, 3);
  uniform();
  empty_rings_cannot_be_sampled();
  reads_by_position_and_slot();
  out_of_range();
  runs();
  return check::result();
}
