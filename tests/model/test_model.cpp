// SPDX-License-Identifier: MIT
// Checks the protocols of the ring and of leaves and links beside it exhaustively: every interleaving of a few threads
// and every value that weak memory lets each load return (memory.hpp); the threads run the code itself
// (operations.hpp). Then breaks them, one way at a time: each mutant must be caught (catalogue.hpp). Orders that are
// stronger than the model needs are weakened together, and nothing may be found: were one of them to become needed,
// that would show here.
//
//   test_model                what make test runs
//   test_model --large        larger configurations, for make stress
//   test_model --trace NAME   also prints the shortest counterexample of that mutant
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "catalogue.hpp"
#include "litmus.hpp"
#include "search.hpp"

namespace {

using namespace model;

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
  if (config.place_of(location) == Place::kLeaf) return "leaf of slot " + std::to_string(location - config.leaf(0));
  const auto in_link = [&](const char* part, std::size_t first) {
    return part + std::string{" of slot "} + std::to_string(location - first);
  };
  if (config.place_of(location) == Place::kAfter) return in_link("after", config.after(0));
  if (config.place_of(location) == Place::kBefore) return in_link("before", config.before(0));
  if (config.place_of(location) == Place::kLane) return in_link("lane", config.lane(0));
  if (config.place_of(location) == Place::kMark) return "mark";
  if (config.place_of(location) == Place::kSummary) return "summary";
  const std::size_t word = slot - config.capacity;
  return "slot " + std::to_string(word / kWordsPerRecord) + " word " + std::to_string(word % kWordsPerRecord);
}

void print_event(const Config& config, const Event& event) {
  constexpr std::array kRoles{"writer", "reader", "clear ", "update", "sample"};
  const char* role = kRoles[static_cast<std::size_t>(config.role_of(event.thread))];
  const std::string_view function = name_of(event.function);
  std::printf("    %s %u  %-12.*s %s", role, event.thread, static_cast<int>(function.size()), function.data(),
              event.verb);
  if (event.location == kNoLocation) {
    std::printf(" %u", static_cast<unsigned>(event.value));
  } else {
    const bool reads = std::strcmp(event.verb, "reads") == 0;
    std::printf(" %s %s %u", location_name(config, event.location).c_str(),
                reads ? "=" : ":=", static_cast<unsigned>(event.value));
    if (event.num_newer > 0) std::printf(" (%zu newer there)", event.num_newer);
  }
  std::puts(event.accepts ? config.has_leaves() ? ", and takes the mass"
                            : config.has_links  ? ", and takes the step"
                                                : ", and accepts the row"
                          : "");
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
    std::printf("%-8s %-48s %9zu states (%5zu of a thread) %8zu rows %7.2f s  %s", name, config.name, result.num_states,
                result.num_thread_states, result.num_rows, result.seconds, describe(result.violation));
    print_verdict(result.violation == Violation::kNone);
    for (const Event& event : result.trace) print_event(config, event);
  }
}

void check_spares(const std::vector<Spare>& spares, const std::vector<Config>& configs) {
  Faults weakest;
  for (const Spare& spare : spares) weakest.changes.push_back(spare.change);
  check_protocol("weakest", weakest, configs);
  std::printf("  %zu orders weakened", weakest.changes.size());
  print_verdict(weakest.are_met());
  for (const Spare& spare : spares) std::printf("  includes %-21s not needed here: %s\n", spare.name, spare.reason);
}

void check_mutant(const Mutant& mutant, const std::vector<Config>& configs, bool prints_trace) {
  double seconds = 0;
  for (const Config& config : configs) {
    const Result result = Search{mutant.faults, config}.run(true);
    seconds += result.seconds;
    if (result.violation == Violation::kNone) continue;
    std::printf("mutant %-25s caught: %s (%s; %zu steps, %.2f s)", mutant.name, describe(result.violation), config.name,
                result.trace.size(), seconds);
    print_verdict(true);
    for (const Event& event : result.trace) {
      if (prints_trace) print_event(config, event);
    }
    return;
  }
  std::printf("mutant %-25s not caught, %.2f s", mutant.name, seconds);
  print_verdict(false);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string_view> arguments(argv + 1, argv + argc);
  const bool large = arguments.size() == 1 && arguments[0] == "--large";
  const std::string_view traced = arguments.size() == 2 && arguments[0] == "--trace" ? arguments[1] : "";
  const auto is_traced = [&](const Mutant& mutant) { return mutant.name == traced; };
  const bool known = std::any_of(kMutants.begin(), kMutants.end(), is_traced) ||
                     std::any_of(kFrameMutants.begin(), kFrameMutants.end(), is_traced) ||
                     std::any_of(kLeafMutants.begin(), kLeafMutants.end(), is_traced) ||
                     std::any_of(kLinkMutants.begin(), kLinkMutants.end(), is_traced);
  if (!arguments.empty() && !large && !known) {
    std::fprintf(stderr, "usage: %s [--large | --trace MUTANT]\n", argv[0]);
    return EXIT_FAILURE;
  }
  check_litmus();
  check_protocol("protocol", Faults{}, kQuick);
  check_protocol("protocol", Faults{}, kQuickFrames);
  check_protocol("protocol", Faults{}, kQuickLeaves);
  check_protocol("protocol", Faults{}, kQuickLinks);
  if (large) check_protocol("protocol", Faults{}, kLarge);
  if (large) check_protocol("protocol", Faults{}, kLargeLeaves);
  if (large) check_protocol("protocol", Faults{}, kLargeLinks);
  // With a number of FASTREPLAY_TURN every second mutant, the others with the next number, and spares with each third.
  const char* turn = std::getenv("FASTREPLAY_TURN");
  unsigned number = turn == nullptr ? 0 : static_cast<unsigned>(std::strtoul(turn, nullptr, 10));
  if (number % 3 == 0) check_spares(kSpares, kQuick);
  if (number % 3 == 0) check_spares(kLeafSpares, kQuickLeaves);
  const auto check = [&](const auto& mutants, const auto& configurations) {
    for (const Mutant& mutant : mutants) {
      if (turn == nullptr || ++number % 2 == 0) check_mutant(mutant, configurations, mutant.name == traced);
    }
  };
  check(kMutants, kQuick);
  check(kFrameMutants, kQuickFrames);
  check(kLeafMutants, kQuickLeaves);
  check(kLinkMutants, kQuickLinks);
  std::puts(all_as_expected ? "all as expected" : "NOT ALL AS EXPECTED");
  return all_as_expected ? EXIT_SUCCESS : EXIT_FAILURE;
}
