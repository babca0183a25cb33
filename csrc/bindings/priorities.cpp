// SPDX-License-Identifier: MIT
// What a ring's transitions weigh.
#include "priority/priorities.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "capsule.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

template <class Number>
using Numbers = py::array_t<Number, py::array::c_style>;
using Masses = py::array_t<float, py::array::c_style>;

void check(std::span<const Ticket> tickets, std::span<const double> priorities, const Ring& ring) {
  if (tickets.size() != priorities.size()) {
    throw py::value_error{"priorities: expected one for each of " + std::to_string(tickets.size()) +
                          " transitions, got " + std::to_string(priorities.size())};
  }
  const Ticket head = ring.num_reserved();
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    if (tickets[i] >= head) {
      throw py::value_error{"tickets[" + std::to_string(i) +
                            "]: " + std::to_string(static_cast<std::int64_t>(tickets[i])) +
                            " was never given to a transition: the next is " + std::to_string(head)};
    }
    if (!std::isfinite(priorities[i])) {
      throw py::value_error{"priorities[" + std::to_string(i) + "]: expected a finite number, got " +
                            py::str(py::float_{priorities[i]}).cast<std::string>()};
    }
  }
}

std::span<const Ticket> tickets_of(const Block& rows) { return rows.tickets(); }
std::span<const Ticket> tickets_of(const Integers& tickets) {
  return {reinterpret_cast<const Ticket*>(tickets.data()), static_cast<std::size_t>(tickets.size())};
}

// A copy, and before anything is checked: another thread may write to what it gave. float32 as they lie: a conversion
// that pybind11 is asked for takes as long as the update of some fifty priorities, also where there is nothing to do.
std::vector<double> numbers_of(const py::array& values) {
  if (py::isinstance<Numbers<float>>(values)) {
    const auto* numbers = static_cast<const float*>(values.data());
    return {numbers, numbers + values.size()};
  }
  const auto numbers = Numbers<double>::ensure(values);
  if (!numbers) throw py::type_error{"priorities: expected numbers"};
  return {numbers.data(), numbers.data() + numbers.size()};
}

template <class Names>
std::pair<std::size_t, std::size_t> update(Priorities& priorities, const Names& rows, const py::array& values) {
  const std::span<const Ticket> names = tickets_of(rows);
  const std::vector<double> numbers = numbers_of(values);
  check(names, numbers, priorities.ring());
  const auto [applied, stale] = priorities.update(names, numbers);
  return {applied, stale};
}

Masses read(const Priorities& priorities, Ticket first, std::size_t count) {
  Masses masses(static_cast<py::ssize_t>(count));
  priorities.read(first, {masses.mutable_data(), count});
  return masses;
}

void restore(Priorities& priorities, Ticket first, const Masses& masses) {
  priorities.restore(first, {masses.data(), static_cast<std::size_t>(masses.size())});
}

}  // namespace

void bind_priorities(py::module_& m) {
  py::class_<Priorities>(m, "Priorities")
      .def(py::init([](Ring& ring, double alpha, double eps, double floor, double initial, bool keeps_smallest,
                       bool is_kept_elsewhere) {
             return std::make_unique<Priorities>(ring, MassRule{.alpha = alpha, .eps = eps, .floor = floor}, initial,
                                                 keeps_smallest, is_kept_elsewhere);
           }),
           py::arg("ring"), py::arg("alpha"), py::arg("eps"), py::arg("floor"), py::arg("initial"),
           py::arg("keeps_smallest"), py::arg("is_kept_elsewhere") = false, py::keep_alive<1, 2>())
      .def_property_readonly("num_bytes", &Priorities::num_bytes)
      .def_property("largest", &Priorities::largest, &Priorities::set_largest)
      .def("update", &update<Block>, py::arg("rows"), py::arg("priorities"))
      .def("update", &update<Integers>, py::arg("tickets"), py::arg("priorities"))
      .def("read", &read, py::arg("first"), py::arg("count"))
      .def("restore", &restore, py::arg("first"), py::arg("masses"))
      .def("capsule", [](Priorities& priorities) { return py::capsule{&priorities, kPrioritiesCapsule}; });
}

}  // namespace fastreplay
