// SPDX-License-Identifier: MIT
// Records with frames in common for who keeps a ring's transitions elsewhere as well: there records lie as here, and
// what lies beside one here has rooms there, a frame each. One thread at a time may ask.
//
// Frames are overwritten in the order of tickets, as slots are, so that rooms are given back in the order in which they
// were taken, and mostly lie side by side. A room is taken anew only for a ticket that comes capacity() after the one
// that had it: as with slots, nobody is given a record by then that looks up what lay there (frames.hpp).
//
// Places are told as they are there. Whatever stands in the place of one here, there it is that of a frame of its
// group: the newest of some record, or one that has a room. So a record that was overwritten while it was read has
// frames that are wrong, and none that cannot be read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ring/ring.hpp"

namespace fastreplay {

class SentFrames {
 public:
  // Successive rooms of a group, and where in what was read their frames begin.
  struct Copy {
    std::size_t group;
    std::size_t room;
    std::size_t count;
    std::size_t offset;
  };
  struct Found {
    std::size_t num_records = 0;
    std::optional<std::size_t> lacking;  // a group that has too few rooms for the next record
    std::vector<Copy> copies;
  };

  // Rooms come in chunks of about so many bytes. The ring, whose records have groups, outlives this. Throws
  // std::bad_alloc.
  SentFrames(const Ring& ring, std::size_t chunk_bytes);

  [[nodiscard]] std::size_t num_groups() const noexcept { return groups_.size(); }
  [[nodiscard]] std::size_t frame_bytes(std::size_t group) const noexcept { return groups_[group].frame_bytes(); }
  [[nodiscard]] std::size_t rooms_per_chunk(std::size_t group) const noexcept { return groups_[group].per_chunk; }
  [[nodiscard]] std::size_t num_chunks(std::size_t group) const noexcept { return groups_[group].chunks.size(); }
  // Bytes of all frames that one record can have beside it.
  [[nodiscard]] std::size_t most_bytes() const noexcept { return most_bytes_; }

  // A chunk for a group: how far it is there from the first record, modulo 2^64. Throws std::bad_alloc.
  void add_chunk(std::size_t group, FramePlace begin);

  // Reads records first, first + 1, ... as they are to lie there, and the frames beside them, one after another: as
  // many as both spans hold, `frames` at least most_bytes(), and have rooms. All of them are published, and those that
  // they look up were read before, or are gone. Records that were read before may be read again; those after them are
  // then forgotten. Beside writers, what is below ring.oldest_whole() afterwards is of no use. Throws std::bad_alloc.
  [[nodiscard]] Found read(Ticket first, std::span<std::byte> records, std::span<std::byte> frames);

  [[nodiscard]] const Ring& ring() const noexcept { return ring_; }

 private:
  struct Room {
    Ticket ticket;     // whose frame has it
    FramePlace place;  // of that frame here
    std::size_t number;
  };
  struct Group {
    const RecordLayout::Frames* frames;
    std::size_t per_chunk;
    std::vector<FramePlace> chunks;
    std::vector<Room> rooms;  // in a circle: those that are taken, from the oldest on, then those that are free
    std::size_t oldest = 0;
    std::size_t num_taken = 0;

    [[nodiscard]] std::size_t frame_bytes() const noexcept { return frames->frame_bytes; }
    [[nodiscard]] Room& at(std::size_t i) noexcept { return rooms[(oldest + i) % rooms.size()]; }
    [[nodiscard]] std::size_t num_free() const noexcept { return rooms.size() - num_taken; }
    [[nodiscard]] const Room* find(Ticket ticket, FramePlace place) noexcept;
    void give_back_from(Ticket first) noexcept;
    void give_back_below(Ticket end) noexcept;
  };

  template <class At>
  void at_each_place(const Group& group, std::byte* record, At at) const;
  [[nodiscard]] bool is_beside(Ticket ticket, FramePlace place) const noexcept;
  [[nodiscard]] bool has_room(Ticket ticket, std::byte* record, std::size_t num_bytes, Found& found);
  void take(std::size_t number, Ticket ticket, std::byte* record, std::span<std::byte>& frames, Found& found,
            std::size_t num_bytes);
  [[nodiscard]] FramePlace there(Group& group, Ticket ticket, FramePlace place) const noexcept;

  const Ring& ring_;
  std::vector<Group> groups_;
  std::size_t most_bytes_ = 0;
};

}  // namespace fastreplay
