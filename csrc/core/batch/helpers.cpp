// SPDX-License-Identifier: MIT
#include "batch/helpers.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "batch/own_thread.hpp"

namespace fastreplay {

namespace {

// How often a caller looks whether its helpers are done before it lets others have the core.
constexpr int kLooks = 1000;

// To wake a sleeper costs who does it some microseconds, and more in a virtual machine; so all do.
constexpr unsigned kWokenByEach = 2;

struct Job {
  PartFunction function;
  std::size_t num_parts;
  unsigned num_helpers;  // at most
  std::atomic<unsigned> num_helping{0};
  std::atomic<std::size_t> next{0};

  void work() noexcept {
    // relaxed: only that no two get the same part; what a part reads was there before the job was shown.
    for (std::size_t part = 0; (part = next.fetch_add(1, std::memory_order_relaxed)) < num_parts;) {
      function.call(function.function, part);
    }
  }

  // Whether one more helper is wanted, who then is one; and how many are wanted beside.
  [[nodiscard]] bool takes(unsigned& num_missing) noexcept {
    // relaxed: a count that orders nothing.
    const unsigned before = num_helping.fetch_add(1, std::memory_order_relaxed);
    if (before >= num_helpers) return false;
    num_missing = num_helpers - before - 1;
    return true;
  }
};

// The job is its caller's. A helper looks at it only between its two changes of inside_, and the caller takes it away
// before it looks at inside_: of a helper's first change and look, and the caller's change and look, all sequentially
// consistent, either the helper's look comes late and finds nothing, or the caller's does and finds the helper inside.
class Helpers {
 public:
  void run(Job& job) noexcept {
    const std::unique_lock lock{busy_, std::try_to_lock};
    if (lock) show(job);
    job.work();
    if (lock) take_away();
  }

 private:
  void show(Job& job) noexcept {
    hire(job.num_helpers);
    // seq_cst: release, for what the job's parts read; partner: the load in help().
    job_.store(&job, std::memory_order_seq_cst);
    // release: who hears the bell finds the job, if it is not done yet; partner: the loads in hear().
    bell_.fetch_add(1, std::memory_order_release);
    bell_.notify_one();
  }

  void take_away() noexcept {
    // seq_cst: before the look at inside_; partner: the load in help().
    job_.store(nullptr, std::memory_order_seq_cst);
    // seq_cst: acquire, for what the parts wrote; partners: the changes in help().
    for (int looks = 0; inside_.load(std::memory_order_seq_cst) != 0; ++looks) {
      looks < kLooks ? pause() : std::this_thread::yield();
    }
  }

  // Fewer where no more can be had.
  void hire(unsigned count) noexcept {
    const SignalsBlocked inherited;
    try {
      for (; num_hired_ < count; ++num_hired_) std::thread{[this] { help(); }}.detach();
    } catch (const std::exception&) {
      return;
    }
  }

  [[noreturn]] void help() noexcept {
    for (std::uint32_t heard = 0;;) {
      heard = hear(heard);
      // seq_cst: before the look at the job; partner: the load in take_away().
      inside_.fetch_add(1, std::memory_order_seq_cst);
      // seq_cst: acquire; partner: the stores in show() and take_away().
      Job* const job = job_.load(std::memory_order_seq_cst);
      if (unsigned num_missing = 0; job != nullptr && job->takes(num_missing)) {
        for (unsigned k = 0; k < std::min(num_missing, kWokenByEach); ++k) bell_.notify_one();
        job->work();
      }
      // release: what the parts wrote; partner: the load in take_away().
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Waits until the bell has another number.
  [[nodiscard]] std::uint32_t hear(std::uint32_t heard) noexcept {
    const auto end = std::chrono::steady_clock::now() + spin_;
    // acquire: partner: the increment in show(). So below.
    while (bell_.load(std::memory_order_acquire) == heard && std::chrono::steady_clock::now() < end) pause();
    bell_.wait(heard, std::memory_order_acquire);
    return bell_.load(std::memory_order_acquire);
  }

  const std::chrono::nanoseconds spin_ = spin_here();
  std::mutex busy_;         // held by whose job it is
  unsigned num_hired_ = 0;  // guarded by busy_
  std::atomic<Job*> job_{nullptr};
  std::atomic<unsigned> inside_{0};
  std::atomic<std::uint32_t> bell_{0};
};

std::atomic<unsigned> wanted_threads{1};
std::atomic<Helpers*> of_this_process{nullptr};

// The child's threads are not there, and the parent's may hold the mutex: what the child has of them is left as it is.
void forget_helpers() noexcept {
  // relaxed: the child has one thread.
  of_this_process.store(nullptr, std::memory_order_relaxed);
}

// Never deleted: helpers sleep in it until the process ends. Null where there is no memory for it, or no way to hear of
// forks.
Helpers* helpers() noexcept {
  static const bool is_told_of_forks = pthread_atfork(nullptr, nullptr, forget_helpers) == 0;
  // acquire: what its maker wrote; partner: the exchange below.
  Helpers* found = of_this_process.load(std::memory_order_acquire);
  if (found != nullptr || !is_told_of_forks) return found;
  std::unique_ptr<Helpers> made{new (std::nothrow) Helpers};
  // acq_rel: as above, and to be found whole; partner: the load above.
  const bool is_first = of_this_process.compare_exchange_strong(found, made.get(), std::memory_order_acq_rel);
  return is_first ? made.release() : found;
}

}  // namespace

unsigned num_threads() noexcept {
  // relaxed: a number that orders nothing.
  return wanted_threads.load(std::memory_order_relaxed);
}

void set_num_threads(unsigned count) noexcept {
  // relaxed: as above.
  wanted_threads.store(count, std::memory_order_relaxed);
}

void do_parts(std::size_t num_parts, unsigned num_threads, PartFunction function) noexcept {
  Job job{.function = function, .num_parts = num_parts, .num_helpers = num_threads - 1};
  Helpers* const found = num_threads > 1 && num_parts > 1 ? helpers() : nullptr;
  found != nullptr ? found->run(job) : job.work();
}

}  // namespace fastreplay
