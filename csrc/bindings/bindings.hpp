// SPDX-License-Identifier: MIT
// What the parts of the module fastreplay._core share.
#pragma once

#include <pybind11/pybind11.h>

#include "minibatch.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Refuses to fill a block with the rows of a ring of another layout: their sizes are all that the core looks at.
inline void check_fits(const Block& block, const Ring& ring) {
  if (!block.layout().fits(ring.records().layout()))
    throw pybind11::value_error{"the block is for records of another layout"};
}

void bind_prefetcher(pybind11::module_& m);
void bind_turn(pybind11::module_& m);

}  // namespace fastreplay
