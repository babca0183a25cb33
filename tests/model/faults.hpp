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

enum class Kind : std::uint8_t { kLoad, kStore, kUpdate, kFence, kChoice, kDone };

// One access of a thread to shared memory, or its end.
struct Access {
  Kind kind = Kind::kDone;
  Order order = Order::kRelaxed;
  Order failure = Order::kRelaxed;  // of an update
  std::uint8_t location = kNoLocation;
  std::uint64_t value = 0;  // that is stored; of a choice, the number of options
  std::uint64_t expected = 0;
  const char* function = "";
};

// Where an access stands: no function of the ring accesses a kind of location in two ways that matter.
struct Site {
  const char* function;
  Kind kind;
  std::size_t first_location = kNoLocation;  // of the kind: kHead, kCommit, kBase, or kFirstWord for a lap word

  [[nodiscard]] bool is_of(const Access& access) const {
    const std::size_t location = access.location == kNoLocation ? kNoLocation
                                 : access.location < kFirstWord ? access.location
                                                                : kFirstWord;
    return access.kind == kind && location == first_location && std::string_view{access.function} == function;
  }
};

struct Change {
  Site site;
  std::optional<Order> order{};
  std::optional<Order> failure{};
  int lie = 0;  // is added to what a load returns
  bool leaves_out = false;
  mutable bool is_met = false;  // by an access: a site that is none changes nothing
};

enum class Validation : std::uint8_t { kAfterCopy, kBeforeCopy, kNever };

struct Faults {
  std::vector<Change> changes{};
  bool data_last = false;  // lap words are stored before the records
  // Of a reader.
  bool checks_word = true;
  Validation validation = Validation::kAfterCopy;

  [[nodiscard]] bool are_met() const {
    return std::all_of(changes.begin(), changes.end(), [](const Change& change) { return change.is_met; });
  }
  void weaken(Access& access) const {
    for (const Change& change : changes) {
      if (!change.site.is_of(access)) continue;
      change.is_met = true;
      access.order = change.order.value_or(access.order);
      access.failure = change.failure.value_or(access.failure);
    }
  }
  [[nodiscard]] bool leaves_out(const Access& access) const {
    for (const Change& change : changes) {
      if (change.leaves_out && change.site.is_of(access)) return true;
    }
    return false;
  }
  [[nodiscard]] std::uint64_t lie(const Access& access) const {
    std::uint64_t sum = 0;
    for (const Change& change : changes) {
      if (change.site.is_of(access)) sum += static_cast<std::uint64_t>(static_cast<std::int64_t>(change.lie));
    }
    return sum;
  }
};

}  // namespace model
