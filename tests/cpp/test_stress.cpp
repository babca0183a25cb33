// SPDX-License-Identifier: MIT
// Writers, samplers and one thread that does everything else, all at once, on rings of many sizes. What
// is read must certify itself (certified.hpp) and be its ticket's: a ledger keeps which transition each
// ticket was ever seen to hold, and the transitions' ids (writer, sequence) tell where they must be.
// Built a second time as test_stress_yields, where threads stop at every step of the protocol.
//
// FASTREPLAY_STRESS_ROWS sets how many rows are inserted in all. Arguments: the seconds that all this
// may take at most, and the seconds after which a refused insert counts as stuck. The first case that
// goes wrong ends the program.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "certified.hpp"
#include "check.hpp"
#include "ring/ring.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using fastreplay::Address;
using fastreplay::Block;
using fastreplay::ReadResult;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using fastreplay::Window;

namespace {

using Clock = std::chrono::steady_clock;

#if defined(FASTREPLAY_STOP_POINTS)
constexpr std::uint64_t kDefaultRows = 20'000'000;
#else
constexpr std::uint64_t kDefaultRows = 80'000'000;
#endif
constexpr std::size_t kBatchSize = 64;
// Writers are faster than samplers, and would be done before a sampler has its turn on a machine of few
// cores: they wait when they inserted so many times the rows that samplers asked for, and some more.
constexpr std::uint64_t kLead = 4;
constexpr std::uint64_t kHeadStart = 1 << 15;
constexpr int kWriterShift = 48;

constexpr std::uint64_t sequence_of(std::uint64_t id) { return id & ((std::uint64_t{1} << kWriterShift) - 1); }

struct Case {
  std::size_t capacity;
  std::size_t rows_per_insert;
  std::size_t num_writers;
  std::size_t num_samplers;
};

struct Limits {
  Clock::time_point deadline;         // writers stop here
  std::chrono::nanoseconds patience;  // an insert that is refused for so long is stuck
};

struct Wrong {
  std::uint64_t mixed = 0;      // rows that are no transition's
  std::uint64_t misplaced = 0;  // that another ticket, or another row of this ticket, contradicts
  std::uint64_t cleared = 0;    // that were cleared before
  std::uint64_t missing = 0;    // from the ring at rest
  std::uint64_t unfit = 0;      // windows, counts and answers that contradict themselves or earlier ones
  std::uint64_t stuck = 0;      // writers that were refused for too long

  Wrong& operator+=(const Wrong& other) {
    mixed += other.mixed;
    misplaced += other.misplaced;
    cleared += other.cleared;
    missing += other.missing;
    unfit += other.unfit;
    stuck += other.stuck;
    return *this;
  }
  [[nodiscard]] std::uint64_t total() const { return mixed + misplaced + cleared + missing + unfit + stuck; }
};

// Which transition each ticket was seen to hold, by any thread.
class Ledger {
 public:
  explicit Ledger(std::uint64_t num_tickets) : ids_(num_tickets) {}

  // False if the ticket cannot exist, or was seen to hold another transition.
  [[nodiscard]] bool note(Ticket ticket, std::uint64_t id) {
    if (ticket >= ids_.size()) return false;
    // relaxed, here and below: each entry is set once and stands for itself; a stronger order would make
    // the threads wait for each other where the ring does not.
    std::uint64_t known = ids_[ticket].load(std::memory_order_relaxed);
    if (known != 0) return known == id + 1;
    return ids_[ticket].compare_exchange_strong(known, id + 1, std::memory_order_relaxed) || known == id + 1;
  }

  // Tickets that contradict the order in which the writers inserted. To be asked at the end.
  [[nodiscard]] std::uint64_t num_misplaced(const std::vector<std::uint64_t>& inserted, std::size_t rows_per_insert) {
    const std::uint64_t total = num_rows(inserted);
    struct Last {
      Ticket ticket = 0;
      std::uint64_t sequence = 0;
    };
    std::vector<std::optional<Last>> last_of_writer(inserted.size());
    std::uint64_t wrong = 0;
    for (Ticket ticket = 0; ticket < ids_.size(); ++ticket) {
      const std::uint64_t known = ids_[ticket].load(std::memory_order_relaxed);
      if (known == 0) continue;
      const std::uint64_t writer = (known - 1) >> kWriterShift;
      const std::uint64_t sequence = sequence_of(known - 1);
      if (writer >= inserted.size() || sequence >= inserted[writer] || ticket >= total) {
        ++wrong;  // nobody inserted it, or not so much
        continue;
      }
      // The writer's earlier rows have earlier tickets, its later rows have later ones.
      bool right = sequence <= ticket && inserted[writer] - sequence <= total - ticket;
      if (inserted.size() == 1) right &= ticket == sequence;
      if (std::optional<Last>& last = last_of_writer[writer]) {
        const bool same_insert = last->sequence / rows_per_insert == sequence / rows_per_insert;
        const std::uint64_t rows_between = sequence - last->sequence;
        const std::uint64_t tickets_between = ticket - last->ticket;
        right &= last->sequence < sequence;
        right &= same_insert ? rows_between == tickets_between : rows_between <= tickets_between;
      }
      last_of_writer[writer] = Last{ticket, sequence};
      wrong += right ? 0 : 1;
    }
    return wrong;
  }

  [[nodiscard]] static std::uint64_t num_rows(const std::vector<std::uint64_t>& inserted) {
    std::uint64_t sum = 0;
    for (const std::uint64_t rows : inserted) sum += rows;
    return sum;
  }

 private:
  std::vector<std::atomic<std::uint64_t>> ids_;  // id + 1; 0 where none was seen
};

// One ring, and what its threads share.
struct Trial {
  Case setting;
  std::uint64_t rows_per_writer;  // a multiple of rows_per_insert
  Limits limits;
  Ring ring{certified::layout(), setting.capacity};
  Sampler sampler{{setting.capacity, setting.num_writers}};
  Ledger ledger{rows_per_writer * setting.num_writers};
  std::atomic<Ticket> cleared{0};       // tickets below it were cleared before it was set
  std::atomic<std::uint64_t> asked{0};  // rows that samplers asked for
  std::atomic<bool> writers_done{false};
  std::atomic<bool> at_rest{false};
};

// Returns how many rows went in.
std::uint64_t write(Trial& trial, std::size_t writer, Wrong& wrong) {
  const std::size_t num_rows = trial.setting.rows_per_insert;
  certified::Batch batch{num_rows};
  std::uint64_t sequence = 0;
  for (std::uint64_t turn = 0; sequence < trial.rows_per_writer; ++turn, sequence += num_rows) {
    if (turn % 256 == 255) {
      // relaxed: a pace, exact enough whenever it is seen.
      while (trial.setting.num_writers * sequence > kLead * trial.asked.load(std::memory_order_relaxed) + kHeadStart) {
        std::this_thread::yield();
      }
      if (Clock::now() >= trial.limits.deadline) break;
    }
    for (std::size_t row = 0; row < num_rows; ++row) batch.set(row, (writer << kWriterShift) + sequence + row);
    if (!trial.ring.insert(batch.rows(), 0, num_rows, trial.limits.patience)) {
      ++wrong.stuck;
      break;
    }
  }
  return sequence;
}

void verify_row(Trial& trial, Ticket ticket, std::optional<std::uint64_t> id, Ticket cleared, Wrong& wrong) {
  if (!id) {
    ++wrong.mixed;
  } else if (!trial.ledger.note(ticket, *id)) {
    ++wrong.misplaced;
  } else if (ticket < cleared) {
    ++wrong.cleared;
  }
}

void verify_block(Trial& trial, const Block& block, Ticket cleared, Wrong& wrong) {
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    verify_row(trial, block.tickets()[row], certified::id_in(block, row), cleared, wrong);
  }
}

// Samples until the writers are done, and once more. Returns the number of rows verified.
std::uint64_t sample(Trial& trial, Wrong& wrong) {
  const Block block{transition_parts(trial.ring.records().layout()), kBatchSize};
  std::uint64_t verified = 0;
  for (bool last = false; !last;) {
    // acquire: the last sample comes after every insert; pairs with the release store in run().
    last = trial.at_rest.load(std::memory_order_acquire);
    // acquire: the sample comes after the clear; pairs with the release store in Visitor::clear().
    const Ticket cleared = trial.cleared.load(std::memory_order_acquire);
    if (trial.sampler.sample(trial.ring, block)) {
      verify_block(trial, block, cleared, wrong);
      verified += kBatchSize;
    } else if (last && trial.ring.window().reserved() > 0) {
      ++wrong.unfit;  // a ring at rest that holds something can be sampled
    }
    // relaxed: as in write().
    trial.asked.fetch_add(kBatchSize, std::memory_order_relaxed);
  }
  return verified;
}

// Does now and then what training does now and then: asks for counts, reads by position and by slot,
// clears.
class Visitor {
 public:
  Visitor(Trial& trial, Wrong& wrong) : trial_{trial}, wrong_{wrong}, random_{trial.setting.capacity} {}

  // Returns the number of rows verified.
  std::uint64_t run() {
    // relaxed: when it stops does not matter.
    while (!trial_.writers_done.load(std::memory_order_relaxed)) {
      look();
      read(Address::kPosition);
      read(Address::kSlot);
      if (random_.below(64) == 0) clear();
      std::this_thread::sleep_for(std::chrono::microseconds{200});
    }
    return verified_;
  }

 private:
  void expect(bool right) { wrong_.unfit += right ? 0 : 1; }

  void look() {
    const std::uint64_t inserted = trial_.ring.num_inserted();
    const std::uint64_t overwritten = trial_.ring.num_overwritten();
    const Window window = trial_.ring.window();
    expect(inserted >= inserted_ && inserted <= window.end);
    expect(overwritten >= overwritten_ && overwritten <= window.end);
    expect(window.first >= window_.first && window.first >= cleared_ && window.first <= window.end);
    expect(window.committed >= window_.committed && window.committed <= window.end);
    expect(window.reserved() <= trial_.setting.capacity && window.published() <= window.reserved());
    expect(trial_.ring.oldest_whole() <= trial_.ring.num_inserted());
    inserted_ = inserted;
    overwritten_ = overwritten;
    window_ = window;
  }

  void read(Address address) {
    const Window window = trial_.ring.window();
    const std::uint64_t bound = address == Address::kSlot ? trial_.setting.capacity : window.published();
    if (bound == 0) return;
    for (std::int64_t& place : addresses_) place = static_cast<std::int64_t>(random_.below(bound));
    if (address == Address::kPosition) addresses_.back() = -1;
    const ReadResult result = fastreplay::read(trial_.ring, address, addresses_, block_);
    if (result.status == ReadResult::Status::kOutOfRange) {
      // Transitions that were there may be gone when the read begins, never the other way round.
      const std::int64_t place = addresses_.at(result.row);
      const auto published = static_cast<std::int64_t>(result.published);
      expect(published < static_cast<std::int64_t>(trial_.setting.capacity));
      expect(address == Address::kSlot || place >= published || published == 0);
    } else if (result.status == ReadResult::Status::kWhole) {
      verify_block(trial_, block_, cleared_, wrong_);
      verified_ += addresses_.size();
      const Ticket newest = block_.tickets().back();
      for (std::size_t row = 0; row < addresses_.size(); ++row) {
        const Ticket ticket = block_.tickets()[row];
        const auto place = static_cast<std::uint64_t>(addresses_[row]);
        if (address == Address::kSlot) {
          expect(trial_.ring.slot(ticket) == place);
        } else if (addresses_[row] >= 0) {
          expect(newest - ticket == result.published - 1 - place);  // all of one moment
        }
      }
    }
  }

  void clear() {
    cleared_ = trial_.ring.num_inserted();
    trial_.ring.clear();
    // release: whoever sees it samples after the clear; pairs with the acquire load in sample().
    trial_.cleared.store(cleared_, std::memory_order_release);
  }

  Trial& trial_;
  Wrong& wrong_;
  check::Random random_;
  std::array<std::int64_t, 8> addresses_{};
  Block block_{transition_parts(trial_.ring.records().layout()), addresses_.size()};
  std::uint64_t inserted_ = 0;
  std::uint64_t overwritten_ = 0;
  Window window_{};
  Ticket cleared_ = 0;
  std::uint64_t verified_ = 0;
};

// When all writers are done, the ring holds its last tickets, and in them each writer's last rows: in
// order, none missing, none twice.
void verify_at_rest(Trial& trial, std::vector<std::uint64_t> inserted, Wrong& wrong) {
  const std::uint64_t total = Ledger::num_rows(inserted);
  const Window window = trial.ring.window();
  wrong.missing += window.committed == window.end && window.end == total ? 0 : 1;
  wrong.missing += trial.ring.num_inserted() == total ? 0 : 1;
  for (Ticket ticket = window.end; ticket-- > window.first;) {
    const std::optional<std::uint64_t> id = certified::id_in(trial.ring, ticket);
    verify_row(trial, ticket, id, trial.cleared, wrong);
    const std::uint64_t writer = id.value_or(~std::uint64_t{0}) >> kWriterShift;
    if (writer >= inserted.size() || *id != (writer << kWriterShift) + --inserted[writer]) ++wrong.missing;
  }
}

struct Totals {
  std::uint64_t inserted = 0;
  std::uint64_t verified = 0;
  std::uint64_t redraws = 0;
};

// Runs `body(i, wrong)` on num_threads threads, which add to `wrong` when they are joined.
class Threads {
 public:
  template <class Body>
  Threads(std::size_t num_threads, Body body) : results_(num_threads), wrong_(num_threads) {
    for (std::size_t i = 0; i < num_threads; ++i) {
      threads_.emplace_back([this, body, i] { results_[i] = body(i, wrong_[i]); });
    }
  }

  const std::vector<std::uint64_t>& join(Wrong& wrong) {
    for (std::thread& thread : threads_) thread.join();
    for (const Wrong& of_one : wrong_) wrong += of_one;
    return results_;
  }

 private:
  std::vector<std::uint64_t> results_;
  std::vector<Wrong> wrong_;
  std::vector<std::thread> threads_;
};

Totals run(const Case& c, std::uint64_t num_rows, Limits limits, Wrong& wrong) {
  const std::uint64_t inserts_per_writer = std::max<std::uint64_t>(1, num_rows / c.num_writers / c.rows_per_insert);
  Trial trial{.setting = c, .rows_per_writer = inserts_per_writer * c.rows_per_insert, .limits = limits};
  Threads samplers{c.num_samplers, [&](std::size_t, Wrong& of_one) { return sample(trial, of_one); }};
  Threads visitor{1, [&](std::size_t, Wrong& of_one) { return Visitor{trial, of_one}.run(); }};
  Threads writers{c.num_writers, [&](std::size_t i, Wrong& of_one) { return write(trial, i, of_one); }};
  const std::vector<std::uint64_t>& inserted = writers.join(wrong);
  // relaxed: as in Visitor::run().
  trial.writers_done.store(true, std::memory_order_relaxed);
  Totals totals{.inserted = Ledger::num_rows(inserted), .verified = Ledger::num_rows(visitor.join(wrong))};
  // release: pairs with the acquire load in sample().
  trial.at_rest.store(true, std::memory_order_release);
  const std::uint64_t sampled = Ledger::num_rows(samplers.join(wrong));
  verify_at_rest(trial, inserted, wrong);
  wrong.misplaced += trial.ledger.num_misplaced(inserted, c.rows_per_insert);
  wrong.unfit += trial.sampler.num_sampled() == sampled ? 0 : 1;
  totals.verified += sampled;
  totals.redraws = trial.sampler.num_redraws();
  return totals;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::size_t capacity : {1, 2, 7, 64, 1000, 100000}) {
    for (const std::size_t rows_per_insert : {1, 4, 64}) {
      if (rows_per_insert > std::max<std::size_t>(1, capacity / 8)) continue;  // more than the ring takes at once
      for (const std::size_t num_writers : {1, 2, 4, 8}) {
        for (const std::size_t num_samplers : {1, 2}) {
          all.push_back({capacity, rows_per_insert, num_writers, num_samplers});
        }
      }
    }
  }
  return all;
}

std::string name_of(const Case& c) {
  return "capacity " + std::to_string(c.capacity) + ", rows per insert " + std::to_string(c.rows_per_insert) +
         ", writers " + std::to_string(c.num_writers) + ", samplers " + std::to_string(c.num_samplers);
}

Clock::duration seconds(const char* argument, double otherwise) {
  const double number = argument != nullptr ? std::strtod(argument, nullptr) : otherwise;
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>{number});
}

}  // namespace

int main(int argc, char** argv) {
  const char* setting = std::getenv("FASTREPLAY_STRESS_ROWS");
  const std::uint64_t num_rows = setting != nullptr ? std::strtoull(setting, nullptr, 10) : kDefaultRows;
  const std::vector<Case> all = cases();
  const Clock::duration share = seconds(argc > 1 ? argv[1] : nullptr, 1e6) / all.size();
  const Clock::duration patience = seconds(argc > 2 ? argv[2] : nullptr, 30);
  Totals totals;
  for (const Case& c : all) {
    Wrong wrong;
    const Totals of_case =
        run(c, num_rows / all.size(), {.deadline = Clock::now() + share, .patience = patience}, wrong);
    totals.inserted += of_case.inserted;
    totals.verified += of_case.verified;
    totals.redraws += of_case.redraws;
    CHECK_EQ(wrong.total(), 0U);
    CHECK(of_case.inserted > 0);
    if (wrong.total() == 0) continue;
    std::cerr << name_of(c) << ": wrong rows: " << wrong.mixed << " mixed, " << wrong.misplaced << " misplaced, "
              << wrong.cleared << " cleared, " << wrong.missing << " missing; " << wrong.unfit << " unfit answers, "
              << wrong.stuck << " stuck writers\n";
    break;
  }
  std::cout << totals.inserted << " rows inserted, " << totals.verified << " sampled rows verified, " << totals.redraws
            << " redraws\n";
  return check::result();
}
