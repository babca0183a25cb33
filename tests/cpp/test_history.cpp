// SPDX-License-Identifier: MIT
// Linearizability: threads record when each of their operations was called and returned, and what it saw;
// history.hpp then asks whether the operations could have happened one after the other. Tickets are known
// from what is read: rows certify which insert they belong to (certified.hpp). First the checker itself:
// it must pass small histories that are right and find the one fault of those that are wrong.
//
// FASTREPLAY_HISTORY_EVENTS sets how many operations are recorded in all (default a million).
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "certified.hpp"
#include "check.hpp"
#include "history.hpp"
#include "ring/ring.hpp"
#include "yields.hpp"

using fastreplay::Address;
using fastreplay::Block;
using fastreplay::ReadResult;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using fastreplay::Window;
using history::Faults;
using history::History;
using history::Time;

namespace {

// Three inserts, of two rows and one and one, on a ring of 4: the first two overlap, the third comes
// after both. Samples see all of it, the last one after a fourth insert took two more tickets.
History right() {
  return {.capacity = 4,
          .is_complete = true,
          .inserts = {{{1, 5}, 2}, {{2, 4}, 1}, {{8, 9}, 1}, {{16, 17}, 2}},
          .samples = {{{0, 3}, {}},
                      {{6, 7}, {{0, 1, 0}, {1, 0, 0}}},
                      {{10, 11}, {{1, 0, 0}, {2, 0, 1}, {3, 2, 0}}},
                      {{18, 19}, {{2, 0, 1}, {4, 3, 0}, {5, 3, 1}}}},
          .counts = {{{0, 1}, 0}, {{3, 6}, 1}, {{12, 13}, 4}},
          .clears = {}};
}

// Two rows, a clear beside the second, one more row.
History cleared() {
  return {.capacity = 8,
          .is_complete = false,
          .inserts = {{{1, 2}, 1}, {{3, 6}, 1}, {{9, 10}, 1}},
          .samples = {{{7, 8}, {{1, 1, 0}}}, {{7, 8}, {}}, {{11, 12}, {{2, 2, 0}}}},
          .counts = {},
          .clears = {{4, 5}}};
}

void expect(const History& history, const Faults& expected) {
  const Faults found = history::check(history);
  CHECK(found == expected);
  if (found != expected) std::cerr << "  " << to_string(found) << ", not " << to_string(expected) << '\n';
}

// Changes a history that is right in one place, and expects that fault.
template <class Break>
void broken(History history, const Faults& expected, Break break_it) {
  break_it(history);
  expect(history, expected);
}

void the_checker_passes_what_is_right() {
  expect({}, {});
  expect(right(), {});
  expect(cleared(), {});
  // The other order of inserts that overlap.
  History other = right();
  other.samples[1].seen = {{0, 0, 0}, {2, 1, 0}};
  other.samples[2].seen = {{1, 0, 1}, {3, 2, 0}};
  other.samples[3].seen = {{2, 1, 0}, {4, 3, 0}, {5, 3, 1}};
  expect(other, {});
}

void the_checker_finds_what_is_wrong() {
  // One row under two tickets; two inserts under one ticket.
  broken(right(), {.ambiguous = 1}, [](History& h) { h.samples[2].seen.push_back({3, 1, 0}); });
  broken(right(), {.ambiguous = 1}, [](History& h) {
    h.inserts.push_back({{16, 30}, 1});
    h.samples.push_back({{31, 32}, {{5, 4, 0}}});
  });
  broken(right(), {.scattered = 1}, [](History& h) { h.samples[2].seen.push_back({3, 0, 1}); });
  broken(right(), {.unknown = 1}, [](History& h) { h.inserts.push_back({{20, 21}, 1}); });
  // As few tickets below it as to leave none for a row that had been inserted, though nobody saw it.
  broken(right(), {.out_of_order = 1}, [](History& h) {
    h.is_complete = false;
    h.samples = {{{10, 11}, {{2, 2, 0}}}};
  });
  // Below a ticket that was seen; below one that was counted.
  broken(right(), {.out_of_order = 1}, [](History& h) {
    h.is_complete = false;
    h.inserts.push_back({{2, 30}, 3});
    h.samples = {{{10, 11}, {{4, 0, 0}, {3, 2, 0}}}};
    h.counts.clear();
  });
  broken(right(), {.out_of_order = 1}, [](History& h) {
    h.is_complete = false;
    h.inserts.push_back({{20, 24}, 3});
    h.inserts.push_back({{22, 23}, 1});
    h.counts.push_back({{20, 21}, 8});
    h.samples.push_back({{25, 26}, {{7, 5, 0}}});
  });
  broken(right(), {.gaps = 1}, [](History& h) { h.samples[3].seen = {{5, 3, 0}, {6, 3, 1}}; });
  // What is seen before its insert is called shows its ticket as taken by then, too.
  broken(right(), {.out_of_order = 1, .early = 1}, [](History& h) { h.samples[1].seen.push_back({3, 2, 0}); });
  // Overwritten by rows that were seen; by rows that had been inserted, though nobody saw them.
  broken(right(), {.overwritten = 1}, [](History& h) { h.samples[3].seen.push_back({1, 0, 0}); });
  broken(right(), {.overwritten = 1}, [](History& h) {
    h.is_complete = false;
    h.inserts.push_back({{20, 21}, 1});
    h.samples.push_back({{22, 23}, {{2, 0, 1}}});
  });
  broken(right(), {.missed = 1}, [](History& h) { h.samples.push_back({{20, 21}, {}}); });
  broken(right(), {.miscounted = 1}, [](History& h) { h.counts.push_back({{10, 11}, 3}); });
  broken(right(), {.miscounted = 1}, [](History& h) { h.counts.push_back({{20, 21}, 7}); });
  broken(cleared(), {.cleared = 1}, [](History& h) { h.samples[0].seen.push_back({0, 0, 0}); });
  broken(cleared(), {.missed = 1}, [](History& h) { h.samples.push_back({{11, 12}, {}}); });
  broken(cleared(), {.missed = 1}, [](History& h) { h.samples.push_back({{3, 3}, {}}); });
}

// A row's id: the writer, the number of its insert, its number in that.
constexpr int kWriterShift = 48;
constexpr int kInsertShift = 8;

struct Setting {
  std::size_t capacity;
  std::size_t num_writers;
  std::size_t num_samplers;
  std::size_t rows_at_most;  // of one insert
  bool clears;
};

struct Recorded {
  std::vector<history::Insert> inserts;  // of one writer
  History others;                        // their `insert` are ids still
  std::uint64_t mixed = 0;               // rows that are no transition's
};

class Recorder {
 public:
  explicit Recorder(const Setting& setting) : setting_{setting}, ring_{certified::layout(), setting.capacity} {}

  // Runs the threads for about num_events operations.
  History record(std::size_t num_events) {
    const std::size_t share = num_events / (setting_.num_writers + setting_.num_samplers);
    std::vector<Recorded> recorded(setting_.num_writers + setting_.num_samplers + 1);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i + 1 < recorded.size(); ++i) {
      threads.emplace_back([&, i] {
        // relaxed: threads begin together, more or less.
        num_ready_.fetch_add(1, std::memory_order_relaxed);
        // relaxed: as above.
        while (num_ready_.load(std::memory_order_relaxed) + 1 < recorded.size()) std::this_thread::yield();
        i < setting_.num_writers ? write(i, share, recorded[i]) : look(i, share, recorded[i]);
      });
    }
    for (std::thread& thread : threads) thread.join();
    look_at_everything(recorded.back());
    return merged(std::move(recorded));
  }

 private:
  // acq_rel: what one thread did before its event happens-before what another does after a later one.
  Time now() { return clock_.fetch_add(1, std::memory_order_acq_rel); }

  void write(std::uint64_t writer, std::size_t num_inserts, Recorded& recorded) {
    certified::Batch batch{setting_.rows_at_most};
    check::Random random{writer};
    recorded.inserts.reserve(num_inserts);
    for (std::uint64_t insert = 0; insert < num_inserts; ++insert) {
      const std::size_t num_rows = 1 + random.below(setting_.rows_at_most);
      for (std::size_t row = 0; row < num_rows; ++row) {
        batch.set(row, (writer << kWriterShift) + (insert << kInsertShift) + row);
      }
      const Time called = now();
      if (!ring_.insert(batch.rows(), 0, num_rows, std::chrono::seconds{60})) std::abort();  // stuck
      recorded.inserts.push_back({{called, now()}, num_rows});
    }
  }

  void look(std::uint64_t seed, std::size_t num_looks, Recorded& recorded) {
    check::Random random{seed};
    Sampler sampler{{seed, setting_.capacity}};
    const Block block{transition_parts(ring_.records().layout()), 3};
    recorded.others.samples.reserve(num_looks);
    for (std::size_t i = 0; i < num_looks; ++i) {
      const std::uint64_t choice = random.below(64);
      if (choice == 0 && setting_.clears && random.below(16) == 0) {
        const Time called = now();
        ring_.clear();
        recorded.others.clears.push_back({called, now()});
      } else if (choice < 8) {
        const Time called = now();
        const std::uint64_t num_inserted = ring_.num_inserted();
        recorded.others.counts.push_back({{called, now()}, num_inserted});
      } else if (choice < 16) {
        const std::array<std::int64_t, 3> positions{0, -1, -1};
        const Time called = now();
        const ReadResult result = read(ring_, Address::kPosition, positions, block);
        // That nothing is published at one moment says less than that nothing is there.
        if (result.status == ReadResult::Status::kWhole) note(block, called, recorded);
      } else {
        const Time called = now();
        if (sampler.sample(ring_, block)) {
          note(block, called, recorded);
        } else {
          recorded.others.samples.push_back({{called, now()}, {}});
        }
      }
    }
  }

  void note(const Block& block, Time called, Recorded& recorded) {
    history::Sample& sample = recorded.others.samples.emplace_back();
    sample.span = {called, now()};
    for (std::size_t row = 0; row < block.batch_size(); ++row) {
      see(block.tickets()[row], certified::id_in(block, row), sample, recorded);
    }
  }

  static void see(Ticket ticket, std::optional<std::uint64_t> id, history::Sample& sample, Recorded& recorded) {
    if (id) {
      sample.seen.push_back({ticket, *id, *id & 255});
    } else {
      ++recorded.mixed;
    }
  }

  // One read of all that is left, when the others are done.
  void look_at_everything(Recorded& recorded) {
    const Window window = ring_.window();
    CHECK_EQ(window.committed, window.end);
    history::Sample& sample = recorded.others.samples.emplace_back();
    sample.span.called = now();
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      see(ticket, certified::id_in(ring_, ticket), sample, recorded);
    }
    sample.span.returned = now();
    if (sample.seen.empty()) recorded.others.samples.pop_back();  // cleared last
    const Time called = now();
    recorded.others.counts.push_back({{called, now()}, ring_.num_inserted()});
  }

  History merged(std::vector<Recorded> recorded) const {
    History all;
    all.capacity = setting_.capacity;
    std::vector<std::uint64_t> first_insert;
    std::uint64_t num_rows = 0;
    std::uint64_t mixed = 0;
    for (Recorded& one : recorded) {
      first_insert.push_back(all.inserts.size());
      all.inserts.insert(all.inserts.end(), one.inserts.begin(), one.inserts.end());
      std::move(one.others.samples.begin(), one.others.samples.end(), std::back_inserter(all.samples));
      std::move(one.others.counts.begin(), one.others.counts.end(), std::back_inserter(all.counts));
      std::move(one.others.clears.begin(), one.others.clears.end(), std::back_inserter(all.clears));
      mixed += one.mixed;
    }
    for (const history::Insert& insert : all.inserts) num_rows += insert.num_rows;
    all.is_complete = num_rows <= setting_.capacity && all.clears.empty();
    for (history::Sample& sample : all.samples) {
      for (history::Seen& seen : sample.seen) {
        const std::uint64_t writer = seen.insert >> kWriterShift;
        const std::uint64_t insert = (seen.insert & ((std::uint64_t{1} << kWriterShift) - 1)) >> kInsertShift;
        const bool exists = writer < setting_.num_writers && insert < recorded[writer].inserts.size() &&
                            seen.row < recorded[writer].inserts[insert].num_rows;
        mixed += exists ? 0 : 1;
        seen = exists ? history::Seen{seen.ticket, first_insert[writer] + insert, seen.row} : history::Seen{0, 0, 0};
      }
    }
    CHECK_EQ(mixed, 0U);
    return all;
  }

  Setting setting_;
  Ring ring_;
  std::atomic<std::size_t> num_ready_{0};
  alignas(128) std::atomic<Time> clock_{0};
};

void histories(std::size_t num_events) {
  // A ring that holds everything, so that all tickets are known; laps; clears; with stops and without.
  constexpr std::size_t kAll = 0;
  const std::vector<Setting> settings{{kAll, 2, 1, 4, false}, {kAll, 4, 2, 8, false}, {64, 2, 1, 1, false},
                                      {64, 3, 2, 8, false},   {1000, 2, 2, 4, false}, {1000, 4, 2, 64, true},
                                      {64, 2, 2, 4, true},    {100000, 2, 2, 4, true}};
  std::size_t events = 0;
  std::size_t overlapping = 0;
  for (const bool with_stops : {false, true}) {
    // relaxed: set before the threads begin.
    yields::enabled.store(with_stops, std::memory_order_relaxed);
    for (Setting setting : settings) {
      const std::size_t share = num_events / (2 * settings.size());
      if (setting.capacity == kAll) setting.capacity = share * setting.rows_at_most;
      const History history = Recorder{setting}.record(share);
      const Faults faults = history::check(history);
      CHECK_EQ(faults.total(), 0U);
      if (faults.total() > 0) std::cerr << "capacity " << setting.capacity << ": " << to_string(faults) << '\n';
      events += history.num_events();
      for (const history::Insert& insert : history.inserts) {
        overlapping += insert.span.returned - insert.span.called > 1 ? 1 : 0;
      }
    }
  }
  CHECK(overlapping > 0);
  std::cout << events << " events, " << overlapping << " inserts that overlap others\n";
}

// A window of one thread alone shows all that it has inserted, wherever commit lags (so it looks now and
// then only: each look moves commit), and over the laps.
void windows_are_up_to_date() {
  constexpr std::size_t kCapacity = 1000;  // no multiple of the interval at which writers move commit
  Ring ring{certified::layout(), kCapacity};
  certified::Batch batch{1};
  std::size_t behind = 0;
  for (Ticket next = 0; next < 3 * kCapacity; ++next) {
    batch.set(0, next);
    CHECK(ring.insert(batch.rows(), 0, 1, std::chrono::seconds{1}));
    if (next % 7 == 0 && ring.window().committed != next + 1) ++behind;
  }
  CHECK_EQ(behind, 0U);
  if (behind > 0) std::cerr << "capacity " << kCapacity << ": " << behind << " windows out of date\n";
}

}  // namespace

int main() {
  windows_are_up_to_date();
  if (check::result() != 0) return check::result();  // the threads below would wait for each other
  the_checker_passes_what_is_right();
  the_checker_finds_what_is_wrong();
  const char* setting = std::getenv("FASTREPLAY_HISTORY_EVENTS");
  histories(setting != nullptr ? std::strtoull(setting, nullptr, 10) : 1'000'000);
  return check::result();
}
