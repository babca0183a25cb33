// SPDX-License-Identifier: MIT
#include "lanes/lanes.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

namespace fastreplay {

namespace {

template <class Word>
std::uint64_t bits_at(const std::byte* element) noexcept {
  Word bits;
  std::memcpy(&bits, element, sizeof bits);
  return bits;
}

// Whether the element is another number than 0.
bool is_set(const std::byte* element, std::size_t num_bytes, bool has_sign) noexcept {
  const std::uint64_t bits = num_bytes == 1   ? bits_at<std::uint8_t>(element)
                             : num_bytes == 2 ? bits_at<std::uint16_t>(element)
                             : num_bytes == 4 ? bits_at<std::uint32_t>(element)
                                              : bits_at<std::uint64_t>(element);
  return (has_sign ? bits << (65 - 8 * num_bytes) : bits) != 0;
}

SavedLink::Bits saved(Gap before, Gap after) noexcept {
  const SavedLink::Bits bits = before == Before::kFirst ? SavedLink::kBegins
                               : is_gap(before)         ? SavedLink::kContinues
                                                        : SavedLink::kUnknown;
  switch (after) {
    case After::kOpen:
      return bits | SavedLink::kNothingYet;
    case After::kEnded:
      return bits | SavedLink::kEnd;
    case After::kCut:
      return bits | SavedLink::kCut;
    default:
      return bits | SavedLink::kAnother;
  }
}

// What relink() takes for it.
Gap restored_before(SavedLink::Bits bits) noexcept {
  switch (bits & SavedLink::kBefore) {
    case SavedLink::kBegins:
      return Before::kFirst;
    case SavedLink::kContinues:
      return 1;
    default:
      return Before::kLost;
  }
}

Gap restored_after(SavedLink::Bits bits) noexcept {
  switch (bits & SavedLink::kAfter) {
    case SavedLink::kNothingYet:
      return After::kOpen;
    case SavedLink::kEnd:
      return After::kEnded;
    case SavedLink::kCut:
      return After::kCut;
    default:
      return After::kUnknown;
  }
}

Lanes::Links links_of(Ring& ring, Memory& memory) {
  Records& records = ring.records();
  const std::size_t offset = records.layout().margin_offset();
  if (offset == RecordLayout::kNone) return Lanes::Links{ring.capacity(), memory};
  return {ring.capacity(), records.data() + offset, records.layout().stride()};
}

}  // namespace

Lanes::Lanes(Ring& ring, std::size_t num_lanes, std::vector<EndColumn> ends, Memory& memory)
    : ring_{ring},
      ends_{std::move(ends)},
      links_{links_of(ring, memory)},
      frames_{ring.records().layout().frames().empty() ? nullptr : std::make_unique<Frames>(ring)},
      lanes_(num_lanes),
      in_order_(num_lanes) {
  std::iota(in_order_.begin(), in_order_.end(), std::int64_t{0});
}

std::size_t Lanes::num_bytes() const noexcept {
  const std::size_t frames_bytes = frames_ == nullptr ? 0 : frames_->num_bytes();
  return links_.num_bytes() + frames_bytes + lanes_.size() * sizeof(Lane) + in_order_.size() * sizeof(std::int64_t);
}

std::size_t Lanes::enter(std::span<const std::int64_t> lanes, Owner owner) noexcept {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    Owner found = 0;
    // acquire: what its last owner did is ours to go on from; partner: the release in leave(). relaxed on failure: it
    // is somebody's, and we look at nothing.
    if (lanes_[static_cast<std::size_t>(lanes[i])].owner.compare_exchange_strong(
            found, owner, std::memory_order_acquire, std::memory_order_relaxed) ||
        found == owner) {
      continue;
    }
    leave(lanes.first(i), owner);
    return i;
  }
  return kNone;
}

void Lanes::leave(std::span<const std::int64_t> lanes, Owner owner) noexcept {
  for (const std::int64_t each : lanes) {
    std::atomic<Owner>& held = lanes_[static_cast<std::size_t>(each)].owner;
    // relaxed: only we store our number there. Where it is not, the lane was named before, or a fork took it from us.
    if (held.load(std::memory_order_relaxed) != owner) continue;
    // release: the next owner goes on from what we did; partner: the acquire in enter().
    held.store(0, std::memory_order_release);
  }
}

void Lanes::cut(std::size_t lane) noexcept {
  Lane& each = lanes_[lane];
  if (each.state == State::kMidway) say_after(each, After::kCut);
  each.state = State::kBeginning;
}

// Of the newest of a lane that is the caller's.
void Lanes::say_after(const Lane& lane, Gap after) noexcept {
  links_.join(lane.last, after);
  // release: who sees the number sees the link; partner: the acquire in num_cuts().
  num_cuts_.fetch_add(1, std::memory_order_release);
}

// Of a row of which row_of(column) gives that column's bytes.
template <class RowOf>
bool Lanes::ends(RowOf row_of) const noexcept {
  return std::ranges::any_of(ends_, [&](const EndColumn& end) {
    const std::byte* row = row_of(end);
    for (std::size_t at = 0; at < end.column.row_bytes; at += end.element_bytes) {
      if (is_set(row + at, end.element_bytes, end.has_sign)) return true;
    }
    return false;
  });
}

void Lanes::NewRows::begin(Ticket first, std::size_t first_row, std::size_t num_rows) noexcept {
  first_ = all_.links_.place(first);
  Links::Place place = first_;
  for (std::size_t i = 0; i < num_rows; ++i, place = all_.links_.later(place, 1)) {
    const auto number = static_cast<std::size_t>(lanes_[first_row + i]);
    Lane& lane = all_.lanes_[number];
    const Ticket ticket = first + i;
    if (all_.frames_ != nullptr) all_.frames_->begin(ticket, lane.last, fields_, first_row + i);
    Gap before = Before::kFirst;
    if (lane.state == State::kMidway && ticket - lane.last < all_.ring_.capacity()) {
      before = static_cast<Gap>(ticket - lane.last);
    } else if (lane.state == State::kMidway || lane.state == State::kBroken) {
      before = Before::kLost;
    }
    // By what lies in the record, which is ours and not published.
    const std::byte* record = all_.ring_.records().at(place.slot);
    const bool is_end = all_.ends([record](const EndColumn& end) { return record + end.column.offset; });
    all_.links_.begin(place, static_cast<std::uint32_t>(number), before, is_end ? After::kEnded : After::kOpen);
    lane.last = ticket;
    lane.state = is_end ? State::kEnd : State::kMidway;
  }
}

void Lanes::NewRows::end(Ticket first, std::size_t num_rows) noexcept {
  Links::Place place = first_;
  for (Ticket ticket = first; ticket < first + num_rows; ++ticket, place = all_.links_.later(place, 1)) {
    // Its own link, or that of who has its slot by now. Then what is joined is older than this ticket, and overwritten
    // or about to be: who follows it reads that `before`, too, or a newer one (join() and after() order it), and so
    // finds its beginning gone.
    const Gap before = all_.links_.before(place.slot);
    if (is_gap(before) && before <= ticket) all_.links_.join(all_.links_.earlier(place, before), before);
  }
}

void Lanes::leave_out(std::size_t lane, std::span<const Rows> fields, std::size_t row) noexcept {
  Lane& each = lanes_[lane];
  const bool is_end = ends([&](const EndColumn& end) {
    const auto [data, stride_bytes] = fields[end.field];
    return data + row * stride_bytes;
  });
  if (each.state == State::kMidway) say_after(each, After::kUnknown);
  if (each.state == State::kEnd) {
    each.state = State::kBeginning;
  } else {
    each.state = is_end ? State::kEnd : State::kBroken;
  }
}

Ticket Lanes::save(Ticket first, std::span<std::uint32_t> lanes, std::span<std::uint8_t> links) const noexcept {
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const Ticket ticket = first + i;
    const Links::Place place = links_.place(ticket);
    lanes[i] = links_.lane(place.slot);
    links[i] = saved(links_.before(place.slot), links_.after(place));
  }
  return ring_.oldest_whole();
}

bool Lanes::restore(Ticket first, std::span<const std::uint32_t> lanes, std::span<const std::uint8_t> links) noexcept {
  if (std::ranges::any_of(lanes, [this](std::uint32_t lane) { return lane >= lanes_.size(); })) return false;
  const Window window = ring_.window();
  const Ticket end = std::clamp(first + lanes.size(), window.first, window.end);
  for (Ticket ticket = std::max(first, window.first); ticket < end; ++ticket) {
    const SavedLink::Bits bits = links[ticket - first];
    links_.begin(ticket, lanes[ticket - first], restored_before(bits), restored_after(bits));
  }
  return true;
}

void Lanes::link_restored(Ticket first, Ticket end) noexcept {
  const Window window = ring_.window();
  const Ticket known = std::clamp(first, window.first, window.end);
  const Ticket known_end = std::clamp(end, known, window.end);
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    if (ticket < known || ticket >= known_end) links_.begin(ticket, 0, Before::kLost, After::kUnknown);
  }
  relink(known, known_end);
  if (frames_ != nullptr) frames_->count();
  if (known_end < window.end) std::ranges::for_each(lanes_, [this](Lane& lane) { lose_track(lane); });
}

void Lanes::save_states(std::span<std::uint8_t> states, std::span<Ticket> ends) noexcept {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    const std::span<const std::int64_t> number = in_order().subspan(i, 1);
    const auto owner = reinterpret_cast<Owner>(&number);
    states[i] = kNobodyKnows;
    if (enter(number, owner) != kNone) continue;
    states[i] = static_cast<std::uint8_t>(lanes_[i].state);
    ends[i] = lanes_[i].last + 1;
    leave(number, owner);
  }
}

bool Lanes::restore_states(std::span<const std::uint8_t> states, std::span<const Ticket> ends) {
  if (states.size() != lanes_.size() || ends.size() != lanes_.size()) return false;
  if (std::ranges::any_of(states, [](std::uint8_t state) { return state > kNobodyKnows; })) return false;
  const Window window = ring_.window();
  std::vector<bool> has_any(lanes_.size());
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) has_any[links_.lane(ring_.slot(ticket))] = true;
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    Lane& lane = lanes_[i];
    const auto state = static_cast<State>(states[i]);
    const bool is_of_then = states[i] != kNobodyKnows && ends[i] <= window.end;
    if (is_of_then && state != State::kMidway) {
      lane.state = state;
    } else if (!has_any[i]) {
      lane.state = State::kBroken;
    }
  }
  return true;
}

void Lanes::move(Ticket from, Ticket to) {
  if (frames_ != nullptr) frames_->move(from, to);
  const Links::Place place = links_.place(from);
  links_.begin(to, links_.lane(place.slot), links_.before(place.slot), links_.after(place));
}

void Lanes::begin_in_child() noexcept {
  for (Lane& lane : lanes_) lane.before_fork = lane.state;
  const Window window = ring_.window();
  relink(window.first, window.end);
  bool has_unfinished = false;
  for (Lane& lane : lanes_) {
    // relaxed, both: nobody else is there.
    const bool is_unfinished = lane.owner.load(std::memory_order_relaxed) != 0;
    has_unfinished |= is_unfinished;
    lane.owner.store(0, std::memory_order_relaxed);
    if (lane.last < window.first || lane.last >= window.end) lane.last = Frames::kNone;  // of which tickets moved
    if (is_unfinished || (lane.before_fork == State::kMidway && lane.state != State::kMidway)) {
      lose_track(lane);
    } else {
      lane.state = lane.before_fork;
    }
  }
  if (frames_ != nullptr && has_unfinished) frames_->count();
}

bool Lanes::go_on() noexcept {
  const Window window = ring_.window();
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    if (links_.lane(ring_.slot(ticket)) >= lanes_.size()) return false;
  }
  relink(window.first, window.end);
  // One without transitions may have had some.
  if (window.end > 0) std::ranges::for_each(lanes_, [this](Lane& lane) { lose_track(lane); });
  return true;
}

// Of what comes next in a lane nobody knows what came before it, wherever it is saved and restored meanwhile.
void Lanes::lose_track(Lane& lane) noexcept {
  if (lane.state == State::kMidway) {
    const std::size_t slot = ring_.slot(lane.last);
    links_.begin(lane.last, links_.lane(slot), links_.before(slot), After::kUnknown);
  }
  lane.state = State::kBroken;
}

// Makes distances anew of what says no more than whether it continues its lane, is followed or not; nobody else uses
// the ring. The transitions of a lane are in the order of their tickets.
void Lanes::relink(Ticket first, Ticket end) noexcept {
  for (Lane& lane : lanes_) lane.state = State::kBeginning;
  for (Ticket ticket = first; ticket < end; ++ticket) {
    const Links::Place place = links_.place(ticket);
    const std::uint32_t number = links_.lane(place.slot);
    Lane& lane = lanes_[number];
    Gap before = links_.before(place.slot);
    Gap after = links_.after(place);
    if (is_gap(before)) {
      const bool is_there = lane.state == State::kMidway || lane.state == State::kBroken;
      before = is_there ? static_cast<Gap>(ticket - lane.last) : Before::kLost;
      if (is_there) links_.begin(lane.last, number, links_.before(ring_.slot(lane.last)), before);
    }
    if (is_gap(after)) after = After::kUnknown;  // unless its successor comes now
    links_.begin(ticket, number, before, after);
    lane.last = ticket;
    lane.state = after == After::kEnded  ? State::kEnd
                 : after == After::kCut  ? State::kBeginning
                 : after == After::kOpen ? State::kMidway
                                         : State::kBroken;
  }
}

}  // namespace fastreplay
