// SPDX-License-Identifier: MIT
// How long consumers wait for a prefetcher, and whether they are in its process. Knows nothing of minibatches.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace fastreplay {

// How often somebody waited, and how long in all.
class Waits {
 public:
  void add(double seconds) noexcept { note(std::chrono::duration_cast<Nanoseconds>(Seconds{seconds})); }

  void note(std::chrono::nanoseconds waited) noexcept {
    // relaxed, here and below: statistics, each by itself; partners: the loads below.
    count_.fetch_add(1, std::memory_order_relaxed);
    nanoseconds_.fetch_add(waited.count(), std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }
  [[nodiscard]] double seconds() const noexcept {
    return Seconds{Nanoseconds{nanoseconds_.load(std::memory_order_relaxed)}}.count();
  }

 private:
  using Seconds = std::chrono::duration<double>;
  using Nanoseconds = std::chrono::nanoseconds;

  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::int64_t> nanoseconds_{0};
};

// Tells a child after a fork from its parent, at less than the system call getpid() costs.
inline std::atomic<std::uint64_t> num_forks{0};

inline std::uint64_t this_process() noexcept {
  // relaxed: set before the child has a second thread; partner: the increment in the child.
  return num_forks.load(std::memory_order_relaxed);
}

inline void count_fork() noexcept {
  // relaxed: as above; partner: the load in this_process().
  num_forks.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace fastreplay
