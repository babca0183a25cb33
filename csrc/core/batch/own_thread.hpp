// SPDX-License-Identifier: MIT
// What threads of this library have in common: how long they look for news before they sleep, and that signals are not
// for them.
#pragma once

#include <chrono>
#include <csignal>
#include <thread>

namespace fastreplay {

// A thread that sleeps takes 5 to 50 us to wake, as long as some gathers take altogether. So both sides look
// for news this long before they sleep; a learner's step of a millisecond leaves the thread asleep for the rest.
// Nothing is gained by it where the other side needs this core to get on.
inline std::chrono::nanoseconds spin_here() noexcept {
  return std::thread::hardware_concurrency() > 1 ? std::chrono::microseconds{50} : std::chrono::microseconds{0};
}

inline void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Signals are for the threads of the application: one that came to ours would interrupt none of their sleeps. A thread
// that is made meanwhile inherits it.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace fastreplay
