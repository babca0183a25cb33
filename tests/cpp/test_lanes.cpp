// SPDX-License-Identifier: MIT
// Lanes and n steps along them: every part of every row against lists of episodes, bit for bit; owners; what was saved,
// or was left in the child after a fork; and writers that lap small rings beside samplers, where each row must tell
// consecutive steps of one episode and stop early only where there was no more.
//
// Built a second time as test_lanes_yields, where threads stop at every step of the ring's protocol.
//
// FASTREPLAY_LANE_WINDOWS sets how many rows are sampled beside writers in all.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batch/helpers.hpp"
#include "check.hpp"
#include "lane_rows.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using lane_rows::Asked;
using lane_rows::end_types;
using lane_rows::Entered;
using lane_rows::Lanes;
using lane_rows::Oracle;
using lane_rows::plain_shape;
using lane_rows::Priorities;
using lane_rows::Ring;
using lane_rows::Sampler;
using lane_rows::Shape;
using lane_rows::Step;
using lane_rows::Streams;
using lane_rows::Ticket;
using lane_rows::View;

namespace {

constexpr fastreplay::Philox::Key kKey{5, 6};
constexpr Asked kPlain{.num_steps = 5, .num_sums = 1, .is_discounted = false, .is_discount_double = false};

std::vector<Asked> all_asked() {
  return {kPlain,
          {.num_steps = 1, .num_sums = 2, .is_discounted = true, .is_discount_double = true},
          {.num_steps = 2, .num_sums = 1, .is_discounted = true, .is_discount_double = false, .is_copied = false},
          {.num_steps = 3, .num_sums = 2, .is_discounted = false, .is_discount_double = true},
          {.num_steps = 17, .num_sums = 0, .is_discounted = true, .is_discount_double = true},
          {.num_steps = 70, .num_sums = 2, .is_discounted = true, .is_discount_double = true}};
}

std::vector<View> views_of(const Shape& shape, std::size_t batch_size) {
  std::vector<View> views;
  for (const Asked& asked : all_asked()) views.emplace_back(shape, asked, batch_size);
  return views;
}

std::vector<bool> random_ends(check::Random& random, std::size_t count, std::uint64_t one_in) {
  std::vector<bool> ends(count);
  for (std::size_t i = 0; i < count; ++i) ends[i] = random.below(one_in) == 0;
  return ends;
}

std::vector<std::int64_t> random_lanes(check::Random& random, std::size_t num_lanes, std::size_t count) {
  std::vector<std::int64_t> lanes(count);
  for (std::int64_t& lane : lanes) lane = static_cast<std::int64_t>(random.below(num_lanes));
  return lanes;
}

// Inserts of a few rows of any lanes, cuts, and now and then everything is cleared.
void insert_at_random(Streams& streams, check::Random& random, std::uint64_t one_in) {
  const std::size_t num_lanes = streams.lanes.num_lanes();
  const std::uint64_t choice = random.below(100);
  if (choice < 5) return streams.cut(random.below(num_lanes));
  if (choice < 6) return streams.ring.clear();
  const std::size_t num_rows = 1 + random.below(2 * streams.ring.max_rows_per_insert());
  streams.insert(random_lanes(random, num_lanes, num_rows), random_ends(random, num_rows, one_in));
}

void test_rows_are_those_of_the_oracle(std::size_t capacity, std::size_t num_lanes, const Shape& shape) {
  check::Random random{capacity * 10 + num_lanes};
  Streams streams{shape, capacity, num_lanes};
  Sampler sampler{kKey};
  const std::vector<View> views = views_of(shape, 48);
  const std::uint64_t one_in = capacity > 7 ? 25 : 4;
  for (int turn = 0; turn < 400; ++turn) {
    insert_at_random(streams, random, one_in);
    if (turn % 4 != 0) continue;
    CHECK(streams.compare(sampler, views[random.below(views.size())]));
  }
  for (const View& view : views) CHECK(streams.compare(sampler, view));
}

// Chunks and parts: rows of many, several threads, a trajectory over the whole ring.
void test_large_minibatches() {
  Streams streams{plain_shape(), 4096, 2};
  check::Random random{8};
  while (streams.ring.num_reserved() < 9000) {
    const std::size_t num_rows = 1 + random.below(512);
    streams.insert(random_lanes(random, 2, num_rows), random_ends(random, num_rows, 500));
  }
  Sampler sampler{kKey};
  for (const unsigned threads : {1U, 3U}) {
    fastreplay::set_num_threads(threads);
    for (const std::size_t batch_size : {257, 20'000}) {
      for (const View& view : views_of(plain_shape(), batch_size)) CHECK(streams.compare(sampler, view));
    }
  }
  fastreplay::set_num_threads(1);
}

// One lane alone, without an end: the distance is one, and the last step before the ring is full counts too.
void test_one_long_trajectory() {
  for (const std::size_t capacity : {1, 2, 3, 9}) {
    Streams streams{plain_shape(), capacity, 1};
    Sampler sampler{kKey};
    const View view{
        plain_shape(), {.num_steps = 70, .num_sums = 2, .is_discounted = false, .is_discount_double = true}, 32};
    const std::vector<std::int64_t> lane{0};
    for (std::size_t i = 0; i < 3 * capacity + 2; ++i) {
      streams.insert(lane, {false});
      CHECK(streams.compare(sampler, view));
    }
  }
}

void test_capacities_are_limited() {
  using Links = Lanes::Links;
  CHECK(check::throws<std::invalid_argument>([] { const Links links{std::size_t{fastreplay::kMostGap} + 1}; }));
  const Links links{1000};
  CHECK_EQ(links.capacity(), 1000U);
  CHECK(links.num_bytes() >= 16'000U);
  CHECK(fastreplay::is_gap(1) && fastreplay::is_gap(fastreplay::kMostGap));
  for (const fastreplay::Gap gap : {0U, 0xFFFF'FFFDU, 0xFFFF'FFFEU, 0xFFFF'FFFFU}) CHECK(!fastreplay::is_gap(gap));
  Streams streams{plain_shape(), 8, 3};
  CHECK(std::ranges::equal(streams.lanes.in_order(), std::array<std::int64_t, 3>{0, 1, 2}));
  CHECK(streams.lanes.num_bytes() >= 8 * 16U);
}

void test_lanes_have_one_owner() {
  Streams streams{plain_shape(), 16, 4};
  Lanes& lanes = streams.lanes;
  const std::vector<std::int64_t> twice{2, 1, 2, 2};
  CHECK_EQ(lanes.enter(twice, 7), Lanes::kNone);
  CHECK_EQ(lanes.enter(twice, 7), Lanes::kNone);  // they are the caller's
  // Row 2 is of a busy lane: nothing is taken.
  const std::vector<std::int64_t> others{0, 3, 1, 0};
  CHECK_EQ(lanes.enter(others, 9), 2U);
  const std::vector<std::int64_t> free{0, 3};
  CHECK_EQ(lanes.enter(free, 11), Lanes::kNone);
  lanes.leave(others, 9);  // of which none is its own
  CHECK_EQ(lanes.enter(free, 9), 0U);
  CHECK_EQ(lanes.enter(twice, 9), 0U);
  lanes.leave(twice, 7);
  lanes.leave(free, 11);
  CHECK_EQ(lanes.enter(others, 9), Lanes::kNone);
  lanes.leave(others, 9);
  CHECK_EQ(lanes.enter({}, 9), Lanes::kNone);
}

// One of many threads at a time: each counts on in its lanes without any other order.
void test_owners_follow_each_other() {
  constexpr std::size_t kThreads = 3;
  constexpr std::uint64_t kTurns = 3000;
  Streams streams{plain_shape(), 16, 2};
  std::array<std::uint64_t, 2> counts{};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, owner = i + 1] {
      const std::array<std::array<std::int64_t, 2>, 2> both{{{0, 1}, {1, 0}}};
      for (std::uint64_t turn = 0; turn < kTurns;) {
        const auto& numbers = both[turn % 2];
        if (streams.lanes.enter(numbers, owner) != Lanes::kNone) {
          std::this_thread::yield();
          continue;
        }
        for (std::uint64_t& count : counts) ++count;
        streams.lanes.leave(numbers, owner);
        ++turn;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::uint64_t count : counts) CHECK_EQ(count, kThreads * kTurns);
}

void test_ends_are_noted() {
  Streams streams{plain_shape(), 32, 2};
  Lanes& lanes = streams.lanes;
  const std::vector<std::int64_t> both{0, 1};
  const auto has_ended = [&](bool first, bool second) {
    return lanes.has_ended(0) == first && lanes.has_ended(1) == second;
  };
  CHECK(has_ended(false, false));
  streams.insert(both, {true, false});
  CHECK(has_ended(true, false));
  // The next row of the first lane only resets; in the second one goes by, and then one that ends.
  const auto leave_out = [&](std::size_t lane, bool is_end) {
    std::vector<fastreplay::Rows> fields;
    const std::vector<std::byte> bytes(4096, std::byte{is_end});
    for (std::size_t f = 0; f < streams.ring.records().layout().columns().size(); ++f) {
      fields.push_back({.data = bytes.data(), .stride_bytes = 0});
    }
    lanes.leave_out(lane, fields, 3);
  };
  leave_out(0, false);
  CHECK(has_ended(false, false));
  leave_out(1, false);
  streams.oracle.cut(1);
  CHECK(has_ended(false, false));
  leave_out(1, true);
  CHECK(has_ended(false, true));
  leave_out(1, false);
  CHECK(has_ended(false, false));
  streams.insert(both, {false, true});
  CHECK(has_ended(false, true));
  for (const std::size_t lane : {0, 1}) streams.cut(lane);  // of one that ended, too
  CHECK(has_ended(false, false));
  streams.insert(both, {false, false});
  streams.insert(both, {false, false});
  CHECK(!lanes.skips_resets());
  lanes.skip_resets(true);
  CHECK(lanes.skips_resets());
  Sampler sampler{kKey};
  for (const View& view : views_of(plain_shape(), 64)) CHECK(streams.compare(sampler, view));
}

struct Saved {
  Ticket first;
  std::vector<std::uint32_t> lanes;
  std::vector<std::uint8_t> links;
};

Saved save(const Streams& streams, Ticket first, Ticket end) {
  Saved saved{.first = first,
              .lanes = std::vector<std::uint32_t>(end - first),
              .links = std::vector<std::uint8_t>(end - first)};
  CHECK(streams.lanes.save(first, saved.lanes, saved.links) <= first);
  return saved;
}

// Puts the transitions of [first, end) into a ring that is empty, at their tickets.
void put_back(Streams& from, Streams& into, Ticket first, Ticket end) {
  into.ring.start_at(first);
  for (Ticket ticket = first; ticket < end; ++ticket) {
    const Step& step = from.oracle.step(ticket);
    CHECK(into.ring.insert(lane_rows::Batch{into.shape, {&step, 1}}.rows(), 0, 1, std::chrono::seconds{10}));
  }
  into.next_id = from.next_id;
}

// In runs of a few, as they are read from a file. False where a lane is none.
bool restore(Streams& into, const Saved& saved) {
  constexpr std::size_t kTogether = 7;
  for (std::size_t at = 0; at < saved.lanes.size(); at += kTogether) {
    const std::size_t count = std::min(kTogether, saved.lanes.size() - at);
    const auto lanes = std::span{saved.lanes}.subspan(at, count);
    if (!into.lanes.restore(saved.first + at, lanes, std::span{saved.links}.subspan(at, count))) return false;
  }
  into.lanes.link_restored(saved.first, saved.first + saved.lanes.size());
  return true;
}

struct RoundTrip {
  std::size_t capacity;     // of the ring that is restored
  std::size_t num_missing;  // links at the beginning
  std::size_t num_late;     // transitions that came after those that were saved, and before their links were
};

void test_saved_links_come_back(const RoundTrip& trip, std::uint64_t seed) {
  constexpr std::size_t kLanes = 4;
  check::Random random{seed};
  Streams before{plain_shape(), 24, kLanes};
  for (int turn = 0; turn < 40; ++turn) insert_at_random(before, random, 6);
  const fastreplay::Window window = before.ring.window();
  const Ticket end = window.end - std::min<Ticket>(trip.num_late, window.reserved());
  const Saved saved = save(before, std::min(window.first + trip.num_missing, window.end), window.end);

  Streams after{plain_shape(), trip.capacity, kLanes};
  put_back(before, after, window.first, end);
  Streams few{plain_shape(), trip.capacity, 1};
  put_back(before, few, window.first, end);
  const bool has_others = std::ranges::any_of(saved.lanes, [](std::uint32_t lane) { return lane > 0; });
  CHECK_EQ(restore(few, saved), !has_others);
  CHECK(restore(after, saved));

  // Lanes that there are not change nothing.
  std::vector<std::uint32_t> wrong = saved.lanes;
  wrong.push_back(kLanes);
  std::vector<std::uint8_t> links = saved.links;
  links.push_back(0);
  CHECK(!after.lanes.restore(saved.first, wrong, links));

  // What is known of the transitions that are there; nothing goes on from one whose successor came too late.
  std::map<Ticket, Ticket> places;
  for (Ticket ticket = std::max(after.ring.window().first, saved.first); ticket < end; ++ticket)
    places[ticket] = ticket;
  std::vector<bool> begins_anew(kLanes);
  for (Ticket ticket = end; ticket < window.end; ++ticket) begins_anew[before.oracle.lane(ticket)] = true;
  after.oracle = before.oracle.moved(places, begins_anew);
  for (Ticket ticket = window.first; ticket < std::min(saved.first, end); ++ticket) {
    after.oracle.add_alone(ticket, before.oracle.step(ticket));
  }
  Sampler sampler{kKey};
  const std::vector<View> views = views_of(plain_shape(), 64);
  for (int turn = 0; turn < 12; ++turn) {
    for (const View& view : views) CHECK(after.compare(sampler, view));
    const std::size_t num_rows = 1 + random.below(2);
    after.insert(random_lanes(random, kLanes, num_rows), random_ends(random, num_rows, 8));
  }
}

struct States {
  explicit States(Lanes& lanes) : states(lanes.num_lanes()), ends(lanes.num_lanes()) {
    lanes.save_states(states, ends);
  }

  [[nodiscard]] bool operator==(const States&) const = default;

  std::vector<std::uint8_t> states;
  std::vector<Ticket> ends;
};

// Lanes go on as they stood, whatever of them is in the ring: before a trajectory, in one, after an end, and where
// nobody knows what came last; one that somebody was in begins anew.
void test_saved_states_come_back() {
  using fastreplay::SavedLink;
  constexpr std::uint8_t kBeginning = 0, kMidway = 1, kEnd = 2, kBroken = 3;
  Streams before{plain_shape(), 6, 6};
  const auto insert = [](Streams& streams, std::int64_t lane, bool is_end) {
    streams.insert(std::vector<std::int64_t>{lane}, {is_end});
  };
  for (const std::int64_t lane : {5, 4, 3}) insert(before, lane, lane == 4);  // that leave the ring
  insert(before, 0, false);
  before.cut(0);
  insert(before, 1, false);
  insert(before, 2, true);
  for (int i = 0; i < 3; ++i) insert(before, 1, false);
  before.cut(5);
  States saved{before.lanes};
  CHECK((saved.states == std::vector<std::uint8_t>{kBeginning, kMidway, kEnd, kMidway, kEnd, kBeginning}));
  CHECK((saved.ends == std::vector<Ticket>{4, 9, 6, 3, 2, 1}));
  {
    const std::vector<std::int64_t> held{2};
    const Entered entered{before.lanes, held};
    CHECK_EQ(States{before.lanes}.states[2], Lanes::kNobodyKnows);
  }

  const fastreplay::Window window = before.ring.window();
  const Saved links = save(before, window.first, window.end);
  const auto restored = [&](const States& states) {
    auto after = std::make_unique<Streams>(plain_shape(), 6, 6);
    put_back(before, *after, window.first, window.end);
    CHECK(restore(*after, links));
    const States anew{after->lanes};
    for (const auto& [few_states, few_ends] : {std::pair{std::span{states.states}.first(5), std::span{states.ends}},
                                               std::pair{std::span{states.states}, std::span{states.ends}.first(5)}}) {
      CHECK(!after->lanes.restore_states(few_states, few_ends));
    }
    std::vector<std::uint8_t> none = states.states;
    none.back() = Lanes::kNobodyKnows + 1;
    CHECK(!after->lanes.restore_states(none, states.ends));
    CHECK(States{after->lanes} == anew);  // what was refused has changed nothing
    CHECK(after->lanes.restore_states(states.states, states.ends));
    return after;
  };
  const std::unique_ptr<Streams> after = restored(saved);
  CHECK((States{after->lanes}.states ==
         std::vector<std::uint8_t>{kBeginning, kMidway, kEnd, kBroken, kEnd, kBeginning}));  // lane 3's newest is lost
  for (std::int64_t lane = 0; lane < 6; ++lane) insert(*after, lane, false);
  const Saved next = save(*after, 9, 15);
  const auto is = [&](std::size_t lane, SavedLink::Bits bits) {
    CHECK_EQ(next.links[lane] & SavedLink::kBefore, bits);
  };
  for (const std::size_t lane : {0, 2, 4, 5}) is(lane, SavedLink::kBegins);
  is(1, SavedLink::kContinues);
  is(3, SavedLink::kUnknown);

  // Of what nobody knew, or of after the links were saved, a lane keeps what its links say; one without is broken.
  saved.states[2] = Lanes::kNobodyKnows;
  saved.states[5] = Lanes::kNobodyKnows;
  saved.ends[4] = 10;
  const std::unique_ptr<Streams> unknown = restored(saved);
  CHECK((States{unknown->lanes}.states ==
         std::vector<std::uint8_t>{kBeginning, kMidway, kEnd, kBroken, kBroken, kBroken}));
}

// Transitions that were cleared are still there, and linked; none of them is given.
void test_what_was_cleared_is_not_gone_back_to() {
  constexpr std::size_t kSteps = 5;
  const fastreplay::Steps steps{.first = 1 - static_cast<std::int64_t>(kSteps), .count = kSteps, .stride = 1};
  const std::vector<fastreplay::Part> parts{{fastreplay::Source::kMade, kSteps * sizeof(std::uint64_t)},
                                            {fastreplay::Source::kTicket, sizeof(std::uint64_t)},
                                            {fastreplay::Source::kMade, fastreplay::Ways::row_bytes(kSteps)}};
  for (const std::size_t margin_bytes : {std::size_t{0}, Lanes::Links::kLinkBytes}) {
    Ring ring{fastreplay::RecordLayout{{{.row_bytes = 8, .alignment = 8}}, {}, margin_bytes}, 64};
    Lanes lanes{ring, 1, {}};
    const std::int64_t lane = 0;
    for (std::uint64_t number = 0; number < 30; ++number) {
      if (number == 20) ring.clear();
      const fastreplay::Rows row{reinterpret_cast<const std::byte*>(&number), sizeof number};
      const std::span fields{&row, 1};
      CHECK(
          fastreplay::insert_beside(ring, fields, 0, 1, std::chrono::seconds{1}, Lanes::NewRows{lanes, &lane, fields}));
    }
    fastreplay::WindowRule rule;
    rule.most_before = kSteps - 1;
    rule.ways_part = 2;
    rule.taken = {{.steps = steps, .pads_with_zeros = false, .is_first_only = false, .fields = {0}, .parts = {0}}};
    const fastreplay::Block block{parts, 200};
    Sampler sampler{kKey};
    const fastreplay::Following following{lanes, rule};
    CHECK_EQ(sampler.sample(ring, block, 0, &following), 200U);
    for (std::size_t row = 0; row < 200; ++row) {
      const auto* given = reinterpret_cast<const std::uint64_t*>(block.part(0)) + row * kSteps;
      const std::uint64_t drawn = block.tickets()[row];
      for (std::size_t k = 0; k < kSteps; ++k) CHECK_EQ(given[k], std::max<std::uint64_t>(20, drawn + k + 1 - kSteps));
    }
  }
}

// A transition whose predecessor had left the ring begins nothing, and is not said to.
void test_what_was_lost_is_no_beginning() {
  using fastreplay::SavedLink;
  const auto before = [](const Streams& streams, Ticket ticket) {
    return save(streams, ticket, ticket + 1).links.front() & SavedLink::kBefore;
  };
  for (const std::size_t capacity : {1, 4}) {
    Streams streams{plain_shape(), capacity, 2};
    streams.insert(std::vector<std::int64_t>{0}, {false});
    CHECK_EQ(before(streams, 0), SavedLink::kBegins);
    streams.insert(std::vector<std::int64_t>(capacity - 1, 1), std::vector<bool>(capacity - 1));
    streams.insert(std::vector<std::int64_t>{0}, {true});  // of the first one's slot
    CHECK_EQ(before(streams, capacity), SavedLink::kUnknown);
    streams.insert(std::vector<std::int64_t>{0}, {false});
    CHECK_EQ(before(streams, capacity + 1), SavedLink::kBegins);
    if (capacity == 1) continue;
    streams.insert(std::vector<std::int64_t>{0}, {false});
    CHECK_EQ(before(streams, capacity + 2), SavedLink::kContinues);
  }
}

// A writer per lane stops at any point, others go on; then the unfinished rows are gone, and what came later moves.
class Fork {
 public:
  explicit Fork(std::uint64_t seed) : random_{seed} {}

  void test() {
    for (int turn = 0; turn < 30; ++turn) insert({0, 1, 2, 3, 4}, 1 + random_.below(4));
    stop_writers();
    const Oracle before = streams_.oracle;
    const fastreplay::Window window = streams_.ring.window();
    std::map<Ticket, Ticket> places;
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      if (!unfinished_.contains(ticket)) places[ticket] = ticket;
    }
    discard(places);
    const fastreplay::Window after = streams_.ring.window();
    // None but the oldest may be lost, which lie in the slots that the child writes next.
    std::erase_if(places, [&](const auto& place) { return place.second < after.first; });
    CHECK_EQ(places.size(), after.reserved());
    std::vector<bool> begins_anew(kLanes);
    for (const std::int64_t lane : stopped_) begins_anew[static_cast<std::size_t>(lane)] = true;
    streams_.oracle = before.moved(places, begins_anew);
    check();
    // A child of its own finds everything as it is.
    discard({});
    check();
    save_and_restore();
    for (int turn = 0; turn < 12; ++turn) {
      insert({0, 1, 2, 3, 4}, 1 + random_.below(3));
      check();
    }
  }

 private:
  static constexpr std::size_t kLanes = 5;

  void insert(const std::vector<std::int64_t>& among, std::size_t num_rows) {
    std::vector<std::int64_t> lanes(num_rows);
    for (std::int64_t& lane : lanes) lane = among[random_.below(among.size())];
    streams_.insert(lanes, random_ends(random_, num_rows, 6), &priorities_);
  }

  void stop_writers() {
    for (const std::vector<std::int64_t>& lanes : std::vector<std::vector<std::int64_t>>{{0, 0, 1}, {2}, {3, 3}}) {
      const std::size_t num_published = random_.below(lanes.size());
      const Ticket first = streams_.ring.num_reserved();
      streams_.insert_unfinished(lanes, num_published, priorities_);
      for (Ticket ticket = first + num_published; ticket < first + lanes.size(); ++ticket) unfinished_.insert(ticket);
      stopped_.insert(stopped_.end(), lanes.begin(), lanes.end());
      insert(lanes.front() == 0   ? std::vector<std::int64_t>{2, 3, 4}
             : lanes.front() == 2 ? std::vector<std::int64_t>{3, 4}
                                  : std::vector<std::int64_t>{4},
             1 + random_.below(3));
    }
  }

  // As the bindings do.
  void discard(std::map<Ticket, Ticket>&& none) { discard(none); }
  void discard(std::map<Ticket, Ticket>& places) {
    Ticket last = 0;
    streams_.ring.discard_unfinished([&](Ticket from, Ticket to) {
      CHECK(to < from && to >= last);
      last = to;
      if (const auto place = places.find(from); place != places.end()) place->second = to;
      priorities_.move(from, to);
      streams_.lanes.move(from, to);
    });
    priorities_.begin_in_child();
    streams_.lanes.begin_in_child();
  }

  void check() {
    for (const View& view : views_) CHECK(streams_.compare(sampler_, view));
    const fastreplay::Window window = streams_.ring.window();
    std::vector<float> masses(window.reserved());
    priorities_.read(window.first, masses);
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      CHECK_EQ(masses[ticket - window.first], static_cast<float>(streams_.oracle.step(ticket).id));
    }
    std::vector<std::uint32_t> lanes(window.reserved());
    std::vector<std::uint8_t> links(window.reserved());
    CHECK(streams_.lanes.save(window.first, lanes, links) <= window.first);
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      CHECK_EQ(lanes[ticket - window.first], streams_.oracle.lane(ticket));
    }
  }

  // A lane whose writer stopped begins anew, wherever its transitions go.
  void save_and_restore() {
    const fastreplay::Window window = streams_.ring.window();
    const Saved saved = save(streams_, window.first, window.end);
    CHECK(restore(streams_, saved));
    check();
  }

  check::Random random_;
  Streams streams_{plain_shape(), 32, kLanes};
  Priorities priorities_{streams_.ring, {.alpha = 1, .eps = 0, .floor = 0}, -1, false};
  Sampler sampler_{kKey};
  std::vector<View> views_ = views_of(plain_shape(), 64);
  std::set<Ticket> unfinished_;
  std::vector<std::int64_t> stopped_;
};

// ---- beside writers ----

#if defined(FASTREPLAY_STOP_POINTS)
constexpr std::uint64_t kDefaultWindows = 300'000;
#else
constexpr std::uint64_t kDefaultWindows = 5'000'000;
#endif

// Which step of which episode a transition is, and how long that is, from its number in its lane: episodes of 1 to 12
// steps follow each other, every other one cut in place of an end.
struct Place {
  std::uint64_t episode = 0;
  std::uint64_t step = 0;

  [[nodiscard]] std::uint64_t length(std::size_t lane) const {
    return 1 + check::Random{episode * 64 + lane}.below(12);
  }
  [[nodiscard]] bool is_last(std::size_t lane) const { return step + 1 == length(lane); }
  [[nodiscard]] bool is_cut(std::size_t lane) const { return is_last(lane) && episode % 2 == 1; }
  void go_on(std::size_t lane) {
    const bool was_last = is_last(lane);
    step = was_last ? 0 : step + 1;
    episode += was_last ? 1 : 0;
  }
};

// A whole number, so that sums of some of them with powers of a half are exact.
double reward_of(std::size_t lane, const Place& place) {
  return static_cast<double>(check::Random{(place.episode * 16 + place.step) * 64 + lane}.below(1 << 20));
}

struct Row {
  std::uint64_t lane;
  std::uint64_t episode;
  std::uint64_t step;
  std::uint64_t number;  // in its lane
  double reward;
  bool ends;
};

struct Trial {
  static constexpr std::size_t kLanesOfOne = 2;
  static constexpr std::size_t kSteps = 5;

  std::size_t capacity;
  std::size_t num_writers;
  std::size_t num_samplers;
  std::uint64_t num_windows;

  Ring ring{
      fastreplay::RecordLayout{
          {{.row_bytes = 32, .alignment = 8}, {.row_bytes = 8, .alignment = 8}, {.row_bytes = 1, .alignment = 1}}},
      capacity};
  Lanes lanes{ring, num_writers * kLanesOfOne, {{2, ring.records().layout().columns()[2], 1, false}}};
  fastreplay::WindowRule rule{
      .most_before = 0,
      .most_after = kSteps - 1,
      .is_redrawn = false,
      .ways_part = 6,
      .taken = {},
      .said = {},
      .sums = fastreplay::SumRule{
          .gamma = 0.5,
          .sums = {{.of = {.column = ring.records().layout().columns()[1], .is_double = true}, .part = 2}},
          .stored_discount = {},
          .discount_part = 3,
          .is_discount_double = true}};
  // Three steps before and four after, each as the record has it; padded, or drawn again.
  static constexpr std::size_t kBefore = 3;
  static constexpr std::size_t kAround = 8;
  fastreplay::WindowRule padded = around(false);
  fastreplay::WindowRule complete = around(true);
  [[nodiscard]] static fastreplay::WindowRule around(bool is_redrawn) {
    const fastreplay::Steps steps{.first = -static_cast<std::int64_t>(kBefore), .count = kAround, .stride = 1};
    return {.most_before = kBefore,
            .most_after = kAround - kBefore - 1,
            .is_redrawn = is_redrawn,
            .ways_part = 5,
            .taken = {{.steps = steps, .pads_with_zeros = false, .is_first_only = false, .fields = {0}, .parts = {0}}},
            .said = {{.steps = steps, .what = fastreplay::Saying::kReal, .part = 1},
                     {.steps = steps, .what = fastreplay::Saying::kTrained, .part = 2},
                     {.steps = steps, .what = fastreplay::Saying::kFirst, .part = 3}},
            .sums = std::nullopt};
  }
  // How many transitions of each lane are in, and linked.
  std::vector<std::atomic<std::uint64_t>> num_linked =
      std::vector<std::atomic<std::uint64_t>>(num_writers * kLanesOfOne);
  std::atomic<std::uint64_t> num_sampled{0};
  std::atomic<bool> writers_done{false};

  [[nodiscard]] bool is_done() const {
    // relaxed: when it stops does not matter.
    return num_sampled.load(std::memory_order_relaxed) >= num_windows;
  }
};

struct Wrong {
  std::uint64_t starts = 0;     // that are no transition of their lane
  std::uint64_t lengths = 0;    // past the end of their episode, or of no step
  std::uint64_t sums = 0;       // of other steps
  std::uint64_t ends = 0;       // records of another step than the last
  std::uint64_t shortened = 0;  // although the next step was there
  std::uint64_t around = 0;     // steps that do not follow each other, or that are said to be what they are not
  std::uint64_t stuck = 0;      // inserts that were refused

  [[nodiscard]] std::uint64_t total() const { return starts + lengths + sums + ends + shortened + around + stuck; }
};

class Writer {
 public:
  Writer(Trial& trial, std::size_t number, Wrong& wrong) : trial_{trial}, number_{number}, wrong_{wrong} {}

  void run() {
    check::Random random{number_};
    while (!trial_.is_done()) {
      const std::size_t num_rows =
          1 + random.below(std::min<std::size_t>(trial_.ring.max_rows_per_insert(), kMostRows));
      std::vector<std::int64_t> lanes(num_rows);
      for (std::int64_t& lane : lanes)
        lane = first_lane() + static_cast<std::int64_t>(random.below(Trial::kLanesOfOne));
      if (!insert(lanes)) return static_cast<void>(++wrong_.stuck);
      if (random.below(64) == 0) std::this_thread::yield();
    }
  }

 private:
  static constexpr std::size_t kMostRows = 8;

  [[nodiscard]] std::int64_t first_lane() const { return static_cast<std::int64_t>(number_ * Trial::kLanesOfOne); }

  // Up to a cut, which takes the lanes as an insert does.
  bool insert(std::span<const std::int64_t> lanes) {
    std::array<Row, kMostRows> rows;
    std::size_t num_rows = 0;
    std::int64_t cut = -1;
    while (num_rows < lanes.size() && cut < 0) {
      const auto lane = static_cast<std::size_t>(lanes[num_rows]);
      Place& place = places_[lane % Trial::kLanesOfOne];
      rows[num_rows++] = {.lane = lane,
                          .episode = place.episode,
                          .step = place.step,
                          .number = numbers_[lane % Trial::kLanesOfOne]++,
                          .reward = reward_of(lane, place),
                          .ends = place.is_last(lane) && !place.is_cut(lane)};
      if (place.is_cut(lane)) cut = lanes[num_rows - 1];
      place.go_on(lane);
    }
    const auto owner = reinterpret_cast<Lanes::Owner>(this);
    if (trial_.lanes.enter(lanes, owner) != Lanes::kNone) return false;
    const std::array<fastreplay::Rows, 3> fields{{{reinterpret_cast<const std::byte*>(&rows[0].lane), sizeof(Row)},
                                                  {reinterpret_cast<const std::byte*>(&rows[0].reward), sizeof(Row)},
                                                  {reinterpret_cast<const std::byte*>(&rows[0].ends), sizeof(Row)}}};
    const bool went_in = insert_beside(trial_.ring, fields, 0, num_rows, std::chrono::minutes{5},
                                       Lanes::NewRows{trial_.lanes, lanes.data(), {}});
    if (cut >= 0) trial_.lanes.cut(static_cast<std::size_t>(cut));
    trial_.lanes.leave(lanes, owner);
    for (std::size_t i = 0; i < num_rows; ++i) {
      // release: who sees the number sees the link; partner: the acquire load in Watcher.
      trial_.num_linked[rows[i].lane].store(rows[i].number + 1, std::memory_order_release);
    }
    return went_in;
  }

  Trial& trial_;
  std::size_t number_;
  Wrong& wrong_;
  std::array<Place, Trial::kLanesOfOne> places_{};
  std::array<std::uint64_t, Trial::kLanesOfOne> numbers_{};
};

class Watcher {
 public:
  Watcher(Trial& trial, std::uint64_t seed, Wrong& wrong) : trial_{trial}, sampler_{{seed, 3}}, wrong_{wrong} {}

  void run() {
    while (!trial_.is_done()) sample();
  }

  void sample() {
    for (std::size_t lane = 0; lane < num_linked_.size(); ++lane) {
      // acquire: what is counted is linked; partner: the release store in Writer.
      num_linked_[lane] = trial_.num_linked[lane].load(std::memory_order_acquire);
    }
    const fastreplay::Following following{trial_.lanes, trial_.rule};
    const std::size_t num_rows = sampler_.sample(trial_.ring, block_, 0, &following);
    for (std::size_t row = 0; row < num_rows; ++row) verify(row);
    const std::size_t num_around = sample_around(trial_.padded) + sample_around(trial_.complete);
    // relaxed: a pace.
    trial_.num_sampled.fetch_add(num_rows + num_around, std::memory_order_relaxed);
    if (num_rows == 0) std::this_thread::yield();
  }

 private:
  using Key = std::array<std::uint64_t, 4>;  // lane, episode, step, number

  template <class T>
  [[nodiscard]] T part(std::size_t i, std::size_t row) const {
    T value;
    std::memcpy(&value, block_.part(i) + row * sizeof value, sizeof value);
    return value;
  }

  void verify(std::size_t row) {
    const auto [lane, episode, step, number] = part<Key>(0, row);
    Place place{episode, step};
    if (lane >= num_linked_.size() || step >= place.length(lane) || part<double>(4, row) != reward_of(lane, place)) {
      ++wrong_.starts;
      return;
    }
    std::uint64_t num_steps = 0;
    while (num_steps < Trial::kSteps && std::ldexp(1.0, -static_cast<int>(num_steps)) != part<double>(3, row))
      ++num_steps;
    if (num_steps == 0 || std::ldexp(1.0, -static_cast<int>(num_steps)) != part<double>(3, row) ||
        step + num_steps > place.length(lane)) {
      ++wrong_.lengths;
      return;
    }
    double sum = 0;
    for (std::uint64_t k = 0; k < num_steps; ++k) {
      sum += std::ldexp(reward_of(lane, {episode, step + k}), -static_cast<int>(k));
    }
    if (sum != part<double>(2, row)) ++wrong_.sums;
    if (part<Key>(1, row) != Key{lane, episode, step + num_steps - 1, number + num_steps - 1}) ++wrong_.ends;
    place.step += num_steps - 1;
    const bool is_short = num_steps < Trial::kSteps && !place.is_last(lane);
    if (is_short && number + num_steps < num_linked_[lane]) ++wrong_.shortened;
  }

  std::size_t sample_around(const fastreplay::WindowRule& rule) {
    const fastreplay::Following following{trial_.lanes, rule};
    const std::size_t num_rows = sampler_.sample(trial_.ring, around_, 0, &following);
    for (std::size_t row = 0; row < num_rows; ++row) wrong_.around += is_right(row, rule.is_redrawn) ? 0 : 1;
    return num_rows;
  }

  // What follows each other does so in its lane, what is missing the trajectory has not, or the ring.
  [[nodiscard]] bool is_right(std::size_t row, bool is_complete) const {
    constexpr std::size_t kDrawn = Trial::kBefore;
    const auto keys = std::span{reinterpret_cast<const Key*>(around_.part(0)), 32 * Trial::kAround}.subspan(
        row * Trial::kAround, Trial::kAround);
    const auto is = [&](std::size_t what, std::size_t k) {
      return around_.part(what)[row * Trial::kAround + k] == std::byte{1};
    };
    const auto [lane, episode, drawn_step, drawn_number] = keys[kDrawn];
    const Place drawn{episode, drawn_step};
    if (lane >= num_linked_.size() || drawn_step >= drawn.length(lane) || !is(1, kDrawn)) return false;
    std::size_t begin = kDrawn;
    std::size_t end = kDrawn + 1;
    while (begin > 0 && is(1, begin - 1)) --begin;
    while (end < Trial::kAround && is(1, end)) ++end;
    for (std::size_t k = 0; k < Trial::kAround; ++k) {
      const std::size_t nearest = std::clamp(k, begin, end - 1);
      const Key expected{lane, episode, drawn_step + nearest - kDrawn, drawn_number + nearest - kDrawn};
      const bool is_there = k == nearest;
      if (keys[k] != expected || is(1, k) != is_there || is(2, k) != (is_there && k >= kDrawn)) return false;
      if (is(3, k) != (is_there && keys[k][2] == 0)) return false;
    }
    if (is_complete && begin > 0 && keys[begin][2] != 0) return false;
    const bool is_last = keys[end - 1][2] + 1 == drawn.length(lane);
    return end == Trial::kAround || is_last || (!is_complete && keys[end - 1][3] + 1 >= num_linked_[lane]);
  }

  Trial& trial_;
  Sampler sampler_;
  Wrong& wrong_;
  fastreplay::Block around_{
      {{.source = fastreplay::Source::kMade, .row_bytes = 32 * Trial::kAround},
       {.source = fastreplay::Source::kMade, .row_bytes = Trial::kAround},
       {.source = fastreplay::Source::kMade, .row_bytes = Trial::kAround},
       {.source = fastreplay::Source::kMade, .row_bytes = Trial::kAround},
       {.source = fastreplay::Source::kTicket, .row_bytes = 8},
       {.source = fastreplay::Source::kMade, .row_bytes = fastreplay::Ways::row_bytes(Trial::kAround)}},
      32};
  std::vector<std::uint64_t> num_linked_ = std::vector<std::uint64_t>(trial_.num_linked.size());
  fastreplay::Block block_{{{.source = fastreplay::Source::kStart, .row_bytes = 32, .field = 0},
                            {.source = fastreplay::Source::kEnd, .row_bytes = 32, .field = 0},
                            {.source = fastreplay::Source::kMade, .row_bytes = 8},
                            {.source = fastreplay::Source::kMade, .row_bytes = 8},
                            {.source = fastreplay::Source::kStart, .row_bytes = 8, .field = 1},
                            {.source = fastreplay::Source::kTicket, .row_bytes = 8},
                            {.source = fastreplay::Source::kMade, .row_bytes = fastreplay::Ways::row_bytes(2)}},
                           64};
};

void test_beside_writers(std::size_t capacity, std::size_t num_writers, std::size_t num_samplers,
                         std::uint64_t num_windows) {
  Trial trial{
      .capacity = capacity, .num_writers = num_writers, .num_samplers = num_samplers, .num_windows = num_windows};
  std::vector<Wrong> wrong(num_writers + num_samplers);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < num_writers; ++i) {
    threads.emplace_back([&, i] { Writer{trial, i, wrong[i]}.run(); });
  }
  for (std::size_t i = 0; i < num_samplers; ++i) {
    threads.emplace_back([&, i] { Watcher{trial, i, wrong[num_writers + i]}.run(); });
  }
  for (std::thread& thread : threads) thread.join();
  Watcher{trial, 99, wrong[0]}.sample();  // at rest: the next step is there, or there is none
  for (const Wrong& each : wrong) {
    CHECK_EQ(each.total(), 0U);
    if (each.total() == 0) continue;
    std::cerr << "capacity " << capacity << ", writers " << num_writers << ", samplers " << num_samplers << ": "
              << each.starts << " starts, " << each.lengths << " lengths, " << each.sums << " sums, " << each.ends
              << " ends, " << each.shortened << " shortened, " << each.around << " around; " << each.stuck
              << " stuck\n";
  }
}

void test_beside_writers() {
  const char* wanted = std::getenv("FASTREPLAY_LANE_WINDOWS");
  const std::uint64_t num_windows = wanted == nullptr ? kDefaultWindows : std::strtoull(wanted, nullptr, 10);
  constexpr std::array<std::size_t, 6> kCapacities{1, 2, 7, 24, 64, 1000};
  for (const std::size_t capacity : kCapacities) {
    for (const auto& [writers, samplers] : {std::pair{1, 1}, std::pair{2, 1}, std::pair{3, 2}}) {
      test_beside_writers(capacity, static_cast<std::size_t>(writers), static_cast<std::size_t>(samplers),
                          num_windows / (3 * kCapacities.size()));
    }
  }
}

}  // namespace

int main() {
  const std::vector<lane_rows::EndType> types = end_types();
  for (const std::size_t capacity : {1, 2, 3, 7, 64}) {
    for (std::size_t i = 0; i < types.size(); ++i) {
      test_rows_are_those_of_the_oracle(capacity, 1 + i, {types[i], types[(i + 1) % types.size()]});
    }
  }
  test_large_minibatches();
  test_one_long_trajectory();
  test_capacities_are_limited();
  test_lanes_have_one_owner();
  test_owners_follow_each_other();
  test_ends_are_noted();
  test_saved_states_come_back();
  test_what_was_lost_is_no_beginning();
  test_what_was_cleared_is_not_gone_back_to();
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    for (const std::size_t capacity : {24, 9, 50}) {
      for (const std::size_t num_missing : {0, 5, 100}) test_saved_links_come_back({capacity, num_missing, 0}, seed);
      test_saved_links_come_back({capacity, 0, 3}, seed);
      test_saved_links_come_back({capacity, 2, 3}, seed);
    }
    Fork{seed}.test();
  }
  test_beside_writers();
  return check::result();
}
