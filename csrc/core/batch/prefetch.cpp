// SPDX-License-Identifier: MIT
#include "batch/prefetch.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "batch/own_thread.hpp"

namespace fastreplay {

Prefetcher::Prefetcher(Ring& ring, Sampler& sampler, std::size_t depth, Send send, const Following* following)
    : ring_{ring}, sampler_{sampler}, send_{send}, following_{following}, spin_{spin_here()}, jobs_(depth) {
  if (depth == 0) throw std::invalid_argument{"depth: expected at least 1, got 0"};
  const SignalsBlocked inherited;  // by the thread
  thread_ = std::thread{[this] { run(); }};
}

void Prefetcher::push(const Block& block, void* context, double beta) {
  {
    const auto lock = locked();
    if (num_pushed_ - num_taken_ == jobs_.size()) throw std::logic_error{"a block was pushed into a full prefetcher"};
    const bool is_its_turn = num_taken_ == num_pushed_ || jobs_[(num_pushed_ - 1) % jobs_.size()].call.num_rows > 0;
    Job& job = jobs_[num_pushed_++ % jobs_.size()];
    job = {.block = &block, .context = context, .call = {.number = 0, .beta = beta}, .state = State::kPushed};
    if (is_its_turn) sampler_.take_rows(ring_, block, job.call);  // else fill() does, after those before it
  }
  tell_news();
  work_.notify_one();
}

Prefetcher::Oldest Prefetcher::await(std::chrono::nanoseconds patience) {
  const auto is_decided = [this] {
    const Job* job = oldest();
    return is_stopped_ || (job != nullptr && (job->state == State::kFilled || outcome_ != Outcome::kFilled));
  };
  auto lock = locked();
  if (!is_decided() && patience > std::chrono::nanoseconds{0}) {
    Job* job = oldest();
    // A search for complete rows may take long, and is the thread's: consumers come back to hear of signals.
    const bool may_search = following_ != nullptr && following_->rule.is_redrawn;
    if (job != nullptr && job->state == State::kPushed && !may_search) {
      lock = fill(*job, std::move(lock));
      done_.notify_all();
    } else {
      lock = wait_for_news(std::move(lock));
      done_.wait_for(lock, patience, is_decided);
    }
  }
  const Job* job = oldest();
  if (is_stopped_) return {Outcome::kStopped, num_taken_};
  if (job != nullptr && job->state == State::kFilled) return {Outcome::kFilled, num_taken_, job->call.num_rows};
  return {outcome_ == Outcome::kFilled ? Outcome::kPending : outcome_, num_taken_};
}

bool Prefetcher::take(std::uint64_t number) {
  const auto lock = locked();
  const Job* job = oldest();
  if (is_stopped_ || job == nullptr || number != num_taken_ || job->state != State::kFilled) return false;
  ++num_taken_;
  return true;
}

std::optional<Sampler::Call> Prefetcher::oldest_call() const {
  const auto lock = locked();
  const Sampler::Call* call = num_taken_ == num_pushed_ ? nullptr : &jobs_[num_taken_ % jobs_.size()].call;
  return call == nullptr || call->num_rows == 0 ? std::nullopt : std::optional{*call};
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
  {
    const std::scoped_lock lock{joining_};
    if (thread_.joinable()) thread_.join();
  }
  auto lock = locked();
  done_.wait(lock, [this] {
    return std::ranges::none_of(jobs_, [](const Job& job) { return job.state == State::kBeingFilled; });
  });
}

bool Prefetcher::is_stopped() const noexcept {
  const auto lock = locked();
  return is_stopped_;
}

int Prefetcher::error() const {
  const auto lock = locked();
  return error_;
}

void Prefetcher::run() noexcept {
  const auto has_work = [this] { return is_stopped_ || next_to_fill() != nullptr; };
  auto lock = locked();
  for (;;) {
    if (!has_work()) {
      lock = wait_for_news(std::move(lock));
      work_.wait(lock, has_work);
    }
    if (is_stopped_) return;
    lock = fill(*next_to_fill(), std::move(lock));
    lock.unlock();
    tell_news();
    done_.notify_all();
    lock = locked();
  }
}

// Null where there is nothing to fill, or nothing may be filled.
Prefetcher::Job* Prefetcher::next_to_fill() noexcept {
  if (outcome_ != Outcome::kFilled) return nullptr;
  for (std::uint64_t n = num_taken_; n < num_pushed_; ++n) {
    Job& job = jobs_[n % jobs_.size()];
    if (job.state == State::kPushed) return &job;
  }
  return nullptr;
}

Prefetcher::Job* Prefetcher::oldest() noexcept {
  return num_taken_ < num_pushed_ ? &jobs_[num_taken_ % jobs_.size()] : nullptr;
}

// Gives the mutex back meanwhile. The job stays where it is: nobody takes it before it is filled.
std::unique_lock<std::mutex> Prefetcher::fill(Job& job, std::unique_lock<std::mutex> lock) noexcept {
  if (job.call.num_rows == 0) sampler_.take_rows(ring_, *job.block, job.call);  // in the blocks' order
  if (job.call.num_rows == 0) {
    outcome_ = Outcome::kEmpty;  // before anybody turns to the next block
    return lock;
  }
  job.state = State::kBeingFilled;
  lock.unlock();
  GivingUp giving_up{[](void* self) noexcept { return static_cast<Prefetcher*>(self)->is_stopped(); }, this};
  std::optional<Following> following;
  if (following_ != nullptr) following.emplace(Following{following_->lanes, following_->rule, &giving_up});
  const bool is_drawn = sampler_.sample(ring_, *job.block, job.call, following ? &*following : nullptr);
  const int error = is_drawn && send_ != nullptr ? send_(job.context) : 0;
  lock = locked();
  job.state = is_drawn && error == 0 ? State::kFilled : State::kPushed;
  if (!is_drawn && outcome_ == Outcome::kFilled) outcome_ = Outcome::kEmpty;
  if (error != 0) {
    outcome_ = Outcome::kFailed;
    error_ = error;
  }
  return lock;
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
