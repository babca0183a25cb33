// SPDX-License-Identifier: MIT
// Buffers as users make them, of rows of zeros, to count the instructions of what is done with them. The shapes are
// those of bench/workloads.py.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "batch/sample.hpp"
#include "lanes/lanes.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "ring/ring.hpp"

namespace counts {

using namespace fastreplay;

// What is counted must be what it says.
inline void must(bool succeeded) {
  if (!succeeded) throw std::runtime_error{"a hot path did not do what is counted"};
}

// Fields: observation, action, reward, terminated, next observation.
struct Shape {
  static constexpr std::size_t kObservation = 0, kAction = 1, kReward = 2, kTerminated = 3, kNext = 4;

  std::size_t observation_bytes;
  std::size_t action_bytes;
  std::size_t alignment;        // of both
  std::size_t capacity = 8192;  // slots, of which an insert takes an eighth at most
  std::size_t num_frames = 0;   // in a row of observations, where they are stored once
};

inline constexpr Shape kPendulum{12, 4, 4}, kCheetah{68, 24, 4}, kHumanoid{1392, 68, 4, 1024};
inline constexpr Shape kAtari{4 * 84 * 84, 8, 8, 128}, kAtariFrames{4 * 84 * 84, 8, 8, 256, 4};

// What a buffer has beside its ring.
enum class Beside : std::uint8_t { kNothing, kLanes, kPriorities };

// A full buffer, whose inserts are of a row of each lane, where it has lanes.
class Buffer {
 public:
  static constexpr std::size_t kNumLanes = 64;

  Buffer(const Shape& shape, Beside beside, std::size_t num_rows)
      : ring{layout_of(shape, beside), shape.capacity + num_spare(shape, num_rows), num_spare(shape, num_rows)},
        num_rows_{num_rows},
        bytes_(num_rows * shape.observation_bytes),
        ends_(num_rows) {
    const std::vector<Column>& columns = ring.records().layout().columns();
    if (beside == Beside::kLanes) {
      const EndColumn ends{Shape::kTerminated, columns[Shape::kTerminated], 1, false};
      lanes = std::make_unique<Lanes>(ring, num_rows, std::vector{ends});
    }
    if (beside == Beside::kPriorities) {
      priorities = std::make_unique<Priorities>(ring, MassRule{.alpha = 0.6, .eps = 1e-6, .floor = 0}, -1, false);
    }
    for (std::size_t f = 0; f < ring.records().layout().num_fields(); ++f) {
      fields_.push_back({f == Shape::kTerminated ? ends_.data() : bytes_.data(), columns[f].row_bytes});
    }
    fill();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // As a call of add() or extend() does it.
  void insert() {
    constexpr std::chrono::seconds kPatience{1};
    if (lanes != nullptr) {
      const std::span<const std::int64_t> numbers = lanes->in_order();
      const auto owner = reinterpret_cast<Lanes::Owner>(this);
      must(lanes->enter(numbers, owner) == Lanes::kNone);
      const std::span<const Rows> columns =
          lanes->frames() == nullptr ? fields_ : lanes->frames()->stored_as_given(fields_, columns_);
      must(insert_beside(ring, columns, 0, num_rows_, kPatience, Lanes::NewRows{*lanes, numbers.data(), fields_}));
      lanes->leave(numbers, owner);
    } else if (priorities != nullptr) {
      must(priorities->insert(fields_, 0, num_rows_, kPatience, nullptr));
    } else {
      must(ring.insert(fields_, 0, num_rows_, kPatience));
    }
  }

  Ring ring;
  std::unique_ptr<Lanes> lanes;
  std::unique_ptr<Priorities> priorities;

 private:
  static std::size_t num_spare(const Shape& shape, std::size_t num_lanes) { return 2 * shape.num_frames * num_lanes; }

  static RecordLayout layout_of(const Shape& shape, Beside beside) {
    const FieldSize observation{shape.observation_bytes, shape.alignment};
    const std::vector<FieldSize> fields{
        observation, {shape.action_bytes, shape.alignment}, {4, 4}, {1, 1}, observation};
    std::vector<FrameGroup> groups;
    if (shape.num_frames > 0) groups.push_back({{Shape::kObservation, Shape::kNext}, shape.num_frames});
    const RecordLayout plain{fields, groups};
    return beside == Beside::kLanes ? RecordLayout{fields, groups, Lanes::margin_bytes(plain)} : plain;
  }

  // One lap and a half. Trajectories end after a hundred steps, each lane's elsewhere.
  void fill() {
    constexpr std::size_t kSteps = 100;
    for (std::size_t step = 0; step * num_rows_ < ring.capacity() + ring.capacity() / 2; ++step) {
      for (std::size_t row = 0; row < num_rows_; ++row) ends_[row] = std::byte{(step + 7 * row) % kSteps == 0};
      insert();
    }
    std::ranges::fill(ends_, std::byte{0});
  }

  std::size_t num_rows_;
  std::vector<std::byte> bytes_;
  std::vector<std::byte> ends_;
  std::vector<Rows> fields_;
  std::array<Rows, 8> columns_{};
};

}  // namespace counts
