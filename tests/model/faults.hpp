// SPDX-License-Identifier: MIT
// Ways in which a protocol is broken: an access that is weaker, lies or is left out, told by the function that it
// stands in. Without any, the code is as it stands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "config.hpp"

namespace model {

// An update compares; what cannot fail answers what was there. A join waits for all other threads.
enum class Kind : std::uint8_t { kLoad, kStore, kUpdate, kFetchOr, kExchange, kFence, kChoice, kJoin, kDone };

// One access of a thread to shared memory, or its end.
struct Access {
  Kind kind = Kind::kDone;
  Order order = Order::kRelaxed;
  Order failure = Order::kRelaxed;  // of an update
  std::uint8_t location = kNoLocation;
  Place place = Place::kNone;  // of the location
  std::uint64_t value = 0;     // that is stored; of a choice, the number of options
  std::uint64_t expected = 0;
  const char* function = "";
};

// Without what it was made from, where it is of a template.
inline std::string_view name_of(std::string_view function) { return function.substr(0, function.find('<')); }

// Where an access stands: no function accesses a kind of location in two ways that matter.
struct Site {
  const char* function;
  Kind kind;
  Place place = Place::kNone;

  [[nodiscard]] bool is_of(const Access& access) const {
    return access.kind == kind && access.place == place && name_of(access.function) == function;
  }
};

struct Change {
  Site site;
  std::optional<Order> order{};
  std::optional<Order> failure{};
  int lie = 0;  // is added to what a load returns
  bool leaves_out = false;
  bool only_stores = false;     // an update that compares nothing
  bool looks_first = false;     // and does nothing where the bits are set
  mutable bool is_met = false;  // by an access: a site that is none changes nothing
};

// When an insert stores its leaves and sets their marks.
enum class Insertion : std::uint8_t { kInOrder, kLeafAfterPublishing, kLeafAgain, kMarkBeforePublishing, kNoMark };

enum class Validation : std::uint8_t { kAfterCopy, kBeforeCopy, kNever };

struct Faults {
  std::vector<Change> changes{};
  bool data_last = false;  // lap words are stored before the records
  // Of a reader.
  bool checks_word = true;
  Validation validation = Validation::kAfterCopy;
  bool has_spare = true;  // slots that readers are not given
  // Of leaves and marks.
  Insertion insertion = Insertion::kInOrder;
  bool marks_before_update = false;
  bool summary_first = false;  // the bit above is set before the group's
  bool summary_taken_last = false;
  bool marks_new_tickets = true;  // a sampler does
  bool marks_cleared = true;      // as above
  // Of links.
  bool any_lap = false;          // the update that links compares no lap
  bool links_early = false;      // what comes before is linked before what comes after is written
  bool checks_before = true;     // a reader does
  bool checks_successor = true;  // whether it is published

  [[nodiscard]] bool are_met() const {
    return std::all_of(changes.begin(), changes.end(), [](const Change& change) { return change.is_met; });
  }
  void weaken(Access& access) const {
    for (const Change& change : changes) {
      if (!change.site.is_of(access)) continue;
      change.is_met = true;
      access.order = change.order.value_or(access.order);
      access.failure = change.failure.value_or(access.failure);
      if (change.only_stores) access.kind = Kind::kStore;
    }
  }
  [[nodiscard]] bool leaves_out(const Access& access) const { return any(access, &Change::leaves_out); }
  [[nodiscard]] bool looks_first(const Access& access) const { return any(access, &Change::looks_first); }
  [[nodiscard]] std::uint64_t lie(const Access& access) const {
    std::uint64_t sum = 0;
    for (const Change& change : changes) {
      if (change.site.is_of(access)) sum += static_cast<std::uint64_t>(static_cast<std::int64_t>(change.lie));
    }
    return sum;
  }

 private:
  [[nodiscard]] bool any(const Access& access, bool Change::* fault) const {
    return std::any_of(changes.begin(), changes.end(),
                       [&](const Change& change) { return change.*fault && change.site.is_of(access); });
  }
};

}  // namespace model
