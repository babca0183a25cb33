// SPDX-License-Identifier: MIT
// What a link says, on the CPU and in CUDA kernels.
#pragma once

#include <cstdint>

namespace fastreplay {

// How many tickets a transition's neighbour in its lane is away; or what there is instead.
using Gap = std::uint32_t;
inline constexpr Gap kMostGap = 0xFFFF'0000;

struct Before {
  static constexpr Gap kFirst = 0;           // nothing: it begins a trajectory
  static constexpr Gap kLost = 0xFFFF'FFFF;  // a transition that had left the ring
};

struct After {
  static constexpr Gap kOpen = 0;               // nothing yet
  static constexpr Gap kEnded = 0xFFFF'FFFF;    // nothing: it ended its trajectory
  static constexpr Gap kCut = 0xFFFF'FFFE;      // nothing: the trajectory was cut there
  static constexpr Gap kUnknown = 0xFFFF'FFFD;  // a transition that is not there; or the slot is another ticket's
};

[[nodiscard]] constexpr bool is_gap(Gap distance) noexcept { return distance != 0 && distance <= kMostGap; }

// Whether nothing comes after, and never will.
[[nodiscard]] constexpr bool is_end(Gap after) noexcept { return after == After::kEnded || after == After::kCut; }

}  // namespace fastreplay
