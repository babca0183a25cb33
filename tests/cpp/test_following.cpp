// SPDX-License-Identifier: MIT
// The kernels that walk from drawn rows on a CUDA device and make what surrounds them: all their threads, by turns on
// the CPU, beside the CPU's own sampler from the same window, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "batch/sample.hpp"
#include "check.hpp"
#include "following_there.hpp"
#include "lane_rows.hpp"
#include "masses_there.hpp"
#include "priority/priorities.hpp"

using fastreplay::Block;
using fastreplay::Following;
using fastreplay::MassRule;
using fastreplay::Part;
using fastreplay::Philox;
using fastreplay::Priorities;
using fastreplay::PriorityOptions;
using fastreplay::Sampler;
using fastreplay::Saying;
using fastreplay::Source;
using fastreplay::Ways;
using fastreplay::WindowRule;
using lane_rows::Streams;
using masses_there::There;

namespace {

constexpr Philox::Key kKey{5, 6};

struct Form {
  WindowRule rule;
  std::vector<Part> parts;  // its ways are the last
};

std::size_t add(Form& form, std::size_t row_bytes) {
  form.parts.push_back({.source = Source::kMade, .row_bytes = row_bytes});
  return form.parts.size() - 1;
}

void end(Form& form, bool is_weighed) {
  if (is_weighed) form.parts.push_back({.source = Source::kWeight, .row_bytes = 4});
  if (is_weighed) form.parts.push_back({.source = Source::kProbability, .row_bytes = 4});
  form.parts.push_back({.source = Source::kTicket, .row_bytes = 8});
  const std::size_t after =
      form.rule.taken.empty() ? std::min<std::size_t>(form.rule.most_after, 3) : form.rule.most_after;
  form.rule.ways_part = add(form, Ways::row_bytes(form.rule.most_before + 1 + after));
}

// n steps as one, discounted by what is stored or not; more of them than have their slots kept.
Form n_steps(const Streams& streams, std::uint32_t n, bool is_discounted, bool is_redrawn, bool is_weighed) {
  const auto& columns = streams.ring.records().layout().columns();
  Form form;
  form.parts = {{.source = Source::kStart, .row_bytes = 8, .field = lane_rows::kId},
                {.source = Source::kEnd, .row_bytes = 8, .field = lane_rows::kId},
                {.source = Source::kEnd, .row_bytes = 4, .field = lane_rows::kDiscount}};
  form.rule.most_after = n - 1;
  form.rule.is_redrawn = is_redrawn;
  fastreplay::SumRule sums{
      .gamma = 0.9, .sums = {}, .stored_discount = {}, .discount_part = 0, .is_discount_double = n % 2 == 0};
  sums.sums.push_back({.of = {.column = columns[lane_rows::kReward], .is_double = true}, .part = add(form, 8)});
  sums.sums.push_back({.of = {.column = columns[lane_rows::kRewards], .is_double = false},
                       .part = add(form, 4 * lane_rows::kNumRewards)});
  if (is_discounted) sums.stored_discount = {{.column = columns[lane_rows::kDiscount], .is_double = false}};
  sums.discount_part = add(form, n % 2 == 0 ? 8 : 4);
  form.rule.sums = sums;
  end(form, is_weighed);
  return form;
}

// Steps before and after, of some fields; what is said of them.
Form around(const Streams& streams, const fastreplay::Steps& steps, bool is_redrawn, bool is_weighed) {
  const auto& columns = streams.ring.records().layout().columns();
  Form form;
  const std::int64_t last = steps.at(steps.count - 1);
  form.rule.most_before = static_cast<std::uint32_t>(std::max<std::int64_t>(0, -steps.first));
  form.rule.most_after = static_cast<std::uint32_t>(std::max<std::int64_t>(0, last));
  form.rule.is_redrawn = is_redrawn;
  form.rule.is_time_major = steps.count % 2 == 0;
  form.parts = {{.source = Source::kStart, .row_bytes = 8, .field = lane_rows::kId}, {}};
  const auto take = [&](const fastreplay::Steps& of, bool zeros, bool is_first_only, std::vector<std::size_t> fields) {
    std::vector<std::size_t> parts;
    for (const std::size_t field : fields) {
      parts.push_back(add(form, columns[field].row_bytes * (is_first_only ? 1 : of.count)));
    }
    form.rule.taken.push_back({of, zeros, is_first_only, fields, parts});
  };
  take(steps, false, false, {lane_rows::kId, lane_rows::kTruncated});
  take(steps, true, false, {lane_rows::kRewards});
  take(steps, false, true, {lane_rows::kReward});
  take({.first = 0, .count = 1, .stride = 1}, true, false, {lane_rows::kDiscount});
  // Given out otherwise: bytes as floats, with zeros where steps are not there, and where there are some.
  using namespace fastreplay;
  for (const bool zeros : {true, false}) {
    take(steps, zeros, false, {lane_rows::kTruncated});
    form.parts.back().conversion = {.from = Numbers::kInt8, .then = Then::kDivide, .factor = 3, .shift = {}};
    form.parts.back().row_bytes *= sizeof(float);
  }
  // Three floats as an image of bytes, which is shifted, and some converted besides.
  const Conversion shifted{.from = Numbers::kAsGiven,
                           .then = Then::kNothing,
                           .factor = 0,
                           .shift = {.most = 2, .number_bytes = 1, .height = 3, .width = 4}};
  form.parts[1] = {.source = Source::kStart, .row_bytes = 12, .field = lane_rows::kRewards, .conversion = shifted};
  for (const auto& [zeros, is_first_only] : {std::pair{true, false}, {false, false}, {false, true}}) {
    take(steps, zeros, is_first_only, {lane_rows::kRewards});
    form.parts.back().conversion = shifted;
    if (zeros) form.parts.back().conversion.from = Numbers::kUInt8;
    form.parts.back().row_bytes *= zeros ? sizeof(float) : 1;
  }
  for (const Saying what : {Saying::kReal, Saying::kTrained, Saying::kFirst}) {
    form.rule.said.push_back({steps, what, add(form, steps.count)});
  }
  end(form, is_weighed);
  return form;
}

std::vector<Form> forms(const Streams& streams, bool is_redrawn, bool is_weighed) {
  std::vector<Form> all;
  for (const std::uint32_t n : {1, 2, 3, 7}) all.push_back(n_steps(streams, n, n == 3, is_redrawn, is_weighed));
  for (const fastreplay::Steps& steps : {fastreplay::Steps{.first = -2, .count = 5, .stride = 1},
                                         {.first = -3, .count = 3, .stride = 3},
                                         {.first = 0, .count = 4, .stride = 2},
                                         {.first = 1, .count = 3, .stride = 2},
                                         {.first = -4, .count = 2, .stride = 2}}) {
    all.push_back(around(streams, steps, is_redrawn, is_weighed));
  }
  return all;
}

// How rows are drawn.
enum class By { kChance, kPriority, kTrajectory };

// A ring with lanes, and what a device has of it.
class Both {
 public:
  Both(std::size_t capacity, std::size_t num_lanes, By by_)
      : by{by_},
        streams{lane_rows::plain_shape(), capacity, num_lanes},
        links{streams.ring, streams.lanes},
        masses{capacity, {.alpha = 1, .eps = 0, .floor = 0}},
        random{capacity * 31 + num_lanes} {
    if (by == By::kPriority) here.emplace(streams.ring, MassRule{.alpha = 1, .eps = 0, .floor = 0}, -1, true);
  }

  void insert(std::uint64_t end_in) {
    std::vector<std::int64_t> numbers;
    std::vector<bool> ends;
    for (std::uint64_t count = 1 + random.below(streams.ring.capacity() + 5); count > 0; --count) {
      numbers.push_back(static_cast<std::int64_t>(random.below(streams.lanes.num_lanes())));
      ends.push_back(random.below(end_in) == 0);
    }
    streams.insert(numbers, ends, here ? &*here : nullptr);
    if (random.below(3) == 0) streams.cut(random.below(streams.lanes.num_lanes()));
    if (random.below(9) == 0) streams.ring.clear();
  }

  void flush() {
    window = links.flush(1 + random.below(streams.ring.capacity()), random);
    if (!here) return;
    std::vector<float> now(window.size);
    here->read(window.first, now);
    std::ranges::fill(masses.leaves(), 0.0F);
    for (std::size_t i = 0; i < now.size(); ++i) masses.leaves()[(window.first + i) % streams.ring.capacity()] = now[i];
    masses.settle(0, 0, 0, streams.ring.capacity());
  }

  // Draws on both from the window, and compares all parts but the ways. Returns whether the CPU found anything.
  bool compare(const Form& form, const PriorityOptions& options, std::size_t batch_size, std::uint64_t call) {
    const Block expected{form.parts, batch_size};
    const Block found{form.parts, batch_size};
    CHECK(fits(form.rule, streams.ring.records().layout(), expected.layout()));
    const auto made = following_there::made_of(streams.ring, form.rule, found, 5);
    const auto following = following_there::following_of(streams.ring, form.rule, found, links.data(), made);
    const auto offset = [&](Source source) { return here ? found.layout().offset_of(source) : 0; };
    const fastreplay_cuda_weighing weighing{.masses = masses.masses(),
                                            .is_stratified = options.is_stratified,
                                            .normalize = static_cast<std::uint64_t>(options.normalize),
                                            .uniform_mix = options.uniform_mix,
                                            .beta = 0,  // each side has a power function of its own
                                            .weights_offset = offset(Source::kWeight),
                                            .probabilities_offset = offset(Source::kProbability)};
    fastreplay_cuda_generator generator{};
    std::ranges::copy(kKey, generator.key);
    generator.calls = call;
    fastreplay_cuda_window set{};
    fastreplay_cuda_sampling sampling{};
    sampling.now = &window;
    sampling.window = &set;
    sampling.generator = &generator;
    sampling.records = streams.ring.records().data();
    sampling.stride = streams.ring.records().layout().stride();
    sampling.capacity = streams.ring.capacity();
    sampling.block = found.data();
    sampling.tickets_offset = found.layout().tickets_offset();
    sampling.batch_size = batch_size;
    sampling.weighing = here ? &weighing : nullptr;
    sampling.following = &following;
    sampling.trajectories = by == By::kTrajectory ? links.data() : nullptr;
    following_there::sample(sampling, random);
    Sampler sampler = here                    ? Sampler{kKey, *here, options, call}
                      : by == By::kTrajectory ? Sampler{kKey, streams.lanes, call}
                                              : Sampler{kKey, call};
    const Following rule{streams.lanes, form.rule};
    const bool is_drawn = sampler.sample(streams.ring, expected, 0, &rule) > 0;
    CHECK_EQ(is_drawn, window.size > 0 && generator.num_incomplete == 0);
    if (!is_drawn) return false;
    CHECK_EQ(generator.calls, sampler.calls());
    CHECK_EQ(generator.num_redraws, sampler.num_redraws());
    for (std::size_t part = 0; part + 1 < form.parts.size(); ++part) {
      const std::size_t num_bytes = batch_size * form.parts[part].row_bytes;
      CHECK(std::memcmp(found.part(part), expected.part(part), num_bytes) == 0);
    }
    return true;
  }

  // The tickets that are drawn over trajectories, of transitions by themselves.
  void compare_alone(std::size_t batch_size, std::uint64_t call) {
    const Block expected{transition_parts(streams.ring.records().layout()), batch_size};
    std::vector<std::uint64_t> tickets(batch_size);
    fastreplay_cuda_generator generator{};
    std::ranges::copy(kKey, generator.key);
    generator.calls = call;
    fastreplay_cuda_window set{};
    fastreplay_cuda_sampling sampling{};
    sampling.now = &window;
    sampling.window = &set;
    sampling.generator = &generator;
    sampling.capacity = streams.ring.capacity();
    sampling.block = tickets.data();
    sampling.batch_size = batch_size;
    sampling.trajectories = links.data();
    following_there::sample_alone(sampling, random);
    Sampler sampler{kKey, streams.lanes, call};
    if (sampler.sample(streams.ring, expected) == 0) return CHECK_EQ(window.size, 0U);
    CHECK(std::ranges::equal(tickets, expected.tickets()));
    CHECK_EQ(generator.calls, sampler.calls());
    CHECK_EQ(generator.num_sampled, batch_size);
  }

  By by;
  Streams streams;
  std::optional<Priorities> here;
  following_there::Links links;
  There masses;
  check::Random random;
  fastreplay_cuda_window window{};
};

void test_the_same_minibatches_as_on_the_cpu(By by) {
  for (const std::size_t capacity : {1, 2, 7, 24, 100}) {
    for (const std::size_t num_lanes : {1, 3}) {
      Both both{capacity, num_lanes, by};
      for (std::uint64_t step = 0; step < 24; ++step) {
        both.insert(step % 3 == 0 ? 3 : 20);
        if (step % 4 == 3) continue;  // several before the next flush
        both.flush();
        const PriorityOptions options{.is_stratified = step % 2 == 0,
                                      .normalize = fastreplay::Normalize::kBatch,
                                      .uniform_mix = step % 3 == 0 ? 0.3 : 0};
        if (by == By::kTrajectory) both.compare_alone(1 + 13 * (step % 3), step);
        const std::vector<Form> all = forms(both.streams, step % 2 == 1, by == By::kPriority);
        for (std::size_t i = step % 3; i < all.size(); i += 3) both.compare(all[i], options, 1 + 13 * (i % 3), step);
      }
    }
  }
}

// As many rows as a block has threads, and more.
void test_large_minibatches() {
  for (const By by : {By::kChance, By::kPriority, By::kTrajectory}) {
    Both both{100, 3, by};
    for (int i = 0; i < 3; ++i) both.insert(10);
    both.streams.insert(std::vector<std::int64_t>(50, 1), std::vector<bool>(50), both.here ? &*both.here : nullptr);
    both.flush();
    for (const std::size_t batch_size : {512, 513, 1030}) {
      const bool is_weighed = by == By::kPriority;
      CHECK(both.compare(n_steps(both.streams, 3, false, true, is_weighed), {}, batch_size, batch_size));
      if (by == By::kTrajectory) both.compare_alone(batch_size, batch_size);
    }
  }
}

// One complete row of many, which few attempts do not find, nor as many as there are transitions, always.
void test_one_complete_row_is_found(By by, std::uint64_t num_calls) {
  const int num_others = by == By::kTrajectory ? 2400 : 590;
  Both both{static_cast<std::size_t>(num_others) + 10, 1, by};
  Priorities* priorities = both.here ? &*both.here : nullptr;
  std::vector<bool> ends(7);
  ends[6] = true;  // its first step sees all of them
  both.streams.insert(std::vector<std::int64_t>(7, 0), ends, priorities);
  for (int i = 0; i < num_others; ++i) {  // each of which may go on
    both.streams.insert(std::vector<std::int64_t>{0}, {false}, priorities);
    if (i % 2 == 0) continue;
    const std::int64_t lane = 0;
    fastreplay::Lanes& lanes = both.streams.lanes;
    const lane_rows::Entered entered{lanes, {&lane, 1}};
    const std::vector<lane_rows::Step> step{{.id = 1, .ends = false}};
    lanes.leave_out(0, lane_rows::Batch{both.streams.shape, step}.rows(), 0);
  }
  both.flush();
  for (std::uint64_t call = 0; call < num_calls; ++call) {
    const bool is_weighed = by == By::kPriority;
    CHECK(both.compare(around(both.streams, {.first = -6, .count = 13, .stride = 1}, true, is_weighed), {}, 5, call));
  }
}

// What was cut after it had been sent; also where the next trajectory has begun by then.
void test_cuts_are_told() {
  Both both{50, 2, By::kChance};
  const Form form = n_steps(both.streams, 3, false, true, false);
  both.streams.insert(std::vector<std::int64_t>{0}, {false});
  both.flush();
  CHECK(!both.compare(form, {}, 4, 0));
  both.streams.cut(0);
  both.flush();
  CHECK(both.compare(form, {}, 4, 0));
  both.streams.insert(std::vector<std::int64_t>{1}, {false});
  both.flush();
  both.streams.cut(1);
  both.streams.insert(std::vector<std::int64_t>{1, 0}, {false, false});
  both.flush();
  for (std::uint64_t call = 0; call < 9; ++call) CHECK(both.compare(form, {}, 8, call));
}

// Nothing is complete: the rows are given as they are, and counted.
void test_nothing_complete_ends() {
  for (const By by : {By::kChance, By::kPriority, By::kTrajectory}) {
    Both both{1000, 1, by};
    both.streams.insert(std::vector<std::int64_t>(2, 0), {false, false}, both.here ? &*both.here : nullptr);
    both.flush();
    CHECK(!both.compare(n_steps(both.streams, 3, false, true, by == By::kPriority), {}, 40, 3));
  }
}

// One trajectory, whose beginning as many looks as there are transitions, twice, do not always find.
void test_one_long_trajectory() {
  Both both{300, 1, By::kTrajectory};
  both.streams.insert(std::vector<std::int64_t>(400, 0), std::vector<bool>(400));
  both.flush();
  for (std::uint64_t call = 0; call < 5; ++call) both.compare_alone(60, call);
}

}  // namespace

int main() {
  for (const By by : {By::kChance, By::kPriority, By::kTrajectory}) test_the_same_minibatches_as_on_the_cpu(by);
  test_large_minibatches();
  test_one_complete_row_is_found(By::kChance, 20);
  test_one_complete_row_is_found(By::kPriority, 20);
  test_one_complete_row_is_found(By::kTrajectory, 5);
  test_one_long_trajectory();
  test_cuts_are_told();
  test_nothing_complete_ends();
  return check::result();
}
