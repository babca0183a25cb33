// SPDX-License-Identifier: MIT
// Draws by priority: the sums against an oracle draw for draw, what has no mass, what is reserved, cleared or lapped,
// updates beside writers, weights.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "batch/sample.hpp"
#include "check.hpp"
#include "priority/power.hpp"
#include "priority/priorities.hpp"
#include "ring/ring.hpp"
#include "ring/stop_points.hpp"
#include "rows.hpp"

using fastreplay::Block;
using fastreplay::Drawn;
using fastreplay::kFanout;
using fastreplay::MassRule;
using fastreplay::Normalize;
using fastreplay::Philox;
using fastreplay::Priorities;
using fastreplay::PriorityOptions;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Source;
using fastreplay::Ticket;
using fastreplay::weighted_parts;

#if defined(FASTREPLAY_STOP_POINTS)
namespace {
std::function<void()> at_leaf_read;  // called once, in the middle of an update
}

namespace fastreplay {
void at_stop_point(StopPoint point) noexcept {
  if (point == StopPoint::kLeafRead && at_leaf_read) std::exchange(at_leaf_read, nullptr)();
}
}  // namespace fastreplay
#endif

namespace {

constexpr Philox::Key kKey{11, 22};
constexpr MassRule kPlain{.alpha = 1, .eps = 0, .floor = 0};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

RecordLayout small() { return RecordLayout{rows::fields_of(std::vector<std::size_t>{8, 3})}; }

bool insert(Priorities& priorities, std::uint64_t first_id, const std::vector<double>& given) {
  const rows::Batch batch{priorities.ring().records().layout(), first_id, given.size()};
  for (std::size_t done = 0; done < given.size();) {
    const std::size_t chunk = std::min(given.size() - done, priorities.ring().max_rows_per_insert());
    if (!priorities.insert(batch.rows(), done, chunk, std::chrono::seconds{10}, given.data())) return false;
    done += chunk;
  }
  return true;
}

std::vector<Ticket> tickets_from(Ticket first, std::size_t count) {
  std::vector<Ticket> tickets(count);
  for (std::size_t i = 0; i < count; ++i) tickets[i] = first + i;
  return tickets;
}

// Sixteen prefixes by the letter: four and four, each by itself, then added to the last before.
std::vector<float> prefixes_of(const float* masses) {
  std::vector<float> prefixes(kFanout);
  float carry = 0;
  for (std::size_t i = 0; i < kFanout; i += 4) {
    const float a = masses[i];
    const float b = masses[i + 1] + masses[i];
    const float c = masses[i + 2] + masses[i + 1];
    const float d = masses[i + 3] + masses[i + 2];
    prefixes[i] = a + 0.0F + carry;
    prefixes[i + 1] = b + carry;
    prefixes[i + 2] = (c + a) + carry;
    prefixes[i + 3] = (d + b) + carry;
    carry = prefixes[i + 3];
  }
  return prefixes;
}

// The tree as a reader of the description would write it.
class Oracle {
 public:
  explicit Oracle(std::vector<float> masses) {
    levels_.push_back(std::move(masses));
    do {
      std::vector<float>& below = levels_.back();
      below.resize((below.size() + kFanout - 1) / kFanout * kFanout);
      std::vector<float> above;
      for (std::size_t i = 0; i < below.size(); i += kFanout) above.push_back(prefixes_of(&below[i]).back());
      levels_.push_back(std::move(above));
    } while (levels_.back().size() > 1);
  }

  [[nodiscard]] float total() const { return levels_.back().front(); }

  [[nodiscard]] std::size_t find(double target) const {
    std::size_t at = 0;
    for (std::size_t level = levels_.size() - 1; level-- > 0;) {
      const std::vector<float> prefixes = prefixes_of(&levels_[level][at * kFanout]);
      const float where = std::min(static_cast<float>(target), std::nextafter(prefixes.back(), 0.0F));
      std::size_t child = 0;
      while (!(prefixes.at(child) > where)) ++child;
      if (child > 0) target = std::max(0.0, target - static_cast<double>(prefixes[child - 1]));
      at = at * kFanout + child;
    }
    return at;
  }

 private:
  std::vector<std::vector<float>> levels_;
};

// Over twelve decades, some of them zero.
std::vector<double> wild(std::size_t count, check::Random& random) {
  std::vector<double> masses(count);
  for (double& mass : masses) {
    mass = random.below(7) == 0 ? 0.0 : std::pow(10.0, static_cast<double>(random.below(12000)) / 1000 - 6);
  }
  return masses;
}

std::vector<float> narrowed(const std::vector<double>& values) {
  std::vector<float> floats;
  for (const double value : values) floats.push_back(static_cast<float>(value));
  return floats;
}

void check_draws(Priorities& priorities, const Oracle& oracle, const std::vector<float>& masses,
                 check::Random& random) {
  const Priorities::Turn turn{priorities};
  const double total = turn.population().total;
  CHECK_EQ(total, static_cast<double>(oracle.total()));
  std::vector<double> targets{0.0, std::nextafter(total, 0.0)};
  double before = 0;  // both edges of every leaf
  for (std::size_t i = 0; i < masses.size() && i < 3000; ++i) {
    before += static_cast<double>(masses[i]);
    for (const double edge : {std::nextafter(before, 0.0), before, std::nextafter(before, total)}) {
      if (edge < total) targets.push_back(edge);
    }
  }
  for (int i = 0; i < 3000; ++i) targets.push_back(static_cast<double>(random.below(1U << 30)) * 0x1p-30 * total);
  std::vector<double> consumed = targets;
  std::vector<Drawn> drawn(targets.size());
  turn.find(consumed, drawn);
  for (std::size_t i = 0; i < targets.size(); ++i) {
    const std::size_t expected = oracle.find(targets[i]);
    CHECK_EQ(drawn[i].ticket % priorities.ring().capacity(), expected);
    CHECK_EQ(drawn[i].mass, expected < masses.size() ? masses[expected] : 0.0F);
  }
}

void test_the_sums_are_those_of_the_oracle() {
  check::Random random{1};
  for (const std::size_t capacity : {1, 15, 16, 17, 255, 256, 257, 4095, 4097, 70000}) {
    Ring ring{small(), capacity};
    Priorities priorities{ring, kPlain, -1, true};
    std::vector<double> given = wild(capacity, random);
    if (*std::ranges::max_element(given) == 0) given.back() = 1;
    CHECK(insert(priorities, 0, given));
    std::vector<float> masses = narrowed(given);
    check_draws(priorities, Oracle{masses}, masses, random);
    // However many updates: as if built anew.
    for (int round = 0; round < 20; ++round) {
      const std::size_t count = std::min<std::size_t>(capacity, 100);
      std::vector<Ticket> some(count);
      for (Ticket& ticket : some) ticket = random.below(capacity);
      const std::vector<double> values = wild(count, random);
      const auto [applied, stale] = priorities.update(some, values);
      CHECK_EQ(applied, count);
      CHECK_EQ(stale, 0U);
      for (std::size_t i = 0; i < count; ++i) masses[some[i]] = static_cast<float>(values[i]);  // the last wins
    }
    if (*std::ranges::max_element(masses) == 0) continue;
    check_draws(priorities, Oracle{masses}, masses, random);
    const Priorities::Turn turn{priorities};
    const auto has_mass = [](float mass) { return mass > 0; };
    CHECK_EQ(turn.population().count, static_cast<std::uint64_t>(std::ranges::count_if(masses, has_mass)));
    float smallest = std::numeric_limits<float>::infinity();
    for (const float mass : masses) smallest = mass > 0 ? std::min(smallest, mass) : smallest;
    CHECK_EQ(turn.population().smallest, smallest);
  }
}

// Every share of the total is within a millionth of what it is in exact numbers.
void test_probabilities_are_exact() {
  check::Random random{2};
  const std::size_t capacity = 5000;
  Ring ring{small(), capacity};
  Priorities priorities{ring, kPlain, -1, false};
  const std::vector<double> given = wild(capacity, random);
  CHECK(insert(priorities, 0, given));
  const Priorities::Turn turn{priorities};
  double exact_total = 0;
  for (const double mass : given) exact_total += mass;
  // Where the draw passes from one leaf to later ones, by halving.
  double exact = 0;
  for (std::size_t leaf = 0; leaf + 1 < capacity; leaf += 7) {
    exact = 0;
    for (std::size_t i = 0; i <= leaf; ++i) exact += given[i];
    double low = 0;
    double high = 1;
    for (int i = 0; i < 40; ++i) {
      const double middle = (low + high) / 2;
      double target = middle * turn.population().total;
      Drawn drawn{};
      turn.find({&target, 1}, {&drawn, 1});
      (drawn.ticket <= leaf ? low : high) = middle;
    }
    CHECK(std::fabs(low - exact / exact_total) < 1e-6);
  }
}

double chi_square(const std::vector<double>& counts, const std::vector<double>& expected) {
  double sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] > 0) sum += (counts[i] - expected[i]) * (counts[i] - expected[i]) / expected[i];
  }
  return sum;
}

void test_draws_follow_the_masses() {
  check::Random random{3};
  const std::size_t capacity = 300;
  Ring ring{small(), capacity};
  Priorities priorities{ring, kPlain, -1, false};
  std::vector<double> given(capacity);
  for (double& mass : given) mass = random.below(10) == 0 ? 0.0 : 0.5 + static_cast<double>(random.below(1000)) / 100;
  CHECK(insert(priorities, 0, given));
  double total = 0;
  for (const double mass : given) total += mass;
  for (const bool is_stratified : {false, true}) {
    for (const double mix : {0.0, 0.25}) {
      Sampler sampler{kKey, priorities, {.is_stratified = is_stratified, .uniform_mix = mix}};
      const Block block{weighted_parts(ring.records().layout()), 100};
      std::vector<double> counts(capacity);
      for (int i = 0; i < 5000; ++i) {
        CHECK(sampler.sample(ring, block, 0.4));
        for (const Ticket ticket : block.tickets()) ++counts[ticket];
      }
      std::vector<double> expected;
      for (const double mass : given) {
        expected.push_back(500'000 * (mix / static_cast<double>(capacity) + (1 - mix) * mass / total));
      }
      for (std::size_t i = 0; i < capacity; ++i) {
        if (expected[i] == 0) CHECK_EQ(counts[i], 0.0);
      }
      CHECK(chi_square(counts, expected) < 300 + 6 * std::sqrt(600.0));
    }
  }
}

// A target of 24 bits would visit each of 10^6 leaves 16 times or 17. Which leaf, over a hundred draws of each or more.
void test_equal_leaves_are_drawn_alike() {
  const char* wanted = std::getenv("FASTREPLAY_PRIORITY_DRAWS");
  const bool is_long = wanted != nullptr;
  const std::uint64_t num_draws = is_long ? std::strtoull(wanted, nullptr, 10) : 1'000'000;
  const std::size_t capacity = is_long ? 1'000'000 : 10'000;
  Ring ring{small(), capacity};
  Priorities priorities{ring, kPlain, -1, false};
  CHECK(insert(priorities, 0, std::vector<double>(capacity, 1.0)));
  for (const bool is_stratified : {false, true}) {
    Sampler sampler{kKey, priorities, {.is_stratified = is_stratified}};
    const Block block{weighted_parts(ring.records().layout()), 1000};
    std::vector<double> counts(capacity);
    for (std::uint64_t i = 0; i < num_draws / 1000; ++i) {
      CHECK(sampler.sample(ring, block, 0.4));
      for (const Ticket ticket : block.tickets()) ++counts[ticket];
    }
    const std::vector<double> expected(capacity, static_cast<double>(num_draws) / static_cast<double>(capacity));
    const auto freedom = static_cast<double>(capacity);
    const double chi = chi_square(counts, expected);
    CHECK(chi < freedom + 6 * std::sqrt(2 * freedom));
    // Strata spread the draws more evenly than chance would; each by itself does not.
    if (!is_stratified) CHECK(chi > freedom - 6 * std::sqrt(2 * freedom));
  }
}

void check_weights(Normalize normalize, double mix) {
  Ring ring{small(), 50};
  Priorities priorities{ring, kPlain, -1, normalize == Normalize::kBuffer};
  std::vector<double> given;
  for (int i = 0; i < 50; ++i) given.push_back(i);
  CHECK(insert(priorities, 0, given));
  Sampler sampler{kKey, priorities, {.normalize = normalize, .uniform_mix = mix}};
  const Block block{weighted_parts(ring.records().layout()), 32};
  CHECK(sampler.sample(ring, block, 0.7));
  const auto* weights = reinterpret_cast<const float*>(block.data() + block.layout().offset_of(Source::kWeight));
  const auto* probabilities =
      reinterpret_cast<const float*>(block.data() + block.layout().offset_of(Source::kProbability));
  const double count = mix > 0 ? 50 : 49;  // without a mixture nobody draws the one without mass
  const auto probability_of = [&](double mass) { return mix / 50 + (1 - mix) * mass / 1225; };
  const auto weight_of = [&](double probability) { return std::pow(count * probability, -0.7); };
  double largest = 1;
  if (normalize == Normalize::kBuffer) largest = weight_of(probability_of(mix > 0 ? 0 : 1));
  if (normalize == Normalize::kBatch) {
    largest = 0;
    for (const Ticket ticket : block.tickets()) {
      largest = std::max(largest, weight_of(probability_of(static_cast<double>(ticket))));
    }
  }
  for (std::size_t i = 0; i < 32; ++i) {
    const double probability = probability_of(static_cast<double>(block.tickets()[i]));
    CHECK(std::fabs(static_cast<double>(probabilities[i]) / probability - 1) < 1e-6);
    CHECK(std::fabs(static_cast<double>(weights[i]) / (weight_of(probability) / largest) - 1) < 1e-6);
  }
}

// To half a bit and hardly more; of one number and of many the same.
void test_powers() {
  check::Random random{5};
  std::vector<float> values(1000);
  for (const float exponent : {0.0F, 0.4F, 0.5F, 0.6F, 1.0F, 1.25F, 2.0F}) {
    for (float& value : values) {
      value = static_cast<float>(std::pow(10.0, static_cast<double>(random.below(60'000)) / 1000 - 30));
    }
    for (const bool has_others : {false, true}) {  // too small, too large
      if (has_others) values = {0.0F, 1.0F, 0.5F, 1e-38F, 3e38F, std::numeric_limits<float>::infinity()};
      std::vector<float> raised = values;
      fastreplay::raise(raised, exponent);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto exact = std::pow(static_cast<long double>(values[i]), static_cast<long double>(exponent));
        const auto expected = static_cast<float>(exact);
        CHECK_EQ(fastreplay::power(values[i], exponent), raised[i]);
        const bool is_near = std::fabs(static_cast<long double>(raised[i]) - exact) <=
                             0.5001L * std::fabs(static_cast<long double>(std::nextafter(expected, INFINITY)) -
                                                 static_cast<long double>(expected));
        CHECK(raised[i] == expected || is_near);
      }
    }
    values.resize(1000);
  }
}

void test_weights() {
  for (const Normalize normalize : {Normalize::kNone, Normalize::kBatch, Normalize::kBuffer}) {
    check_weights(normalize, 0);
    check_weights(normalize, 0.3);
  }
}

void test_without_any_mass_the_draw_is_uniform() {
  Ring ring{small(), 20};
  Priorities priorities{ring, kPlain, -1, false};
  CHECK(insert(priorities, 0, std::vector<double>(20, kNaN)));
  Sampler sampler{kKey, priorities, {}};
  const Block block{weighted_parts(ring.records().layout()), 1000};
  CHECK(sampler.sample(ring, block, 0.4));
  CHECK_EQ(sampler.num_without_mass(), 1U);
  std::vector<double> counts(20);
  for (const Ticket ticket : block.tickets()) ++counts[ticket];
  CHECK(chi_square(counts, std::vector<double>(20, 50.0)) < 60);
  const auto* weights = reinterpret_cast<const float*>(block.data() + block.layout().offset_of(Source::kWeight));
  CHECK(std::all_of(weights, weights + 1000, [](float weight) { return weight == 1; }));
  // And as soon as there is one with mass, it alone is drawn.
  CHECK_EQ(priorities.update(std::vector<Ticket>{7}, std::vector<double>{0.001}).applied, 1U);
  CHECK(sampler.sample(ring, block, 0.4));
  CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket == 7; }));
  CHECK_EQ(sampler.num_without_mass(), 1U);
}

void test_what_was_cleared_weighs_nothing() {
  for (const std::size_t capacity : {20, 100, 1000}) {
    Ring ring{small(), capacity};
    Priorities priorities{ring, kPlain, -1, false};
    CHECK(insert(priorities, 0, std::vector<double>(capacity + 7, 1e6)));
    CHECK_EQ(Priorities::Turn{priorities}.population().count, capacity);
    ring.clear();
    if (Priorities::Turn{priorities}.population().total != 0) {
      CHECK(!"what was cleared weighs something");  // and a draw would look for it for ever
      return;
    }
    Sampler sampler{kKey, priorities, {}};
    const Block block{weighted_parts(ring.records().layout()), 64};
    CHECK(!sampler.sample(ring, block, 0.4));
    CHECK(insert(priorities, 0, std::vector<double>(10, 1.0)));
    CHECK_EQ(Priorities::Turn{priorities}.population().count, 10U);
    CHECK_EQ(Priorities::Turn{priorities}.population().total, 10.0);
    CHECK(sampler.sample(ring, block, 0.4));
    CHECK(std::ranges::all_of(block.tickets(), [&](Ticket ticket) { return ticket >= capacity + 7; }));
    CHECK_EQ(priorities.update(std::vector<Ticket>{capacity + 6}, std::vector<double>{1.0}).stale, 1U);
    // Round the ring, until nothing is left of what was cleared; and cleared once more.
    CHECK(insert(priorities, 0, std::vector<double>(capacity, 2.0)));
    CHECK_EQ(Priorities::Turn{priorities}.population().total, 2.0 * static_cast<double>(capacity));
    ring.clear();
    CHECK_EQ(Priorities::Turn{priorities}.population().count, 0U);
  }
}

// A writer that stops in the middle: what its slots held before weighs nothing, what they are to hold neither.
void test_what_is_reserved_weighs_nothing() {
  Ring ring{rows::page_layout(), 64};
  Priorities priorities{ring, kPlain, -1, false};
  std::vector<double> given(64, 0.001);
  given[0] = given[1] = 1e9;
  CHECK(insert(priorities, 0, given));
  Sampler sampler{kKey, priorities, {}};
  const Block block{weighted_parts(ring.records().layout()), 64};
  CHECK(sampler.sample(ring, block, 0.4));
  CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket < 2; }));
  const std::vector<Ticket> named{0, 1, 2};
  const std::vector<double> ones(3, 1.0);
  rows::insert_half(ring, 64, 2, [&] {  // in a signal handler, which must not allocate
    CHECK(sampler.sample(ring, block, 0.4));
    CHECK(std::ranges::all_of(block.tickets(), [](Ticket ticket) { return ticket >= 2 && ticket < 64; }));
    CHECK(Priorities::Turn{priorities}.population().total < 1);
    CHECK_EQ(priorities.update(named, ones).stale, 2U);
  });
  // What was inserted past the priorities has no mass: its leaf is of another lap.
  CHECK_EQ(Priorities::Turn{priorities}.population().count, 62U);
  rows::insert(ring, 66, 64);
  CHECK_EQ(Priorities::Turn{priorities}.population().count, 0U);
}

void test_updates() {
  Ring ring{small(), 8};
  Priorities priorities{ring, {.alpha = 0.5, .eps = 1, .floor = 0}, -1, false};
  CHECK(insert(priorities, 0, std::vector<double>(8, 3.0)));
  CHECK_EQ(priorities.largest(), 4.0);
  const auto [applied, stale] = priorities.update(std::vector<Ticket>{3, 3, 3}, std::vector<double>{-8, 99, -15});
  CHECK_EQ(applied, 3U);
  CHECK_EQ(stale, 0U);
  std::vector<float> masses(8);
  priorities.read(0, masses);
  CHECK_EQ(masses[3], 4.0F);  // the last
  CHECK_EQ(masses[0], 2.0F);
  CHECK_EQ(priorities.largest(), 100.0);
  // The next lap's slots are others'.
  CHECK(insert(priorities, 8, std::vector<double>(4, 0.0)));
  CHECK_EQ(priorities.update(tickets_from(0, 12), std::vector<double>(12, 0)).stale, 4U);
  // New ones weigh as much as the largest so far.
  const rows::Batch batch{ring.records().layout(), 12, 1};
  CHECK(priorities.insert(batch.rows(), 0, 1, std::chrono::seconds{1}, nullptr));
  masses.resize(1);
  priorities.read(12, masses);
  CHECK_EQ(masses[0], 10.0F);
  priorities.set_largest(4);
  CHECK(priorities.insert(batch.rows(), 0, 1, std::chrono::seconds{1}, nullptr));
  priorities.read(13, masses);
  CHECK_EQ(masses[0], 2.0F);
  // However large: their sum is finite.
  CHECK_EQ(priorities.update(tickets_from(6, 8), std::vector<double>(8, 1e300)).applied, 8U);
  CHECK(std::isfinite(Priorities::Turn{priorities}.population().total));
}

// An update that a whole lap overtakes between its look at the leaf and its change of it.
void test_an_update_that_is_overtaken() {
#if defined(FASTREPLAY_STOP_POINTS)
  Ring ring{small(), 8};
  Priorities priorities{ring, kPlain, -1, false};
  CHECK(insert(priorities, 0, std::vector<double>(8, 1.0)));
  at_leaf_read = [&] { CHECK(insert(priorities, 8, std::vector<double>(8, 5.0))); };
  CHECK_EQ(priorities.update(std::vector<Ticket>{3}, std::vector<double>{100}).stale, 1U);
  std::vector<float> masses(8);
  priorities.read(8, masses);
  CHECK(masses == std::vector<float>(8, 5.0F));
#endif
}

// A priority is always that of the row's own id, whoever sets it: a leaf that another lap's owner or a late update has
// overwritten would show. Writers lap the ring all the time.
double priority_of(std::uint64_t id) { return 1 + static_cast<double>(id * 0x9E3779B97F4A7C15 >> 60); }

void test_updates_beside_writers(std::size_t capacity) {
  Ring ring{small(), capacity};
  Priorities priorities{ring, kPlain, -1, false};
  const char* wanted = std::getenv("FASTREPLAY_PRIORITY_INSERTS");
  const std::uint64_t num_inserts = wanted == nullptr ? 60'000 : std::strtoull(wanted, nullptr, 10);
  std::atomic<int> num_writing{2};
  std::atomic<std::uint64_t> num_wrong{0};
  std::atomic<std::uint64_t> num_applied{0};
  const auto write = [&](std::uint64_t writer) {
    for (std::uint64_t i = 0; i < num_inserts; ++i) {
      std::uint64_t id = writer << 32 | i;
      const double priority = priority_of(id);
      const unsigned char tail[3] = {1, 2, 3};
      const fastreplay::Rows fields[2] = {{reinterpret_cast<const std::byte*>(&id), 8},
                                          {reinterpret_cast<const std::byte*>(tail), 3}};
      if (!priorities.insert(fields, 0, 1, std::chrono::seconds{60}, &priority)) ++num_wrong;
    }
    --num_writing;
  };
  const auto learn = [&](std::uint64_t seed) {
    Sampler sampler{{seed, 1}, priorities, {}};
    const Block block{weighted_parts(ring.records().layout()), 16};
    std::vector<double> values(16);
    for (std::size_t applied = 0; num_writing > 0 || applied == 0;) {
      if (!sampler.sample(ring, block, 0.4)) continue;
      for (std::size_t i = 0; i < 16; ++i) {
        std::uint64_t id = 0;
        std::memcpy(&id, block.part(0) + 8 * i, 8);
        values[i] = priority_of(id);
        float mass = 0;
        priorities.read(block.tickets()[i], {&mass, 1});
        const bool is_there = block.tickets()[i] >= ring.oldest_whole();
        if (static_cast<double>(mass) != values[i] && (mass != 0 || is_there)) ++num_wrong;  // 0 once overwritten
      }
      applied = priorities.update(block.tickets(), values).applied;
      num_applied += applied;
    }
  };
  std::vector<std::thread> threads;
  for (const std::uint64_t n : {1, 2}) threads.emplace_back(write, n);
  for (const std::uint64_t n : {1, 2}) threads.emplace_back(learn, n);
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(num_wrong.load(), 0U);
  CHECK(num_applied.load() > 0);
  const auto window = ring.window();
  std::vector<float> masses(capacity);
  priorities.read(window.first, masses);
  double sum = 0;
  for (std::size_t i = 0; i < capacity; ++i) {
    std::uint64_t id = 0;
    std::memcpy(&id, ring.record(window.first + i), 8);
    CHECK_EQ(static_cast<double>(masses[i]), priority_of(id));
    sum += priority_of(id);
  }
  CHECK_EQ(Priorities::Turn{priorities}.population().total, sum);  // small integers: exact
}

}  // namespace

int main() {
  test_the_sums_are_those_of_the_oracle();
  test_probabilities_are_exact();
  test_draws_follow_the_masses();
  test_equal_leaves_are_drawn_alike();
  test_powers();
  test_weights();
  test_without_any_mass_the_draw_is_uniform();
  test_what_was_cleared_weighs_nothing();
  test_what_is_reserved_weighs_nothing();
  test_updates();
  test_an_update_that_is_overtaken();
  for (const std::size_t capacity : {8, 33, 500}) test_updates_beside_writers(capacity);
  return check::result();
}
