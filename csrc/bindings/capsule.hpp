// SPDX-License-Identifier: MIT
// Names of the capsules in which _core hands its objects to the modules of Cython. Must not know Python.
#pragma once

namespace fastreplay {

inline constexpr char kRingCapsule[] = "fastreplay.Ring";
inline constexpr char kPrioritiesCapsule[] = "fastreplay.Priorities";
inline constexpr char kLanesCapsule[] = "fastreplay.Lanes";
inline constexpr char kRecordsCapsule[] = "fastreplay.Records";
inline constexpr char kBlockCapsule[] = "fastreplay.Block";

}  // namespace fastreplay
