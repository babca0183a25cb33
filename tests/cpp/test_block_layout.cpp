// SPDX-License-Identifier: MIT
// Layouts of minibatches: parts that are aligned and disjoint, and sizes that are refused.
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "batch/block_layout.hpp"
#include "check.hpp"

using fastreplay::BlockLayout;
using fastreplay::FieldSize;
using fastreplay::RecordLayout;
using fastreplay::round_up;

namespace {

constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();

std::vector<FieldSize> random_fields(check::Random& random) {
  std::vector<FieldSize> fields(1 + random.below(12));
  for (FieldSize& field : fields) field = {.row_bytes = 1 + random.below(500), .alignment = 1};
  return fields;
}

void check_block_layout(const RecordLayout& record, std::size_t batch_size) {
  const BlockLayout layout{record, batch_size};
  CHECK_EQ(layout.batch_size(), batch_size);
  CHECK_EQ(layout.offsets().size(), record.columns().size());
  std::size_t end = 0;
  for (std::size_t f = 0; f < record.columns().size(); ++f) {
    CHECK_EQ(layout.offsets()[f], round_up(end, 256));
    end = layout.offsets()[f] + record.columns()[f].row_bytes * batch_size;
  }
  CHECK_EQ(layout.tickets_offset(), round_up(end, 256));
  CHECK_EQ(layout.num_bytes(), round_up(layout.tickets_offset() + sizeof(std::uint64_t) * batch_size, 256));
}

void blocks() {
  check::Random random{2};
  for (int turn = 0; turn < 300; ++turn) {
    const RecordLayout record{random_fields(random), random.below(2) * 16};
    for (const std::size_t batch_size : {std::size_t{0}, std::size_t{1}, std::size_t{256}, 1 + random.below(1000)}) {
      check_block_layout(record, batch_size);
    }
  }
}

void refused_blocks() {
  const RecordLayout record{{{.row_bytes = 68, .alignment = 4}, {.row_bytes = 1, .alignment = 1}}};
  const RecordLayout huge{{{.row_bytes = kLargest / 16, .alignment = 1}}};
  for (const std::size_t batch_size : {kLargest, kLargest / 2, kLargest / 69, kLargest / 77, std::size_t{1} << 57}) {
    CHECK(check::throws<std::invalid_argument>([&] { BlockLayout(record, batch_size); }));
  }
  CHECK(check::throws<std::invalid_argument>([&] { BlockLayout(huge, 3); }));
  CHECK(check::throws<std::invalid_argument>([&] { BlockLayout(huge, 17); }));
}

}  // namespace

int main() {
  blocks();
  refused_blocks();
  return check::result();
}
