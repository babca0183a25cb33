// SPDX-License-Identifier: MIT
#include "lanes/trajectories.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace fastreplay {

namespace {

// What follows each other without a gap in one lane, from its newest transition to the oldest that was come to.
struct Stretch {
  std::uint64_t length = 0;  // 0 where there is none
  Ticket before = 0;         // the oldest one's predecessor, if there is one
  bool ends = false;         // its trajectory, with the newest
};

struct Seen {
  Ticket ticket;
  std::uint32_t lane;
  Gap before;
  Gap after;
};

// From the newest ticket to the oldest, which writers overwrite first.
class Count {
 public:
  Count(Ring& ring, const Lanes& lanes, const WindowReach& reach)
      : ring_{ring}, links_{lanes.links()}, reach_{reach}, stretches_(lanes.num_lanes()), window_{ring.window()} {}

  TrajectoryCounts run() {
    Ticket end = window_.end;
    while (end > window_.first) end = look_at(end);
    for (Stretch& stretch : stretches_) close(stretch, false);
    return counts_;
  }

 private:
  static constexpr std::size_t kTogether = 256;

  // Some tickets before `end`. Returns the oldest of them, or the window's first where those before are overwritten.
  Ticket look_at(Ticket end) {
    const Ticket first = end - std::min<Ticket>(kTogether, end - window_.first);
    std::array<Seen, kTogether> seen;
    std::size_t count = 0;
    for (Ticket ticket = end; ticket-- > first;) {
      if (!ring_.is_published(ticket, window_)) continue;
      const Lanes::Links::Place place = links_.place(ticket);
      seen[count++] = {.ticket = ticket,
                       .lane = links_.lane(place.slot),
                       .before = links_.before(place.slot),
                       .after = links_.after(place)};
    }
    const Ticket whole = ring_.oldest_whole();  // what was read of older ones may be of later laps
    for (const Seen& each : std::span{seen}.first(count)) {
      if (each.ticket >= whole) add(each);
    }
    return whole > first ? window_.first : first;
  }

  void add(const Seen& seen) {
    Stretch& stretch = stretches_[seen.lane];
    if (stretch.length > 0 && stretch.before != seen.ticket) close(stretch, false);
    if (stretch.length++ == 0) stretch.ends = seen.after == After::kEnded || seen.after == After::kCut;
    ++counts_.num_transitions;
    if (is_gap(seen.before) && seen.before <= seen.ticket - window_.first) {
      stretch.before = seen.ticket - seen.before;
    } else {
      close(stretch, seen.before == Before::kFirst);
    }
  }

  void close(Stretch& stretch, bool begins) {
    if (stretch.length == 0) return;
    const std::uint64_t short_of = (begins ? 0 : reach_.before) + (stretch.ends ? 0 : reach_.after);
    counts_.num_complete += stretch.length > short_of ? stretch.length - short_of : 0;
    counts_.num_lost += begins ? 0 : 1;
    counts_.longest = std::max(counts_.longest, stretch.length);
    ++counts_.num_trajectories;
    stretch = {};
  }

  Ring& ring_;
  const Lanes::Links& links_;
  WindowReach reach_;
  std::vector<Stretch> stretches_;  // the one of each lane that is not closed
  Window window_;
  TrajectoryCounts counts_;
};

}  // namespace

TrajectoryCounts count_trajectories(Ring& ring, const Lanes& lanes, const WindowReach& reach) {
  return Count{ring, lanes, reach}.run();
}

}  // namespace fastreplay
