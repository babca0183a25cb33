// SPDX-License-Identifier: MIT
#include "prefetch.hpp"

#include <csignal>
#include <stdexcept>
#include <utility>

namespace fastreplay {

namespace {

// A thread that sleeps takes 5 to 50 us to wake, as long as some gathers take altogether. So both sides look
// for news this long before they sleep; a learner's step of a millisecond leaves the thread asleep for the rest.
constexpr std::chrono::microseconds kSpin{50};

// Nothing is gained by spinning where the other side needs this core to get on.
std::chrono::nanoseconds spin_here() noexcept {
  return std::thread::hardware_concurrency() > 1 ? kSpin : std::chrono::nanoseconds{0};
}

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Signals are for the threads of the application: one that came to ours would interrupt none of their sleeps.
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

}  // namespace

Prefetcher::Prefetcher(Ring& ring, Sampler& sampler, std::size_t depth, Send send)
    : ring_{ring}, sampler_{sampler}, send_{send}, spin_{spin_here()}, jobs_(depth) {
  if (depth == 0) throw std::invalid_argument{"depth: expected at least 1, got 0"};
  const SignalsBlocked inherited;  // by the thread
  thread_ = std::thread{[this] { run(); }};
}

void Prefetcher::push(const Block& block, void* context) {
  {
    const auto lock = locked();
    if (num_pushed_ - num_taken_ == jobs_.size()) throw std::logic_error{"a block was pushed into a full prefetcher"};
    jobs_[num_pushed_ % jobs_.size()] = {.block = &block, .context = context, .call = sampler_.take_call()};
    ++num_pushed_;
  }
  tell_news();
  work_.notify_one();
}

Prefetcher::Outcome Prefetcher::take(std::chrono::nanoseconds patience) {
  const auto is_decided = [this] { return is_stopped_ || num_taken_ < num_filled_ || outcome_ != Outcome::kFilled; };
  auto lock = locked();
  if (!is_decided() && patience > std::chrono::nanoseconds{0}) {
    lock = wait_for_news(std::move(lock));
    done_.wait_for(lock, patience, is_decided);
  }
  if (is_stopped_) return Outcome::kStopped;
  if (num_taken_ < num_filled_) {
    ++num_taken_;
    return Outcome::kFilled;
  }
  return outcome_ == Outcome::kFilled ? Outcome::kPending : outcome_;
}

void Prefetcher::retry() {
  {
    const auto lock = locked();
    if (outcome_ == Outcome::kEmpty) outcome_ = Outcome::kFilled;
  }
  tell_news();
  work_.notify_one();
}

void Prefetcher::stop() noexcept {
  {
    const auto lock = locked();
    is_stopped_ = true;
  }
  tell_news();
  work_.notify_all();
  done_.notify_all();
  const std::scoped_lock lock{joining_};
  if (thread_.joinable()) thread_.join();
}

int Prefetcher::error() const {
  const auto lock = locked();
  return error_;
}

void Prefetcher::run() noexcept {
  const auto has_work = [this] { return is_stopped_ || (num_filled_ < num_pushed_ && outcome_ == Outcome::kFilled); };
  auto lock = locked();
  for (;;) {
    if (!has_work()) {
      lock = wait_for_news(std::move(lock));
      work_.wait(lock, has_work);
    }
    if (is_stopped_) return;
    const Job job = jobs_[num_filled_ % jobs_.size()];
    lock.unlock();
    const Outcome outcome = fill(job);
    lock = locked();
    outcome_ = outcome;
    if (outcome == Outcome::kFilled) ++num_filled_;
    lock.unlock();
    tell_news();
    done_.notify_one();
    lock = locked();
  }
}

Prefetcher::Outcome Prefetcher::fill(const Job& job) noexcept {
  if (!sampler_.sample(ring_, *job.block, job.call)) return Outcome::kEmpty;
  if (send_ == nullptr) return Outcome::kFilled;
  const int error = send_(job.context);
  if (error == 0) return Outcome::kFilled;
  const auto lock = locked();
  error_ = error;
  return Outcome::kFailed;
}

// Holds the mutex for the caller. It is held for some ten ns at a time, and to sleep until then takes a thousand
// times as long.
std::unique_lock<std::mutex> Prefetcher::locked() const {
  constexpr int kTries = 1000;
  for (int tries = 0; tries < kTries; ++tries) {
    if (std::unique_lock lock{mutex_, std::try_to_lock}; lock) return lock;
    pause();
  }
  return std::unique_lock{mutex_};
}

// Gives the mutex back until something has changed, or for a short while.
std::unique_lock<std::mutex> Prefetcher::wait_for_news(std::unique_lock<std::mutex> lock) const {
  // relaxed: what changed is read under the mutex, which orders it; partner: the increment in tell_news().
  const std::uint64_t seen = news_.load(std::memory_order_relaxed);
  lock.unlock();
  const auto end = std::chrono::steady_clock::now() + spin_;
  // relaxed: as above.
  while (news_.load(std::memory_order_relaxed) == seen && std::chrono::steady_clock::now() < end) pause();
  return locked();
}

// After the mutex was given back, so that who spins finds it open.
void Prefetcher::tell_news() noexcept {
  // relaxed: a hint that orders nothing; partner: the loads in wait_for_news().
  news_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace fastreplay
