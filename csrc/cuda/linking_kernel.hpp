// SPDX-License-Identifier: MIT
// What one CUDA thread does where links of transitions have arrived. Knows no CUDA: a test runs all threads by turns on
// the CPU.
#pragma once

#include <cstdint>

#include "following.h"
#include "inline.hpp"
#include "lanes/gaps.hpp"
#include "memory_access.hpp"

namespace fastreplay {

inline constexpr unsigned kLinkThreads = 256;

[[nodiscard]] inline std::uint64_t num_link_threads(const fastreplay_cuda_linking& linking) {
  return linking.count > linking.num_changes ? linking.count : linking.num_changes;
}

// A transition tells the one before it, but where that has left the ring, its slot being another's of the same run. No
// two have the same one before them, and none of those has changed otherwise: that is said of a lane's newest only.
FASTREPLAY_INLINE void link_share(const fastreplay_cuda_linking& linking, std::uint64_t thread) {
  fastreplay_cuda_link* links = as_global(linking.links);
  if (thread < linking.count) {
    const Gap gap = links[linking.first_slot + thread].before;
    if (is_gap(gap) && gap + (linking.count - thread) <= linking.capacity) {
      const std::uint64_t slot = linking.first_slot + thread;
      links[slot >= gap ? slot - gap : slot + linking.capacity - gap].after = gap;
    }
  }
  if (thread < linking.num_changes) {
    const std::uint32_t* change = as_global(linking.changes) + 2 * thread;
    links[change[0]].after = change[1];
  }
}

}  // namespace fastreplay
