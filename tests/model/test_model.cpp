// SPDX-License-Identifier: MIT
// Checks the ring's protocol exhaustively: every interleaving of a few threads and every value that
// weak memory lets each load return (memory.hpp); the threads run the ring's code itself (threads.hpp). Then breaks it,
// one way at a time: each mutant must be caught. Last, orders that are stronger than the model needs are weakened
// together, and nothing may be found: were one of them to become needed, that would show here.
//
//   test_model                what make test runs
//   test_model --large        larger configurations, for make stress
//   test_model --trace NAME   also prints the shortest counterexample of that mutant
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "litmus.hpp"
#include "search.hpp"

namespace {

using namespace model;

const std::vector<Config> kQuick{
    {"capacity 1, 2 writers, 1 reader", 1, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers, 1 reader", 2, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers of 2 rows, 1 reader", 2, 2, 1, 2, 1, 1},
    {"capacity 3, 2 writers of 2 rows, 1 reader", 3, 2, 1, 2, 1, 1},
    {"capacity 1, 2 writers, 1 reader, clear", 1, 2, 1, 1, 1, 1, 1},
    {"capacity 1, 3 writers, 1 reader", 1, 3, 1, 1, 1, 1},
    {"capacity 1, 2 writers twice, 1 reader", 1, 2, 2, 1, 1, 1},
    {"capacity 2, 2 writers twice, 1 reader", 2, 2, 2, 1, 1, 1},
    {"capacity 1, 2 writers twice, 1 reader twice", 1, 2, 2, 1, 1, 2},
};

// 130 million states in all, in a quarter of an hour of one core.
const std::vector<Config> kLarge{
    {"capacity 2, 3 writers, 1 reader", 2, 3, 1, 1, 1, 1},
    {"capacity 3, 3 writers, 1 reader", 3, 3, 1, 1, 1, 1},
    {"capacity 3, 2 writers of 2 rows, 2 readers", 3, 2, 1, 2, 2, 1},
    {"capacity 2, 2 writers, 1 reader twice, clear", 2, 2, 1, 1, 1, 2, 1},
    {"capacity 2, 2 writers of 2 rows twice, 1 reader", 2, 2, 2, 2, 1, 1},
    {"capacity 3, 2 writers of 2 rows twice, 1 reader", 3, 2, 2, 2, 1, 1},
    {"capacity 1, 2 writers twice, 2 readers", 1, 2, 2, 1, 2, 1},
    {"capacity 2, 2 writers twice, 1 reader, clear", 2, 2, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers thrice, 1 reader", 2, 2, 3, 1, 1, 1},
    {"capacity 1, 3 writers twice, 1 reader", 1, 3, 2, 1, 1, 1},
};

constexpr Order kRelaxed = Order::kRelaxed;

struct Mutant {
  const char* name;
  Faults faults;
};

Faults weaker(const Site& site, std::optional<Order> order, std::optional<Order> failure = {}) {
  return {.changes = {{.site = site, .order = order, .failure = failure}}};
}
Faults without(const Site& site) { return {.changes = {{.site = site, .leaves_out = true}}}; }
Faults lying(const Site& site, int lie) { return {.changes = {{.site = site, .lie = lie}}}; }

constexpr Site kGate{"try_reserve", Kind::kLoad, kCommit};
constexpr Site kReservation{"try_reserve", Kind::kUpdate, kHead};
constexpr Site kFenceR1{"write", Kind::kFence};
constexpr Site kWordStore{"publish", Kind::kStore, kFirstWord};
constexpr Site kAdvanceCommit{"advance", Kind::kLoad, kCommit};
constexpr Site kAdvanceHead{"advance", Kind::kLoad, kHead};
constexpr Site kAdvanceWord{"advance", Kind::kLoad, kFirstWord};
constexpr Site kAdvanceUpdate{"advance", Kind::kUpdate, kCommit};
constexpr Site kWindowBase{"window_within", Kind::kLoad, kBase};
constexpr Site kWindowCommit{"window_within", Kind::kLoad, kCommit};
constexpr Site kWindowHead{"window_within", Kind::kLoad, kHead};
constexpr Site kIsPublished{"is_published", Kind::kLoad, kFirstWord};
constexpr Site kFenceR2{"oldest_whole", Kind::kFence};
constexpr Site kValidation{"oldest_whole", Kind::kLoad, kHead};
constexpr Site kClearHead{"clear", Kind::kLoad, kHead};
constexpr Site kClearUpdate{"clear", Kind::kUpdate, kBase};

const std::vector<Mutant> kMutants{
    {"no-gate", lying(kGate, 1000)},
    {"gate-off-by-one", lying(kGate, 1)},
    {"gate-too-tight", lying(kGate, -1)},
    {"gate-relaxed", weaker(kGate, kRelaxed)},
    {"no-validation", {.validation = Validation::kNever}},
    {"validation-off-by-one", lying(kValidation, -1)},
    {"validation-before-copy", {.validation = Validation::kBeforeCopy}},
    {"no-word-check", {.checks_word = false}},
    {"word-before-data", {.data_last = true}},
    {"word-store-relaxed", weaker(kWordStore, kRelaxed)},
    {"advance-cas-relaxed", weaker(kAdvanceUpdate, Order::kAcquire)},
    {"no-fence-r1", without(kFenceR1)},
    {"no-fence-r2", without(kFenceR2)},
    {"is-published-relaxed", weaker(kIsPublished, kRelaxed)},
    {"window-commit-relaxed", weaker(kWindowCommit, kRelaxed)},
    {"window-base-relaxed", weaker(kWindowBase, kRelaxed)},
    {"clear-relaxed", weaker(kClearUpdate, kRelaxed)},
    {"advance-word-relaxed", weaker(kAdvanceWord, kRelaxed)},
    {"advance-commit-relaxed", weaker(kAdvanceCommit, kRelaxed)},
    {"advance-failure-relaxed", weaker(kAdvanceUpdate, {}, kRelaxed)},
};

// Orders that are stronger than this model needs, and why. Weaker orders allow more, so one search
// with all of them weakened at once shows that each alone is harmless.
struct Spare {
  const char* name;
  Change change;
  const char* reason;
};

const std::vector<Spare> kSpares{
    {"reserve-relaxed",
     {.site = kReservation, .order = kRelaxed},
     "the gate orders writers of a slot, fence R1 and the commit's release show the reservation to readers"},
    {"advance-cas-release",
     {.site = kAdvanceUpdate, .order = Order::kRelease},
     "the commit that it replaces was read by acquire before"},
    {"advance-head-relaxed",
     {.site = kAdvanceHead, .order = kRelaxed},
     "the commit read before, by acquire, brings a head as new"},
    {"window-head-relaxed",
     {.site = kWindowHead, .order = kRelaxed},
     "the commit and base read before, by acquire, bring a head as new"},
    {"clear-head-relaxed",
     {.site = kClearHead, .order = kRelaxed},
     "releasing base hands on the head that was read, whatever the order of that read"},
};

bool all_as_expected = true;

void print_verdict(bool as_expected) {
  all_as_expected = all_as_expected && as_expected;
  std::puts(as_expected ? "" : "   <-- NOT EXPECTED");
  std::fflush(stdout);
}

std::string location_name(const Config& config, std::size_t location) {
  if (location == kHead) return "head";
  if (location == kCommit) return "commit";
  if (location == kBase) return "base";
  const std::size_t slot = location - kFirstWord;
  if (slot < config.capacity) return "lap word of slot " + std::to_string(slot);
  const std::size_t word = slot - config.capacity;
  return "slot " + std::to_string(word / kWordsPerRecord) + " word " + std::to_string(word % kWordsPerRecord);
}

void print_event(const Config& config, const Event& event) {
  const char* role = event.thread < config.num_writers                        ? "writer"
                     : event.thread < config.num_writers + config.num_readers ? "reader"
                                                                              : "clear ";
  std::printf("    %s %u  %-12s %s", role, event.thread, event.function, event.verb);
  if (event.location == kNoLocation) {
    std::printf(" %u", static_cast<unsigned>(event.value));
  } else {
    const bool reads = std::strcmp(event.verb, "reads") == 0;
    std::printf(" %s %s %u", location_name(config, event.location).c_str(),
                reads ? "=" : ":=", static_cast<unsigned>(event.value));
    if (event.num_newer > 0) std::printf(" (%zu newer there)", event.num_newer);
  }
  std::puts(event.accepts ? ", and accepts the row" : "");
}

void check_litmus() {
  for (const litmus::Litmus& test : litmus::all()) {
    const bool found = litmus::Outcomes{test.program}.contains(test.outcome);
    if (found != test.allowed) std::printf("litmus, %s: %s", test.name, found ? "found" : "not found");
    if (found != test.allowed) print_verdict(false);
  }
  std::printf("memory model: %zu litmus programs\n", litmus::all().size());
}

void check_protocol(const char* name, const Faults& faults, const std::vector<Config>& configs) {
  for (const Config& config : configs) {
    const Result result = Search{faults, config}.run(true);
    std::printf("%-8s %-47s %9zu states (%5zu of a thread) %8zu rows %7.2f s  %s", name, config.name, result.num_states,
                result.num_thread_states, result.num_rows, result.seconds, describe(result.violation));
    print_verdict(result.violation == Violation::kNone);
    for (const Event& event : result.trace) print_event(config, event);
  }
}

void check_spares(const std::vector<Config>& configs) {
  Faults weakest;
  for (const Spare& spare : kSpares) weakest.changes.push_back(spare.change);
  check_protocol("weakest", weakest, configs);
  std::printf("  %zu orders weakened", weakest.changes.size());
  print_verdict(weakest.are_met());
  for (const Spare& spare : kSpares) std::printf("  includes %-20s not needed here: %s\n", spare.name, spare.reason);
}

void check_mutant(const Mutant& mutant, bool prints_trace) {
  double seconds = 0;
  for (const Config& config : kQuick) {
    const Result result = Search{mutant.faults, config}.run(true);
    seconds += result.seconds;
    if (result.violation == Violation::kNone) continue;
    std::printf("mutant %-23s caught: %s (%s; %zu steps, %.2f s)", mutant.name, describe(result.violation), config.name,
                result.trace.size(), seconds);
    print_verdict(true);
    for (const Event& event : result.trace) {
      if (prints_trace) print_event(config, event);
    }
    return;
  }
  std::printf("mutant %-23s not caught, %.2f s", mutant.name, seconds);
  print_verdict(false);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const bool large = arguments.size() == 1 && arguments[0] == "--large";
  const std::string_view traced = arguments.size() == 2 && arguments[0] == "--trace" ? arguments[1] : "";
  const bool known = std::any_of(kMutants.begin(), kMutants.end(), [&](const Mutant& m) { return m.name == traced; });
  if (!arguments.empty() && !large && !known) {
    std::fprintf(stderr, "usage: %s [--large | --trace MUTANT]\n", argv[0]);
    return EXIT_FAILURE;
  }
  check_litmus();
  check_protocol("protocol", Faults{}, kQuick);
  if (large) check_protocol("protocol", Faults{}, kLarge);
  check_spares(kQuick);
  for (const Mutant& mutant : kMutants) check_mutant(mutant, mutant.name == traced);
  std::puts(all_as_expected ? "all as expected" : "NOT ALL AS EXPECTED");
  return all_as_expected ? EXIT_SUCCESS : EXIT_FAILURE;
}
