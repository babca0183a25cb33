// SPDX-License-Identifier: MIT
// Frames that transitions have in common: every row against what was given, and how much lies beside the records;
// pages that are given back; the child after a fork; and writers that lap small rings beside samplers, where each frame
// must be the one that its transition's number says.
//
// Built a second time as test_frames_yields, where threads stop at every step of the ring's protocol.
//
// FASTREPLAY_FRAME_ROWS sets how many rows are sampled beside writers in all.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "check.hpp"
#include "frame_rows.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using fastreplay::Block;
using fastreplay::Lanes;
using fastreplay::Part;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Source;
using fastreplay::Ticket;
using frame_rows::Group;
using frame_rows::Row;
using frame_rows::Shape;
using frame_rows::Streams;

namespace {

constexpr fastreplay::Philox::Key kKey{7, 8};

std::vector<std::int64_t> random_lanes(check::Random& random, std::size_t num_lanes, std::size_t count) {
  std::vector<std::int64_t> lanes(count);
  // The first comes so seldom that frames of its latest transition are gone.
  for (std::int64_t& lane : lanes) {
    lane = random.below(40) == 0 ? 0 : static_cast<std::int64_t>(random.below(num_lanes));
  }
  return lanes;
}

Shape random_shape(check::Random& random) {
  constexpr std::array<std::size_t, 9> kBytes{1, 2, 3, 8, 24, 100, 256, 1001, 5000};
  Shape shape;
  for (std::uint64_t left = 1 + random.below(3); left > 0; --left) {
    shape.groups.push_back({.num_fields = 1 + random.below(2),
                            .num_frames = 1 + random.below(4),
                            .frame_bytes = kBytes[random.below(kBytes.size())]});
  }
  return shape;
}

void check_samples(Streams& streams, const std::vector<Part>& parts, Sampler& sampler) {
  const Block block{parts, 50};
  const std::size_t num_rows = sampler.sample(streams.ring, block, 1);
  CHECK_EQ(num_rows, streams.ring.window().reserved() == 0 ? 0U : 50U);
  bool right = true;
  for (std::size_t row = 0; row < num_rows; ++row) right &= streams.is_right(block, row);
  CHECK(right);
}

void test_rows_are_what_was_given(std::uint64_t seed) {
  check::Random random{seed};
  constexpr std::array<std::size_t, 5> kWindows{1, 2, 5, 24, 100};
  const std::size_t num_lanes = 1 + random.below(5);
  const std::size_t num_spare = 1 + random.below(4) * num_lanes * 2;
  Streams streams{random_shape(random), kWindows[random.below(kWindows.size())], num_spare, num_lanes};
  const auto& layout = streams.ring.records().layout();
  Sampler uniform{kKey};
  Sampler by_priority{kKey, streams.priorities, {}};
  const std::uint64_t one_in = random.below(4) == 0 ? 0 : 2 + random.below(20);
  for (int turn = 0; turn < 60; ++turn) {
    const std::uint64_t choice = random.below(30);
    if (choice == 0) streams.ring.clear();
    if (choice == 1) {
      const auto lane = static_cast<std::int64_t>(random.below(num_lanes));
      CHECK_EQ(streams.lanes.enter({&lane, 1}, 5), Lanes::kNone);
      streams.lanes.cut(static_cast<std::size_t>(lane));
      streams.lanes.leave({&lane, 1}, 5);
    }
    streams.insert(random_lanes(random, num_lanes, 1 + random.below(12)), one_in);
    CHECK(streams.is_right());
    CHECK_EQ(streams.lanes.frames()->num_bytes(), streams.expected.num_bytes());
  }
  check_samples(streams, transition_parts(layout), uniform);
  check_samples(streams, weighted_parts(layout), by_priority);
  const std::size_t counted = streams.lanes.frames()->num_bytes();
  streams.lanes.frames()->count();
  CHECK_EQ(streams.lanes.frames()->num_bytes(), counted);
}

// A stack that begins with one frame has it beside its record, where it is stored once; what goes on has none.
void test_what_goes_on_has_nothing_beside_it(const Group& group) {
  constexpr std::size_t kWindow = 40;
  Streams streams{{{group}}, kWindow, 9, 1};
  const std::vector<std::int64_t> lane{0};
  const std::size_t per_reset = streams.ring.records().layout().extra_bytes() < 4096
                                    ? group.frame_bytes
                                    : (group.frame_bytes + 4095) / 4096 * 4096;
  const std::size_t without = streams.lanes.num_bytes();
  const bool has_older = group.num_fields * group.num_frames > 1;
  for (std::size_t resets = 1; resets < 4; ++resets) {
    streams.stacks[0].reset();
    for (int step = 0; step < 10; ++step) {
      streams.insert(lane, 0);
      CHECK_EQ(streams.lanes.frames()->num_bytes(), has_older ? resets * per_reset : 0U);
    }
    CHECK(streams.is_right());
  }
  CHECK_EQ(streams.lanes.num_bytes(), without + streams.lanes.frames()->num_bytes());
  for (std::size_t i = 0; i < streams.ring.capacity(); ++i) streams.insert(lane, 0);
  CHECK_EQ(streams.lanes.frames()->num_bytes(), 0U);
  CHECK(streams.is_right());
}

// Of the memory beside the records.
std::size_t num_resident_pages(Streams& streams) {
  constexpr std::size_t kPage = 4096;
  auto& records = streams.ring.records();
  const std::size_t num_bytes = records.capacity() * records.layout().extra_bytes();
  std::vector<unsigned char> pages(num_bytes / kPage + 1);
  CHECK_EQ(mincore(records.beside(0), num_bytes, pages.data()), 0);
  return static_cast<std::size_t>(std::ranges::count_if(pages, [](unsigned char page) { return (page & 1) != 0; }));
}

void test_pages_are_given_back() {
  if (sysconf(_SC_PAGESIZE) != 4096) return;
  constexpr std::size_t kLanes = 8;
  // A frame takes two pages; seven would fit beside a record.
  Streams streams{{{{.num_fields = 2, .num_frames = 4, .frame_bytes = 5000}}}, 64, 64, kLanes};
  CHECK_EQ(streams.ring.records().layout().extra_bytes(), 36'864U);
  CHECK_EQ(num_resident_pages(streams), 0U);
  std::vector<std::int64_t> all(kLanes);
  for (std::size_t lane = 0; lane < kLanes; ++lane) all[lane] = static_cast<std::int64_t>(lane);
  for (std::size_t turn = 1; turn < 4; ++turn) {
    for (auto& stacks : streams.stacks) stacks.reset();
    streams.insert(all, 0);
    CHECK_EQ(num_resident_pages(streams), 2 * kLanes * turn);
  }
  CHECK(streams.is_right());
  for (std::size_t i = 0; i < 2 * streams.ring.capacity() / kLanes; ++i) streams.insert(all, 0);
  CHECK_EQ(num_resident_pages(streams), 0U);
  CHECK_EQ(streams.lanes.frames()->num_bytes(), 0U);
  CHECK(streams.is_right());
}

// ---- in the child after a fork ----

class Fork {
 public:
  Fork(Shape shape, std::size_t window_capacity, std::size_t num_spare, std::uint64_t seed)
      : random_{seed}, streams_{std::move(shape), window_capacity, num_spare, kLanes} {}

  void test() {
    for (std::uint64_t left = random_.below(80); left > 0; --left) insert({0, 1, 2, 3, 4}, 1 + random_.below(4));
    for (const std::vector<std::int64_t>& lanes : std::vector<std::vector<std::int64_t>>{{0, 0, 1}, {2}, {3, 3}}) {
      stop_writer(lanes);
      insert({4}, random_.below(4));
    }
    discard();
    check();
    discard();  // a child of its own
    check();
    for (int turn = 0; turn < 12; ++turn) {
      insert({0, 1, 2, 3, 4}, 1 + random_.below(3));
      check();
    }
    // Nothing is left beside records that go on.
    for (std::size_t i = 0; i < 2 * streams_.ring.capacity(); ++i) streams_.insert(std::vector<std::int64_t>{1}, 0);
    check();
    CHECK_EQ(streams_.lanes.frames()->num_bytes(), 0U);
  }

 private:
  static constexpr std::size_t kLanes = 5;

  void insert(const std::vector<std::int64_t>& among, std::size_t num_rows) {
    // Never more than the gate lets through.
    const std::size_t left = oldest_unfinished_ + streams_.ring.capacity() - streams_.ring.num_reserved();
    std::vector<std::int64_t> lanes(unfinished_.empty() ? num_rows : std::min(num_rows, left));
    for (std::int64_t& lane : lanes) lane = among[random_.below(among.size())];
    if (!lanes.empty()) streams_.insert(lanes, 12);
  }

  void stop_writer(const std::vector<std::int64_t>& lanes) {
    const Ticket first = streams_.ring.num_reserved();
    if (!unfinished_.empty() && first + lanes.size() > oldest_unfinished_ + streams_.ring.capacity()) return;
    const bool has_begun = random_.below(3) > 0;
    const std::size_t num_published = has_begun ? random_.below(lanes.size()) : 0;
    streams_.insert_unfinished(lanes, 12, num_published, has_begun ? lanes.size() : random_.below(lanes.size()));
    if (unfinished_.empty()) oldest_unfinished_ = first + num_published;
    for (Ticket ticket = first + num_published; ticket < first + lanes.size(); ++ticket) unfinished_.insert(ticket);
  }

  // As the bindings do.
  void discard() {
    std::map<Ticket, Row> rows;
    const fastreplay::Window before = streams_.ring.window();
    streams_.ring.discard_unfinished([&](Ticket from, Ticket to) {
      streams_.priorities.move(from, to);
      streams_.lanes.move(from, to);
      rows[to] = streams_.rows.at(from);
    });
    streams_.priorities.begin_in_child();
    streams_.lanes.begin_in_child();
    for (const auto& [ticket, row] : streams_.rows) {
      if (unfinished_.empty() || ticket < oldest_unfinished_) rows[ticket] = row;
    }
    streams_.rows = std::move(rows);
    // Of what was in the window only the oldest are gone, as many as were unfinished.
    const fastreplay::Window window = streams_.ring.window();
    CHECK_EQ(window.end, before.end - unfinished_.size());
    CHECK_EQ(window.first, std::min(before.first, window.end));
    unfinished_.clear();
  }

  void check() { CHECK(streams_.is_right()); }

  check::Random random_;
  Streams streams_;
  std::set<Ticket> unfinished_;
  Ticket oldest_unfinished_ = 0;
};

void test_forks() {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    check::Random random{seed + 1000};
    Fork{random_shape(random), 1 + random.below(40), 4 + random.below(30), seed}.test();
  }
}

// ---- beside writers ----

#if defined(FASTREPLAY_STOP_POINTS)
constexpr std::uint64_t kDefaultRows = 100'000;
#else
constexpr std::uint64_t kDefaultRows = 200'000;
#endif

// A step of a lane: frames are numbered on, `first` being that of its trajectory's beginning, which is repeated.
struct Key {
  std::uint64_t lane;
  std::uint64_t number;
  std::uint64_t first;

  bool operator==(const Key&) const = default;
};

constexpr std::size_t kKey0 = 0, kEnds = 1, kNow = 2, kNext = 3, kPast = 4;
constexpr std::size_t kStack = 4;      // of now and next
constexpr std::size_t kPastStack = 3;  // of a field of its own

struct Trial {
  std::size_t window_capacity;
  std::size_t num_spare;
  std::size_t frame_bytes;
  std::size_t num_writers;
  std::uint64_t num_rows;

  Ring ring{fastreplay::RecordLayout{
                {{.row_bytes = sizeof(Key), .alignment = 8},
                 {.row_bytes = 1, .alignment = 1},
                 {.row_bytes = kStack * frame_bytes, .alignment = 8},
                 {.row_bytes = kStack * frame_bytes, .alignment = 8},
                 {.row_bytes = kPastStack * frame_bytes, .alignment = 8}},
                {{.fields = {kNow, kNext}, .num_frames = kStack}, {.fields = {kPast}, .num_frames = kPastStack}}},
            window_capacity + num_spare, num_spare};
  Lanes lanes{ring, num_writers, {{kEnds, ring.records().layout().columns()[kEnds], 1, false}}};
  fastreplay::Priorities priorities{ring, {.alpha = 1, .eps = 0, .floor = 0}, -1, false};
  std::atomic<std::uint64_t> num_sampled{0};

  [[nodiscard]] bool is_done() const {
    // relaxed: when it stops does not matter.
    return num_sampled.load(std::memory_order_relaxed) >= num_rows;
  }
  // Frame i of a stack that ends with frame `newest`.
  static std::uint64_t frame(const Key& key, std::size_t group, std::uint64_t newest, std::size_t n, std::size_t i) {
    const std::uint64_t number = newest + 1 + i < key.first + n ? key.first : newest + 1 + i - n;
    return (2 * key.lane + group + 1) << 48 | number;
  }
};

struct Wrong {
  std::uint64_t frames = 0;  // of another transition, or torn
  std::uint64_t steps = 0;   // that do not follow each other
  std::uint64_t stuck = 0;   // inserts that were refused
};

class Writer {
 public:
  Writer(Trial& trial, std::size_t lane, Wrong& wrong) : trial_{trial}, lane_{lane}, wrong_{wrong} {}

  void run() {
    check::Random random{lane_};
    while (!trial_.is_done()) {
      const std::size_t num_rows =
          1 + random.below(std::min<std::size_t>(trial_.ring.max_rows_per_insert(), kMostRows));
      if (!insert(num_rows, random)) return static_cast<void>(++wrong_.stuck);
      // The first falls behind now and then, so that it finds what it goes on from gone.
      for (std::uint64_t i = random.below(lane_ == 0 ? 64 : 256) == 0 ? 16 : 0; i > 0; --i) std::this_thread::yield();
    }
  }

 private:
  static constexpr std::size_t kMostRows = 8;

  bool insert(std::size_t num_rows, check::Random& random) {
    std::array<std::vector<std::byte>, 3> stacks;
    std::array<Key, kMostRows> keys;
    std::array<std::byte, kMostRows> ends;
    std::array<double, kMostRows> masses;
    const std::size_t n = trial_.frame_bytes;
    const std::array<std::size_t, 3> row_bytes{kStack * n, kStack * n, kPastStack * n};
    for (std::size_t f = 0; f < 3; ++f) stacks[f].resize(num_rows * row_bytes[f]);
    for (std::size_t row = 0; row < num_rows; ++row) {
      keys[row] = key_;
      ends[row] = std::byte{random.below(9) == 0};
      masses[row] = static_cast<double>(1 + key_.number % 5);
      for (std::size_t i = 0; i < kStack; ++i) {
        put(stacks[0].data() + row * row_bytes[0] + i * n, Trial::frame(key_, 0, key_.number, kStack, i));
        put(stacks[1].data() + row * row_bytes[1] + i * n, Trial::frame(key_, 0, key_.number + 1, kStack, i));
      }
      for (std::size_t i = 0; i < kPastStack; ++i) {
        put(stacks[2].data() + row * row_bytes[2] + i * n, Trial::frame(key_, 1, key_.number, kPastStack, i));
      }
      key_.number += ends[row] == std::byte{1} ? 2 : 1;
      if (ends[row] == std::byte{1}) key_.first = key_.number;
    }
    const std::array<fastreplay::Rows, 5> fields{{{reinterpret_cast<const std::byte*>(keys.data()), sizeof(Key)},
                                                  {ends.data(), 1},
                                                  {stacks[0].data(), row_bytes[0]},
                                                  {stacks[1].data(), row_bytes[1]},
                                                  {stacks[2].data(), row_bytes[2]}}};
    const std::array<std::int64_t, kMostRows> lane = [&] {
      std::array<std::int64_t, kMostRows> all;
      all.fill(static_cast<std::int64_t>(lane_));
      return all;
    }();
    const std::span<const std::int64_t> number{lane.data(), 1};
    if (trial_.lanes.enter(number, lane_ + 1) != Lanes::kNone) return false;
    std::array<fastreplay::Rows, 16> columns;
    const bool went_in =
        insert_beside(trial_.ring, trial_.lanes.frames()->stored_as_given(fields, columns), 0, num_rows,
                      std::chrono::minutes{5}, fastreplay::Priorities::NewRows{trial_.priorities, masses.data()},
                      Lanes::NewRows{trial_.lanes, lane.data(), fields});
    trial_.lanes.leave(number, lane_ + 1);
    return went_in;
  }
  void put(std::byte* at, std::uint64_t frame) const { frame_rows::put_frame(at, frame, trial_.frame_bytes); }

  Trial& trial_;
  std::size_t lane_;
  Wrong& wrong_;
  Key key_{.lane = lane_, .number = 0, .first = 0};
};

class Watcher {
 public:
  Watcher(Trial& trial, std::uint64_t seed, Wrong& wrong)
      : trial_{trial}, uniform_{{seed, 3}}, by_priority_{{seed, 4}, trial.priorities, {}}, wrong_{wrong} {
    CHECK(fits(n_steps_, layout(), surrounded_.layout()));
    CHECK(fits(around_, layout(), sequences_.layout()));
  }

  void run() {
    while (!trial_.is_done()) sample();
  }

  void sample() {
    const std::size_t num_rows = by_priority_.sample(trial_.ring, weighted_, 1);
    for (std::size_t row = 0; row < num_rows; ++row) {
      verify(key(weighted_, kKey0, row), weighted_, row, {kNow, kNext, kPast});
    }
    const fastreplay::Following few{trial_.lanes, n_steps_};
    const std::size_t num_surrounded = uniform_.sample(trial_.ring, surrounded_, 0, &few);
    for (std::size_t row = 0; row < num_surrounded; ++row) verify_steps(row);
    const fastreplay::Following many{trial_.lanes, around_};
    const std::size_t num_sequences = uniform_.sample(trial_.ring, sequences_, 0, &many);
    for (std::size_t row = 0; row < num_sequences; ++row) verify_sequence(row);
    // relaxed: a pace.
    trial_.num_sampled.fetch_add(num_rows + num_surrounded + num_sequences, std::memory_order_relaxed);
    if (num_rows == 0) std::this_thread::yield();
  }

 private:
  static constexpr std::size_t kSteps = 5;
  static constexpr std::size_t kBefore = 3;
  static constexpr std::size_t kAround = 8;
  static constexpr std::size_t kRows = 32;

  [[nodiscard]] const fastreplay::RecordLayout& layout() const { return trial_.ring.records().layout(); }
  [[nodiscard]] std::size_t row_bytes(std::size_t field) const { return layout().columns()[field].row_bytes; }
  [[nodiscard]] static Key key(const Block& block, std::size_t part, std::size_t row) {
    Key key;
    std::memcpy(&key, block.part(part) + row * sizeof key, sizeof key);
    return key;
  }
  [[nodiscard]] bool is_known(const Key& key) const { return key.lane < trial_.num_writers && key.first <= key.number; }

  // Parts that have the stacks of now, of next and of the past: of a record of that key.
  void verify(const Key& key, const Block& block, std::size_t row, const std::array<std::size_t, 3>& parts) {
    if (!is_known(key)) return static_cast<void>(++wrong_.frames);
    for (std::size_t which = 0; which < 3; ++which) {
      if (parts[which] == fastreplay::BatchLayout::kNone) continue;
      const std::size_t n = which == 2 ? kPastStack : kStack;
      const std::byte* stack = block.part(parts[which]) + row * row_bytes(kNow + which);
      bool right = true;
      for (std::size_t i = 0; i < n; ++i) {
        const std::uint64_t frame = Trial::frame(key, which == 2 ? 1 : 0, key.number + (which == 1 ? 1 : 0), n, i);
        right &= frame_rows::is_frame(stack + i * trial_.frame_bytes, frame, trial_.frame_bytes);
      }
      wrong_.frames += right ? 0 : 1;
    }
  }

  void verify_steps(std::size_t row) {
    const Key begin = key(surrounded_, 0, row);
    const Key end = key(surrounded_, 4, row);
    verify(begin, surrounded_, row, {1, 2, 3});
    constexpr std::size_t kNone = fastreplay::BatchLayout::kNone;
    verify(end, surrounded_, row, {kNone, 5, kNone});
    const bool follows = begin.lane == end.lane && begin.first == end.first && end.number - begin.number < kSteps;
    wrong_.steps += follows ? 0 : 1;
  }

  void verify_sequence(std::size_t row) {
    const Key drawn = key(sequences_, 0, row * kAround + kBefore);
    for (std::size_t k = 0; k < kAround; ++k) {
      const std::size_t step = row * kAround + k;
      const Key of_step = key(sequences_, 0, step);
      verify(of_step, sequences_, step, {1, 2, 3});
      const bool is_real = sequences_.part(4)[step] == std::byte{1};
      const Key expected{drawn.lane, drawn.number + k - kBefore, drawn.first};
      wrong_.steps += !is_real || of_step == expected ? 0 : 1;
    }
  }

  [[nodiscard]] Part copied(Source source, std::size_t field) const {
    return {.source = source, .row_bytes = row_bytes(field), .field = field};
  }
  [[nodiscard]] static Part made(std::size_t num_bytes) { return {.source = Source::kMade, .row_bytes = num_bytes}; }
  static constexpr Part kTickets{.source = Source::kTicket, .row_bytes = 8};

  Trial& trial_;
  Sampler uniform_;
  Sampler by_priority_;
  Wrong& wrong_;
  fastreplay::WindowRule n_steps_{.most_before = 0,
                                  .most_after = kSteps - 1,
                                  .is_redrawn = false,
                                  .ways_part = 7,
                                  .taken = {},
                                  .said = {},
                                  .sums = std::nullopt};
  static constexpr fastreplay::Steps kTaken{
      .first = -static_cast<std::int64_t>(kBefore), .count = kAround, .stride = 1};
  fastreplay::WindowRule around_{.most_before = kBefore,
                                 .most_after = kAround - kBefore - 1,
                                 .is_redrawn = false,
                                 .ways_part = 6,
                                 .taken = {{.steps = kTaken,
                                            .pads_with_zeros = false,
                                            .is_first_only = false,
                                            .fields = {kKey0, kNow, kNext, kPast},
                                            .parts = {0, 1, 2, 3}}},
                                 .said = {{.steps = kTaken, .what = fastreplay::Saying::kReal, .part = 4}},
                                 .sums = std::nullopt};
  Block weighted_{weighted_parts(layout()), kRows};
  Block surrounded_{{copied(Source::kStart, kKey0), copied(Source::kStart, kNow), copied(Source::kStart, kNext),
                     copied(Source::kStart, kPast), copied(Source::kEnd, kKey0), copied(Source::kEnd, kNext), kTickets,
                     made(fastreplay::Ways::row_bytes(2))},
                    kRows};
  Block sequences_{
      {made(kAround * sizeof(Key)), made(kAround * row_bytes(kNow)), made(kAround * row_bytes(kNext)),
       made(kAround * row_bytes(kPast)), made(kAround), kTickets, made(fastreplay::Ways::row_bytes(kAround))},
      kRows};
};

void test_beside_writers(Trial& trial, std::size_t num_samplers) {
  std::vector<Wrong> wrong(trial.num_writers + num_samplers);
  std::deque<Watcher> watchers;
  for (std::size_t i = 0; i < num_samplers; ++i) watchers.emplace_back(trial, i, wrong[trial.num_writers + i]);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < trial.num_writers; ++i) {
    threads.emplace_back([&, i] { Writer{trial, i, wrong[i]}.run(); });
  }
  for (Watcher& watcher : watchers) threads.emplace_back([&] { watcher.run(); });
  for (std::thread& thread : threads) thread.join();
  watchers.front().sample();  // at rest
  const fastreplay::Population there = fastreplay::Priorities::Turn{trial.priorities}.population();
  CHECK_EQ(there.count, trial.ring.window().reserved());
  const std::size_t counted = trial.lanes.frames()->num_bytes();
  trial.lanes.frames()->count();
  CHECK_EQ(trial.lanes.frames()->num_bytes(), counted);
  for (const Wrong& each : wrong) {
    CHECK_EQ(each.frames, 0U);
    CHECK_EQ(each.steps, 0U);
    CHECK_EQ(each.stuck, 0U);
    if (each.frames + each.steps + each.stuck == 0) continue;
    std::cerr << "window " << trial.window_capacity << ", spare " << trial.num_spare << ", frames of "
              << trial.frame_bytes << ", writers " << trial.num_writers << ", samplers " << num_samplers << '\n';
  }
}

void test_beside_writers() {
  const char* wanted = std::getenv("FASTREPLAY_FRAME_ROWS");
  const std::uint64_t num_rows = wanted == nullptr ? kDefaultRows : std::strtoull(wanted, nullptr, 10);
  struct Size {
    std::size_t window_capacity;
    std::size_t num_spare;
    std::size_t frame_bytes;
  };
  constexpr std::array<Size, 7> kSizes{
      {{1, 1, 8}, {1, 12, 8}, {2, 30, 64}, {7, 8, 32}, {24, 24, 8}, {64, 40, 1024}, {700, 40, 16}}};
  for (const Size& size : kSizes) {
    for (const auto& [writers, samplers] : {std::pair{1, 1}, std::pair{2, 1}, std::pair{3, 2}}) {
      Trial trial{.window_capacity = size.window_capacity,
                  .num_spare = size.num_spare,
                  .frame_bytes = size.frame_bytes,
                  .num_writers = static_cast<std::size_t>(writers),
                  .num_rows = num_rows / (3 * kSizes.size())};
      test_beside_writers(trial, static_cast<std::size_t>(samplers));
    }
  }
}

}  // namespace

int main() {
  for (std::uint64_t seed = 0; seed < 100; ++seed) test_rows_are_what_was_given(seed);
  for (const std::size_t num_fields : {1, 2}) {
    for (const std::size_t num_frames : {1, 2, 4}) {
      for (const std::size_t frame_bytes : {8, 700, 5000}) {
        test_what_goes_on_has_nothing_beside_it({num_fields, num_frames, frame_bytes});
      }
    }
  }
  test_pages_are_given_back();
  test_forks();
  test_beside_writers();
  return check::result();
}
