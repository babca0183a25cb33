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

using Slots = std::vector<std::int64_t>;

Slots slots_of(const Integers& slots) { return {slots.data(), slots.data() + slots.size()}; }
// Of a list, element by element: NumPy takes longer to make an array of it than all the rest takes.
Slots slots_of(const py::list& slots) {
  Slots numbers;
  numbers.reserve(slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {  // asked anew each time: what an element runs may change the list
    const py::object slot = slots[i];
    if (PyBool_Check(slot.ptr()) != 0 || PyIndex_Check(slot.ptr()) == 0) {
      throw py::type_error{"indices: expected integers, got " + py::repr(slot).cast<std::string>()};
    }
    const Py_ssize_t number = PyNumber_AsSsize_t(slot.ptr(), PyExc_IndexError);
    if (number == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set{};
    numbers.push_back(number);
  }
  return numbers;
}

// The newest ticket of each slot.
std::vector<Ticket> newest_in(const Slots& slots, Ring& ring) {
  const Window window = ring.window();
  const std::size_t end_slot = ring.slot(window.end);
  std::vector<Ticket> tickets;
  tickets.reserve(slots.size());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto slot = static_cast<std::size_t>(slots[i]);
    const Ticket ticket = window.end - end_slot + slot - (slot < end_slot ? 0 : ring.capacity());
    if (slot >= ring.capacity() || ticket - window.first >= window.reserved()) {
      throw py::index_error{"indices[" + std::to_string(i) + "]: " + std::to_string(slots[i]) +
                            " holds no transition: the buffer has " + std::to_string(window.reserved())};
    }
    tickets.push_back(ticket);
  }
  return tickets;
}

template <class Names>
std::pair<std::size_t, std::size_t> update(Priorities& priorities, const Names& rows, const py::array& values) {
  const std::span<const Ticket> names = tickets_of(rows);
  const std::vector<double> numbers = numbers_of(values);
  check(names, numbers, priorities.ring());
  const auto [applied, stale] = priorities.update(names, numbers);
  return {applied, stale};
}

template <class Given>
void update_slots(Priorities& priorities, const Given& given, const py::array& values) {
  const std::vector<double> numbers = numbers_of(values);
  const std::vector<Ticket> tickets = newest_in(slots_of(given), priorities.ring());
  check(tickets, numbers, priorities.ring());
  priorities.update(tickets, numbers);
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
                       bool is_kept_elsewhere, MappedFile* file) {
             return std::make_unique<Priorities>(ring, MassRule{.alpha = alpha, .eps = eps, .floor = floor}, initial,
                                                 keeps_smallest, is_kept_elsewhere, memory_of(file));
           }),
           py::arg("ring"), py::arg("alpha"), py::arg("eps"), py::arg("floor"), py::arg("initial"),
           py::arg("keeps_smallest"), py::arg("is_kept_elsewhere") = false, py::arg("file").none(true) = py::none(),
           py::keep_alive<1, 2>())
      .def_property_readonly("num_bytes", &Priorities::num_bytes)
      .def_property("largest", &Priorities::largest, &Priorities::set_largest)
      .def("update", &update<Block>, py::arg("rows"), py::arg("priorities"))
      .def("update", &update<Integers>, py::arg("tickets"), py::arg("priorities"))
      .def("update_slots", &update_slots<py::list>, py::arg("indices"), py::arg("priorities"))
      .def("update_slots", &update_slots<Integers>, py::arg("indices"), py::arg("priorities"))
      .def("read", &read, py::arg("first"), py::arg("count"))
      .def("restore", &restore, py::arg("first"), py::arg("masses"))
      .def("capsule", [](Priorities& priorities) { return py::capsule{&priorities, kPrioritiesCapsule}; });
}

}  // namespace fastreplay
