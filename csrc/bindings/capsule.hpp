// SPDX-License-Identifier: MIT
// What the two extension modules agree on. Must not know Python.
#pragma once

#include <cstddef>

namespace fastreplay {

// Name of the capsule in which _core hands its Ring to _fastpath.
inline constexpr char kRingCapsule[] = "fastreplay.Ring";

// Copies of at least this many bytes are made without the GIL.
inline constexpr std::size_t kReleaseBytes = std::size_t{32} << 10;

}  // namespace fastreplay
