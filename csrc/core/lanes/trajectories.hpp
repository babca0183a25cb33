// SPDX-License-Identifier: MIT
// What there is of trajectories in a ring, and how many windows along them are complete: counted by looking at every
// link once. Knows nothing of draws.
#pragma once

#include <cstdint>

#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// How many steps a window reaches around the transition that it is of.
struct WindowReach {
  std::uint64_t before = 0;
  std::uint64_t after = 0;
};

struct TrajectoryCounts {
  std::uint64_t num_transitions = 0;
  std::uint64_t num_trajectories = 0;  // of which something is there
  std::uint64_t longest = 0;           // of what is there of them
  std::uint64_t num_lost = 0;          // of which the beginning is not there
  std::uint64_t num_complete = 0;      // windows that have all their steps, or whose trajectory has no more
};

// Counts what was published of the ring's window when it was called and still is whole when it returns, which is what
// could be drawn from at that moment but what came meanwhile. Others may insert, and are not waited for. Throws
// std::bad_alloc.
[[nodiscard]] TrajectoryCounts count_trajectories(Ring& ring, const Lanes& lanes, const WindowReach& reach);

}  // namespace fastreplay
