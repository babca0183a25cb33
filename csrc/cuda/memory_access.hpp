// SPDX-License-Identifier: MIT
// How kernels read and write a device's memory. Knows no CUDA where it is compiled for the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "inline.hpp"

#define FASTREPLAY_RESTRICT __restrict__
#if defined(__CUDACC__)
#define FASTREPLAY_UNROLL _Pragma("unroll")
#else
#define FASTREPLAY_UNROLL
#endif

namespace fastreplay {

// Says of an address that it is one of the device's memory, not of a block's own: its loads then need not look.
template <class T>
FASTREPLAY_INLINE T* as_global(T* address) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// Makes a word at least this, among the threads of a block.
FASTREPLAY_INLINE void raise(std::uint32_t* word, std::uint32_t least) {
#if defined(__CUDA_ARCH__)
  // relaxed: only the largest is asked for; the barrier after it orders it for who reads the word.
  atomicMax_block(as_global(word), least);
#else
  if (*word < least) *word = least;
#endif
}

struct alignas(16) SixteenBytes {
  std::uint64_t values[2];
};

// Copies units first, first + kStep, ... below num_units: reads kInFlight of them before it writes the first, so that
// they are on their way together; at the end, up to four. Both places are multiples of a unit's size.
template <class Unit, unsigned kInFlight, unsigned kStep>
FASTREPLAY_INLINE void copy_units(std::byte* to, const std::byte* from, std::uint32_t first, std::uint32_t num_units) {
  auto* FASTREPLAY_RESTRICT targets = reinterpret_cast<Unit*>(to);
  const auto* FASTREPLAY_RESTRICT sources = reinterpret_cast<const Unit*>(from);
  constexpr unsigned kAtEnd = 4;
  static_assert(kInFlight >= kAtEnd);
  Unit held[kInFlight];
  std::uint32_t i = first;
  for (; i + (kInFlight - 1) * kStep < num_units; i += kInFlight * kStep) {
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kInFlight; ++k) held[k] = sources[i + k * kStep];
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kInFlight; ++k) targets[i + k * kStep] = held[k];
  }
  for (; i < num_units; i += kAtEnd * kStep) {
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kAtEnd; ++k) {
      if (i + k * kStep < num_units) held[k] = sources[i + k * kStep];
    }
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kAtEnd; ++k) {
      if (i + k * kStep < num_units) targets[i + k * kStep] = held[k];
    }
  }
}

}  // namespace fastreplay
