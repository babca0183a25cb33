// SPDX-License-Identifier: MIT
// What the two extension modules agree on. Must not know Python.
#pragma once

#include <cstddef>

namespace fastreplay {

// Name of the capsule in which _core hands its Ring to _fastpath.
inline constexpr char kRingCapsule[] = "fastreplay.Ring";

// From here on an insert, a read, a target update goes without the GIL. Below, it is kept: beside a thread
// that runs Python without pause, whoever gave it away waits 5 ms (sys.getswitchinterval) to get it back.
// 256 cheetah rows (43 kB, 12 us) a call: 200 minibatches a second without it, 46,000 with it.
inline constexpr std::size_t kReleaseInsertBytes = std::size_t{32} << 10;
inline constexpr std::size_t kReleaseReadBytes = std::size_t{512} << 10;
inline constexpr std::size_t kReleaseUpdateBytes = std::size_t{2} << 20;  // of the targets

}  // namespace fastreplay
