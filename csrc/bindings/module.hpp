// SPDX-License-Identifier: MIT
// The parts of the module fastreplay._core, one a concept. Each function validates, borrows pointers, releases the GIL
// where copies are long, and calls the core.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreplay {

void bind_records(pybind11::module_& m);
void bind_blocks(pybind11::module_& m);
void bind_ring(pybind11::module_& m);
void bind_fields(pybind11::module_& m);
void bind_priorities(pybind11::module_& m);
void bind_lanes(pybind11::module_& m);
void bind_sent_frames(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_index_set(pybind11::module_& m);
void bind_take_rows(pybind11::module_& m);
void bind_prefetcher(pybind11::module_& m);
void bind_turn(pybind11::module_& m);
void bind_ring_file(pybind11::module_& m);
void bind_crc32(pybind11::module_& m);

// Of all classes that were bound before.
void refuse_bare_objects(const pybind11::module_& m);

}  // namespace fastreplay
