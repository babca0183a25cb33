// SPDX-License-Identifier: MIT
// Transitions whose rows are stacks of frames, each frame told by a number that all its bytes follow from; lanes that
// make such stacks, which go on, repeat, or break off; and a ring of them beside a list of what was given.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "lanes/lanes.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "ring/ring.hpp"

namespace frame_rows {

using fastreplay::Block;
using fastreplay::Lanes;
using fastreplay::Priorities;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::Ticket;

inline std::uint64_t word_of(std::uint64_t frame, std::size_t place) {
  return check::Random{frame * 0xD6E8FEB86659FD93 + place}.next();
}

inline void put_frame(std::byte* at, std::uint64_t frame, std::size_t num_bytes) {
  for (std::size_t done = 0; done < num_bytes; done += 8) {
    const std::uint64_t word = word_of(frame, done / 8);
    std::memcpy(at + done, &word, std::min<std::size_t>(8, num_bytes - done));
  }
}

inline bool is_frame(const std::byte* at, std::uint64_t frame, std::size_t num_bytes) {
  for (std::size_t done = 0; done < num_bytes; done += 8) {
    const std::uint64_t word = word_of(frame, done / 8);
    if (std::memcmp(at + done, &word, std::min<std::size_t>(8, num_bytes - done)) != 0) return false;
  }
  return true;
}

struct Group {
  std::size_t num_fields;
  std::size_t num_frames;
  std::size_t frame_bytes;

  [[nodiscard]] bool are_same(std::uint64_t one, std::uint64_t other) const {
    const std::size_t unused_bits = 64 - 8 * std::min<std::size_t>(8, frame_bytes);
    return (word_of(one, 0) ^ word_of(other, 0)) << unused_bits == 0;
  }
};

// Fields: a number, whether it ends its trajectory, then those of each group.
struct Shape {
  static constexpr std::size_t kId = 0, kEnds = 1, kFirst = 2;

  std::vector<Group> groups;

  [[nodiscard]] RecordLayout layout() const {
    std::vector<fastreplay::FieldSize> fields{{.row_bytes = 8, .alignment = 8}, {.row_bytes = 1, .alignment = 1}};
    std::vector<fastreplay::FrameGroup> of;
    for (const Group& group : groups) {
      auto& [members, num_frames] = of.emplace_back();
      num_frames = group.num_frames;
      for (std::size_t f = 0; f < group.num_fields; ++f) {
        members.push_back(fields.size());
        const std::size_t alignment = group.frame_bytes % 8 == 0 ? 8 : group.frame_bytes % 2 == 0 ? 2 : 1;
        fields.push_back({.row_bytes = group.num_frames * group.frame_bytes, .alignment = alignment});
      }
    }
    // Of some shapes links lie in the records.
    return RecordLayout{fields, std::move(of), groups.size() % 2 == 1 ? fastreplay::Lanes::Links::kLinkBytes : 0};
  }
  // Of each frame of a row, field by field, the oldest first.
  template <class Visit>
  void at_each_frame(Visit visit) const {
    std::size_t field = kFirst;
    std::size_t number = 0;
    for (const Group& group : groups) {
      for (std::size_t f = 0; f < group.num_fields; ++f, ++field) {
        for (std::size_t i = 0; i < group.num_frames; ++i) {
          visit(field, i * group.frame_bytes, group.frame_bytes, number++);
        }
      }
    }
  }
};

struct Row {
  std::uint64_t id = 0;
  bool ends = false;
  std::size_t lane = 0;
  std::vector<std::uint64_t> frames;
};

// What a lane's next row has: where it was left, mostly.
class Stacks {
 public:
  Stacks(const Shape& shape, std::uint64_t seed) : shape_{shape}, random_{seed}, next_{seed << 32} {
    for (const Group& group : shape.groups) stacks_.push_back(std::vector<std::uint64_t>(group.num_frames, next_++));
  }

  // One in `one_in` of the stacks does not go on; 0 for none.
  std::vector<std::uint64_t> next(std::uint64_t one_in) {
    std::vector<std::uint64_t> frames;
    for (std::size_t g = 0; g < stacks_.size(); ++g) {
      for (std::size_t f = 0; f < shape_.groups[g].num_fields; ++f) {
        std::vector<std::uint64_t>& stack = stacks_[g];
        if (f > 0 || shape_.groups[g].num_fields == 1) shift(stack, one_in);
        if (one_in > 0 && random_.below(one_in) == 0) break_off(stack);
        frames.insert(frames.end(), stack.begin(), stack.end());
      }
    }
    return frames;
  }
  // Each group begins with one frame only.
  void reset() {
    for (std::vector<std::uint64_t>& stack : stacks_) std::ranges::fill(stack, next_++);
  }

 private:
  void shift(std::vector<std::uint64_t>& stack, std::uint64_t one_in) {
    const bool repeats = one_in > 0 && random_.below(6) == 0;
    const std::uint64_t newest = repeats ? stack[random_.below(stack.size())] : next_++;
    stack.erase(stack.begin());
    stack.push_back(newest);
  }
  void break_off(std::vector<std::uint64_t>& stack) {
    const std::uint64_t choice = random_.below(4);
    if (choice == 0) std::ranges::fill(stack, next_++);
    for (std::uint64_t& frame : stack) {
      if (choice == 1) frame = stack[random_.below(stack.size())];
      if (choice == 2 && random_.below(2) == 0) frame = next_++;
      if (choice == 3) frame = next_ - random_.below(8);
    }
    if (choice == 3) next_ += 8;
  }

  const Shape& shape_;
  check::Random random_;
  std::uint64_t next_;
  std::vector<std::vector<std::uint64_t>> stacks_;  // of each group
};

// Which frame lies where, by the rules and in numbers: how much must lie beside the records.
class Expected {
 public:
  Expected(const Shape& shape, std::size_t capacity, std::size_t num_spare)
      : shape_{shape}, num_spare_{num_spare}, records_(capacity), bytes_beside_(capacity) {}

  void add(Ticket ticket, std::optional<Ticket> previous, const Row& row) {
    std::vector<Place> places;
    const RecordLayout layout = shape_.layout();
    std::size_t num_bytes = 0;
    std::size_t at = 0;  // of the group's first frame
    for (std::size_t g = 0; g < shape_.groups.size(); ++g) {
      const Group& group = shape_.groups[g];
      std::size_t num_beside = 0;
      const std::size_t n = group.num_frames;
      std::vector<Place> before(n, Place{});
      if (previous.has_value() && ticket - *previous <= num_spare_) {
        const std::vector<Place>& of = records_[*previous % records_.size()];
        for (std::size_t i = 0; i < n; ++i) before[i] = of[at + (group.num_fields - 1) * n + i];
      }
      if (group.num_fields == 1) shift(before);
      for (std::size_t f = 0; f < group.num_fields; ++f, at += n) {
        std::vector<Place> now(n);
        for (std::size_t i = n; i-- > 0;) {
          const std::uint64_t frame = row.frames[at + i];
          const bool goes_on = before[i].is_there && ticket - before[i].owner <= num_spare_;
          if (i + 1 == n && f + 1 == group.num_fields) {
            now[i] = {true, ticket, frame};
          } else if (goes_on && group.are_same(before[i].frame, frame)) {
            now[i] = before[i];
          } else if (i + 1 < n && group.are_same(frame, row.frames[at + i + 1])) {
            now[i] = now[i + 1];
          } else {
            now[i] = {true, ticket, frame};
            ++num_beside;
          }
        }
        places.insert(places.end(), now.begin(), now.end());
        before = now;
        shift(before);
      }
      if (num_beside > 0) num_bytes = layout.frames()[g].extra_offset + num_beside * group.frame_bytes;
    }
    records_[ticket % records_.size()] = places;
    // What is given back is pages.
    const bool is_pages = layout.extra_bytes() % 4096 == 0;
    bytes_beside_[ticket % records_.size()] = is_pages ? fastreplay::round_up(num_bytes, 4096) : num_bytes;
  }
  [[nodiscard]] std::size_t num_bytes() const {
    return std::accumulate(bytes_beside_.begin(), bytes_beside_.end(), std::size_t{0});
  }

 private:
  struct Place {
    bool is_there = false;
    Ticket owner = 0;
    std::uint64_t frame = 0;
  };
  static void shift(std::vector<Place>& stack) {
    stack.erase(stack.begin());
    stack.emplace_back();
  }

  const Shape& shape_;
  std::size_t num_spare_;
  std::vector<std::vector<Place>> records_;  // of each slot
  std::vector<std::size_t> bytes_beside_;
};

// The rows of an insert, contiguous field by field.
class Batch {
 public:
  Batch(const Shape& shape, const RecordLayout& layout, std::span<const Row> rows) {
    for (std::size_t f = 0; f < layout.num_fields(); ++f) {
      bytes_.emplace_back(rows.size() * layout.columns()[f].row_bytes);
      rows_.push_back({.data = bytes_[f].data(), .stride_bytes = layout.columns()[f].row_bytes});
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(at(Shape::kId, i), &rows[i].id, 8);
      *at(Shape::kEnds, i) = std::byte{rows[i].ends};
      shape.at_each_frame([&](std::size_t field, std::size_t offset, std::size_t num_bytes, std::size_t number) {
        put_frame(at(field, i) + offset, rows[i].frames[number], num_bytes);
      });
    }
  }

  [[nodiscard]] std::span<const Rows> rows() const { return rows_; }

 private:
  [[nodiscard]] std::byte* at(std::size_t field, std::size_t row) {
    return bytes_[field].data() + row * rows_[field].stride_bytes;
  }

  std::vector<std::vector<std::byte>> bytes_;
  std::vector<Rows> rows_;
};

// A ring of such rows with lanes and priorities (each row's is 1 + number % 5), and what was given.
class Streams {
 public:
  Streams(Shape of, std::size_t window_capacity, std::size_t num_spare, std::size_t num_lanes)
      : shape{std::move(of)},
        ring{shape.layout(), window_capacity + num_spare, num_spare},
        lanes{ring, num_lanes, {{Shape::kEnds, ring.records().layout().columns()[Shape::kEnds], 1, false}}},
        expected{shape, ring.capacity(), num_spare},
        last_(num_lanes) {
    for (std::size_t lane = 0; lane < num_lanes; ++lane) stacks.emplace_back(shape, lane + 1);
  }
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  Shape shape;
  Ring ring;
  Lanes lanes;
  Priorities priorities{ring, {.alpha = 1, .eps = 0, .floor = 0}, -1, true};
  Expected expected;
  std::vector<Stacks> stacks;  // of each lane
  std::map<Ticket, Row> rows;

  // One row for each lane that is named.
  void insert(std::span<const std::int64_t> numbers, std::uint64_t one_in, std::uint64_t ends_one_in = 9) {
    const std::vector<Row> given = new_rows(numbers, one_in, ends_one_in);
    const Batch batch{shape, ring.records().layout(), given};
    const std::vector<double> masses = priorities_of(given);
    const Ticket first = ring.num_reserved();
    CHECK_EQ(lanes.enter(numbers, kOwner), Lanes::kNone);
    for (std::size_t done = 0; done < given.size();) {
      const std::size_t chunk = std::min(given.size() - done, ring.max_rows_per_insert());
      CHECK(insert_beside(ring, columns(batch), done, chunk, std::chrono::seconds{10},
                          Priorities::NewRows{priorities, masses.data()},
                          Lanes::NewRows{lanes, numbers.data(), batch.rows()}));
      done += chunk;
    }
    lanes.leave(numbers, kOwner);
    note(first, given);
  }

  // A writer that stops when `num_published` of its rows are published, having begun `num_begun` of them.
  void insert_unfinished(std::span<const std::int64_t> numbers, std::uint64_t one_in, std::size_t num_published,
                         std::size_t num_begun) {
    const std::vector<Row> given = new_rows(numbers, one_in, 9);
    const Batch batch{shape, ring.records().layout(), given};
    const std::vector<double> masses = priorities_of(given);
    CHECK_EQ(lanes.enter(numbers, kOwner + 1 + next_id_), Lanes::kNone);
    Ticket first = 0;
    CHECK(ring.reserve(given.size(), std::chrono::seconds{10}, first));
    ring.write(columns(batch), 0, ring.slot(first), given.size());
    Priorities::NewRows{priorities, masses.data()}.begin(first, 0, given.size());
    Lanes::NewRows{lanes, numbers.data(), batch.rows()}.begin(first, 0, num_begun);
    if (num_published > 0) const Ring::Claim claim{ring, first, num_published};
    note(first, given);
  }

  // Whether all that can be read is what was given.
  [[nodiscard]] bool is_right() {
    const fastreplay::Window window = ring.window();
    CHECK_EQ(window.committed, window.end);
    if (window.reserved() > ring.window_capacity()) return false;
    if (window.reserved() == 0) return true;
    const Block block{transition_parts(ring.records().layout()), window.reserved()};
    std::vector<std::int64_t> positions;
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      positions.push_back(static_cast<std::int64_t>(ticket - window.first));
    }
    using fastreplay::Address;
    const auto result = fastreplay::read(ring, Address::kPosition, positions, block);
    bool right = result.status == fastreplay::ReadResult::Status::kWhole;
    for (std::size_t row = 0; row < block.batch_size(); ++row) right &= is_right(block, row);
    return right && are_masses_right(window);
  }
  [[nodiscard]] bool is_right(const Block& block, std::size_t row) const {
    const auto found = rows.find(block.tickets()[row]);
    if (found == rows.end()) return false;
    const Row& given = found->second;
    const auto at = [&](std::size_t field) {
      return block.part(field) + row * ring.records().layout().columns()[field].row_bytes;
    };
    bool right = std::memcmp(at(Shape::kId), &given.id, 8) == 0 && *at(Shape::kEnds) == std::byte{given.ends};
    shape.at_each_frame([&](std::size_t field, std::size_t offset, std::size_t num_bytes, std::size_t number) {
      right = right && is_frame(at(field) + offset, given.frames[number], num_bytes);
    });
    return right;
  }

  static double priority_of(const Row& row) { return static_cast<double>(1 + row.id % 5); }

 private:
  static constexpr Lanes::Owner kOwner = 1;

  [[nodiscard]] std::span<const Rows> columns(const Batch& batch) {
    return lanes.frames()->stored_as_given(batch.rows(), columns_);
  }
  std::vector<Row> new_rows(std::span<const std::int64_t> numbers, std::uint64_t one_in, std::uint64_t ends_one_in) {
    std::vector<Row> given;
    for (const std::int64_t number : numbers) {
      const auto lane = static_cast<std::size_t>(number);
      const bool ends = ends_one_in > 0 && random_.below(ends_one_in) == 0;
      given.push_back({.id = next_id_++, .ends = ends, .lane = lane, .frames = stacks[lane].next(one_in)});
    }
    return given;
  }
  static std::vector<double> priorities_of(std::span<const Row> given) {
    std::vector<double> masses;
    for (const Row& row : given) masses.push_back(priority_of(row));
    return masses;
  }
  void note(Ticket first, std::span<const Row> given) {
    for (std::size_t i = 0; i < given.size(); ++i) {
      std::optional<Ticket>& last = last_[given[i].lane];
      expected.add(first + i, last, given[i]);
      last = first + i;
      rows[first + i] = given[i];
    }
  }
  // What left the window weighs nothing.
  [[nodiscard]] bool are_masses_right(const fastreplay::Window& window) {
    double total = 0;
    double smallest = 5;
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      total += priority_of(rows.at(ticket));
      smallest = std::min(smallest, priority_of(rows.at(ticket)));
    }
    const fastreplay::Population there = Priorities::Turn{priorities}.population();
    return there.count == window.reserved() && there.total == total && static_cast<double>(there.smallest) == smallest;
  }

  std::array<Rows, 64> columns_{};
  check::Random random_{7};
  std::uint64_t next_id_ = 1;
  std::vector<std::optional<Ticket>> last_;  // of each lane
};

}  // namespace frame_rows
