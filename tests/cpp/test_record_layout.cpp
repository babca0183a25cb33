// SPDX-License-Identifier: MIT
// Layouts of records: aligned, disjoint, compact, and refused where they make no sense.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "storage/record_layout.hpp"

using fastreplay::FieldSize;
using fastreplay::RecordLayout;

namespace {

constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();

std::size_t round_up(std::size_t value, std::size_t alignment) {
  while (value % alignment != 0) ++value;
  return value;
}

std::vector<FieldSize> random_fields(check::Random& random) {
  std::vector<FieldSize> fields(1 + random.below(12));
  for (FieldSize& field : fields) {
    field.alignment = std::size_t{1} << random.below(7);
    // Whole elements mostly, but a layout takes any size.
    const bool whole = random.below(4) > 0;
    field.row_bytes = whole ? field.alignment * (1 + random.below(40)) : 1 + random.below(500);
  }
  return fields;
}

void random_records() {
  check::Random random{1};
  for (int turn = 0; turn < 2000; ++turn) {
    const std::vector<FieldSize> fields = random_fields(random);
    const RecordLayout layout{fields};
    CHECK_EQ(layout.columns().size(), fields.size());
    CHECK_EQ(layout.num_fields(), fields.size());
    CHECK(layout.frames().empty());
    CHECK_EQ(layout.extra_bytes(), 0U);
    std::size_t end = 0;
    for (std::size_t f = 0; f < fields.size(); ++f) {
      const auto [offset, row_bytes, num_frames] = layout.columns()[f];
      CHECK_EQ(row_bytes, fields[f].row_bytes);
      CHECK_EQ(offset, round_up(end, fields[f].alignment));  // in order, aligned, disjoint, without a gap
      end = offset + row_bytes;
    }
    CHECK_EQ(layout.used_bytes(), end);
    std::size_t alignment = 16;
    for (const FieldSize& field : fields) alignment = std::max(alignment, field.alignment);
    const std::size_t compact = round_up(end, alignment);  // so that every record's fields are aligned
    const std::size_t whole_lines = round_up(compact, 64);
    CHECK_EQ(layout.stride(), whole_lines <= compact + compact / 8 ? whole_lines : compact);
  }
}

// A margin lies after the first field of one number, or after all fields, in nobody's way.
void margins() {
  check::Random random{2};
  for (int turn = 0; turn < 500; ++turn) {
    const std::vector<FieldSize> fields = random_fields(random);
    const std::size_t margin_bytes = 1 + random.below(40);
    const RecordLayout plain{fields};
    const RecordLayout layout{fields, {}, margin_bytes};
    CHECK_EQ(plain.margin_offset(), RecordLayout::kNone);
    const std::size_t begin = layout.margin_offset();
    CHECK_EQ(begin % 8, 0U);
    CHECK(begin + margin_bytes <= layout.used_bytes());
    CHECK(layout.used_bytes() <= layout.stride());
    CHECK_EQ(layout.stride() % 16, 0U);
    CHECK_EQ(layout.num_fields(), fields.size());
    CHECK_EQ(layout.columns().size(), fields.size());
    bool is_passed = false;  // the first number
    for (std::size_t f = 0; f < fields.size(); ++f) {
      const auto [offset, row_bytes, num_frames] = layout.columns()[f];
      CHECK_EQ(offset % fields[f].alignment, 0U);
      CHECK(is_passed ? offset >= begin + margin_bytes : offset + row_bytes <= begin);
      if (!is_passed) CHECK_EQ(offset, plain.columns()[f].offset);
      is_passed = is_passed || row_bytes <= 8;
    }
  }
  // An observation, an action, a reward, and what comes next: in the lines of the reward, and no line more.
  const std::vector<FieldSize> cheetah{{68, 4}, {24, 4}, {4, 4}, {68, 4}, {1, 1}, {1, 1}};
  const RecordLayout layout{cheetah, {}, 16};
  CHECK_EQ(layout.margin_offset(), 96U);
  CHECK_EQ(layout.columns()[3].offset, 112U);
  CHECK_EQ(layout.stride(), RecordLayout{cheetah}.stride());
}

void strides() {
  const auto stride = [](std::size_t used_bytes) {
    return RecordLayout{{{.row_bytes = used_bytes, .alignment = 1}}}.stride();
  };
  CHECK_EQ(stride(1), 16U);
  CHECK_EQ(stride(16), 16U);
  CHECK_EQ(stride(17), 32U);
  CHECK_EQ(stride(33), 48U);
  CHECK_EQ(stride(49), 64U);
  CHECK_EQ(stride(64), 64U);
  CHECK_EQ(stride(65), 80U);
  CHECK_EQ(stride(112), 112U);  // a whole line would cost a seventh
  CHECK_EQ(stride(128), 128U);
  CHECK_EQ(stride(165), 192U);
  CHECK_EQ(stride(2857), 2880U);
}

// An action, and observations of four frames whose successors share three of them: eight places and one frame a record.
void frames_in_common() {
  const std::vector<FieldSize> fields{
      {.row_bytes = 4 * 6, .alignment = 2}, {.row_bytes = 4, .alignment = 4}, {.row_bytes = 4 * 6, .alignment = 2}};
  const RecordLayout layout{fields, {{.fields = {0, 2}, .num_frames = 4}}};
  CHECK_EQ(layout.num_fields(), 3U);
  CHECK_EQ(layout.columns().size(), 6U);
  CHECK_EQ(layout.columns()[0].row_bytes, 24U);
  CHECK_EQ(layout.columns()[0].stored_bytes(), 32U);
  CHECK_EQ(layout.columns()[1].offset, 32U);
  CHECK_EQ(layout.columns()[2].offset, 40U);
  const auto& frames = layout.frames().front();
  CHECK_EQ(frames.frame_bytes, 6U);
  CHECK_EQ(frames.column, 3U);
  CHECK_EQ(layout.columns()[3].offset, 72U);
  CHECK_EQ(layout.columns()[3].stored_bytes(), 6U);
  CHECK_EQ(layout.used_bytes(), 78U);
  for (std::size_t i = 0; i < 2; ++i) {  // the places as they are
    CHECK_EQ(layout.columns()[4 + i].offset, layout.columns()[2 * i].offset);
    CHECK_EQ(layout.columns()[4 + i].stored_bytes(), 32U);
  }
  CHECK_EQ(layout.extra_bytes(), 48U);  // seven frames, which are not worth a page
  const RecordLayout large{{{.row_bytes = 3000, .alignment = 1}, {.row_bytes = 3000, .alignment = 1}},
                           {{.fields = {0}, .num_frames = 1}, {.fields = {1}, .num_frames = 2}}};
  CHECK_EQ(large.frames()[0].extra_offset, 0U);
  CHECK_EQ(large.extra_bytes(), 4096U);
}

void refused_frames() {
  const std::vector<FieldSize> fields{{.row_bytes = 12, .alignment = 4}, {.row_bytes = 8, .alignment = 4}};
  const auto refuses = [&](std::vector<fastreplay::FrameGroup> groups) {
    return check::throws<std::invalid_argument>([&] { RecordLayout(fields, groups); });
  };
  CHECK(refuses({{.fields = {}, .num_frames = 1}}));
  CHECK(refuses({{.fields = {2}, .num_frames = 1}}));
  CHECK(refuses({{.fields = {0}, .num_frames = 0}}));
  CHECK(refuses({{.fields = {0}, .num_frames = 5}}));
  CHECK(refuses({{.fields = {0, 1}, .num_frames = 1}}));
  CHECK(refuses({{.fields = {0, 0}, .num_frames = 1}}));
  CHECK(refuses({{.fields = {0}, .num_frames = 1}, {.fields = {0}, .num_frames = 1}}));
  CHECK(!refuses({{.fields = {0}, .num_frames = 3}, {.fields = {1}, .num_frames = 2}}));
}

void refused_records() {
  const auto refuses = [](const std::vector<FieldSize>& fields) {
    return check::throws<std::invalid_argument>([&] { RecordLayout{fields}; });
  };
  CHECK(refuses({}));
  CHECK(refuses({{.row_bytes = 0, .alignment = 1}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 4}, {.row_bytes = 0, .alignment = 4}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 0}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 3}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = kLargest}}));
  CHECK(refuses({{.row_bytes = 4, .alignment = 1}, {.row_bytes = 4, .alignment = std::size_t{1} << 63}}));
  for (const std::size_t huge : {kLargest, kLargest - 7, kLargest / 2, kLargest / 2 + 1}) {
    CHECK(refuses({{.row_bytes = huge, .alignment = 8}}));
    CHECK(refuses({{.row_bytes = 1, .alignment = 1}, {.row_bytes = huge, .alignment = 1}}));
  }
  CHECK(refuses({{.row_bytes = kLargest / 8, .alignment = 8}, {.row_bytes = kLargest / 8, .alignment = 8}}));
}

}  // namespace

int main() {
  random_records();
  margins();
  strides();
  frames_in_common();
  refused_frames();
  refused_records();
  return check::result();
}
