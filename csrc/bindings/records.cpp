// SPDX-License-Identifier: MIT
// Storage without a protocol: live views of its columns.
#include "storage/records.hpp"

#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <vector>

#include "capsule.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// A live (capacity, *shape) view of one field; `self` keeps the records alive.
py::array column(const py::object& self, std::size_t field, const py::dtype& dtype,
                 const std::vector<py::ssize_t>& shape) {
  auto& records = self.cast<Records&>();
  const Column& place = records.layout().columns().at(field);
  if (place.num_frames > 0) throw py::value_error{"a field whose rows do not lie in the records"};
  check_is_number(dtype);
  std::vector<py::ssize_t> dims{static_cast<py::ssize_t>(records.capacity())};
  dims.insert(dims.end(), shape.begin(), shape.end());
  std::vector<py::ssize_t> strides(dims.size(), static_cast<py::ssize_t>(records.layout().stride()));
  py::ssize_t step = dtype.itemsize();
  for (std::size_t axis = dims.size() - 1; axis > 0; --axis) {
    strides[axis] = step;
    if (dims[axis] <= 0 || dims[axis] > static_cast<py::ssize_t>(place.row_bytes) / step) {
      throw py::value_error{"dtype and shape do not fit the field"};
    }
    step *= dims[axis];
  }
  if (step != static_cast<py::ssize_t>(place.row_bytes)) throw py::value_error{"dtype and shape do not fit the field"};
  return py::array{dtype, dims, strides, records.data() + place.offset, self};
}

// What lies beside the records, (capacity, bytes); `self` keeps them alive.
py::array beside(const py::object& self) {
  auto& records = self.cast<Records&>();
  const auto extra_bytes = static_cast<py::ssize_t>(records.layout().extra_bytes());
  const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(records.capacity()), extra_bytes};
  const std::vector<py::ssize_t> strides{extra_bytes, 1};
  return py::array{py::dtype::of<std::uint8_t>(), shape, strides, records.beside(0), self};
}

// Of each group of fields that have frames in common: its fields, the column of its newest frame, the first of those of
// its fields' places, and of what lies beside a record the part that is its own: from where on, and how many frames.
using GroupPlaces = std::tuple<std::vector<std::size_t>, std::size_t, std::size_t, std::size_t, std::size_t>;

std::vector<GroupPlaces> groups_in(const RecordLayout& layout) {
  std::vector<GroupPlaces> groups;
  std::size_t column = layout.num_fields() + layout.frames().size();
  for (const auto& [group, frame_bytes, newest, extra_offset] : layout.frames()) {
    groups.emplace_back(group.fields, newest, column, extra_offset, group.fields.size() * group.num_frames - 1);
    column += group.fields.size();
  }
  return groups;
}

std::vector<std::size_t> offsets(const Records& records) {
  std::vector<std::size_t> offsets;
  for (const Column& column : records.layout().columns()) offsets.push_back(column.offset);
  return offsets;
}

}  // namespace

void bind_records(py::module_& m) {
  m.def(
      "record_bytes",
      [](const Sizes& fields, const Groups& groups, bool has_links) {
        return record_layout(fields, groups, has_links).stride();
      },
      py::arg("fields"), py::arg("groups") = Groups{}, py::arg("has_links") = false);
  m.def(
      "record_groups",
      [](const Sizes& fields, const Groups& groups) { return groups_in(record_layout(fields, groups)); },
      py::arg("fields"), py::arg("groups"));
  m.def(
      "beside_bytes",
      [](const Sizes& fields, const Groups& groups) { return record_layout(fields, groups).extra_bytes(); },
      py::arg("fields"), py::arg("groups"));

  py::class_<Records, std::shared_ptr<Records>>(m, "Records")
      .def(py::init([](const Sizes& fields, std::size_t capacity) {
             return std::make_shared<Records>(record_layout(fields), capacity);
           }),
           py::arg("fields"), py::arg("capacity"))
      .def_property_readonly("capacity", &Records::capacity)
      .def_property_readonly("num_bytes", &Records::num_bytes)
      .def_property_readonly("record_bytes", [](const Records& records) { return records.layout().stride(); })
      .def_property_readonly("offsets", &offsets)
      .def_property_readonly(
          "has_links", [](const Records& records) { return records.layout().margin_offset() != RecordLayout::kNone; })
      .def_property_readonly("groups", [](const Records& records) { return groups_in(records.layout()); })
      .def_property_readonly("first_beside", [](Records& records) { return records.place(records.beside(0)); })
      .def("beside", &beside)
      .def("column", &column, py::arg("field"), py::arg("dtype"), py::arg("shape"))
      .def("capsule", [](Records& records) { return py::capsule{&records, kRecordsCapsule}; });
}

}  // namespace fastreplay
