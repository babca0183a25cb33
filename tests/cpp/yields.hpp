// SPDX-License-Identifier: MIT
// Stops threads for a moment inside the protocol, so that others run into what they left half done.
// Defines the at_stop_point() of a core that was built with FASTREPLAY_STOP_POINTS; for one file of a program.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "ring/stop_points.hpp"

#if !defined(FASTREPLAY_STOP_POINTS)
#error "without FASTREPLAY_STOP_POINTS the core never calls at_stop_point()"
#endif

namespace yields {

inline std::atomic<bool> enabled{true};

// The thread's own generator (xorshift64*, Vigna 2016): a shared one would order the threads.
inline std::uint64_t random_word() {
  static std::atomic<std::uint64_t> num_threads{0};
  thread_local std::uint64_t state = 0;
  // relaxed: only that no two threads get the same number.
  if (state == 0) state = 0x9E3779B97F4A7C15 * (1 + num_threads.fetch_add(1, std::memory_order_relaxed));
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1D;
}

// One step in 64 stops its thread, so that every row meets a stop at some step and progress stays
// certain. Half of the stops are short spins, which move another thread's access into the few
// nanoseconds that count; the others give the processor away, one in 64 of them many times over, which
// lets the others go round a small ring. Beside foreign work that costs milliseconds each time instead of
// microseconds, and the thread then keeps to spins for a while.
inline void maybe() {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::microseconds kLong{200};
  constexpr int kRest = 4;
  thread_local Clock::time_point rested{};
  // relaxed: a setting of the test; nothing is ordered by it.
  if (!enabled.load(std::memory_order_relaxed)) return;
  const std::uint64_t word = random_word();
  if (word >> 58 != 0) return;
  const std::uint64_t length = word >> 40 & 63;
  const Clock::time_point begin = Clock::now();
  if ((word >> 32 & 1) != 0 || begin < rested) {
    for (std::uint64_t i = 0; i < 8 * length; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
  } else {
    for (std::uint64_t i = 0; i < (length == 0 ? 64 : 1); ++i) std::this_thread::yield();
    const Clock::time_point end = Clock::now();
    if (end - begin > kLong) rested = end + kRest * (end - begin);
  }
}

}  // namespace yields

namespace fastreplay {

void at_stop_point(StopPoint) noexcept { yields::maybe(); }

}  // namespace fastreplay
