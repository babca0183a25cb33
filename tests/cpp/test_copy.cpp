// SPDX-License-Identifier: MIT
// Copies of every size at every misalignment: all of the row, nothing beside it, neither written nor read.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "batch/convert.hpp"
#include "check.hpp"
#include "converted.hpp"
#include "pages.hpp"
#include "storage/copy.hpp"

namespace {

constexpr std::byte kCanary{0xEE};
constexpr std::size_t kLargestSize = 28224;

const std::vector<std::byte>& source() {
  static const std::vector<std::byte> bytes = [] {
    check::Random random{1};
    std::vector<std::byte> made(20 * (kLargestSize + 64));
    for (std::byte& byte : made) byte = static_cast<std::byte>(random.below(0xEE));  // never the canary
    return made;
  }();
  return bytes;
}

std::vector<std::size_t> sizes() {
  std::vector<std::size_t> found;
  for (std::size_t size = 1; size <= 300; ++size) found.push_back(size);
  found.insert(found.end(), {1023, 1024, 1025, 8191, 8192, 8193, kLargestSize});
  return found;
}

bool is_canary(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte byte) { return byte == kCanary; });
}

template <class Copy>
void at_every_misalignment(Copy copy, std::size_t size) {
  std::vector<std::byte> to(size + 64);
  for (std::size_t to_offset = 0; to_offset < 64; to_offset += to_offset < 16 ? 1 : 5) {
    for (std::size_t from_offset = 0; from_offset < 16; ++from_offset) {
      std::ranges::fill(to, kCanary);
      copy(to.data() + to_offset, source().data() + from_offset, size);
      CHECK(std::memcmp(to.data() + to_offset, source().data() + from_offset, size) == 0);
      CHECK(is_canary(std::span{to}.first(to_offset)));
      CHECK(is_canary(std::span{to}.subspan(to_offset + size)));
    }
  }
}

// Rows that begin or end where memory does: a byte too many, read or written, ends the program.
template <class Copy>
void at_the_edges(Copy copy, std::size_t size) {
  const pages::Guarded to{size};
  const pages::Guarded from{size};
  for (const bool to_end : {false, true}) {
    for (const bool from_end : {false, true}) {
      const std::span<std::byte> target = to_end ? to.bytes().last(size) : to.bytes().first(size);
      const std::span<std::byte> row = from_end ? from.bytes().last(size) : from.bytes().first(size);
      std::ranges::copy_n(source().begin(), static_cast<std::ptrdiff_t>(size), row.begin());
      std::ranges::fill(target, kCanary);
      copy(target.data(), row.data(), size);
      CHECK(std::ranges::equal(target, row));
    }
  }
}

void store_late(std::byte* ring, const std::byte* row, std::size_t num_bytes) {
  fastreplay::store_row(ring, row, num_bytes, fastreplay::Reading::kLate);
}

void store_soon(std::byte* ring, const std::byte* row, std::size_t num_bytes) {
  fastreplay::store_row(ring, row, num_bytes, fastreplay::Reading::kSoon);
}

void rows() {
  for (const std::size_t size : sizes()) {
    at_every_misalignment(store_late, size);
    at_every_misalignment(store_soon, size);
    at_every_misalignment(fastreplay::load_row, size);
    at_every_misalignment(fastreplay::load_long_row, size);
    at_the_edges(store_late, size);
    at_the_edges(store_soon, size);
    at_the_edges(fastreplay::load_row, size);
    at_the_edges(fastreplay::load_long_row, size);
  }
}

// Rows of a field, from records in descending order, at every misalignment of both sides.
void loaded_rows() {
  for (const std::size_t size : sizes()) {
    for (const std::size_t num_rows : {0, 1, 2, 16, 17}) {
      const std::size_t offset = size % 16;
      const std::size_t to_offset = (size / 16 + num_rows) % 16;
      std::vector<const std::byte*> records;
      for (std::size_t i = 0; i < num_rows; ++i) records.push_back(source().data() + (num_rows - 1 - i) * (size + 9));
      std::vector<std::byte> to(size * num_rows + 64, kCanary);
      fastreplay::load_rows(to.data() + to_offset, records, offset, size);
      bool right = true;
      for (std::size_t i = 0; i < num_rows; ++i) {
        right &= std::memcmp(to.data() + to_offset + i * size, records[i] + offset, size) == 0;
      }
      CHECK(right);
      CHECK(is_canary(std::span{to}.first(to_offset)));
      CHECK(is_canary(std::span{to}.subspan(to_offset + size * num_rows)));
    }
  }
}

void store(std::size_t size, std::size_t num_rows, std::size_t record_stride, std::size_t rows_stride) {
  const std::size_t offset = num_rows % 16;
  std::vector<std::byte> records(num_rows * record_stride + 64, kCanary);
  fastreplay::store_rows(records.data() + offset, record_stride, source().data() + 3, rows_stride, size, num_rows);
  bool right = is_canary(std::span{records}.first(offset));
  std::size_t end = offset;
  for (std::size_t i = 0; i < num_rows; ++i) {
    const std::size_t begin = offset + i * record_stride;
    right &= is_canary(std::span{records}.subspan(end, begin - end));
    right &= std::memcmp(records.data() + begin, source().data() + 3 + i * rows_stride, size) == 0;
    end = begin + size;
  }
  CHECK(right);
  CHECK(is_canary(std::span{records}.subspan(end)));
}

// Rows of a field into records: contiguous, strided and repeated sources.
void stored_rows() {
  for (const std::size_t size : sizes()) {
    for (const std::size_t num_rows : {0, 1, 2, 15, 16}) {
      for (const std::size_t rows_stride : {size, size + 5, std::size_t{0}}) {
        store(size, num_rows, size, rows_stride);
        store(size, num_rows, (size + 31) / 16 * 16, rows_stride);
      }
    }
  }
}

using fastreplay::Column;
using fastreplay::Conversion;
using fastreplay::Copied;
using fastreplay::Numbers;
using fastreplay::ShiftDraw;
using fastreplay::Then;

// One row, between pages that are not there.
void converted_row(const Conversion& conversion, std::size_t row_bytes, std::uint64_t call) {
  const pages::Guarded to{conversion.given_bytes(row_bytes)};
  const pages::Guarded from{row_bytes};
  const std::span<std::byte> row = from.bytes().last(row_bytes);
  const std::span<std::byte> target = to.bytes().last(conversion.given_bytes(row_bytes));
  std::copy_n(source().data() + call % 1000, row_bytes, row.data());
  const std::byte* record = row.data();
  const ShiftDraw shifts{.key = {1, 2}, .call = call};
  const Copied field{.field = 0, .row_bytes = target.size(), .offset = 0, .conversion = conversion};
  fastreplay::load_converted({target.data(), 0, 1}, field, {&record, 1}, Column{0, row_bytes}, {}, shifts);
  CHECK(std::ranges::equal(target, check::converted(conversion, row, shifts, 0, 0)));
}

void converted_rows() {
  std::uint64_t call = 0;
  for (int from = 0; from <= static_cast<int>(Numbers::kBFloat16); ++from) {
    for (const Then then : {Then::kNothing, Then::kDivide, Then::kMultiply}) {
      Conversion conversion{.from = static_cast<Numbers>(from), .then = then, .factor = 0.3F, .shift = {}};
      if (from > 0) {
        for (std::size_t count = 1; count < 70; ++count) {
          converted_row(conversion, count * conversion.number_bytes(), ++call);
        }
      }
      for (const std::size_t number_bytes : {1, 2, 4, 8}) {
        if (from > 0 && number_bytes != conversion.number_bytes()) continue;
        for (const auto& [height, width] : {std::pair{2U, 2U}, {3U, 40U}, {7U, 5U}, {30U, 31U}}) {
          const auto most = static_cast<std::uint16_t>(1 + call % (std::min(height, width) - 1));
          conversion.shift = {
              .most = most, .number_bytes = static_cast<std::uint16_t>(number_bytes), .height = height, .width = width};
          for (int turn = 0; turn < 5; ++turn) converted_row(conversion, 2 * conversion.shift.image_bytes(), ++call);
        }
      }
    }
  }
}

}  // namespace

int main() {
  rows();
  loaded_rows();
  stored_rows();
  converted_rows();
  return check::result();
}
