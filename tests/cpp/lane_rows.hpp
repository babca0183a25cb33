// SPDX-License-Identifier: MIT
// Transitions of lanes, of which every field follows from a number, inserts of them as a buffer makes them, and lists
// of the episodes that they are of, which say what must surround each.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "batch/sample.hpp"
#include "check.hpp"
#include "lanes/lanes.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "ring/ring.hpp"

namespace lane_rows {

using fastreplay::Block;
using fastreplay::Column;
using fastreplay::EndColumn;
using fastreplay::Following;
using fastreplay::Lanes;
using fastreplay::Part;
using fastreplay::Priorities;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::Sampler;
using fastreplay::Source;
using fastreplay::Ticket;
using fastreplay::Ways;
using fastreplay::WindowRule;

inline constexpr std::size_t kId = 0, kReward = 1, kRewards = 2, kDiscount = 3, kTerminated = 4, kTruncated = 5;
inline constexpr std::size_t kNumFields = 6;
inline constexpr std::size_t kNumRewards = 3;

// What a field that ends trajectories is made of: numbers that end, and such that do not.
struct EndType {
  std::size_t element_bytes;
  bool has_sign;
  std::vector<std::uint64_t> ends;
  std::vector<std::uint64_t> goes_on;
};

inline std::vector<EndType> end_types() {
  const auto bits = [](auto number) { return std::uint64_t{std::bit_cast<std::uint32_t>(number)}; };
  const auto wide = [](double number) { return std::bit_cast<std::uint64_t>(number); };
  return {
      {1, false, {1, 0x80}, {0}},  // bool
      {4, true, {bits(1.0F), bits(std::nanf("")), bits(std::numeric_limits<float>::denorm_min())}, {0, bits(-0.0F)}},
      {8, true, {wide(-1.0), wide(std::nan("")), wide(1e-300)}, {0, wide(-0.0)}},
      {8, false, {1, std::uint64_t{1} << 63, ~std::uint64_t{0}}, {0}},  // int64
      {2, true, {0x3C00, 0x7E00, 0xFE00, 1}, {0, 0x8000}},              // float16
  };
}

// A record of fields that end by one dtype, and by two numbers of another.
struct Shape {
  EndType terminated;
  EndType truncated;
  bool has_margin = false;  // in which links lie, which else lie beside the ring

  [[nodiscard]] RecordLayout layout() const {
    return RecordLayout{{{.row_bytes = 8, .alignment = 8},
                         {.row_bytes = 8, .alignment = 8},
                         {.row_bytes = 4 * kNumRewards, .alignment = 4},
                         {.row_bytes = 4, .alignment = 4},
                         {.row_bytes = terminated.element_bytes, .alignment = terminated.element_bytes},
                         {.row_bytes = 2 * truncated.element_bytes, .alignment = truncated.element_bytes}},
                        {},
                        has_margin ? Lanes::Links::kLinkBytes : 0};
  }
  [[nodiscard]] std::vector<EndColumn> ends(const Ring& ring) const {
    const auto& columns = ring.records().layout().columns();
    return {{kTerminated, columns[kTerminated], terminated.element_bytes, terminated.has_sign},
            {kTruncated, columns[kTruncated], truncated.element_bytes, truncated.has_sign}};
  }
};

inline Shape plain_shape() { return {end_types()[0], end_types()[1], true}; }

// One transition: the number that its fields follow from, and whether one of them ends its trajectory.
struct Step {
  std::uint64_t id = 0;
  bool ends = false;

  [[nodiscard]] double reward() const { return static_cast<double>(check::Random{id}.below(2001)) / 7 - 100; }
  [[nodiscard]] float rewards(std::size_t i) const {
    return static_cast<float>(check::Random{id * kNumRewards + i + 1}.below(999)) / 11.0F;
  }
  [[nodiscard]] float discount() const { return static_cast<float>(check::Random{~id}.below(5)) / 4.0F; }
};

// The rows of an insert, contiguous field by field.
class Batch {
 public:
  Batch(const Shape& shape, std::span<const Step> steps) {
    const RecordLayout layout = shape.layout();
    for (std::size_t f = 0; f < kNumFields; ++f) {
      bytes_.emplace_back(layout.columns()[f].row_bytes * steps.size());
      rows_.push_back({.data = bytes_[f].data(), .stride_bytes = layout.columns()[f].row_bytes});
    }
    for (std::size_t row = 0; row < steps.size(); ++row) set(shape, row, steps[row]);
  }

  [[nodiscard]] std::span<const Rows> rows() const { return rows_; }

 private:
  void set(const Shape& shape, std::size_t row, const Step& step) {
    put(kId, row, 0, step.id);
    put(kReward, row, 0, step.reward());
    for (std::size_t i = 0; i < kNumRewards; ++i) put(kRewards, row, i, step.rewards(i));
    put(kDiscount, row, 0, step.discount());
    check::Random random{step.id ^ 0x1234'5678};
    const std::uint64_t which = step.ends ? 1 + random.below(3) : 0;  // one of them, another, or several
    put_end(shape.terminated, kTerminated, row, 0, (which & 1) != 0, random);
    const std::uint64_t element = random.below(2);
    put_end(shape.truncated, kTruncated, row, element, (which & 2) != 0, random);
    put_end(shape.truncated, kTruncated, row, 1 - element, false, random);
  }
  template <class T>
  void put(std::size_t field, std::size_t row, std::size_t element, T value) {
    std::memcpy(place(field, row, element, sizeof value), &value, sizeof value);
  }
  void put_end(const EndType& type, std::size_t field, std::size_t row, std::size_t element, bool ends,
               check::Random& random) {
    const std::vector<std::uint64_t>& numbers = ends ? type.ends : type.goes_on;
    const std::uint64_t bits = numbers[random.below(numbers.size())];
    std::memcpy(place(field, row, element, type.element_bytes), &bits, type.element_bytes);
  }
  [[nodiscard]] std::byte* place(std::size_t field, std::size_t row, std::size_t element, std::size_t bytes) {
    return bytes_[field].data() + row * rows_[field].stride_bytes + element * bytes;
  }

  std::vector<std::vector<std::byte>> bytes_;
  std::vector<Rows> rows_;
};

// Which transitions came in which order, by episode: what the links must say.
class Oracle {
 public:
  explicit Oracle(std::size_t num_lanes) : open_(num_lanes) {}

  void add(Ticket ticket, std::size_t lane, const Step& step) {
    if (!open_[lane].has_value()) {
      open_[lane] = episodes_.size();
      episodes_.emplace_back();
    }
    std::vector<Ticket>& episode = episodes_[*open_[lane]];
    at(ticket) = {step, lane, *open_[lane], episode.size()};
    episode.push_back(ticket);
    if (step.ends) open_[lane].reset();
  }
  // One of which nothing is known but that it is there.
  void add_alone(Ticket ticket, const Step& step) {
    at(ticket) = {step, 0, episodes_.size(), 0};
    episodes_.push_back({ticket});
  }
  void cut(std::size_t lane) { open_[lane].reset(); }

  [[nodiscard]] const Step& step(Ticket ticket) const { return rows_.at(ticket)->step; }
  [[nodiscard]] std::size_t lane(Ticket ticket) const { return rows_.at(ticket)->lane; }
  [[nodiscard]] bool has(Ticket ticket) const { return ticket < rows_.size() && rows_[ticket].has_value(); }

  // Tickets of up to n steps from this one on.
  [[nodiscard]] std::span<const Ticket> steps(Ticket ticket, std::size_t n) const {
    const Row& row = *rows_.at(ticket);
    const std::span<const Ticket> episode = episodes_[row.episode];
    return episode.subspan(row.index, std::min(n, episode.size() - row.index));
  }

  // Of a ring whose transitions moved to earlier tickets; what has no place is gone. Of the other ones' lanes each goes
  // on where it was, but those that begin anew.
  [[nodiscard]] Oracle moved(const std::map<Ticket, Ticket>& places, const std::vector<bool>& begins_anew) const {
    Oracle after{open_.size()};
    after.open_ = open_;
    for (const std::vector<Ticket>& episode : episodes_) {
      std::vector<Ticket>& now = after.episodes_.emplace_back();
      for (const Ticket ticket : episode) {
        const auto place = places.find(ticket);
        if (place == places.end()) continue;
        Row row = *rows_.at(ticket);
        row.index = now.size();
        after.at(place->second) = row;
        now.push_back(place->second);
      }
    }
    for (std::size_t lane = 0; lane < open_.size(); ++lane) {
      if (begins_anew[lane]) after.open_[lane].reset();
    }
    return after;
  }

 private:
  struct Row {
    Step step;
    std::size_t lane;
    std::size_t episode;
    std::size_t index;
  };

  [[nodiscard]] std::optional<Row>& at(Ticket ticket) {
    if (ticket >= rows_.size()) rows_.resize(ticket + 1);
    return rows_[ticket];
  }

  std::vector<std::optional<Row>> rows_;  // by ticket
  std::vector<std::vector<Ticket>> episodes_;
  std::vector<std::optional<std::size_t>> open_;  // of each lane
};

// What is asked of the rows of a minibatch.
struct Asked {
  std::size_t num_steps;
  std::size_t num_sums;     // 0, the doubles, or these and the vectors of floats
  bool is_discounted;       // by what is stored
  bool is_discount_double;  // that is made
  bool is_copied = true;    // a record's fields, at both ends
};

// A rule, and a block of the parts that it makes beside the id and the fields that rows end at.
class View {
 public:
  View(const Shape& shape, const Asked& asked, std::size_t batch_size)
      : asked_{asked}, rule_{rule(shape, asked)}, block_{parts(asked), batch_size} {
    CHECK(fits(rule_, shape.layout(), block_.layout()));
  }

  [[nodiscard]] const WindowRule& rule() const { return rule_; }
  [[nodiscard]] const Block& block() const { return block_; }

  // Whether all that the row says is what the oracle says of its ticket.
  [[nodiscard]] bool is_right(const Oracle& oracle, std::size_t row) const {
    const Ticket ticket = block_.tickets()[row];
    if (!oracle.has(ticket)) return false;
    const std::span<const Ticket> steps = oracle.steps(ticket, asked_.num_steps);
    std::vector<Step> all;
    for (const Ticket each : steps) all.push_back(oracle.step(each));
    std::vector<double> weights{1};
    for (const Step& step : all) {
      double next = weights.back() * kGamma;
      if (asked_.is_discounted) next *= static_cast<double>(step.discount());
      weights.push_back(next);
    }
    const std::size_t copied = kMade + 1 + asked_.num_sums;
    bool right = !asked_.is_copied || (has(copied, row, all.front().id) && has(copied + 1, row, all.back().id) &&
                                       has(copied + 2, row, all.back().discount()));
    right &= asked_.is_discount_double ? has(kMade, row, weights.back())
                                       : has(kMade, row, static_cast<float>(weights.back()));
    if (asked_.num_sums > 0) {
      double total = 0;
      for (std::size_t k = 0; k < all.size(); ++k) total += weights[k] * all[k].reward();
      right &= has(kMade + 1, row, total);
    }
    for (std::size_t i = 0; i < (asked_.num_sums > 1 ? kNumRewards : 0); ++i) {
      double total = 0;
      for (std::size_t k = 0; k < all.size(); ++k) total += weights[k] * static_cast<double>(all[k].rewards(i));
      right &= has(kMade + 2, row * kNumRewards + i, static_cast<float>(total));
    }
    return right;
  }

 private:
  static constexpr double kGamma = 0.9;
  static constexpr std::size_t kMade = 0;  // the discount, then the sums; then what is copied

  [[nodiscard]] static WindowRule rule(const Shape& shape, const Asked& asked) {
    const RecordLayout layout = shape.layout();
    fastreplay::SumRule rule{.gamma = kGamma,
                             .sums = {},
                             .stored_discount = {},
                             .discount_part = kMade,
                             .is_discount_double = asked.is_discount_double};
    if (asked.num_sums > 0) {
      rule.sums.push_back({.of = {.column = layout.columns()[kReward], .is_double = true}, .part = kMade + 1});
    }
    if (asked.num_sums > 1) {
      rule.sums.push_back({.of = {.column = layout.columns()[kRewards], .is_double = false}, .part = kMade + 2});
    }
    if (asked.is_discounted) {
      rule.stored_discount.push_back({.column = layout.columns()[kDiscount], .is_double = false});
    }
    WindowRule windows;
    windows.most_after = static_cast<std::uint32_t>(asked.num_steps - 1);
    windows.ways_part = parts(asked).size() - 1;
    windows.sums = std::move(rule);
    return windows;
  }
  [[nodiscard]] static std::vector<Part> parts(const Asked& asked) {
    std::vector<Part> parts{{.source = Source::kMade, .row_bytes = asked.is_discount_double ? 8U : 4U}};
    if (asked.num_sums > 0) parts.push_back({.source = Source::kMade, .row_bytes = 8});
    if (asked.num_sums > 1) parts.push_back({.source = Source::kMade, .row_bytes = 4 * kNumRewards});
    if (asked.is_copied) {
      parts.push_back({.source = Source::kStart, .row_bytes = 8, .field = kId});
      parts.push_back({.source = Source::kEnd, .row_bytes = 8, .field = kId});
      parts.push_back({.source = Source::kEnd, .row_bytes = 4, .field = kDiscount});
    }
    parts.push_back({.source = Source::kTicket, .row_bytes = 8});
    parts.push_back({.source = Source::kMade, .row_bytes = Ways::row_bytes(std::min<std::size_t>(asked.num_steps, 4))});
    return parts;
  }
  // Bit for bit.
  template <class T>
  [[nodiscard]] bool has(std::size_t part, std::size_t i, T value) const {
    return std::memcmp(block_.part(part) + i * sizeof value, &value, sizeof value) == 0;
  }

  Asked asked_;
  WindowRule rule_;
  Block block_;
};

// Makes a call the owner of lanes as long as it lives.
class Entered {
 public:
  Entered(Lanes& lanes, std::span<const std::int64_t> numbers) : lanes_{lanes}, numbers_{numbers} {
    CHECK_EQ(lanes.enter(numbers, owner()), Lanes::kNone);
  }
  ~Entered() { lanes_.leave(numbers_, owner()); }
  Entered(const Entered&) = delete;
  Entered& operator=(const Entered&) = delete;

 private:
  [[nodiscard]] Lanes::Owner owner() const { return reinterpret_cast<Lanes::Owner>(this); }

  Lanes& lanes_;
  std::span<const std::int64_t> numbers_;
};

// A ring with lanes, and the oracle of what is inserted.
struct Streams {
  Shape shape;
  Ring ring;
  Lanes lanes;
  Oracle oracle;
  std::uint64_t next_id = 1;

  Streams(const Shape& of, std::size_t capacity, std::size_t num_lanes)
      : shape{of}, ring{of.layout(), capacity}, lanes{ring, num_lanes, of.ends(ring)}, oracle{num_lanes} {}

  // One row for each lane that is named; ends[i] says whether it ends its trajectory.
  void insert(std::span<const std::int64_t> numbers, const std::vector<bool>& ends, Priorities* priorities = nullptr) {
    const std::vector<Step> steps = new_steps(ends);
    const Ticket first = ring.num_reserved();
    const Entered entered{lanes, numbers};
    const Batch batch{shape, steps};
    std::vector<double> given;
    for (const Step& step : steps) given.push_back(static_cast<double>(step.id));
    for (std::size_t done = 0; done < steps.size();) {
      const std::size_t chunk = std::min(steps.size() - done, ring.max_rows_per_insert());
      const Lanes::NewRows links{lanes, numbers.data(), {}};
      const auto patience = std::chrono::seconds{10};
      CHECK(priorities == nullptr ? insert_beside(ring, batch.rows(), done, chunk, patience, links)
                                  : insert_beside(ring, batch.rows(), done, chunk, patience,
                                                  Priorities::NewRows{*priorities, given.data()}, links));
      done += chunk;
    }
    note(first, numbers, steps);
  }

  // A writer that stops when `num_published` of its rows are published: the caller's thread goes on without it.
  void insert_unfinished(std::span<const std::int64_t> numbers, std::size_t num_published, Priorities& priorities) {
    const std::vector<Step> steps = new_steps(std::vector<bool>(numbers.size()));
    CHECK_EQ(lanes.enter(numbers, next_id), Lanes::kNone);
    const Batch batch{shape, steps};
    Ticket first = 0;
    CHECK(ring.reserve(steps.size(), std::chrono::seconds{10}, first));
    ring.write(batch.rows(), 0, ring.slot(first), steps.size());
    std::vector<double> given;
    for (const Step& step : steps) given.push_back(static_cast<double>(step.id));
    Priorities::NewRows{priorities, given.data()}.begin(first, 0, steps.size());
    Lanes::NewRows{lanes, numbers.data(), {}}.begin(first, 0, steps.size());
    if (num_published > 0) const Ring::Claim claim{ring, first, num_published};
    note(first, numbers, steps);
  }

  void cut(std::size_t lane) {
    const auto number = static_cast<std::int64_t>(lane);
    const Entered entered{lanes, {&number, 1}};
    lanes.cut(lane);
    oracle.cut(lane);
  }

  // Samples, and compares every row.
  bool compare(Sampler& sampler, const View& view) {
    const Following following{lanes, view.rule()};
    const std::size_t num_rows = sampler.sample(ring, view.block(), 0, &following);
    if (num_rows == 0) return ring.window().reserved() == 0;
    for (std::size_t row = 0; row < num_rows; ++row) {
      if (!view.is_right(oracle, row)) return false;
    }
    return true;
  }

 private:
  std::vector<Step> new_steps(const std::vector<bool>& ends) {
    std::vector<Step> steps;
    for (const bool end : ends) steps.push_back({.id = next_id++, .ends = end});
    return steps;
  }
  void note(Ticket first, std::span<const std::int64_t> numbers, const std::vector<Step>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i)
      oracle.add(first + i, static_cast<std::size_t>(numbers[i]), steps[i]);
  }
};

}  // namespace lane_rows
