// SPDX-License-Identifier: MIT
// Minibatches in epochs: permutations, every transition once, what is left out, and where to go on.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "batch/epochs.hpp"
#include "batch/permutation.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "pages.hpp"
#include "ring/ring.hpp"
#include "rows.hpp"

using fastreplay::Block;
using fastreplay::EpochOptions;
using fastreplay::EpochState;
using fastreplay::Permutation;
using fastreplay::Philox;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using fastreplay::transition_parts;

namespace {

constexpr Philox::Key kKey{7, 8};

// Of counts that are as likely as each other, six standard deviations of chi-square above its mean.
void check_even(const std::vector<double>& counts, double freedom) {
  const double expected = std::accumulate(counts.begin(), counts.end(), 0.0) / static_cast<double>(counts.size());
  double chi_square = 0;
  for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
  CHECK(chi_square < freedom + 6 * std::sqrt(2 * freedom));
}

void a_permutation_has_each_number_once() {
  for (const std::uint64_t size : {1, 2, 3, 15, 16, 17, 4095, 4096, 4097, 5000, 65536, 65537, 1'000'003}) {
    const Permutation order{kKey, size, size};
    std::vector<bool> has(size);
    for (std::uint64_t i = 0; i < size; ++i) has.at(order.at(i)) = true;
    CHECK(std::ranges::all_of(has, [](bool is) { return is; }));
  }
}

void small_permutations_are_all_as_likely() {
  for (const std::uint64_t size : {2, 3, 4, 5}) {
    std::map<std::vector<std::uint64_t>, double> counts;
    for (std::uint64_t number = 0; number < 24'000; ++number) {
      const Permutation order{kKey, number, size};
      std::vector<std::uint64_t> seen;
      for (std::uint64_t i = 0; i < size; ++i) seen.push_back(order.at(i));
      ++counts[seen];
    }
    std::vector<double> all;
    for (const auto& [order, count] : counts) all.push_back(count);
    const double num_orders = std::tgamma(static_cast<double>(size) + 1);
    CHECK_EQ(static_cast<double>(all.size()), num_orders);
    check_even(all, num_orders - 1);
  }
}

// Where a number goes, and where its neighbour does beside it: 40 by 40 places.
void large_permutations_favour_nothing() {
  constexpr std::uint64_t kPlaces = 40;
  for (const std::uint64_t size : {std::uint64_t{4000}, std::uint64_t{8000}, std::uint64_t{200'000}}) {
    std::vector<double> places(kPlaces * kPlaces), neighbours(kPlaces * kPlaces);
    const auto place = [&](std::uint64_t i) { return i * kPlaces / size; };
    for (std::uint64_t number = 0; number < 2'000'000 / size; ++number) {
      const Permutation order{kKey, number, size};
      for (std::uint64_t i = 0; i < size; ++i) {
        ++places[place(i) * kPlaces + place(order.at(i))];
        ++neighbours[place(order.at(i)) * kPlaces + place(order.at((i + 1) % size))];
      }
    }
    check_even(places, kPlaces * kPlaces - 1);
    check_even(neighbours, kPlaces * kPlaces - 1);
  }
}

struct Bench {
  explicit Bench(std::size_t capacity, std::size_t num_rows)
      : ring{RecordLayout{rows::fields_of(std::vector<std::size_t>{8})}, capacity} {
    if (num_rows > 0) rows::insert(ring, 0, num_rows);
  }

  [[nodiscard]] Block block(std::size_t batch_size) const {
    return Block{transition_parts(ring.records().layout()), batch_size};
  }

  Ring ring;
};

// The tickets of the next minibatch, whose rows are whole.
std::vector<Ticket> next(Sampler& sampler, Bench& bench, std::size_t batch_size) {
  const Block block = bench.block(batch_size);
  const std::size_t count = sampler.sample(bench.ring, block);
  for (std::size_t row = 0; row < count; ++row) {
    CHECK(rows::is_row_of(bench.ring, block, row, block.tickets()[row]));
  }
  return {block.tickets().begin(), block.tickets().begin() + static_cast<std::ptrdiff_t>(count)};
}

void every_transition_once(std::size_t num_rows, std::size_t batch_size, const EpochOptions& options) {
  Bench bench{100, num_rows};
  const std::size_t held = std::min<std::size_t>(num_rows, 100);
  Sampler sampler{kKey, options, {}};
  std::vector<std::vector<Ticket>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<Ticket> all;
    const std::size_t num_whole = held / batch_size, num_last = held % batch_size;
    for (std::size_t i = 0; i < num_whole + (num_last > 0 && !options.drops_last ? 1 : 0); ++i) {
      const auto tickets = next(sampler, bench, batch_size);
      CHECK_EQ(tickets.size(), i < num_whole ? batch_size : num_last);
      all.insert(all.end(), tickets.begin(), tickets.end());
    }
    CHECK_EQ(std::set<Ticket>(all.begin(), all.end()).size(), all.size());
    CHECK(std::ranges::all_of(all, [&](Ticket ticket) { return ticket >= num_rows - held && ticket < num_rows; }));
    if (!options.is_shuffled) CHECK(std::ranges::is_sorted(all));
    epochs.push_back(all);
  }
  if (options.is_shuffled && held > 20) CHECK(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
  CHECK_EQ(sampler.epochs()->num_left_out(), 0U);
}

// From the four numbers of any moment, another sampler goes on as the first would have.
void states_go_on() {
  for (const bool is_shuffled : {true, false}) {
    Bench bench{100, 130};
    Sampler sampler{kKey, {.is_shuffled = is_shuffled}, {}};
    for (int i = 0; i < 30; ++i) {
      Sampler again{kKey, {.is_shuffled = is_shuffled}, sampler.epochs()->state()};
      CHECK(next(sampler, bench, 7) == next(again, bench, 7));
    }
  }
}

void what_is_gone_is_left_out() {
  Bench bench{100, 100};
  Sampler sampler{kKey, EpochOptions{}, {}};
  std::set<Ticket> seen;
  for (const Ticket ticket : next(sampler, bench, 40)) seen.insert(ticket);
  rows::insert(bench.ring, 100, 50);  // tickets 0 to 49 are overwritten
  const auto rest = next(sampler, bench, 100);
  CHECK(std::ranges::all_of(rest, [](Ticket ticket) { return ticket >= 50 && ticket < 100; }));
  seen.insert(rest.begin(), rest.end());
  for (Ticket ticket = 50; ticket < 100; ++ticket) CHECK(seen.contains(ticket));
  CHECK_EQ(sampler.epochs()->num_left_out(), 100 - seen.size());
  CHECK_EQ(sampler.epochs()->state().epoch, 0U);
  const auto after = next(sampler, bench, 100);
  CHECK_EQ(after.size(), 100U);
  CHECK_EQ(*std::ranges::min_element(after), 50U);
  CHECK_EQ(sampler.epochs()->state().epoch, 1U);
  bench.ring.clear();
  CHECK(next(sampler, bench, 10).empty());
  rows::insert(bench.ring, 150, 3);
  CHECK_EQ(next(sampler, bench, 10).size(), 3U);
}

// Fewer than a minibatch are dropped, at the end of an epoch and where there are no more.
void too_few_are_dropped() {
  Bench bench{100, 9};
  Sampler sampler{kKey, {.is_shuffled = true, .drops_last = true}, {}};
  CHECK(next(sampler, bench, 10).empty());
  rows::insert(bench.ring, 9, 16);
  std::set<Ticket> seen;
  for (int i = 0; i < 2; ++i) {
    for (const Ticket ticket : next(sampler, bench, 10)) seen.insert(ticket);
  }
  CHECK_EQ(seen.size(), 20U);
  CHECK_EQ(sampler.epochs()->state().epoch, 0U);
  CHECK_EQ(next(sampler, bench, 10).size(), 10U);
  CHECK_EQ(sampler.epochs()->state().epoch, 1U);
}

// A state that is not this ring's names nothing that was never inserted.
void foreign_states_are_harmless() {
  Bench bench{100, 20};
  Sampler sampler{kKey, EpochOptions{}, {.epoch = 4, .first = 10, .size = 1000, .position = 3}};
  for (int i = 0; i < 5; ++i) {
    for (const Ticket ticket : next(sampler, bench, 30)) CHECK(ticket < 20);
  }
}

// Rows that are overwritten while they are copied make way for the next of the epoch; none comes twice.
void overwritten_on_their_way(std::size_t num_ahead) {
  Ring ring{rows::page_layout(), 50};
  rows::insert(ring, 0, 50);
  rows::Writer writer{ring, 50, num_ahead};
  const Block block{transition_parts(ring.records().layout()), 20};
  std::byte* column = block.part(1);
  pages::Trap trap{{column, 20 * pages::page_bytes()}, [&] { CHECK(writer.insert_each(num_ahead)); }};
  trap.close();
  Sampler sampler{kKey, EpochOptions{}, {}};
  CHECK_EQ(sampler.sample(ring, block), 20U);
  const std::set<Ticket> seen(block.tickets().begin(), block.tickets().end());
  CHECK_EQ(seen.size(), 20U);
  CHECK(*seen.begin() >= num_ahead);
  CHECK(sampler.epochs()->num_left_out() >= sampler.num_redraws());
  CHECK(sampler.num_redraws() > 0);
  for (std::size_t row = 0; row < 20; ++row) CHECK(rows::is_row_of(ring, block, row, block.tickets()[row]));
}

// Several threads share an epoch: each transition goes to one of them.
void threads_share_an_epoch() {
  constexpr std::size_t kThreads = 4, kRows = 20'000;
  Bench bench{kRows, kRows};
  Sampler sampler{kKey, EpochOptions{}, {}};
  std::vector<std::vector<Ticket>> taken(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const Block block = bench.block(50);
      for (std::size_t n = 0; n < kRows / 50 / kThreads; ++n) {
        if (sampler.sample(bench.ring, block) != 50) return;
        taken[i].insert(taken[i].end(), block.tickets().begin(), block.tickets().end());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::set<Ticket> all;
  for (const auto& tickets : taken) all.insert(tickets.begin(), tickets.end());
  CHECK_EQ(all.size(), kRows);
  CHECK_EQ(sampler.epochs()->state().epoch, 0U);
}

// Beside writers that lap: whatever is drawn is whole, and comes once an epoch.
void beside_writers() {
  Bench bench{300, 300};
  Sampler sampler{kKey, EpochOptions{}, {}};
  std::atomic<bool> is_over{false};
  std::thread writer{[&] {
    for (std::uint64_t ticket = 300; !is_over; ticket += 7) rows::insert(bench.ring, ticket, 7);
  }};
  const Block block = bench.block(40);
  std::size_t num_torn = 0, num_twice = 0;
  std::map<Ticket, std::uint64_t> last;  // the epoch that a ticket was in
  for (int i = 0; i < 3000; ++i) {
    const std::uint64_t before = sampler.epochs()->state().epoch;
    const std::size_t count = sampler.sample(bench.ring, block);
    const std::uint64_t after = sampler.epochs()->state().epoch;
    for (std::size_t row = 0; row < count; ++row) {
      const Ticket ticket = block.tickets()[row];
      num_torn += rows::is_row_of(bench.ring, block, row, ticket) ? 0 : 1;
      if (before != after) continue;  // it may be of either
      const auto found = last.find(ticket);
      num_twice += found != last.end() && found->second == after ? 1 : 0;
      last[ticket] = after;
    }
  }
  is_over = true;
  writer.join();
  CHECK_EQ(num_torn, 0U);
  CHECK_EQ(num_twice, 0U);
  CHECK(sampler.epochs()->num_left_out() > 0);
}

}  // namespace

int main() {
  a_permutation_has_each_number_once();
  small_permutations_are_all_as_likely();
  large_permutations_favour_nothing();
  for (const std::size_t num_rows : {1U, 7U, 100U, 250U}) {
    for (const std::size_t batch_size : {1U, 7U, 64U, 100U}) {
      every_transition_once(num_rows, batch_size, {});
      every_transition_once(num_rows, batch_size, {.is_shuffled = false});
      if (num_rows >= batch_size) every_transition_once(num_rows, batch_size, {.drops_last = true});
    }
  }
  states_go_on();
  what_is_gone_is_left_out();
  too_few_are_dropped();
  foreign_states_are_harmless();
  overwritten_on_their_way(10);
  overwritten_on_their_way(25);
  threads_share_an_epoch();
  beside_writers();
  return check::result();
}
