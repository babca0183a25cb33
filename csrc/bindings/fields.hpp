// SPDX-License-Identifier: MIT
// The parts of a minibatch block as arrays and tensors, each of which owns the block.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreplay {

void register_fields(pybind11::module_& m);

}  // namespace fastreplay
