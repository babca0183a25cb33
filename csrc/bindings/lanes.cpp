// SPDX-License-Identifier: MIT
// The lanes of a ring, and what surrounds a row in one.
#include "lanes/lanes.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "capsule.hpp"
#include "follow.hpp"
#include "module.hpp"
#include "priority/priorities.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

using Ends = std::vector<std::tuple<std::size_t, std::size_t, bool>>;  // (field, bytes of an element, is it signed)
using LaneNumbers = py::array_t<std::uint32_t, py::array::c_style>;
using LinkBits = py::array_t<std::uint8_t, py::array::c_style>;

const Column& column_of(const Ring& ring, std::size_t field) {
  const auto& columns = ring.records().layout().columns();
  if (field >= columns.size()) throw py::value_error{"the record has no such field"};
  return columns[field];
}

std::unique_ptr<Lanes> new_lanes(Ring& ring, std::size_t num_lanes, const Ends& ends) {
  if (num_lanes == 0) throw py::value_error{"expected at least one lane"};
  std::vector<EndColumn> columns;
  for (const auto& [field, element_bytes, has_sign] : ends) {
    const Column& column = column_of(ring, field);
    const bool is_whole = element_bytes > 0 && element_bytes <= 8 && column.row_bytes % element_bytes == 0;
    if (!is_whole) throw py::value_error{"an end has elements of up to 8 bytes"};
    columns.push_back({.field = field, .column = column, .element_bytes = element_bytes, .has_sign = has_sign});
  }
  return std::make_unique<Lanes>(ring, num_lanes, std::move(columns));
}

// Cuts a lane, or all. Returns -1, or the lane that was another's, with nothing cut.
std::int64_t cut_lanes(Lanes& lanes, std::optional<std::size_t> lane) {
  if (lane && *lane >= lanes.num_lanes()) throw py::index_error{"no such lane"};
  const std::span<const std::int64_t> which = lane ? lanes.in_order().subspan(*lane, 1) : lanes.in_order();
  const auto owner = reinterpret_cast<Lanes::Owner>(&which);
  const std::size_t busy = lanes.enter(which, owner);
  if (busy != Lanes::kNone) return which[busy];
  for (const std::int64_t each : which) lanes.cut(static_cast<std::size_t>(each));
  lanes.leave(which, owner);
  return -1;
}

// The lanes and links of so many tickets, and the oldest of which they are known.
std::tuple<LaneNumbers, LinkBits, Ticket> save_links(const Lanes& lanes, Ticket first, std::size_t count) {
  LaneNumbers numbers(static_cast<py::ssize_t>(count));
  LinkBits bits(static_cast<py::ssize_t>(count));
  const Ticket oldest = lanes.save(first, {numbers.mutable_data(), count}, {bits.mutable_data(), count});
  return {numbers, bits, oldest};
}

bool restore_links(Lanes& lanes, Ticket first, const LaneNumbers& numbers, const LinkBits& bits) {
  if (numbers.size() != bits.size()) throw py::value_error{"as many lanes as links"};
  const auto count = static_cast<std::size_t>(numbers.size());
  return lanes.restore(first, {numbers.data(), count}, {bits.data(), count});
}

using FieldOfNumbers = std::pair<std::size_t, bool>;  // (field, is it double)

FloatField numbers_in(const Ring& ring, const FieldOfNumbers& field) {
  const Column& column = column_of(ring, field.first);
  if (column.row_bytes % (field.second ? sizeof(double) : sizeof(float)) != 0) {
    throw py::value_error{"the field has other numbers"};
  }
  return {.column = column, .is_double = field.second};
}

std::unique_ptr<NStepFollow> new_n_steps(const Lanes& lanes, std::size_t num_steps, double gamma,
                                         const std::vector<std::pair<FieldOfNumbers, std::size_t>>& sums,
                                         const std::vector<FieldOfNumbers>& stored_discount, std::size_t discount_part,
                                         bool is_discount_double) {
  if (num_steps == 0) throw py::value_error{"expected at least one step"};
  NStepRule rule{.num_steps = num_steps,
                 .gamma = gamma,
                 .sums = {},
                 .stored_discount = {},
                 .discount_part = discount_part,
                 .is_discount_double = is_discount_double};
  for (const auto& [field, part] : sums) rule.sums.push_back({.of = numbers_in(lanes.ring(), field), .part = part});
  for (const FieldOfNumbers& field : stored_discount) rule.stored_discount.push_back(numbers_in(lanes.ring(), field));
  return std::make_unique<NStepFollow>(lanes, std::move(rule));
}

// In the child after a fork, where nobody is left to finish an insert.
void begin_in_child(Ring& ring, Priorities* priorities, Lanes* lanes) {
  ring.discard_unfinished([&](Ticket from, Ticket to) {
    if (priorities != nullptr) priorities->move(from, to);
    if (lanes != nullptr) lanes->move(from, to);
  });
  if (priorities != nullptr) priorities->begin_in_child();
  if (lanes != nullptr) lanes->begin_in_child();
}

}  // namespace

void bind_lanes(py::module_& m) {
  py::class_<Lanes>(m, "Lanes")
      .def(py::init(&new_lanes), py::arg("ring"), py::arg("num_lanes"), py::arg("ends"), py::keep_alive<1, 2>())
      .def_property_readonly("num_lanes", &Lanes::num_lanes)
      .def_property_readonly("num_bytes", &Lanes::num_bytes)
      .def_property("skips_resets", &Lanes::skips_resets, &Lanes::skip_resets)
      .def("cut", &cut_lanes, py::arg("lane"))
      .def("save", &save_links, py::arg("first"), py::arg("count"))
      .def("restore", &restore_links, py::arg("first"), py::arg("lanes").noconvert(), py::arg("links").noconvert())
      .def("capsule", [](Lanes& lanes) { return py::capsule{&lanes, kLanesCapsule}; });

  py::class_<NStepFollow>(m, "NSteps")
      .def(py::init(&new_n_steps), py::arg("lanes"), py::arg("num_steps"), py::arg("gamma"), py::arg("sums"),
           py::arg("stored_discount"), py::arg("discount_part"), py::arg("is_discount_double"), py::keep_alive<1, 2>());

  m.def("begin_in_child", &begin_in_child, py::arg("ring"), py::arg("priorities").none(true),
        py::arg("lanes").none(true));
}

}  // namespace fastreplay
