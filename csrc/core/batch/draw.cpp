// SPDX-License-Identifier: MIT
#include "batch/draw.hpp"

#include <algorithm>
#include <thread>

#include "ring/stop_points.hpp"

namespace fastreplay {

namespace {

constexpr int kMaxTries = 1000;
constexpr int kTriesBeforeYield = 64;

}  // namespace

Window window_of_published(Ring& ring) noexcept {
  Window window = ring.window_to_draw_from();
  if (window.published() > 0) [[likely]]
    return window;
  for (int tries = 0; tries < kMaxTries && window.reserved() > 0; ++tries) {
    for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
      if (ring.is_published(ticket, window)) return window;
    }
    std::this_thread::yield();
    window = ring.window_to_draw_from();
  }
  return {.first = window.end, .end = window.end, .committed = window.end};
}

void UniformDraw::refresh() noexcept {
  const Window window = ring_.window_to_draw_from();
  take(window.reserved() > 0 ? window : uncleared(window));
}

void UniformDraw::fill(std::size_t first_row, std::size_t num_rows) noexcept {
  if (first_row > 0) refresh();
  draw(tickets_.subspan(first_row, num_rows));
}

void UniformDraw::again(std::size_t row, std::uint64_t& /*attempt*/) noexcept {
  refresh();
  draw(tickets_.subspan(row, 1));
}

inline void UniformDraw::draw(std::span<Ticket> tickets) noexcept {
  for (Ticket& ticket : tickets) {
    ticket = window_.first + words_.below(window_.reserved());
    if (!ring_.is_published(ticket, window_)) [[unlikely]]
      ticket = another();
    at_stop_point(StopPoint::kRowDrawn);
  }
}

void UniformDraw::take(const Window& window) noexcept {
  window_ = window;
  at_stop_point(StopPoint::kWindowTaken);
  first_slot_ = ring_.slot(window_.first);
}

// The window as it would be, had nothing been cleared since the beginning. It is never empty, as that was not.
Window UniformDraw::uncleared(Window window) const noexcept {
  window.first = std::max(oldest_, window.end - std::min<Ticket>(window.end, ring_.capacity()));
  return window;
}

// A ticket in place of one that is being written. Should every row of the window be so (the ring is small, or was
// cleared just now), their writers get time to finish. A draw that was begun has no other way but to its end: the
// rows that it overwrote are the caller's, and may not be left half-way.
[[gnu::noinline]] Ticket UniformDraw::another() noexcept {
  for (int tries = 2;; ++tries) {
    const Ticket ticket = window_.first + words_.below(window_.reserved());
    if (ring_.is_published(ticket, window_)) return ticket;
    if (tries % kTriesBeforeYield != 0) continue;
    std::this_thread::yield();
    refresh();
    if (tries < kMaxTries * kTriesBeforeYield) continue;
    tries = 0;
    take(uncleared(window_));
  }
}

}  // namespace fastreplay
