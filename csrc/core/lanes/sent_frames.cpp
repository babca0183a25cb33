// SPDX-License-Identifier: MIT
#include "lanes/sent_frames.hpp"

#include <algorithm>
#include <atomic>

#include "storage/copy.hpp"

namespace fastreplay {

SentFrames::SentFrames(const Ring& ring, std::size_t chunk_bytes) : ring_{ring} {
  for (const RecordLayout::Frames& each : ring.records().layout().frames()) {
    const std::size_t num_beside = each.group.fields.size() * each.group.num_frames;
    const std::size_t num_rooms = std::clamp<std::size_t>(chunk_bytes / each.frame_bytes, 1, ring.capacity());
    groups_.push_back({.frames = &each, .per_chunk = num_rooms, .chunks = {}, .rooms = {}});
    most_bytes_ += num_beside * each.frame_bytes;
  }
}

void SentFrames::add_chunk(std::size_t group, FramePlace begin) {
  Group& of = groups_[group];
  of.chunks.reserve(of.chunks.size() + 1);
  of.rooms.reserve(of.rooms.size() + of.per_chunk);
  std::ranges::rotate(of.rooms, of.rooms.begin() + static_cast<std::ptrdiff_t>(of.oldest));
  of.oldest = 0;
  for (std::size_t i = 0; i < of.per_chunk; ++i) of.rooms.push_back({0, 0, of.chunks.size() * of.per_chunk + i});
  of.chunks.push_back(begin);
}

SentFrames::Found SentFrames::read(Ticket first, std::span<std::byte> records, std::span<std::byte> frames) {
  Found found;
  const std::size_t stride = ring_.records().layout().stride();
  const std::size_t num_bytes = frames.size();
  for (Group& group : groups_) group.give_back_from(first);
  for (; (found.num_records + 1) * stride <= records.size(); ++found.num_records) {
    const Ticket ticket = first + found.num_records;
    std::byte* record = records.data() + found.num_records * stride;
    compiler_barrier();
    load_row(record, ring_.record(ticket), ring_.records().layout().used_bytes());
    compiler_barrier();
    if (!has_room(ticket, record, frames.size(), found)) break;
    for (std::size_t group = 0; group < groups_.size(); ++group) {
      take(group, ticket, record, frames, found, num_bytes);
      at_each_place(groups_[group], record, [&](FramePlace& place) { place = there(groups_[group], ticket, place); });
    }
  }
  // acquire: what is overwritten is so after its slot was taken; partner: the writer's fence after it took the slot.
  std::atomic_thread_fence(std::memory_order_acquire);
  return found;
}

template <class At>
void SentFrames::at_each_place(const Group& group, std::byte* record, At at) const {
  for (const std::size_t field : group.frames->group.fields) {
    auto* places = reinterpret_cast<FramePlace*>(record + ring_.records().layout().columns()[field].offset);
    for (std::size_t i = 0; i < group.frames->group.num_frames; ++i) at(places[i]);
  }
}

// Whether it is of memory that lies beside a ticket's own record.
bool SentFrames::is_beside(Ticket ticket, FramePlace place) const noexcept {
  const Records& records = ring_.records();
  return records.frames().has(place) && records.is_beside(place) && records.owner(place) == ring_.slot(ticket);
}

// Whether there are rooms for what a record has beside it, and bytes to read it into; as if no frame came twice.
bool SentFrames::has_room(Ticket ticket, std::byte* record, std::size_t num_bytes, Found& found) {
  std::size_t needed = 0;
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    Group& of = groups_[group];
    if (ticket >= ring_.capacity()) of.give_back_below(ticket - ring_.capacity() + 1);
    std::size_t count = 0;
    at_each_place(of, record, [&](FramePlace place) { count += is_beside(ticket, place) ? 1 : 0; });
    if (count > of.num_free()) found.lacking = group;
    needed += count * of.frame_bytes();
  }
  return !found.lacking && needed <= num_bytes;
}

// Gives rooms to what a record has beside it, and reads that.
void SentFrames::take(std::size_t group, Ticket ticket, std::byte* record, std::span<std::byte>& frames, Found& found,
                      std::size_t num_bytes) {
  Group& of = groups_[group];
  at_each_place(of, record, [&](FramePlace place) {
    if (!is_beside(ticket, place) || of.find(ticket, place) != nullptr) return;
    Room& room = of.at(of.num_taken);
    room.ticket = ticket;
    room.place = place;
    const std::size_t offset = num_bytes - frames.size();
    Copy* last = found.copies.empty() ? nullptr : &found.copies.back();
    // A copy goes to one chunk, and comes of frames that lie side by side.
    if (last != nullptr && last->group == group && last->room + last->count == room.number &&
        last->offset + last->count * of.frame_bytes() == offset && room.number % of.per_chunk != 0) {
      ++last->count;
    } else {
      found.copies.push_back({group, room.number, 1, offset});
    }
    ++of.num_taken;
    compiler_barrier();
    load_row(frames.data(), ring_.records().frames().at(place, of.frame_bytes()), of.frame_bytes());
    compiler_barrier();
    frames = frames.subspan(of.frame_bytes());
  });
}

// Where a frame of a ticket's record is there.
FramePlace SentFrames::there(Group& group, Ticket ticket, FramePlace place) const noexcept {
  const Records& records = ring_.records();
  const std::size_t stride = records.layout().stride();
  const FramePlace newest = records.layout().columns()[group.frames->column].offset;
  if (place < records.capacity() * stride && place % stride == newest) return place;
  if (!records.frames().has(place) || !records.is_beside(place)) return newest;
  const std::size_t slot = ring_.slot(ticket);
  const std::size_t owner = records.owner(place);
  const std::size_t age = owner <= slot ? slot - owner : slot + records.capacity() - owner;
  const Room* room = group.find(ticket - age, place);  // of a ticket below 0 there is none
  if (room == nullptr) return newest;
  return group.chunks[room->number / group.per_chunk] + room->number % group.per_chunk * group.frame_bytes();
}

// Null where it has none.
const SentFrames::Room* SentFrames::Group::find(Ticket ticket, FramePlace place) noexcept {
  std::size_t begin = 0;
  for (std::size_t end = num_taken; begin < end;) {
    const std::size_t middle = begin + (end - begin) / 2;
    if (at(middle).ticket < ticket) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  for (; begin < num_taken && at(begin).ticket == ticket; ++begin) {
    if (at(begin).place == place) return &at(begin);
  }
  return nullptr;
}

void SentFrames::Group::give_back_from(Ticket first) noexcept {
  while (num_taken > 0 && at(num_taken - 1).ticket >= first) --num_taken;
}

void SentFrames::Group::give_back_below(Ticket end) noexcept {
  for (; num_taken > 0 && at(0).ticket < end; --num_taken) oldest = (oldest + 1) % rooms.size();
}

}  // namespace fastreplay
