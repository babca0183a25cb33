// SPDX-License-Identifier: MIT
// Rows that are stacks of frames which records have in common: each frame is stored once, and a record has the places
// of its own. Must not know Python, torch or minibatches.
//
// A frame belongs to the record that it was stored with: the newest of each group lies in it, others beside it. It is
// overwritten when that record's slot is taken anew. So that it is there as long as anybody may look it up, a record
// only has places of frames that belong to records at most ring.num_spare() tickets before it, which is as many slots
// as readers are never given: a record that may be read is at most ring.window_capacity() behind head, and its frames'
// records at most capacity() then. The one check after a copy, of the record's own ticket, is the frames', too.
//
// That a place names the right frame does not hang on who inserted what before: the bytes there were compared. They may
// have been of a later lap, where the record before was overwritten at that moment: then so is the frame's, and with it
// what is stored, as above.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <vector>

#include "ring/atomics.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

class Frames {
 public:
  static constexpr Ticket kNone = ~Ticket{0};
  static constexpr std::size_t kMostFrames = 64;  // of a row

  // Of a ring whose records have groups, none of more frames a row. The ring outlives this.
  explicit Frames(Ring& ring) noexcept : ring_{ring} {}

  // Where the rows of columns are, of which the fields' are there; nothing for those that begin() makes. `columns` has
  // room for all of them.
  [[nodiscard]] std::span<const Rows> stored_as_given(std::span<const Rows> fields,
                                                      std::span<Rows> columns) const noexcept;

  // Stores the places that a record has, and the frames beside it, by the owner of its ticket, which is not published:
  // of one row of the fields, that goes on where record `previous` ended, if it is found to. That one was published
  // before the call's lane was the caller's, or is the caller's own.
  void begin(Ticket ticket, Ticket previous, std::span<const Rows> fields, std::size_t row) noexcept;

  // Memory beside records.
  [[nodiscard]] std::size_t num_bytes() const noexcept;

  // As of Lanes, where tickets were discarded. Where it is killed, whoever does it again ends it.
  void move(Ticket from, Ticket to) noexcept;

  // Counts the frames beside records anew, nobody else using the ring.
  void count() noexcept;

 private:
  // The places of a stack's frames; kNowhere for one that is not known.
  static constexpr FramePlace kNowhere = ~FramePlace{0};
  struct Stack;

  [[nodiscard]] Stack continued(const RecordLayout::Frames& frames, Ticket previous, Ticket ticket) const noexcept;
  void begin_group(const RecordLayout::Frames& frames, Stack expected, Ticket ticket, std::span<const Rows> fields,
                   std::size_t row) noexcept;
  template <class At>
  void at_each_place(std::size_t slot, At at) noexcept;
  [[nodiscard]] std::size_t bytes_beside(std::size_t slot) noexcept;

  Ring& ring_;
  // Of frames beside records. A statistic, to which writers add; orders nothing.
  std::atomic<std::size_t> bytes_beside_{0};
};

// Visits the frames that a record is made of beside what lies in it: where each lies, and its bytes. Those that
// successive rows have in common come once.
template <class Visit>
void at_older_frames(const Records& records, std::size_t slot, Visit visit) noexcept {
  const std::vector<Column>& columns = records.layout().columns();
  // relaxed: as the bytes of a record (storage/copy.hpp).
  const auto load = [](const FramePlace& place) { return StdAtomics::load(place, std::memory_order_relaxed); };
  for (const RecordLayout::Frames& each : records.layout().frames()) {
    const FramePlace newest = records.place(records.at(slot) + columns[each.column].offset);
    const FramePlace* before = nullptr;  // of the row before
    for (const std::size_t field : each.group.fields) {
      const auto* places = reinterpret_cast<const FramePlace*>(records.at(slot) + columns[field].offset);
      FramePlace last = newest;
      for (std::size_t i = 0; i < each.group.num_frames; ++i) {
        const FramePlace place = load(places[i]);
        const bool goes_on = before != nullptr && i + 1 < each.group.num_frames && place == load(before[i + 1]);
        if (place != newest && place != last && !goes_on)
          visit(records.frames().at(place, each.frame_bytes), each.frame_bytes);
        last = place;
      }
      before = places;
    }
  }
}

}  // namespace fastreplay
