// SPDX-License-Identifier: MIT
// Uniform draws while rows are inserted. What may be expected of them, exactly:
//
// A row is drawn uniformly from the window [e - C, e) of one moment, and rejected if its ticket was
// overwritten when the copy is checked, at head e + m. Rejected rows alone are drawn again, from the
// whole window [e + m - C, e + m) of then. By age, counted back from the newest row, the old C - m rows
// therefore get (1 + m/C) / C each, and the m rows that came during the copy m/C / C: fewer than their
// share, for the others were there when the draw was made. Nothing is conditioned away, so that the sum
// is 1, and no old row is favoured over another.
//
// exactly() makes m rows come at the very moment of the check and tests these two levels. while_inserting()
// lets writers run and tests plain uniformity: there C is so large that m/C is about 3e-5 (it is printed),
// and what the newest rows lack adds n * buckets * (m/C)^2, less than 1, to a chi-square that would have to
// be 68 above its mean of 63 to raise the alarm. On a busy machine, where samplers are stopped for
// milliseconds, m/C may be three times as much.
//
// The alarm is p < 1e-6. Draws that are biased on purpose must raise it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "batch/sample.hpp"
#include "check.hpp"
#include "ring/ring.hpp"
#include "ring/stop_points.hpp"
#include "rows.hpp"

using fastreplay::Block;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::StopPoint;
using fastreplay::Ticket;

namespace {

constexpr double kAlarm = 1e-6;

// What this thread does when a reader is about to look at head again.
thread_local const std::function<void()>* before_check = nullptr;

}  // namespace

namespace fastreplay {

void at_stop_point(StopPoint point) noexcept {
  if (point == StopPoint::kRowsCopied && before_check != nullptr) (*before_check)();
}

}  // namespace fastreplay

namespace {

RecordLayout layout() { return RecordLayout{rows::fields_of(std::vector<std::size_t>{8})}; }

// Q(a, x), the upper regularized incomplete gamma function: its series below a + 1, its continued
// fraction (Lentz) above.
double upper_gamma(double a, double x) {
  if (x <= 0) return 1;
  const double scale = std::exp(a * std::log(x) - x - std::lgamma(a));
  if (x < a + 1) {
    double term = 1 / a;
    double sum = term;
    for (double n = a + 1; term > sum * 1e-16; ++n) sum += term *= x / n;
    return 1 - scale * sum;
  }
  double b = x + 1 - a;
  double c = 1e300;
  double d = 1 / b;
  double fraction = d;
  for (int i = 1; i < 10000; ++i) {
    const double numerator = i * (a - i);
    b += 2;
    d = 1 / (b + numerator * d);
    c = b + numerator / c;
    fraction *= c * d;
    if (std::abs(c * d - 1) < 1e-15) break;
  }
  return scale * fraction;
}

double p_of_chi_square(double chi_square, std::size_t freedom) {
  return upper_gamma(static_cast<double>(freedom) / 2, chi_square / 2);
}

// Values of scipy.stats.chi2.sf.
void p_values() {
  const auto near = [](double a, double b) { return std::abs(a - b) < 1e-9 * b; };
  CHECK(near(p_of_chi_square(3.841458820694124, 1), 0.05));
  CHECK(near(p_of_chi_square(2, 2), std::exp(-1.0)));
  CHECK(near(p_of_chi_square(10, 2), std::exp(-5.0)));
  CHECK(near(p_of_chi_square(50, 49), 0.43343669725576084));
  CHECK(near(p_of_chi_square(120, 49), 6.876961427062773e-08));
}

double chi_square(const std::vector<double>& counts, const std::vector<double>& shares) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double sum = 0;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double expected = total * shares[i];
    sum += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return sum;
}

double p_of(const std::vector<double>& counts, const std::vector<double>& shares) {
  return p_of_chi_square(chi_square(counts, shares), counts.size() - 1);
}

void expect_alarm(bool alarm, double p, std::string_view name) {
  CHECK_EQ(p < kAlarm, alarm);
  if ((p < kAlarm) != alarm) std::cerr << name << " has p " << p << '\n';
}

// Draws one minibatch into the block, with validation: the sampler, or one that is biased.
using DrawMinibatch = std::function<void(Ring&, const Block&)>;

DrawMinibatch right() {
  return [sampler = std::make_shared<Sampler>(fastreplay::Philox::Key{5, 6})](Ring& ring, const Block& block) {
    if (!sampler->sample(ring, block)) std::abort();  // no ring of this test is ever empty
  };
}

// Replaces rejected rows by the next whole ones.
DrawMinibatch taking_neighbours() {
  return [random = check::Random{1}](Ring& ring, const Block& block) mutable {
    const auto window = ring.window();
    for (Ticket& ticket : block.tickets()) ticket = window.first + random.below(window.reserved());
    const Ticket oldest = ring.oldest_whole();
    for (Ticket& ticket : block.tickets()) {
      if (ticket < oldest) ticket = oldest + random.below(8);
    }
  };
}

// Forgets rejected rows, as if only what survived had been asked for.
DrawMinibatch dropping_rejected() {
  return [random = check::Random{2}](Ring& ring, const Block& block) mutable {
    const auto window = ring.window();
    for (Ticket& ticket : block.tickets()) ticket = window.first + random.below(window.reserved());
    const Ticket oldest = ring.oldest_whole();
    for (Ticket& ticket : block.tickets()) {
      while (ticket < oldest) ticket = window.first + random.below(window.reserved());
    }
  };
}

// Takes some of the rows from the newest half.
DrawMinibatch leaning(double share_of_newest_half) {
  const auto leaning_draws = static_cast<std::uint64_t>(share_of_newest_half * 1e6);
  return [leaning_draws, random = check::Random{3}](Ring& ring, const Block& block) mutable {
    const auto window = ring.window();
    const std::uint64_t half = window.reserved() / 2;
    for (Ticket& ticket : block.tickets()) {
      const bool leans = random.below(1'000'000) < leaning_draws;
      ticket = leans ? window.end - 1 - random.below(half) : window.first + random.below(window.reserved());
    }
  };
}

// The p-value of ages when num_ahead rows come between copy and check of every minibatch.
double exactly(std::size_t capacity, std::size_t num_ahead, std::size_t num_buckets, const DrawMinibatch& draw) {
  constexpr std::size_t kMinibatches = 5'000;
  Ring ring{layout(), capacity};
  rows::insert(ring, 0, capacity);
  const rows::Batch batch{ring.records().layout(), 0, 1};
  const Block block{transition_parts(ring.records().layout()), 256};  // copied and checked as one
  std::vector<double> counts(num_buckets);
  bool inserted = false;
  bool all_inserted = true;
  const std::function<void()> insert_ahead = [&] {
    if (inserted) return;
    inserted = true;
    for (std::size_t i = 0; i < num_ahead; ++i) all_inserted &= ring.insert(batch.rows(), 0, 1, {});
  };
  before_check = &insert_ahead;
  bool in_window = true;
  for (std::size_t i = 0; i < kMinibatches; ++i) {
    inserted = false;
    draw(ring, block);
    const Ticket head = ring.num_inserted();
    for (const Ticket ticket : block.tickets()) {
      const std::uint64_t age = head - 1 - ticket;
      in_window &= age < capacity;
      ++counts[std::min(age, capacity - 1) * num_buckets / capacity];
    }
  }
  before_check = nullptr;
  CHECK(in_window && all_inserted);
  const double missed = static_cast<double>(num_ahead) / static_cast<double>(capacity);
  std::vector<double> shares(num_buckets);
  for (std::uint64_t age = 0; age < capacity; ++age) {
    shares[age * num_buckets / capacity] += (age < num_ahead ? missed : 1 + missed) / static_cast<double>(capacity);
  }
  return p_of(counts, shares);
}

void exact_distributions() {
  for (const std::size_t num_ahead : {0, 1, 10, 100, 500, 999}) {
    expect_alarm(false, exactly(1000, num_ahead, 50, right()), std::to_string(num_ahead) + " rows ahead of 1000");
  }
  expect_alarm(false, exactly(7, 3, 7, right()), "3 rows ahead of 7");
  expect_alarm(false, exactly(64, 5, 64, right()), "5 rows ahead of 64");
  expect_alarm(true, exactly(1000, 10, 50, taking_neighbours()), "taking neighbours");
  expect_alarm(true, exactly(1000, 100, 50, dropping_rejected()), "dropping what was rejected");
  expect_alarm(true, exactly(1000, 0, 50, leaning(1)), "the newest half");
  expect_alarm(true, exactly(1000, 0, 50, leaning(0.02)), "leaning to the newest half");
}

// Threads that insert single rows into a full ring, as fast as they can.
class Writers {
 public:
  Writers(Ring& ring, std::size_t num_writers) {
    for (std::size_t w = 0; w < num_writers; ++w) {
      threads_.emplace_back([this, &ring] {
        const rows::Batch batch{ring.records().layout(), 0, 1};
        // relaxed: when it stops does not matter.
        while (!done_.load(std::memory_order_relaxed)) (void)ring.insert(batch.rows(), 0, 1, std::chrono::seconds{1});
      });
    }
  }
  ~Writers() {
    // relaxed: as above.
    done_.store(true, std::memory_order_relaxed);
    for (std::thread& thread : threads_) thread.join();
  }
  Writers(const Writers&) = delete;
  Writers& operator=(const Writers&) = delete;

 private:
  std::atomic<bool> done_{false};
  std::vector<std::thread> threads_;
};

struct Measured {
  double p;
  std::uint64_t inserted;  // rows, meanwhile
  double advance;          // rows inserted during a sample call, on average, over the capacity
};

// The p-value of ages in a full ring, while others insert into it.
Measured while_inserting(Ring& ring, const DrawMinibatch& draw) {
  constexpr std::size_t kBuckets = 64;
  constexpr std::size_t kMinibatches = 30'000;
  const Block block{transition_parts(ring.records().layout()), 64};
  std::vector<double> counts(kBuckets);
  const Ticket first = ring.num_inserted();
  std::uint64_t advance = 0;
  for (std::size_t i = 0; i < kMinibatches; ++i) {
    const Ticket before = ring.num_inserted();
    draw(ring, block);
    // The head of the check, and what was inserted since.
    const Ticket head = ring.num_inserted();
    advance += head - before;
    for (const Ticket ticket : block.tickets()) {
      const std::uint64_t age = std::min<std::uint64_t>(head - 1 - ticket, ring.capacity() - 1);
      ++counts[age * kBuckets / ring.capacity()];
    }
  }
  return {.p = p_of(counts, std::vector<double>(kBuckets, 1.0 / kBuckets)),
          .inserted = ring.num_inserted() - first,
          .advance = static_cast<double>(advance) / static_cast<double>(kMinibatches * ring.capacity())};
}

void uniform_while_writers_run() {
  constexpr std::size_t kCapacity = 1 << 22;
  Ring ring{layout(), kCapacity};
  rows::insert(ring, 0, kCapacity);
  for (const std::size_t num_writers : {1, 2}) {
    const Writers writers{ring, num_writers};
    const std::string name = std::to_string(num_writers) + " writers at full speed";
    const Measured measured = while_inserting(ring, right());
    expect_alarm(false, measured.p, name);
    CHECK(measured.inserted > 0);
    std::cout << name << ": " << measured.inserted << " rows inserted, p " << measured.p << ", " << measured.advance
              << " of the ring during a sample\n";
    expect_alarm(true, while_inserting(ring, leaning(1)).p, "the newest half, " + name);
    expect_alarm(true, while_inserting(ring, leaning(0.02)).p, "leaning, " + name);
  }
}

}  // namespace

int main() {
  p_values();
  exact_distributions();
  uniform_while_writers_run();
  return check::result();
}
