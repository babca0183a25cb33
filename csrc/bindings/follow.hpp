// SPDX-License-Identifier: MIT
// What surrounds the rows of a minibatch, as Python says it.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "batch/sample.hpp"
#include "rows.hpp"

namespace fastreplay {

// A rule, and the lanes that it follows, which outlive it.
class NStepFollow {
 public:
  NStepFollow(const Lanes& lanes, NStepRule rule) : rule_{std::move(rule)}, following_{lanes, rule_} {}
  NStepFollow(const NStepFollow&) = delete;
  NStepFollow& operator=(const NStepFollow&) = delete;

  [[nodiscard]] const Following& following() const noexcept { return following_; }

  [[nodiscard]] Ring& ring() const noexcept { return following_.lanes.ring(); }

  // Refuses a block that has other parts.
  void check(const Block& block) const {
    check_fits(block, ring());
    check_makes_parts(block, &rule_);
  }

 private:
  NStepRule rule_;
  Following following_;
};

// What surrounds the rows that are drawn from a source; null where that is a ring.
inline const NStepFollow* follow_in(const pybind11::object& source) {
  return pybind11::isinstance<NStepFollow>(source) ? &source.cast<const NStepFollow&>() : nullptr;
}

}  // namespace fastreplay
