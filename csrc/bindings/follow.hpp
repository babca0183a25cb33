// SPDX-License-Identifier: MIT
// What surrounds the rows of a minibatch, as Python says it.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "batch/sample.hpp"
#include "rows.hpp"

namespace fastreplay {

// A rule, and the lanes that it follows, which outlive it.
class FollowRule {
 public:
  FollowRule(const Lanes& lanes, WindowRule rule, bool is_staged = false)
      : rule_{std::move(rule)}, is_staged_{is_staged}, following_{lanes, rule_} {}
  FollowRule(const FollowRule&) = delete;
  FollowRule& operator=(const FollowRule&) = delete;

  // That a row has, if it is complete.
  [[nodiscard]] std::size_t num_steps() const noexcept { return std::size_t{rule_.most_before} + rule_.most_after + 1; }

  // The same for blocks that somebody sees: they change as a whole, or not at all.
  [[nodiscard]] std::unique_ptr<FollowRule> staged() const {
    return std::make_unique<FollowRule>(following_.lanes, rule_, rule_.is_redrawn);
  }
  [[nodiscard]] bool is_staged() const noexcept { return is_staged_; }

  [[nodiscard]] const Following& following() const noexcept { return following_; }

  [[nodiscard]] Ring& ring() const noexcept { return following_.lanes.ring(); }

  // Refuses a block that has other parts, and draws in epochs of what has to be complete.
  void check(const Block& block, const Sampler& sampler) const {
    check_fits(block, ring());
    if (!fits(rule_, ring().records().layout(), block.layout())) {
      throw pybind11::value_error{"the block is for what surrounds its rows in another way"};
    }
    if (rule_.is_redrawn && sampler.epochs() != nullptr) throw pybind11::value_error{"epochs have every row"};
  }

 private:
  WindowRule rule_;
  bool is_staged_;
  Following following_;
};

template <class Bound>
bool is_a(const pybind11::object& object) {
  auto* type = reinterpret_cast<PyTypeObject*>(pybind11::type::of<Bound>().ptr());
  return PyType_IsSubtype(Py_TYPE(object.ptr()), type) != 0;
}

// What surrounds the rows that are drawn from a source; null where that is a ring, or nothing of the two. Not by
// signatures that pybind11 tries one after the other, which takes 1.5 µs.
inline const FollowRule* follow_in(const pybind11::object& source) {
  return is_a<FollowRule>(source) ? &source.cast<const FollowRule&>() : nullptr;
}

inline Ring& ring_in(const pybind11::object& source) {
  if (!is_a<Ring>(source))
    throw pybind11::type_error{"expected a ring, or what surrounds rows that are drawn from one"};
  return source.cast<Ring&>();
}

}  // namespace fastreplay
