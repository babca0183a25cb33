// SPDX-License-Identifier: MIT
#include "batch/epochs.hpp"

#include <algorithm>
#include <new>
#include <thread>

#include "batch/draw.hpp"

namespace fastreplay {

Epochs::Epochs(Philox::Key key, const EpochOptions& options, const EpochState& state) noexcept
    : key_{key}, options_{options}, state_{state} {
  set_order();
}

std::size_t Epochs::take(Ring& ring, std::span<Ticket> tickets, EpochState& before) noexcept {
  const std::scoped_lock lock{mutex_};
  before = state_;
  const std::size_t least = options_.drops_last ? tickets.size() : 1;
  for (;;) {
    if (state_.size - state_.position < least && !begin_epoch(ring, least)) return 0;
    const std::size_t count = walk(ring, tickets);
    if (count >= least) return count;
  }
}

bool Epochs::replace(Ring& ring, Ticket& ticket) noexcept {
  const std::scoped_lock lock{mutex_};
  ++num_left_out_;
  for (;;) {
    if (state_.position == state_.size && !begin_epoch(ring, 1)) return false;
    if (walk(ring, {&ticket, 1}) == 1) return true;
  }
}

void Epochs::begin_in_child() noexcept {
  new (&mutex_) std::mutex;
  state_.position = std::min(state_.position, state_.size);
  set_order();
}

EpochState Epochs::state() const noexcept {
  const std::scoped_lock lock{mutex_};
  return state_;
}

std::uint64_t Epochs::num_left_out() const noexcept {
  const std::scoped_lock lock{mutex_};
  return num_left_out_;
}

// False, with nothing changed, where there are not even so many transitions.
bool Epochs::begin_epoch(Ring& ring, std::size_t least) noexcept {
  const Window window = ring.window();
  if (window.published() < least) return false;
  const std::uint64_t epoch = state_.size == 0 ? state_.epoch : state_.epoch + 1;
  state_ = {.epoch = epoch, .first = window.first, .size = window.published(), .position = 0};
  set_order();
  return true;
}

// Up to the end of the epoch.
std::size_t Epochs::walk(Ring& ring, std::span<Ticket> tickets) noexcept {
  const Window window = ring.window();
  std::size_t count = 0;
  for (; count < tickets.size() && state_.position < state_.size; ++state_.position) {
    const Ticket ticket = state_.first + (options_.is_shuffled ? order_.at(state_.position) : state_.position);
    if (ticket >= window.first && ticket < window.committed) {
      tickets[count++] = ticket;
    } else {
      ++num_left_out_;
    }
  }
  return count;
}

void Epochs::set_order() noexcept {
  if (options_.is_shuffled) order_ = {key_, state_.epoch, state_.size};
}

// Where everything was cleared meanwhile, a row of what was: a draw that was begun has no other way but to its end.
bool EpochDraw::again(std::size_t row, std::uint64_t& attempt, const Suitable& /*suitable*/) noexcept {
  while (!epochs_.replace(ring_, tickets_[row])) {
    const Window window = uncleared(ring_, ring_.window(), 0);
    tickets_[row] = draw_counted(ring_, window, key_, {row + 1, call_, ++attempt, 1}, [](Ticket) { return 1.0; });
    if (tickets_[row] != window.end) break;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace fastreplay
