// SPDX-License-Identifier: MIT
// A ring that lies in a file: what it is made in, and what is found of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <system_error>
#include <thread>

#include "gil.hpp"
#include "lanes/checksums.hpp"
#include "module.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "storage/mapped_file.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// Takes up what an earlier process left: published transitions are there, unfinished ones are not.
void go_on(Ring& ring, Priorities* priorities, Lanes* lanes) {
  const bool is_sound = without_gil(ring.num_bytes(), [&]() noexcept {
    if (!ring.is_sound()) return false;
    discard_unfinished(ring, priorities, lanes);
    if (priorities != nullptr) priorities->go_on();
    return lanes == nullptr || lanes->go_on();
  });
  if (!is_sound) throw py::value_error{"it holds tickets or lanes that cannot be"};
}

// Takes the file from under whoever is using the ring: what they store from now on is nowhere, and what they read is of
// nobody. False, with all as it was, where an insert is unfinished for so long.
bool close_ring(const Ring& ring, MappedFile& file, std::chrono::milliseconds patience) {
  const py::gil_scoped_release released;
  const RingHeader closed = ring.closed_header();
  RingHeader before;
  file.take_over(ring.header_memory(), std::as_bytes(std::span{&closed, 1}));
  file.read(ring.header_memory(), std::as_writable_bytes(std::span{&before, 1}));
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!ring.has_finished(before)) {
    if (std::chrono::steady_clock::now() > end) {
      file.give_back(ring.header_memory());
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  file.leave();
  return true;
}

void translate_system_errors() {
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });
}

}  // namespace

void bind_ring_file(py::module_& m) {
  translate_system_errors();
  py::class_<MappedFile, std::shared_ptr<MappedFile>>(m, "MappedFile")
      .def(py::init([](int descriptor, std::size_t begin, bool is_new, bool fits) {
             if (begin % Region::kPageBytes != 0) throw py::value_error{"expected a multiple of a page"};
             return std::make_shared<MappedFile>(descriptor, begin, is_new, fits);
           }),
           py::arg("descriptor"), py::arg("begin"), py::arg("is_new"), py::arg("fits"))
      .def_property_readonly("end", &MappedFile::end)
      .def("leave", &MappedFile::leave);
  m.attr("MAPS_FILES") = MappedFile::is_supported();

  py::class_<Checksums>(m, "Checksums")
      .def(py::init([](const Ring& ring, const Lanes* lanes, MappedFile& file) {
             return std::make_unique<Checksums>(ring, lanes, file);
           }),
           py::arg("ring"), py::arg("lanes").none(true), py::arg("file"), py::keep_alive<1, 2>(),
           py::keep_alive<1, 3>())
      .def(
          "confirm",
          [](Checksums& sums, Ticket first, Ticket end) {
            return without_gil(sums.num_bytes(first, end), [&] { return sums.confirm(first, end); });
          },
          py::arg("first"), py::arg("end"))
      .def(
          "oldest_intact",
          [](const Checksums& sums, Ticket first, Ticket end) {
            return without_gil(sums.num_bytes(first, end), [&] { return sums.oldest_intact(first, end); });
          },
          py::arg("first"), py::arg("end"));

  m.def(
      "close_ring",
      [](const Ring& ring, MappedFile& file, double patience_s) {
        return close_ring(ring, file, std::chrono::milliseconds{static_cast<std::int64_t>(patience_s * 1000)});
      },
      py::arg("ring"), py::arg("file"), py::arg("patience_s"));
  m.def("go_on", &go_on, py::arg("ring"), py::arg("priorities").none(true), py::arg("lanes").none(true));
}

}  // namespace fastreplay
