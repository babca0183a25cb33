// SPDX-License-Identifier: MIT
#include "batch/trajectory_draw.hpp"

#include <algorithm>
#include <thread>

#include "ring/stop_points.hpp"

namespace fastreplay {

TrajectoryDraw::TrajectoryDraw(Ring& ring, const Lanes& lanes, Philox::Key key, std::uint64_t call,
                               const Window& window, std::span<Ticket> tickets) noexcept
    : ring_{ring},
      links_{lanes.links()},
      key_{key},
      call_{call},
      tickets_{tickets},
      words_{key, call},
      oldest_{window.first},
      window_{window} {}

void TrajectoryDraw::fill(std::size_t first_row, std::size_t num_rows) noexcept {
  if (first_row > 0) refresh();
  const Suitable all;
  for (std::size_t row = first_row; row < first_row + num_rows; ++row) {
    std::uint64_t attempt = 0;
    if (!draw(row, attempt, words_.next(), all)) static_cast<void>(another(row, attempt, all));
    at_stop_point(StopPoint::kRowDrawn);
  }
}

bool TrajectoryDraw::again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept {
  refresh();
  const bool is_drawn = another(row, attempt, suitable);
  at_stop_point(StopPoint::kRowDrawn);
  return is_drawn;
}

// Whether what is there of a trajectory begins with a published transition.
bool TrajectoryDraw::begins(const Step& step) const noexcept {
  const Gap gap = links_.before(step.place.slot);
  if (!is_gap(gap) || gap > step.ticket - window_.first) return true;
  return !ring_.is_published(step.ticket - gap, window_);
}

// What a link says counts if the successor says the same (walks.hpp).
bool TrajectoryDraw::go_on(Step& step) const noexcept {
  const Gap gap = links_.after(step.place);
  if (!is_gap(gap) || gap >= window_.end - step.ticket) return false;
  const Step next{.ticket = step.ticket + gap, .place = links_.later(step.place, gap)};
  if (!ring_.is_published(next.ticket, window_) || links_.before(next.place.slot) != gap) return false;
  step = next;
  return true;
}

bool TrajectoryDraw::draw(std::size_t row, std::uint64_t attempt, std::uint64_t word,
                          const Suitable& suitable) noexcept {
  std::uint64_t position = 0;
  if (!draw_below(window_.reserved(), word, position)) return false;
  Step step{.ticket = window_.first + position, .place = links_.place(window_.first + position)};
  if (!ring_.is_published(step.ticket, window_) || !begins(step)) return false;
  std::uint64_t length = 1;
  for (Step end = step; go_on(end);) ++length;
  std::uint64_t number = 0;
  // A counter that no other attempt or row has: those of attempts have small numbers in this place, the stream has 0.
  if (!draw_below(length, Philox::words({row + 1, call_, ~attempt, 0}, key_)[0], number)) return false;
  for (; number > 0 && go_on(step); --number) {
  }
  tickets_[row] = step.ticket;
  return suitable.has(step.ticket, window_);
}

// In one pass over what can be drawn now, of which each trajectory has the same mass (Chao 1982, as in draw.hpp).
bool TrajectoryDraw::draw_counted(std::size_t row, std::uint64_t attempt, const Suitable& suitable) noexcept {
  Philox::Counter counter{row + 1, call_, attempt, 1};
  double total = 0;
  for (Ticket ticket = window_.first; ticket < window_.end; ++ticket) {
    Step step{.ticket = ticket, .place = links_.place(ticket)};
    if (!ring_.is_published(ticket, window_) || !begins(step)) continue;
    std::uint64_t length = 1;
    for (Step end = step; go_on(end);) ++length;
    const double share = 1 / static_cast<double>(length);
    do {
      if (!suitable.has(step.ticket, window_)) continue;
      total += share;
      if (total == share || fraction(Philox::words(counter, key_)[0]) * total < share) tickets_[row] = step.ticket;
      ++counter[3];
    } while (go_on(step));
  }
  return total > 0;
}

// As UniformDraw::another(); as looks are many where trajectories are long, all are counted after more of them.
[[gnu::noinline]] bool TrajectoryDraw::another(std::size_t row, std::uint64_t& attempt,
                                               const Suitable& suitable) noexcept {
  for (;;) {
    if (++attempt % kRedraws <= 2 * window_.reserved()) {
      if (draw(row, attempt, word_of_attempt(key_, call_, row, attempt), suitable)) return true;
      continue;
    }
    for (const Window& window : {window_, uncleared(ring_, window_, oldest_)}) {
      window_ = window;
      if (draw_counted(row, attempt, suitable)) return true;
      if (!suitable.are_all()) return false;
    }
    std::this_thread::yield();
    refresh();
  }
}

void TrajectoryDraw::refresh() noexcept {
  window_ = ring_.window_to_draw_from();
  if (window_.reserved() == 0) window_ = uncleared(ring_, window_, oldest_);
}

}  // namespace fastreplay
