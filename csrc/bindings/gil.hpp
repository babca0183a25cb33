// SPDX-License-Identifier: MIT
// When work is long enough to be done without the GIL, and how; and how a long search hears of signals.
#pragma once

#include <Python.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#else
#include <pthread.h>
#endif

#include <chrono>
#include <cstddef>

namespace fastreplay {

// From here on an insert, a read, a target update goes without the GIL. Below, it is kept: beside a thread
// that runs Python without pause, whoever gave it away waits 5 ms (sys.getswitchinterval) to get it back.
// 256 cheetah rows (43 kB, 12 us) a call: 200 minibatches a second without it, 46,000 with it.
inline constexpr std::size_t kReleaseInsertBytes = std::size_t{32} << 10;
inline constexpr std::size_t kReleaseReadBytes = std::size_t{512} << 10;
inline constexpr std::size_t kReleaseUpdateBytes = std::size_t{2} << 20;  // of the targets

// Calls a noexcept function, without the GIL for copies of at least kReleaseReadBytes. Not by a guard: at the
// interpreter's exit the GIL is not given back, the thread is unwound instead, which a destructor would turn into an
// abort.
template <class Call>
auto without_gil(std::size_t num_bytes, Call call) {
  if (num_bytes < kReleaseReadBytes) return call();
  PyThreadState* state = PyEval_SaveThread();
  auto result = call();
  PyEval_RestoreThread(state);
  return result;
}

// Whether signals come to this thread. No other gets handlers to run; and one that asked for the GIL while the
// interpreter exits would be unwound in the midst of its call.
inline bool is_main_thread() noexcept {
#if defined(__linux__)
  return syscall(SYS_gettid) == getpid();
#else
  return pthread_main_np() != 0;
#endif
}

// Runs a call that asks has_raised() now and then, where it holds no lock, and is given up if it is so.
class HearingSignals {
 public:
  // As without_gil(). Afterwards, where has_raised(), an exception is set.
  template <class Call>
  auto run(std::size_t num_bytes, Call call) {
    if (num_bytes < kReleaseReadBytes) return call();
    state_ = PyEval_SaveThread();
    auto result = call();
    PyEval_RestoreThread(state_);
    return result;
  }

  [[nodiscard]] bool has_raised() const noexcept { return has_raised_; }

  // Lets handlers run, if it is time. Returns whether one raised an exception.
  [[nodiscard]] bool hear() noexcept {
    const auto now = Clock::now();
    if (has_raised_ || now < next_ || !is_main_thread()) return has_raised_;
    if (state_ != nullptr) PyEval_RestoreThread(state_);
    has_raised_ = PyErr_CheckSignals() != 0;
    if (state_ != nullptr) state_ = PyEval_SaveThread();
    next_ = Clock::now() + kPeriod;
    return has_raised_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPeriod{50};

  PyThreadState* state_ = nullptr;
  Clock::time_point next_ = Clock::now() + kPeriod;
  bool has_raised_ = false;
};

}  // namespace fastreplay
