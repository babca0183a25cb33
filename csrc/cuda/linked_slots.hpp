// SPDX-License-Identifier: MIT
// From a transition to the one before or after it in its lane, by what a device has of links, in a window of which
// every ticket is published. Knows no CUDA.
#pragma once

#include <cstdint>

#include "following.h"
#include "inline.hpp"
#include "lanes/gaps.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

struct LinkedSlots {
  // Of a transition in the window: how many are older, and where it lies.
  struct Place {
    std::uint64_t position;
    std::uint64_t slot;
  };

  const fastreplay_cuda_link* links;
  std::uint64_t capacity;

  [[nodiscard]] FASTREPLAY_INLINE Place place(const fastreplay_cuda_window& window, std::uint64_t position) const {
    const std::uint64_t slot = window.first_slot + position;
    return {position, slot < capacity ? slot : slot - capacity};
  }
  [[nodiscard]] FASTREPLAY_INLINE Gap before(std::uint64_t slot) const { return as_global(links)[slot].before; }
  [[nodiscard]] FASTREPLAY_INLINE Gap after(std::uint64_t slot) const { return as_global(links)[slot].after; }

  // What a link says of what comes after counts if that says the same of what comes before it.
  FASTREPLAY_INLINE bool go_later(const fastreplay_cuda_window& window, Place& at) const {
    const Gap gap = after(at.slot);
    if (!is_gap(gap) || gap >= window.size - at.position) return false;
    const Place later = place(window, at.position + gap);
    if (before(later.slot) != gap) return false;
    at = later;
    return true;
  }
  FASTREPLAY_INLINE bool go_earlier(const fastreplay_cuda_window& window, Place& at) const {
    const Gap gap = before(at.slot);
    if (!is_gap(gap) || gap > at.position) return false;
    at = place(window, at.position - gap);
    return true;
  }
};

}  // namespace fastreplay
