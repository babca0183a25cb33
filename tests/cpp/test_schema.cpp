// SPDX-License-Identifier: MIT
// Layouts: aligned, disjoint, compact, and refused where they make no sense.
#include <limits>
#include <stdexcept>

#include "check.hpp"
#include "schema.hpp"

using fastreplay::BlockLayout;
using fastreplay::FieldSize;
using fastreplay::RecordLayout;

namespace {

void random_records() {
  check::Random random{1};
  for (int turn = 0; turn < 2000; ++turn) {
    std::vector<FieldSize> fields;
    for (std::uint64_t f = 0; f <= random.below(12); ++f) {
      const std::size_t alignment = std::size_t{1} << random.below(5);
      fields.push_back({.row_bytes = alignment * (1 + random.below(40)), .alignment = alignment});
    }
    const std::size_t header_bytes = random.below(3) * 12;
    const RecordLayout layout{fields, header_bytes};
    CHECK_EQ(layout.columns().size(), fields.size());
    std::size_t end = header_bytes;
    for (std::size_t f = 0; f < fields.size(); ++f) {
      const auto [offset, row_bytes] = layout.columns()[f];
      CHECK_EQ(row_bytes, fields[f].row_bytes);
      CHECK_EQ(offset % fields[f].alignment, 0U);
      CHECK(offset >= end && offset < end + fields[f].alignment);
      end = offset + row_bytes;
    }
    CHECK_EQ(layout.used_bytes(), end);
    CHECK(layout.stride() >= end);
    CHECK_EQ(layout.stride() % 16, 0U);
    const std::size_t compact = (end + 15) / 16 * 16;
    CHECK(layout.stride() <= compact + compact / 8);
  }
}

void strides() {
  const auto stride = [](std::size_t used_bytes) {
    return RecordLayout{{{.row_bytes = used_bytes, .alignment = 1}}}.stride();
  };
  CHECK_EQ(stride(1), 16U);
  CHECK_EQ(stride(33), 48U);
  CHECK_EQ(stride(64), 64U);
  CHECK_EQ(stride(65), 80U);
  CHECK_EQ(stride(165), 192U);
  CHECK_EQ(stride(2857), 2880U);
}

void refused_records() {
  const auto refuses = [](const std::vector<FieldSize>& fields) {
    return check::throws<std::invalid_argument>([&] { RecordLayout{fields}; });
  };
  CHECK(refuses({}));
  CHECK(refuses({{.row_bytes = 0, .alignment = 1}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 0}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 3}}));
  CHECK(refuses({{.row_bytes = std::numeric_limits<std::size_t>::max() / 2, .alignment = 8}}));
  CHECK(refuses({{.row_bytes = std::numeric_limits<std::size_t>::max() / 8, .alignment = 8},
                 {.row_bytes = std::numeric_limits<std::size_t>::max() / 8, .alignment = 8}}));
}

void blocks() {
  const RecordLayout record{{{.row_bytes = 68, .alignment = 4}, {.row_bytes = 1, .alignment = 1}}};
  for (const std::size_t batch_size : {0, 1, 3, 4, 256, 1000}) {
    const BlockLayout layout{record, batch_size};
    CHECK_EQ(layout.batch_size(), batch_size);
    CHECK_EQ(layout.offsets().size(), 2U);
    CHECK_EQ(layout.offsets()[0], 0U);
    CHECK_EQ(layout.offsets()[1] % 256, 0U);
    CHECK_EQ(layout.tickets_offset() % 256, 0U);
    CHECK(layout.offsets()[1] >= 68 * batch_size);
    CHECK(layout.tickets_offset() >= layout.offsets()[1] + batch_size);
    CHECK(layout.num_bytes() >= layout.tickets_offset() + 8 * batch_size);
    CHECK(layout.num_bytes() < 77 * batch_size + 3 * 256 + 1);
  }
  CHECK(check::throws<std::invalid_argument>([&] { BlockLayout{record, std::numeric_limits<std::size_t>::max()}; }));
  CHECK(check::throws<std::invalid_argument>([&] { BlockLayout{record, std::size_t{1} << 57}; }));
}

}  // namespace

int main() {
  random_records();
  strides();
  refused_records();
  blocks();
  return check::result();
}
