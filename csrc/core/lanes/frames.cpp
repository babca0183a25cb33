// SPDX-License-Identifier: MIT
#include "lanes/frames.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "ring/atomics.hpp"
#include "ring/stop_points.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

struct Frames::Stack {
  std::array<FramePlace, kMostFrames> places;

  // What a stack of so many frames is that goes on by one.
  [[nodiscard]] Stack next(std::size_t num_frames) const noexcept {
    Stack stack;
    for (std::size_t i = 0; i + 1 < num_frames; ++i) stack.places[i] = places[i + 1];
    stack.places[num_frames - 1] = kNowhere;
    return stack;
  }
};

std::span<const Rows> Frames::stored_as_given(std::span<const Rows> fields, std::span<Rows> columns) const noexcept {
  const RecordLayout& layout = ring_.records().layout();
  for (std::size_t f = 0; f < fields.size(); ++f) {
    columns[f] = layout.columns()[f].num_frames == 0 ? fields[f] : Rows{nullptr, 0};
  }
  for (const RecordLayout::Frames& each : layout.frames()) {
    const auto [data, stride_bytes] = fields[each.group.fields.back()];
    columns[each.column] = {data + (each.group.num_frames - 1) * each.frame_bytes, stride_bytes};
  }
  return columns.first(fields.size() + layout.frames().size());
}

void Frames::begin(Ticket ticket, Ticket previous, std::span<const Rows> fields, std::size_t row) noexcept {
  const std::size_t slot = ring_.slot(ticket);
  const bool is_counted = ring_.records().is_sparse();
  const std::size_t bytes_before = is_counted ? bytes_beside(slot) : 0;
  for (const RecordLayout::Frames& each : ring_.records().layout().frames()) {
    begin_group(each, continued(each, previous, ticket), ticket, fields, row);
  }
  // acquire: if a place or frame that we looked at was of a later lap, whoever is given our record sees the reservation
  // of that lap, and drops it; pairs with fence R1 in Ring::write().
  StdAtomics::fence(std::memory_order_acquire);
  const std::size_t num_bytes = is_counted ? bytes_beside(slot) : 0;
  if (num_bytes == bytes_before) return;
  // relaxed: a statistic, of which the sum is never below 0.
  bytes_beside_.fetch_add(num_bytes - bytes_before, std::memory_order_relaxed);
  if (num_bytes < bytes_before) ring_.records().drop_beside(slot, num_bytes, bytes_before);
}

// What the first field of a record is expected to be that comes after another, if that is one: of this the frames that
// are not too old.
Frames::Stack Frames::continued(const RecordLayout::Frames& frames, Ticket previous, Ticket ticket) const noexcept {
  const std::size_t num_frames = frames.group.num_frames;
  Stack stack;
  std::fill_n(stack.places.begin(), num_frames, kNowhere);
  if (previous == kNone) return stack;
  const Records& records = ring_.records();
  const std::size_t slot = ring_.slot(previous);
  const Column& column = records.layout().columns()[frames.group.fields.back()];
  const auto* places = reinterpret_cast<const FramePlace*>(records.at(slot) + column.offset);
  for (std::size_t i = 0; i < num_frames; ++i) {
    // relaxed: whoever stored it published it before we knew of it, or was us. Or has taken the slot anew meanwhile;
    // what is stored for us is overwritten then, too.
    const FramePlace place = StdAtomics::load(places[i], std::memory_order_relaxed);
    if (!records.frames().has(place)) continue;
    const std::size_t owner = records.owner(place);
    const std::size_t age = owner <= slot ? slot - owner : slot + ring_.capacity() - owner;
    if (ticket - previous + age <= ring_.num_spare()) stack.places[i] = place;
  }
  return frames.group.fields.size() == 1 ? stack.next(num_frames) : stack;
}

// From the newest frame on, so that one that is repeated is stored once.
void Frames::begin_group(const RecordLayout::Frames& frames, Stack expected, Ticket ticket,
                         std::span<const Rows> fields, std::size_t row) noexcept {
  Records& records = ring_.records();
  const std::size_t slot = ring_.slot(ticket);
  const std::size_t num_frames = frames.group.num_frames;
  const std::size_t frame_bytes = frames.frame_bytes;
  std::byte* beside = records.beside(slot) + frames.extra_offset;
  for (std::size_t f = 0; f < frames.group.fields.size(); ++f) {
    const std::size_t field = frames.group.fields[f];
    const std::byte* stack = fields[field].data + row * fields[field].stride_bytes;
    auto* places = reinterpret_cast<FramePlace*>(records.at(slot) + records.layout().columns()[field].offset);
    Stack stored;
    for (std::size_t i = num_frames; i-- > 0;) {
      const std::byte* frame = stack + i * frame_bytes;
      if (i + 1 == num_frames && f + 1 == frames.group.fields.size()) {
        stored.places[i] = records.place(records.at(slot) + records.layout().columns()[frames.column].offset);
      } else if (expected.places[i] != kNowhere &&
                 is_same_row(records.frames().at(expected.places[i], frame_bytes), frame, frame_bytes)) {
        stored.places[i] = expected.places[i];
      } else if (i + 1 < num_frames && std::memcmp(frame, frame + frame_bytes, frame_bytes) == 0) {
        stored.places[i] = stored.places[i + 1];
      } else {
        store_row(beside, frame, frame_bytes, Reading::kSoon);
        stored.places[i] = records.place(beside);
        beside += frame_bytes;
      }
      // relaxed: the release of the ring's word orders it; partner: load_field(), after an acquire of that word.
      StdAtomics::store(places[i], stored.places[i], std::memory_order_relaxed);
    }
    at_stop_point(StopPoint::kFieldWritten);
    expected = stored.next(num_frames);
  }
}

std::size_t Frames::num_bytes() const noexcept {
  const Records& records = ring_.records();
  if (!records.is_sparse()) return records.capacity() * records.layout().extra_bytes();
  // relaxed: a statistic.
  return bytes_beside_.load(std::memory_order_relaxed);
}

template <class At>
void Frames::at_each_place(std::size_t slot, At at) noexcept {
  Records& records = ring_.records();
  for (const RecordLayout::Frames& each : records.layout().frames()) {
    for (const std::size_t field : each.group.fields) {
      auto* places = reinterpret_cast<FramePlace*>(records.at(slot) + records.layout().columns()[field].offset);
      for (std::size_t i = 0; i < each.group.num_frames; ++i) at(places[i], each.frame_bytes);
    }
  }
}

// Of a slot that is ours: up to where its frames beside it reach, in whole pages where they are given back so.
std::size_t Frames::bytes_beside(std::size_t slot) noexcept {
  Records& records = ring_.records();
  const FramePlace begin = records.place(records.beside(slot));
  const std::size_t room = records.layout().extra_bytes();
  std::size_t num_bytes = 0;
  at_each_place(slot, [&](FramePlace& place, std::size_t frame_bytes) {
    // relaxed: ours, or of the slot's owner before us, who published it before we could take it.
    const FramePlace stored = StdAtomics::load(place, std::memory_order_relaxed);
    if (stored - begin < room)
      num_bytes = std::max(num_bytes, std::min<std::size_t>(stored - begin + frame_bytes, room));
  });
  return round_up(num_bytes, records.drops_pages() ? Region::kPageBytes : 1);
}

// Frames move with the record that they belong to. All that name them are told at once, of unfinished tickets, too,
// which are nobody's: it is done before the move counts, and can be done again.
void Frames::move(Ticket from, Ticket to) noexcept {
  Records& records = ring_.records();
  const std::size_t old_slot = ring_.slot(from);
  const std::size_t slot = ring_.slot(to);
  std::memcpy(records.beside(slot), records.beside(old_slot), bytes_beside(old_slot));
  const auto follow = [&](FramePlace& place, std::size_t) {
    if (!records.frames().has(place) || records.owner(place) != old_slot) return;
    const bool is_beside = records.is_beside(place);
    const auto begin = [&](std::size_t of) { return is_beside ? records.beside(of) : records.at(of); };
    place += static_cast<FramePlace>(begin(slot) - begin(old_slot));
  };
  at_each_place(slot, follow);
  const Ticket end = std::min(ring_.num_reserved(), from + ring_.num_spare() + 1);
  for (Ticket later = from + 1; later < end; ++later) at_each_place(ring_.slot(later), follow);
}

// Of all slots, since those of discarded tickets have frames, too.
void Frames::count() noexcept {
  if (!ring_.records().is_sparse()) return;
  std::size_t num_bytes = 0;
  for (std::size_t slot = 0; slot < ring_.capacity(); ++slot) num_bytes += bytes_beside(slot);
  // relaxed: a statistic.
  bytes_beside_.store(num_bytes, std::memory_order_relaxed);
}

}  // namespace fastreplay
