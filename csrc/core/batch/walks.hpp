// SPDX-License-Identifier: MIT
// How far rows get in their trajectories, before and after the record that was drawn. Knows nothing of what is copied.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ranges>
#include <span>
#include <utility>

#include "batch/ways.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// What is known of the surroundings of one transition in one window, from which those of the next in its lane follow by
// a step: who asks for one transition after the other looks at each link once or twice, however far windows reach.
struct Trail {
  Ticket ticket = 0;
  std::uint64_t num_before = 0;  // steps that are there, or as many as were looked for
  Ticket ahead = 0;              // the last of the steps after it, as far as was looked for
  std::uint32_t num_ahead = 0;
  bool begins = false;  // whether all steps before it, which are less than were looked for, are those of its trajectory
  bool is_known = false;  // else nothing is
};

// Goes from rows to what surrounds them, many rows at once, so that none waits for memory: all that a row may need is
// asked for before it is walked from, as if transitions of a lane were equally far apart. Where they are not, what
// comes next is asked for, and the other rows go on meanwhile.
class Walks {
 public:
  using Place = Lanes::Links::Place;

  static constexpr std::size_t kRowsTogether = 32;

  Walks(const Ring& ring, const Lanes& lanes, const Window& window, std::size_t most_before,
        std::size_t most_after) noexcept
      : ring_{ring},
        links_{lanes.links()},
        window_{window},
        oldest_{links_.place(window.first)},
        most_before_{most_before},
        most_after_{most_after} {}

  // Where a ticket is; without a division, if it is in the window.
  [[nodiscard]] Place begin(Ticket ticket) const noexcept {
    const std::uint64_t position = ticket - window_.first;
    return position < ring_.capacity() ? links_.later(oldest_, position) : links_.place(ticket);
  }

  // Where transitions lie in their lane around one, as far as its link says it; else `otherwise`.
  [[nodiscard]] std::size_t gap_around(const Place& at, std::size_t otherwise) const noexcept {
    for (const Gap gap : {links_.after(at), links_.before(at.slot)}) {
      if (is_gap(gap) && gap < ring_.capacity()) return gap;
    }
    return otherwise;
  }

  // Slots of the links that a walk looks at, from so far before where it begins on.
  struct Span {
    std::size_t before = 0;
    std::size_t length = 0;
    std::size_t step = 1;  // one of each line
  };
  // If transitions are so far apart.
  [[nodiscard]] Span span(std::size_t gap) const noexcept {
    const std::size_t length = (most_before_ + most_after_) * gap;
    if (length >= ring_.capacity()) return {};
    return {.before = most_before_ * gap, .length = length, .step = std::max(gap, links_.num_in_line())};
  }
  // Asks for them. Returns how many lines it is.
  std::size_t ask(const Place& begin, const Span& span) const noexcept {
    const std::size_t first = links_.earlier(begin, span.before).slot;
    std::size_t num_lines = 1;
    for (std::size_t i = 0; i < span.length; i += span.step, ++num_lines) links_.prefetch(links_.wrapped(first + i));
    links_.prefetch(links_.wrapped(first + span.length));
    return num_lines;
  }

  // Walks from each of the rows first_row, first_row + 1, ..., at most kRowsTogether, that begin there. ask_next() asks
  // for what later ones look at, a row's worth for each: more at once would wait for each other.
  template <class AskNext>
  void walk(const Ways& ways, std::size_t first_row, std::span<const Ticket> tickets, std::span<const Place> begins,
            AskNext ask_next) const noexcept {
    const auto end_before = [&](std::size_t /*i*/, Way& way, const Steps& steps) {
      way.oldest = steps.ticket;
      way.num_before = steps.num_steps;
      way.first_slot = static_cast<std::uint32_t>(steps.at.slot);
      way.begins = links_.before(steps.at.slot) == Before::kFirst;
      way.is_complete = way.is_complete && (way.num_before == most_before_ || way.begins);
    };
    walk<Later>(ways, first_row, tickets, begins, ask_next, [&](std::size_t i, Way& way, const Steps& steps) {
      way.num_after = steps.num_steps;
      way.last_slot = static_cast<std::uint32_t>(steps.at.slot);
      way.is_complete = steps.num_steps == most_after_ || is_end(links_.after(steps.at));
      if (most_before_ == 0) end_before(i, way, {.at = begins[i], .ticket = tickets[i]});
    });
    if (most_before_ > 0) walk<Earlier>(ways, first_row, tickets, begins, [] {}, end_before);
  }

  // Whether the way of a published ticket is. The trail is of its lane and this window, or not known; and then of the
  // ticket, unless what it would be made of is overwritten, where the answer is no.
  [[nodiscard]] bool is_complete(Ticket ticket, Trail& trail) const noexcept {
    const Place at = begin(ticket);
    const Gap gap = links_.before(at.slot);
    Ticket oldest = ticket;
    Steps later{.at = at, .ticket = ticket};
    if (trail.is_known && is_gap(gap) && trail.ticket + gap == ticket) {
      ++trail.num_before;
      if (trail.num_ahead > 0)
        later = {.at = begin(trail.ahead), .ticket = trail.ahead, .num_steps = trail.num_ahead - 1};
    } else {
      const Steps earlier = go_on<Earlier>({.at = at, .ticket = ticket});
      oldest = earlier.ticket;
      trail = {.num_before = earlier.num_steps, .begins = links_.before(earlier.at.slot) == Before::kFirst};
    }
    later = go_on<Later>(later);
    const bool is_end_there = later.num_steps == most_after_ || is_end(links_.after(later.at));
    trail.ticket = ticket;
    trail.ahead = later.ticket;
    trail.num_ahead = later.num_steps;
    trail.is_known = oldest >= ring_.oldest_whole();
    return trail.is_known && is_end_there && (trail.num_before >= most_before_ || trail.begins);
  }

  // The oldest ticket of the way of a published one, if that is complete.
  [[nodiscard]] std::optional<Ticket> oldest_if_complete(Ticket ticket) const noexcept {
    const Steps later = go_on<Later>({.at = begin(ticket), .ticket = ticket});
    if (later.num_steps < most_after_ && !is_end(links_.after(later.at))) return std::nullopt;
    const Steps earlier = go_on<Earlier>({.at = begin(ticket), .ticket = ticket});
    const bool is_whole = earlier.num_steps == most_before_ || links_.before(earlier.at.slot) == Before::kFirst;
    return is_whole ? std::optional{earlier.ticket} : std::nullopt;
  }

 private:
  // As the ring says it, most of which needs no call.
  [[nodiscard]] bool is_published(Ticket ticket) const noexcept {
    return ticket < window_.committed || ring_.is_published(ticket, window_);
  }

  // How far a row got in one direction, and where its next step is said to be.
  struct Steps {
    Place at;
    Ticket ticket;
    std::uint32_t num_steps = 0;
    Gap gap = 0;  // 0 for nowhere
  };

  struct Later {
    static constexpr bool kIsKept = false;  // all of its slots
    static std::size_t most(const Walks& walks) noexcept { return walks.most_after_; }
    static Gap gap(const Walks& walks, const Steps& steps) noexcept { return walks.links_.after(steps.at); }
    static Place place(const Walks& walks, const Steps& steps) noexcept {
      return walks.links_.later(steps.at, steps.gap);
    }
    static Ticket ticket(const Steps& steps) noexcept { return steps.ticket + steps.gap; }
    // What a link says counts if the successor says the same of what comes before it: it is published then, of the
    // same lane and trajectory.
    static bool holds(const Walks& walks, const Steps& steps, const Place& next) noexcept {
      return walks.is_published(ticket(steps)) && walks.links_.before(next.slot) == steps.gap;
    }
    static std::ptrdiff_t step(std::uint32_t num_steps) noexcept { return num_steps; }
    // The same steps, as many as can be taken with nothing to ask but links: up to the last slot, and to the last
    // ticket that is known to be published.
    template <class Keep>
    static void run(const Walks& walks, Steps& steps, Keep keep) noexcept {
      const std::uint64_t num_published = walks.window_.committed - std::min(steps.ticket, walks.window_.committed);
      const std::size_t end = steps.at.slot + std::min(num_published, walks.ring_.capacity() - steps.at.slot);
      const Gap gap = steps.gap;
      Place at = steps.at;
      std::uint32_t num_steps = steps.num_steps;
      bool goes_on = true;
      while (goes_on && at.slot + gap < end && walks.links_.before(at.slot + gap) == gap) {
        at.slot += gap;
        keep(++num_steps, at.slot);
        goes_on = num_steps < walks.most_after_ && walks.links_.after(at) == gap;
      }
      if (num_steps > steps.num_steps)
        walks.come<Later>(steps, at, num_steps, steps.ticket + (at.slot - steps.at.slot));
    }
  };

  struct Earlier {
    static constexpr bool kIsKept = true;
    static std::size_t most(const Walks& walks) noexcept { return walks.most_before_; }
    static Gap gap(const Walks& walks, const Steps& steps) noexcept { return walks.links_.before(steps.at.slot); }
    static Place place(const Walks& walks, const Steps& steps) noexcept {
      return walks.links_.earlier(steps.at, steps.gap);
    }
    static Ticket ticket(const Steps& steps) noexcept { return steps.ticket - steps.gap; }
    // A published ticket's own link is no hint; but what it names may have left the ring, or been cleared.
    static bool holds(const Walks& walks, const Steps& steps, const Place& /*next*/) noexcept {
      return steps.ticket >= walks.window_.first + steps.gap && walks.is_published(ticket(steps));
    }
    static std::ptrdiff_t step(std::uint32_t num_steps) noexcept { return -std::ptrdiff_t{num_steps}; }
    // As there: down to the first slot, and to the oldest ticket. All of these are published if the one that they come
    // before is known to be.
    template <class Keep>
    static void run(const Walks& walks, Steps& steps, Keep keep) noexcept {
      if (steps.ticket < walks.window_.first || steps.ticket >= walks.window_.committed) return;
      const std::size_t first = steps.at.slot - std::min(steps.at.slot, steps.ticket - walks.window_.first);
      const Gap gap = steps.gap;
      Place at = steps.at;
      std::uint32_t num_steps = steps.num_steps;
      bool goes_on = true;
      while (goes_on && at.slot >= first + gap) {
        at.slot -= gap;
        keep(++num_steps, at.slot);
        goes_on = num_steps < walks.most_before_ && walks.links_.before(at.slot) == gap;
      }
      if (num_steps > steps.num_steps)
        walks.come<Earlier>(steps, at, num_steps, steps.ticket - (steps.at.slot - at.slot));
    }
  };

  // From all rows, each as far as its steps are equally far apart; then of those that have not come to an end, in turn.
  template <class Direction, class AskNext, class Finish>
  void walk(const Ways& ways, std::size_t first_row, std::span<const Ticket> tickets, std::span<const Place> begins,
            AskNext ask_next, Finish finish) const noexcept {
    std::array<std::pair<std::size_t, Steps>, kRowsTogether> midway;
    std::size_t num_midway = 0;
    const auto go = [&](std::size_t i, Steps steps) {
      if (steps.gap != 0) go_evenly<Direction>(ways, first_row + i, steps);
      if (steps.gap == 0) {
        finish(i, ways[first_row + i], steps);
      } else {
        midway[num_midway++] = {i, steps};
      }
    };
    for (std::size_t i = 0; i < begins.size(); ++i) {
      Steps steps{.at = begins[i], .ticket = tickets[i]};
      ways.slots(first_row + i)[0] = static_cast<std::uint32_t>(steps.at.slot);
      look_ahead<Direction>(steps);
      go(i, steps);
      ask_next();
    }
    while (num_midway > 0) {
      for (const std::size_t at : std::views::iota(std::size_t{0}, std::exchange(num_midway, 0))) {
        go(midway[at].first, midway[at].second);
      }
    }
  }

  // As far as steps are as far apart as the next one is. Where each is does not hang on what the one before says, so
  // that a processor need not wait for that.
  template <class Direction>
  void go_evenly(const Ways& ways, std::size_t row, Steps& row_steps) const noexcept {
    const std::size_t num_kept = Direction::kIsKept ? ~std::size_t{0} : ways.num_kept();
    std::uint32_t* const slots = ways.slots(row);
    Steps steps = row_steps;
    const Gap gap = steps.gap;
    const auto keep = [=](std::uint32_t num_steps, std::size_t slot) {
      if (num_steps < num_kept) slots[Direction::step(num_steps)] = static_cast<std::uint32_t>(slot);
    };
    Direction::run(*this, steps, keep);
    while (steps.gap == gap) {
      const Place next = Direction::place(*this, steps);
      if (!Direction::holds(*this, steps, next)) {
        steps.gap = 0;
        break;
      }
      steps = {.at = next, .ticket = Direction::ticket(steps), .num_steps = steps.num_steps + 1};
      keep(steps.num_steps, next.slot);
      look_ahead<Direction>(steps);
    }
    if (steps.gap != 0) links_.prefetch(Direction::place(*this, steps).slot);
    row_steps = steps;
  }

  template <class Direction>
  [[nodiscard]] Steps go_on(Steps steps) const noexcept {
    for (look_ahead<Direction>(steps); steps.gap != 0; look_ahead<Direction>(steps)) {
      const Place next = Direction::place(*this, steps);
      if (!Direction::holds(*this, steps, next)) break;
      steps = {.at = next, .ticket = Direction::ticket(steps), .num_steps = steps.num_steps + 1};
    }
    return steps;
  }

  // To the last of some steps.
  template <class Direction>
  void come(Steps& steps, const Place& at, std::uint32_t num_steps, Ticket ticket) const noexcept {
    steps = {.at = at, .ticket = ticket, .num_steps = num_steps};
    look_ahead<Direction>(steps);
  }

  // Where the next step is said to be.
  template <class Direction>
  void look_ahead(Steps& steps) const noexcept {
    if (steps.num_steps == Direction::most(*this)) return;
    const Gap gap = Direction::gap(*this, steps);
    if (is_gap(gap) && gap < ring_.capacity()) steps.gap = gap;
  }

  const Ring& ring_;
  const Lanes::Links& links_;
  const Window& window_;
  const Place oldest_;
  const std::size_t most_before_;
  const std::size_t most_after_;
};

}  // namespace fastreplay
