// SPDX-License-Identifier: MIT
#include "batch/draw.hpp"

#include <algorithm>
#include <thread>

#include "ring/stop_points.hpp"

namespace fastreplay {

namespace {

constexpr int kMaxTries = 1000;

// Draws a row by each word. Returns false where one may be unfinished, or a word is to be thrown away.
bool draw_committed(const Philox::Counter& words, Window window, Ticket* tickets) noexcept {
  bool are_drawn = true;
  for (const std::uint64_t word : words) {
    std::uint64_t position = 0;
    are_drawn &= draw_below(window.reserved(), word, position) && window.first + position < window.committed;
    *tickets++ = window.first + position;
    at_stop_point(StopPoint::kRowDrawn);
  }
  return are_drawn;
}

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

Window uncleared(const Ring& ring, Window window, Ticket oldest) noexcept {
  window.first = std::max(oldest, window.end - std::min<Ticket>(window.end, ring.window_capacity()));
  return window;
}

UniformDraw::UniformDraw(Ring& ring, Philox::Key key, std::uint64_t call, const Recency& recency, const Window& window,
                         std::span<Ticket> tickets) noexcept
    : ring_{ring}, key_{key}, call_{call}, recency_{recency}, tickets_{tickets}, oldest_{window.first} {
  if (recency.newest_of == 0 && recency.newest == 0) [[likely]] {
    take(window);
    return;
  }
  refresh();
  const Ticket end = window_.published() > 0 ? window_.committed : window_.end;
  num_newest_ = std::min<std::uint64_t>({recency.newest, tickets.size(), end - window_.first});
  first_newest_ = end - num_newest_;
}

void UniformDraw::fill(std::size_t first_row, std::size_t num_rows) noexcept {
  if (first_row > 0) refresh();
  const std::size_t end = first_row + num_rows;
  std::size_t row = first_row;
  for (; row < std::min(end, num_newest_); ++row) {
    tickets_[row] = first_newest_ + row;
    finish(row, ring_.is_published(tickets_[row], window_));
  }
  constexpr std::size_t kWords = WordStream::kBlockWords;
  while (row < end) {
    const Philox::Counter words = WordStream::block(key_, call_, row / kWords);
    const std::size_t num_words = std::min(kWords - row % kWords, end - row);
    if (num_words < kWords || !draw_committed(words, window_, &tickets_[row])) [[unlikely]] {
      for (std::size_t i = row; i < row + num_words; ++i) finish(i, draw(words[i % kWords], tickets_[i]));
    }
    row += num_words;
  }
}

// Draws a row again, where its first attempt was none.
void UniformDraw::finish(std::size_t row, bool is_drawn) noexcept {
  std::uint64_t attempt = 0;
  if (!is_drawn) static_cast<void>(another(row, attempt, Suitable{}));
  at_stop_point(StopPoint::kRowDrawn);
}

bool UniformDraw::again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept {
  refresh();
  const bool is_drawn = another(row, attempt, suitable);
  at_stop_point(StopPoint::kRowDrawn);
  return is_drawn;
}

void UniformDraw::refresh() noexcept {
  const bool is_plain = recency_.newest_of == 0 && recency_.newest == 0;
  const Window window = is_plain ? ring_.window_to_draw_from() : ring_.window();
  // What was there at the beginning was not empty, and nor is this.
  take(window.reserved() > 0 ? window : uncleared(ring_, window, oldest_));
}

void UniformDraw::take(const Window& window) noexcept {
  whole_ = window_ = window;
  if (recency_.newest_of > 0) [[unlikely]] {
    if (window.published() > 0) window_.end = window.committed;
    window_.first = std::max(window_.first, window_.end - std::min(window_.end, recency_.newest_of));
  }
  at_stop_point(StopPoint::kWindowTaken);
  first_slot_ = ring_.slot(window_.first);
}

inline bool UniformDraw::draw(std::uint64_t word, Ticket& ticket) const noexcept {
  std::uint64_t position = 0;
  const bool is_drawn = draw_below(window_.reserved(), word, position);
  ticket = window_.first + position;
  return is_drawn && ring_.is_published(ticket, window_);
}

// A ticket in place of one that is being written, or that does not suit. Should every row of the window be being
// written (the ring is small, or was cleared just now), their writers get time to finish. Where all suit, a draw that
// was begun has no other way but to its end: the rows that it overwrote are the caller's, and may not be left half-way.
[[gnu::noinline]] bool UniformDraw::another(std::size_t row, std::uint64_t& attempt,
                                            const Suitable& suitable) noexcept {
  Ticket& ticket = tickets_[row];
  for (;;) {
    if (++attempt % kRedraws <= suitable.max_attempts(window_)) {
      if (draw(word_of_attempt(key_, call_, row, attempt), ticket)) return true;
      continue;
    }
    for (const Window& window : {whole_, uncleared(ring_, whole_, oldest_)}) {
      take(window);
      ticket = draw_counted(ring_, window_, key_, {row + 1, call_, attempt, 1},
                            [&](Ticket each) { return suitable.has(each, whole_) ? 1.0 : 0.0; });
      if (ticket != window_.end) return true;
      if (!suitable.are_all()) return false;
    }
    std::this_thread::yield();
    refresh();
  }
}

}  // namespace fastreplay
