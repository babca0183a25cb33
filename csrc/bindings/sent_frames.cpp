// SPDX-License-Identifier: MIT
// Records with frames in common, for a device that keeps them as well.
#include "lanes/sent_frames.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

std::unique_ptr<SentFrames> new_sent_frames(const Ring& ring, std::size_t chunk_bytes) {
  if (ring.records().layout().frames().empty()) throw py::value_error{"records without frames in common"};
  return std::make_unique<SentFrames>(ring, chunk_bytes);
}

// How many records, the group that lacks rooms for the next, and (group, first room, how many, from where in the frames
// on) of each copy.
using SentCopies = std::vector<std::array<std::size_t, 4>>;

std::tuple<std::size_t, std::optional<std::size_t>, SentCopies> read_frames(SentFrames& sent, Ticket first,
                                                                            Bytes records, Bytes frames) {
  const std::span<std::byte> to = span_of(records);
  const std::span<std::byte> beside = span_of(frames);
  if (beside.size() < sent.most_bytes() || reinterpret_cast<std::uintptr_t>(to.data()) % alignof(FramePlace) != 0) {
    throw py::value_error{"expected memory of records, and of all frames beside one"};
  }
  SentFrames::Found found;
  {
    const py::gil_scoped_release released;
    found = sent.read(first, to, beside);
  }
  SentCopies copies;
  for (const auto& [group, room, count, offset] : found.copies) copies.push_back({group, room, count, offset});
  return {found.num_records, found.lacking, std::move(copies)};
}

void add_chunk(SentFrames& sent, std::size_t group, FramePlace begin) {
  if (group >= sent.num_groups()) throw py::value_error{"no such group"};
  sent.add_chunk(group, begin);
}

}  // namespace

void bind_sent_frames(py::module_& m) {
  py::class_<SentFrames>(m, "SentFrames")
      .def(py::init(&new_sent_frames), py::arg("ring"), py::arg("chunk_bytes"), py::keep_alive<1, 2>())
      .def_property_readonly("most_bytes", &SentFrames::most_bytes)
      .def_property_readonly("groups",
                             [](const SentFrames& sent) {
                               std::vector<std::array<std::size_t, 3>> groups;
                               for (std::size_t i = 0; i < sent.num_groups(); ++i) {
                                 groups.push_back({sent.frame_bytes(i), sent.rooms_per_chunk(i), sent.num_chunks(i)});
                               }
                               return groups;
                             })
      .def("add_chunk", &add_chunk, py::arg("group"), py::arg("begin"))
      .def("read", &read_frames, py::arg("first"), py::arg("records").noconvert(), py::arg("frames").noconvert());
}

}  // namespace fastreplay
