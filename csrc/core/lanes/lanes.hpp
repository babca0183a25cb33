// SPDX-License-Identifier: MIT
// The lanes of a ring: streams of transitions, one an environment, each of which is a row of trajectories. Must not
// know Python, torch or minibatches.
//
// A lane has one owner at a time, from enter() to leave(). Its owner alone says what comes after what in it; readers
// follow the links (links.hpp), and never look at a lane.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lanes/frames.hpp"
#include "lanes/links.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// A field of which a value other than 0 ends the trajectory.
struct EndColumn {
  std::size_t field;
  Column column;
  std::size_t element_bytes;  // 1, 2, 4 or 8
  bool has_sign;              // of floating point, where -0 is 0
};

// How a transition was linked, as it is saved: its lane, and one byte of what came before it and after.
struct SavedLink {
  using Bits = std::uint8_t;
  static constexpr Bits kBefore = 3, kBegins = 0, kContinues = 1, kUnknown = 2;
  static constexpr Bits kAfter = 12, kNothingYet = 0, kEnd = 4, kCut = 8, kAnother = 12;
};

class Lanes {
 public:
  using Links = BasicLinks<StdAtomics>;
  using Owner = std::uintptr_t;  // a number of the call's own, not 0
  static constexpr std::size_t kNone = ~std::size_t{0};

  // The margin that links take in records of a ring with lanes: none in those larger than a page, where who goes from
  // link to link would touch a page for each. (A ring that is larger than memory has none for the same reason.)
  [[nodiscard]] static std::size_t margin_bytes(const RecordLayout& without) noexcept {
    return without.stride() <= Region::kPageBytes ? Links::kLinkBytes : 0;
  }

  // The ring outlives this. Its records have a margin for their links, or these lie in the memory. Throws
  // std::invalid_argument, std::bad_alloc, and what the memory throws.
  Lanes(Ring& ring, std::size_t num_lanes, std::vector<EndColumn> ends, Memory& memory = Memory::own());

  [[nodiscard]] Ring& ring() const noexcept { return ring_; }
  [[nodiscard]] std::size_t num_lanes() const noexcept { return lanes_.size(); }
  [[nodiscard]] std::size_t num_bytes() const noexcept;
  [[nodiscard]] const Links& links() const noexcept { return links_; }
  // Null where the ring's records have no frames in common.
  [[nodiscard]] Frames* frames() const noexcept { return frames_.get(); }
  // 0, 1, 2, ...: the lanes of a step of all environments.
  [[nodiscard]] std::span<const std::int64_t> in_order() const noexcept { return in_order_; }

  // Makes somebody the owner of lanes, each of which may be named several times. Returns kNone, or which of them has
  // another owner, with nothing taken.
  [[nodiscard]] std::size_t enter(std::span<const std::int64_t> lanes, Owner owner) noexcept;
  void leave(std::span<const std::int64_t> lanes, Owner owner) noexcept;

  // Whether a step after a trajectory's end only resets an environment, and is no transition. Set before the lanes are
  // shared; for whoever inserts to ask.
  [[nodiscard]] bool skips_resets() const noexcept { return skips_resets_; }
  void skip_resets(bool skips) noexcept { skips_resets_ = skips; }

  // How often it was said of a transition that nothing comes after, or that it is not known what, after it was
  // inserted.
  [[nodiscard]] std::uint64_t num_cuts() const noexcept {
    // acquire: what was said is in its link; partner: the release in say_after().
    return num_cuts_.load(std::memory_order_acquire);
  }

  // Ends the trajectory of a lane that is the caller's.
  void cut(std::size_t lane) noexcept;
  // Whether the lane's newest transition ended its trajectory by itself.
  [[nodiscard]] bool has_ended(std::size_t lane) const noexcept { return lanes_[lane].state == State::kEnd; }
  // Lets a row of a lane that is the caller's pass by without being inserted. After an end it only reset the
  // environment; else nobody knows what comes before the next.
  void leave_out(std::size_t lane, std::span<const Rows> fields, std::size_t row) noexcept;

  // What an insert does beside the ring, for rows of the fields of lanes[row], all of which are the caller's.
  class NewRows {
   public:
    NewRows(Lanes& all, const std::int64_t* lanes, std::span<const Rows> fields) noexcept
        : all_{all}, lanes_{lanes}, fields_{fields} {}
    void begin(Ticket first, std::size_t first_row, std::size_t num_rows) noexcept;
    void end(Ticket first, std::size_t num_rows) noexcept;

   private:
    Lanes& all_;
    const std::int64_t* lanes_;
    std::span<const Rows> fields_;
    Links::Place first_{};  // from begin() on
  };

  // Reads how tickets first, first + 1, ... are linked, all published, while others insert. Returns the oldest of which
  // that is known.
  [[nodiscard]] Ticket save(Ticket first, std::span<std::uint32_t> lanes, std::span<std::uint8_t> links) const noexcept;
  // Over a ring that nobody else uses: lays down how tickets first, first + 1, ... were linked, of those that lie in
  // it; link_restored() comes after the last. False, with nothing changed, where a lane is none.
  [[nodiscard]] bool restore(Ticket first, std::span<const std::uint32_t> lanes,
                             std::span<const std::uint8_t> links) noexcept;
  // Links what lies in the ring anew: tickets [first, end), which were restored, and the rest by itself; where that
  // came later, every lane begins anew.
  void link_restored(Ticket first, Ticket end) noexcept;

  // Reads where each lane stands, and one past its newest ticket then; kNobodyKnows of one that somebody is in.
  static constexpr std::uint8_t kNobodyKnows = 4;
  void save_states(std::span<std::uint8_t> states, std::span<Ticket> ends) noexcept;
  // After restore(): lanes of which no transition was saved, or whose newest was not, go on as they stood, or anew.
  // False, with nothing changed, where they are not as many, or there is no such state.
  [[nodiscard]] bool restore_states(std::span<const std::uint8_t> states, std::span<const Ticket> ends);

  // In the child after a fork, the ring's unfinished tickets discarded: each transition that was moved to an earlier
  // ticket, in ascending order; then all links anew. A lane whose insert was unfinished begins anew.
  void move(Ticket from, Ticket to);
  void begin_in_child() noexcept;
  // Over a ring that was found as somebody left it, the same: of what comes next in a lane nobody knows what came
  // before it. False where a link names no lane.
  [[nodiscard]] bool go_on() noexcept;

 private:
  // Where a lane stands: before a trajectory, in one, after one that ended by itself, or in one of which what came last
  // is not known.
  enum class State : std::uint8_t { kBeginning, kMidway, kEnd, kBroken };

  struct alignas(kCacheLine) Lane {
    // 0 where it has none. Written by enter() and leave(), which order the rest.
    std::atomic<Owner> owner{0};
    Ticket last = Frames::kNone;  // its newest transition; one before the first ticket where it had none
    State state = State::kBeginning;
    State before_fork = State::kBeginning;
  };

  template <class RowOf>
  [[nodiscard]] bool ends(RowOf row_of) const noexcept;
  void relink(Ticket first, Ticket end) noexcept;
  void lose_track(Lane& lane) noexcept;
  void say_after(const Lane& lane, Gap after) noexcept;

  Ring& ring_;
  std::vector<EndColumn> ends_;
  Links links_;
  std::unique_ptr<Frames> frames_;
  std::vector<Lane> lanes_;
  std::vector<std::int64_t> in_order_;
  bool skips_resets_ = false;
  std::atomic<std::uint64_t> num_cuts_{0};  // only grows
};

}  // namespace fastreplay
