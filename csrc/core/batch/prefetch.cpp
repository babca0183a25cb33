// SPDX-License-Identifier: MIT
#include "batch/prefetch.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "batch/own_thread.hpp"

namespace fastreplay {

Prefetcher::Prefetcher(std::vector<Member> members, std::size_t depth, Send send)
    : members_{std::move(members)}, send_{send}, spin_{spin_here()}, jobs_(depth) {
  if (depth == 0) throw std::invalid_argument{"depth: expected at least 1, got 0"};
  if (members_.empty()) throw std::invalid_argument{"expected somebody who draws"};
  for (Job& job : jobs_) job.turns.resize(members_.size());
  const SignalsBlocked inherited;  // by the thread
  thread_ = std::thread{[this] { run(); }};
}

void Prefetcher::push(std::span<const Piece> pieces, void* context) {
  if (pieces.size() != members_.size()) throw std::logic_error{"expected a piece for each who draws"};
  {
    const auto lock = locked();
    if (num_pushed_ - num_taken_ == jobs_.size()) throw std::logic_error{"a block was pushed into a full prefetcher"};
    const bool is_its_turn = num_taken_ == num_pushed_ ||
                             std::ranges::all_of(jobs_[(num_pushed_ - 1) % jobs_.size()].turns, &Turn::is_taken);
    Job& job = jobs_[num_pushed_++ % jobs_.size()];
    std::ranges::transform(pieces, job.turns.begin(), [](const Piece& piece) {
      return Turn{.block = piece.block, .call = {.number = 0, .beta = piece.beta}};
    });
    job.context = context;
    job.state = State::kPushed;
    if (is_its_turn) (void)take_rows(job);  // else fill() does, after those before it
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
    if (job != nullptr && job->state == State::kPushed && !may_search()) {
      lock = fill(*job, std::move(lock));
      done_.notify_all();
    } else {
      lock = wait_for_news(std::move(lock));
      done_.wait_for(lock, patience, is_decided);
    }
  }
  const Job* job = oldest();
  if (is_stopped_) return {Outcome::kStopped, num_taken_};
  if (job != nullptr && job->state == State::kFilled) {
    std::size_t num_rows = 0;
    for (const Turn& turn : job->turns) num_rows += turn.call.num_rows;
    return {Outcome::kFilled, num_taken_, num_rows};
  }
  return {outcome_ == Outcome::kFilled ? Outcome::kPending : outcome_, num_taken_};
}

bool Prefetcher::take(std::uint64_t number) {
  const auto lock = locked();
  const Job* job = oldest();
  if (is_stopped_ || job == nullptr || number != num_taken_ || job->state != State::kFilled) return false;
  ++num_taken_;
  return true;
}

std::optional<Sampler::Call> Prefetcher::oldest_call(std::size_t member) const {
  const auto lock = locked();
  for (std::uint64_t n = num_taken_; n < num_pushed_; ++n) {
    const Sampler::Call& call = jobs_[n % jobs_.size()].turns[member].call;
    if (call.num_rows > 0) return call;
  }
  return std::nullopt;
}

std::size_t Prefetcher::num_rows_ahead(std::size_t member) const {
  const auto lock = locked();
  std::size_t num_rows = 0;
  for (std::uint64_t n = num_taken_; n < num_pushed_; ++n) {
    const Job& job = jobs_[n % jobs_.size()];
    if (job.state == State::kFilled) num_rows += job.turns[member].call.num_rows;
  }
  return num_rows;
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

// Gives each member that has none yet its turn. False where one has nothing to draw from.
bool Prefetcher::take_rows(Job& job) noexcept {
  for (std::size_t i = 0; i < members_.size(); ++i) {
    Turn& turn = job.turns[i];
    if (!turn.is_taken()) members_[i].sampler.take_rows(members_[i].ring, *turn.block, turn.call);
  }
  return std::ranges::all_of(job.turns, &Turn::is_taken);
}

bool Prefetcher::draw(const Job& job) noexcept {
  GivingUp giving_up{[](void* self) noexcept { return static_cast<Prefetcher*>(self)->is_stopped(); }, this};
  for (std::size_t i = 0; i < members_.size(); ++i) {
    const auto& [ring, sampler, follows] = members_[i];
    const auto& [block, call] = job.turns[i];
    std::optional<Following> following;
    if (follows != nullptr) following.emplace(Following{follows->lanes, follows->rule, &giving_up});
    if (block != nullptr && !sampler.sample(ring, *block, call, following ? &*following : nullptr)) return false;
  }
  return true;
}

// Whether there is a search for complete rows, which may take long, and is the thread's: consumers come back to hear of
// signals.
bool Prefetcher::may_search() const noexcept {
  return std::ranges::any_of(
      members_, [](const Member& member) { return member.following != nullptr && member.following->rule.is_redrawn; });
}

// Gives the mutex back meanwhile. The job stays where it is: nobody takes it before it is filled.
std::unique_lock<std::mutex> Prefetcher::fill(Job& job, std::unique_lock<std::mutex> lock) noexcept {
  if (!take_rows(job)) {         // in the blocks' order
    outcome_ = Outcome::kEmpty;  // before anybody turns to the next block
    return lock;
  }
  job.state = State::kBeingFilled;
  lock.unlock();
  const bool is_drawn = draw(job);
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
