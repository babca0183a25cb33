// SPDX-License-Identifier: MIT
// The kernels that keep masses on a CUDA device and draw by them: all their threads, by turns on the CPU, beside the
// CPU's own priorities and sampler, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "batch/block.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "masses_there.hpp"
#include "priority/priorities.hpp"
#include "ring/ring.hpp"
#include "rows.hpp"

using fastreplay::Block;
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
using masses_there::Rule;
using masses_there::There;

namespace {

constexpr Philox::Key kKey{5, 6};
constexpr Rule kExact{.alpha = 1, .eps = 0, .floor = 0};
const std::vector<std::size_t> kSizes{1, 2, 15, 16, 17, 255, 256, 257, 1000, 4097, 5000};

double exponential(check::Random& random) { return -std::log1p(-static_cast<double>(random.next() >> 11) * 0x1p-53); }

// A ring with priorities on the CPU, and its masses over there.
class Both {
 public:
  Both(std::size_t capacity, const Rule& rule)
      : ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{1})}, capacity},
        here{ring, MassRule{.alpha = rule.alpha, .eps = rule.eps, .floor = rule.floor}, -1, true},
        there{capacity, rule} {}

  void insert(std::size_t num_rows, std::uint64_t seed) {
    check::Random random{seed};
    std::vector<double> priorities(num_rows);
    for (double& p : priorities) p = random.below(5) == 0 ? 0 : 0.1 + std::pow(exponential(random), 4);
    const std::uint64_t first = ring.num_reserved();
    const rows::Batch batch{ring.records().layout(), first, num_rows};
    CHECK(here.insert(batch.rows(), 0, num_rows, {}, priorities.data()));
    send(first);
  }

  void clear() {
    ring.clear();
    send(ring.num_reserved());
  }

  [[nodiscard]] fastreplay_cuda_window window() const { return window_; }

  Ring ring;
  Priorities here;
  There there;

 private:
  // As fastreplay/gpu/mirror_masses.py does.
  void send(std::uint64_t first_new) {
    const std::uint64_t capacity = ring.capacity();
    const fastreplay::Window now = ring.window();
    first_new = std::max(first_new, now.first);
    std::vector<float> masses(now.end - first_new);
    here.read(first_new, masses);
    for (std::size_t i = 0; i < masses.size(); ++i) there.leaves()[(first_new + i) % capacity] = masses[i];
    const std::uint64_t oldest = now.end - std::min(now.end, capacity);
    const std::uint64_t first_lost = std::max(window_.first, oldest);
    const std::uint64_t num_lost = std::min(now.first, now.end) - std::min({now.first, now.end, first_lost});
    there.settle(first_lost % capacity, num_lost, first_new % capacity, masses.size());
    window_ = {.first = now.first, .size = now.reserved(), .first_slot = now.first % capacity};
  }

  fastreplay_cuda_window window_{};
};

// Equal but for the last bit.
bool are_near(float found, float expected) {
  return found >= std::nextafter(expected, 0.0F) && found <= std::nextafter(expected, INFINITY);
}

// Draws on both, and compares whole blocks and counters.
void check_draws(Both& both, const PriorityOptions& options, double beta, std::size_t batch_size) {
  const auto parts = weighted_parts(both.ring.records().layout());
  const Block expected{parts, batch_size};
  const Block found{parts, batch_size};
  Sampler sampler{kKey, both.here, options, 7};
  fastreplay_cuda_generator generator{.key = {kKey[0], kKey[1]},
                                      .calls = 7,
                                      .num_sampled = 0,
                                      .num_without_mass = 0,
                                      .num_redraws = 0,
                                      .num_incomplete = 0};
  const fastreplay_cuda_window now = both.window();
  fastreplay_cuda_window window{};
  const fastreplay_cuda_weighing weighing{.masses = both.there.masses(),
                                          .is_stratified = options.is_stratified,
                                          .normalize = static_cast<std::uint64_t>(options.normalize),
                                          .uniform_mix = options.uniform_mix,
                                          .beta = beta,
                                          .weights_offset = found.layout().offset_of(Source::kWeight),
                                          .probabilities_offset = found.layout().offset_of(Source::kProbability)};
  fastreplay_cuda_sampling sampling{};
  sampling.window = &window;
  sampling.generator = &generator;
  sampling.block = found.data();
  sampling.tickets_offset = found.layout().tickets_offset();
  sampling.batch_size = batch_size;
  sampling.weighing = &weighing;
  for (int call = 0; call < 2; ++call) {  // as a draw of now, then as a graph that is replayed
    sampling.now = call == 0 ? &now : nullptr;
    both.there.draw(sampling);
    CHECK_EQ(sampler.sample(both.ring, expected, beta), batch_size);
    for (const Source source : {Source::kTicket, Source::kProbability}) {
      const std::size_t offset = found.layout().offset_of(source);
      const std::size_t num_bytes = batch_size * (source == Source::kTicket ? 8 : 4);
      CHECK(std::memcmp(found.data() + offset, expected.data() + offset, num_bytes) == 0);
    }
    // Each side has a power function of its own: the last bit may be another.
    const std::size_t offset = found.layout().offset_of(Source::kWeight);
    const auto* weights = reinterpret_cast<const float*>(found.data() + offset);
    const auto* expected_weights = reinterpret_cast<const float*>(expected.data() + offset);
    for (std::size_t i = 0; i < batch_size; ++i) CHECK(are_near(weights[i], expected_weights[i]));
  }
  CHECK_EQ(generator.calls, sampler.calls());
  CHECK_EQ(generator.num_sampled, sampler.num_sampled());
  CHECK_EQ(generator.num_without_mass, sampler.num_without_mass());
}

void test_the_same_minibatches_as_on_the_cpu() {
  for (const std::size_t capacity : kSizes) {
    for (const std::size_t num_rows : {capacity, capacity / 2 + 1}) {
      Both both{capacity, {.alpha = 0.6, .eps = 1e-6, .floor = 0}};
      both.insert(num_rows, capacity);
      for (const std::size_t batch_size : {1, 3, 511, 512, 513, 1500}) {
        check_draws(both, {}, 0.4, batch_size);
      }
    }
  }
}

void test_conventions() {
  for (const Rule& rule :
       {kExact, Rule{.alpha = 0.6, .eps = 1e-6, .floor = 0}, Rule{.alpha = 0, .eps = 0, .floor = 0}}) {
    Both both{300, rule};
    both.insert(200, 3);
    for (const bool is_stratified : {true, false}) {
      for (const auto normalize : {Normalize::kNone, Normalize::kBatch, Normalize::kBuffer}) {
        for (const double mix : {0.0, 0.3, 1.0}) {
          for (const double beta : {0.0, 0.7}) {
            check_draws(both, {.is_stratified = is_stratified, .normalize = normalize, .uniform_mix = mix}, beta, 600);
          }
        }
      }
    }
  }
}

void test_windows_that_wrap_and_what_was_cleared() {
  for (const std::size_t capacity : {1, 16, 17, 100, 600}) {
    Both both{capacity, kExact};
    check::Random random{capacity};
    for (int i = 0; i < 40; ++i) {
      if (i % 9 == 8) both.clear();
      const std::size_t most = both.ring.max_rows_per_insert();
      both.insert(1 + random.below(std::min(most, capacity)), random.next());
      CHECK(both.there.is_as_made_anew());
      check_draws(both, {}, 0.4, 40);
    }
  }
}

// Of equal tickets the last wins, whatever the order of threads; what is gone, was never there, or is no number,
// changes nothing.
template <class Number>
void test_updates(std::size_t capacity, std::size_t count) {
  Both both{capacity, kExact};
  for (int i = 0; i < 3; ++i) both.insert(std::min(capacity / 2 + 1, both.ring.max_rows_per_insert()), capacity);
  check::Random random{count};
  const std::uint64_t head = both.ring.num_reserved();
  std::vector<std::int64_t> tickets;
  std::vector<Number> priorities;
  std::vector<Ticket> named;
  std::vector<double> numbers;
  std::size_t num_refused = 0;
  for (std::size_t i = 0; i < count; ++i) {
    tickets.push_back(static_cast<std::int64_t>(random.below(head + 3)) - 1);
    const auto p = static_cast<Number>(random.below(9) == 0 ? 0 : exponential(random) - 1);
    priorities.push_back(random.below(11) > 0 ? p : std::numeric_limits<Number>::quiet_NaN());
    if (random.below(11) == 0) priorities.back() = -std::numeric_limits<Number>::infinity();
    const bool is_finite = std::isfinite(priorities.back());
    num_refused += is_finite ? 0 : 1;
    if (!is_finite || static_cast<std::uint64_t>(tickets.back()) >= head) continue;
    named.push_back(static_cast<Ticket>(tickets.back()));
    numbers.push_back(static_cast<double>(priorities.back()));
  }
  const double before = both.here.largest();
  const auto [applied, stale] = both.here.update(named, numbers);
  const auto result = both.there.update(both.window(), tickets, priorities);
  CHECK_EQ(result[0], static_cast<std::int64_t>(applied));
  CHECK_EQ(result[1], static_cast<std::int64_t>(count - applied - num_refused));
  CHECK(stale <= count - applied - num_refused);
  CHECK_EQ(both.there.state().num_refused, num_refused);
  CHECK_EQ(std::max(before, both.there.state().largest), both.here.largest());
  CHECK(both.there.is_as_made_anew());
  check_draws(both, {}, 0.4, 64);
}

void test_masses_are_the_rules() {
  check::Random random{1};
  for (const double alpha : {0.0, 0.4, 0.6, 1.0, 2.0}) {
    const MassRule rule{.alpha = alpha, .eps = 1e-6, .floor = alpha == 0.4 ? 1.0 : 0.0};
    There there{100, {.alpha = rule.alpha, .eps = rule.eps, .floor = rule.floor}};
    const auto tree = fastreplay::MassTree::of(there.masses());
    for (const double scale : {1e-30, 1e-6, 1.0, 1e6, 1e30, 1e300}) {
      for (int i = 0; i < 200; ++i) {
        const double p = (exponential(random) - 1) * scale;
        const float expected = rule.mass(rule.base(p), 100);
        const float found = tree.rule.mass(tree.rule.base(p));
        // The CPU's is of float functions: the last bit may be another.
        CHECK(are_near(found, expected));
        if (alpha == 1) CHECK_EQ(found, expected);
      }
    }
  }
}

// A new transition gets the largest so far, but no less than what came with it.
void test_new_transitions() {
  There there{40, kExact};
  there.state().largest = 3;
  const auto leaves = there.leaves();
  for (std::size_t i = 0; i < 10; ++i) leaves[(35 + i) % 40] = i % 2 == 0 ? 0.5F : i < 5 ? -2.0F : -4.0F;
  leaves[4] = -0.0F;
  there.settle(0, 0, 35, 10);
  for (std::size_t i = 0; i < 10; ++i) {
    CHECK_EQ(leaves[(35 + i) % 40], (35 + i) % 40 == 4 ? 3.0F : i % 2 == 0 ? 0.5F : i < 5 ? 3.0F : 4.0F);
  }
  CHECK(there.is_as_made_anew());
  there.settle(38, 4, 0, 0);
  for (const std::size_t slot : {38, 39, 0, 1}) CHECK_EQ(leaves[slot], 0.0F);
  CHECK(leaves[37] > 0 && leaves[2] > 0);
  CHECK(there.is_as_made_anew());
  const std::vector<float> was(leaves.begin(), leaves.end());
  there.settle(38, 4, 35, 3);  // again
  CHECK(std::equal(was.begin(), was.end(), leaves.begin()));
}

// The largest target falls on the last mass, though as a float it is the sum.
void test_the_last_target() {
  constexpr double kLargest = 1 - 0x1p-53;
  for (const std::size_t capacity : kSizes) {
    for (std::size_t slot = 0; slot < capacity; slot += 1 + slot / 3) {
      There there{capacity, kExact};
      there.leaves()[slot] = 0.7F;
      there.leaves()[slot / 2] = 0.6F;
      there.settle(0, 0, 0, capacity);
      const auto tree = fastreplay::MassTree::of(there.masses());
      CHECK_EQ(tree.find(kLargest * tree.population().total), slot / 2 < slot ? slot : slot / 2);
      CHECK_EQ(tree.find(0), slot / 2);
    }
  }
}

// Where sums lead to leaves without mass, as prefixes may that are not quite monotone, all is counted in the end.
void test_a_draw_comes_to_its_end() {
  There there{40, kExact};
  there.leaves()[3] = 2;
  there.settle(0, 0, 0, 40);
  there.leaves()[3] = 0;  // the sums do not know
  there.leaves()[20] = there.leaves()[39] = 1;
  fastreplay_cuda_window window{.first = 40, .size = 40, .first_slot = 0};
  fastreplay_cuda_generator generator{
      .key = {1, 2}, .calls = 3, .num_sampled = 0, .num_without_mass = 0, .num_redraws = 0, .num_incomplete = 0};
  const fastreplay_cuda_weighing weighing{.masses = there.masses(),
                                          .is_stratified = 0,
                                          .normalize = 0,
                                          .uniform_mix = 0,
                                          .beta = 0,
                                          .weights_offset = 800,
                                          .probabilities_offset = 1200};
  std::vector<std::uint64_t> block(200);
  fastreplay_cuda_sampling sampling{};
  sampling.window = &window;
  sampling.generator = &generator;
  sampling.block = block.data();
  sampling.batch_size = 100;
  sampling.weighing = &weighing;
  there.draw(sampling);
  for (std::uint64_t row = 0; row < 100; ++row) {
    const bool is_second = fastreplay::fraction(Philox::words({row + 1, 3, 65, 3}, {1, 2})[0]) * 2 < 1;
    CHECK_EQ(block[row], is_second ? 79U : 60U);
  }
}

void test_an_empty_window_leaves_all_as_it_was() {
  There there{40, kExact};
  fastreplay_cuda_window window{.first = 1000, .size = 0, .first_slot = 0};
  fastreplay_cuda_generator generator{
      .key = {1, 2}, .calls = 3, .num_sampled = 4, .num_without_mass = 5, .num_redraws = 6, .num_incomplete = 7};
  const fastreplay_cuda_weighing weighing{.masses = there.masses(),
                                          .is_stratified = 1,
                                          .normalize = 1,
                                          .uniform_mix = 0.5,
                                          .beta = 0.5,
                                          .weights_offset = 80,
                                          .probabilities_offset = 120};
  const std::vector<std::uint64_t> before(20, 77);
  std::vector<std::uint64_t> block = before;
  fastreplay_cuda_sampling sampling{};
  sampling.window = &window;
  sampling.generator = &generator;
  sampling.block = block.data();
  sampling.batch_size = 10;
  sampling.weighing = &weighing;
  there.draw(sampling);
  CHECK(block == before);
  CHECK_EQ(generator.calls, 3U);
  CHECK_EQ(generator.num_without_mass, 5U);
  CHECK_EQ(generator.num_redraws, 6U);
  CHECK_EQ(generator.num_incomplete, 7U);
}

}  // namespace

int main() {
  test_the_same_minibatches_as_on_the_cpu();
  test_conventions();
  test_windows_that_wrap_and_what_was_cleared();
  for (const std::size_t capacity : kSizes) {
    for (const std::size_t count : {0, 1, 40, 700, 3000}) {
      test_updates<float>(capacity, count);
      test_updates<double>(capacity, count);
    }
  }
  test_masses_are_the_rules();
  test_new_transitions();
  test_the_last_target();
  test_a_draw_comes_to_its_end();
  test_an_empty_window_leaves_all_as_it_was();
  return check::result();
}
