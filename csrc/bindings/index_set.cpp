// SPDX-License-Identifier: MIT
// Sets of indices. Each is for one thread at a time: the lock of its object, which there is only without the GIL, sees
// to that.
#include "batch/index_set.hpp"

#include <pybind11/critical_section.h>

#include <string>

#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

std::size_t size(const py::object& self) {
  const py::scoped_critical_section lock{self};
  return self.cast<const IndexSet&>().size();
}

// Makes first, first + stride, ... members of a set, or no members.
void fill(const py::object& self, std::size_t first, std::size_t count, std::size_t stride, bool is_member) {
  const py::scoped_critical_section lock{self};
  auto& set = self.cast<IndexSet&>();
  if (count == 0) return;
  if (stride == 0 || first >= set.bound() || (count - 1) > (set.bound() - 1 - first) / stride) {
    throw py::index_error{"expected indices below " + std::to_string(set.bound())};
  }
  set.fill(first, count, stride, is_member);
}

py::array_t<std::int64_t> select(const py::object& self, const Integers& ranks) {
  py::array_t<std::int64_t> members(ranks.size());
  const py::scoped_critical_section lock{self};
  const auto& set = self.cast<const IndexSet&>();
  const std::int64_t* from = ranks.data();
  std::int64_t* to = members.mutable_data();
  for (py::ssize_t i = 0; i < ranks.size(); ++i) {
    to[i] = from[i];
    if (static_cast<std::uint64_t>(to[i]) >= set.size()) {
      throw py::index_error{"expected ranks below " + std::to_string(set.size())};
    }
  }
  set.select({to, static_cast<std::size_t>(ranks.size())});
  return members;
}

}  // namespace

void bind_index_set(py::module_& m) {
  py::class_<IndexSet>(m, "IndexSet")
      .def(py::init<std::size_t>(), py::arg("bound"))
      .def("__len__", &size)
      .def("fill", &fill, py::arg("first"), py::arg("count"), py::arg("stride"), py::arg("is_member"))
      .def("select", &select, py::arg("ranks"));
}

}  // namespace fastreplay
