// SPDX-License-Identifier: MIT
// Rows of an array that lie anywhere in memory.
#include <pybind11/numpy.h>

#include <array>
#include <vector>

#include "batch/gather.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// Refuses rows with gaps.
std::size_t row_bytes_of(const py::array& table) {
  py::ssize_t row_bytes = table.itemsize();
  for (py::ssize_t axis = table.ndim() - 1; axis > 0; --axis) {
    // NumPy gives an axis of length 1 any stride.
    if (table.shape(axis) > 1 && table.strides(axis) != row_bytes) throw py::value_error{"expected rows without gaps"};
    row_bytes *= table.shape(axis);
  }
  return static_cast<std::size_t>(row_bytes);
}

// table[indices] along the first axis.
py::array take_rows(const py::array& table, const Integers& indices) {
  if (table.ndim() == 0) throw py::type_error{"expected an array of at least one dimension"};
  check_is_number(table.dtype());
  const std::size_t row_bytes = row_bytes_of(table);
  std::vector<py::ssize_t> shape(table.shape(), table.shape() + table.ndim());
  shape[0] = indices.size();
  py::array taken{table.dtype(), shape};
  const std::span<const std::int64_t> rows{indices.data(), static_cast<std::size_t>(indices.size())};
  for (const std::int64_t row : rows) {
    if (row < 0 || row >= table.shape(0)) throw py::index_error{"expected indices below the length"};
  }
  if (row_bytes == 0) return taken;
  const std::array columns{Column{.offset = 0, .row_bytes = row_bytes}};
  const std::array fields{Copied{.field = 0, .row_bytes = row_bytes, .offset = 0}};
  const auto* first = static_cast<const std::byte*>(table.data());
  gather_fields<Distance::kFar>(
      columns, FrameMemory{}, fields, static_cast<std::byte*>(taken.mutable_data()), {.first = 0, .num = rows.size()},
      ShiftDraw{},
      [first, stride = table.strides(0), next = rows.data()]() mutable { return first + *next++ * stride; });
  return taken;
}

}  // namespace

void bind_take_rows(py::module_& m) { m.def("take_rows", &take_rows, py::arg("table"), py::arg("indices")); }

}  // namespace fastreplay
