// SPDX-License-Identifier: MIT
// What surrounds a row: steps of its trajectory, before it and after it, and what is made of them. n steps, sequences
// and windows are rules of this. Knows nothing of how rows are drawn.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "batch/block.hpp"
#include "batch/discounted_sums.hpp"
#include "batch/gather.hpp"
#include "batch/walks.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Steps first, first + stride, ..., `count` of them; the drawn record is step 0.
struct Steps {
  std::int64_t first = 0;
  std::size_t count = 1;
  std::size_t stride = 1;

  [[nodiscard]] std::int64_t at(std::size_t k) const noexcept { return first + static_cast<std::int64_t>(k * stride); }
};

// What a part says of each of its steps, one byte each, 0 or 1.
enum class Saying : std::uint8_t {
  kReal,     // whether the step is there
  kTrained,  // the same, and it is not before the drawn record
  kFirst,    // whether it begins its trajectory
};

struct WindowRule {
  // Fields of some steps, step by step. One that is not there is given as the nearest that is, or as zeros.
  struct Taken {
    Steps steps;
    bool pads_with_zeros;
    bool is_first_only;               // of these steps only the first that is there is given
    std::vector<std::size_t> fields;  // of the record
    std::vector<std::size_t> parts;   // where each goes

    [[nodiscard]] std::size_t num_given() const noexcept { return is_first_only ? 1 : steps.count; }
  };
  struct Said {
    Steps steps;
    Saying what;
    std::size_t part;
  };

  std::uint32_t most_before = 0;  // steps that are looked for
  std::uint32_t most_after = 0;
  bool is_redrawn = false;  // whether rows are drawn again that have fewer, though their trajectories have more
  // Whether steps follow each other, each of all rows; else rows, each of all steps.
  bool is_time_major = false;
  std::size_t ways_part = 0;
  std::vector<Taken> taken;
  std::vector<Said> said;
  std::optional<SumRule> sums;
};

// Whether a block of such records has the parts that the rule makes, and no others to be made.
[[nodiscard]] bool fits(const WindowRule& rule, const RecordLayout& record, const BatchLayout& layout) noexcept;

// Whether a search that may take long is to be given up: asked now and then, by the thread that searches, which holds
// no lock then. From then on it is.
class GivingUp {
 public:
  using Ask = bool (*)(void* context) noexcept;

  GivingUp(Ask ask, void* context) noexcept : ask_{ask}, context_{context} {}

  // After so many steps of the search.
  [[nodiscard]] bool is_due(std::size_t num_steps) noexcept {
    num_steps_ += num_steps;
    if (num_steps_ < kSteps) return is_given_up_;
    num_steps_ = 0;
    return is_given_up_ = is_given_up_ || ask_(context_);
  }

 private:
  static constexpr std::size_t kSteps = 65536;  // a millisecond's

  Ask ask_;
  void* context_;
  std::size_t num_steps_ = 0;
  bool is_given_up_ = false;
};

// Of the newest of published tickets [first, end) whose way is complete there, the oldest ticket of that: for who draws
// elsewhere. What writers overwrite meanwhile may be found, or not.
[[nodiscard]] std::optional<Ticket> newest_complete(const Ring& ring, const Lanes& lanes, const WindowRule& rule,
                                                    Ticket first, Ticket end) noexcept;

// The rows of one minibatch that surround drawn tickets. Fewer steps than the rule says are there where the trajectory
// begins or ends, or is cut; or where its next transition has not come yet, or one before has left the ring.
class Windows {
 public:
  static constexpr std::size_t kMostRows = 256;  // that are copied at once

  // `num_rows` of the block's rows are filled.
  Windows(Ring& ring, const Lanes& lanes, const WindowRule& rule, const Block& block, std::size_t num_rows,
          const ShiftDraw& shifts = {}) noexcept;

  // Copies rows [first_row, first_row + num_rows), at most kMostRows, whose tickets are in the block. Returns the least
  // of their rank()s. Any thread may copy other rows meanwhile.
  Ticket copy(std::size_t first_row, std::size_t num_rows) const noexcept;

  // Of a row that was copied: 0 if it is to be drawn again in any case, else one more than its oldest ticket. The copy
  // is whole if that is above ring.oldest_whole() afterwards.
  [[nodiscard]] Ticket rank(std::size_t row) const noexcept {
    const Way& way = ways_[row];
    return rule_.is_redrawn && !way.is_complete ? 0 : way.oldest + 1;
  }

  // Whether a row of this published ticket would not be drawn again, if the window is what can be drawn from.
  [[nodiscard]] bool suits(Ticket ticket, const Window& window) const noexcept;
  // By the caller's thread alone, to which it is cheap to ask for one ticket after the other.
  [[nodiscard]] bool suits_all() const noexcept { return !rule_.is_redrawn; }
  // Of a row.
  [[nodiscard]] std::size_t num_steps() const noexcept { return std::size_t{rule_.most_before} + rule_.most_after + 1; }
  // Records before and after the drawn one that its steps lie in, where lanes go in step.
  [[nodiscard]] std::pair<std::size_t, std::size_t> reach() const noexcept {
    return {rule_.most_before * lanes_.num_lanes(), rule_.most_after * lanes_.num_lanes()};
  }

 private:
  // What suits() knows of each lane; nothing where there is no memory.
  struct Trails {
    std::unique_ptr<Trail[]> of_lanes;
    Trail none;
    Window window{};
  };
  using Place = Lanes::Links::Place;

  [[nodiscard]] Trail& trail(Ticket ticket, const Window& window) const noexcept;
  void walk(std::size_t first_row, std::size_t num_rows) const noexcept;
  template <class NextSlot>
  void copy(std::span<const Copied> fields, const RowsOfParts& rows, const ShiftDraw& shifts,
            NextSlot next_slot) const noexcept;
  void take(const WindowRule::Taken& taken, std::size_t first_row, std::size_t num_rows) const noexcept;
  void take(std::span<const Copied> fields, const WindowRule::Taken& taken, std::size_t first_row,
            std::size_t num_rows) const noexcept;
  [[nodiscard]] Copied copied(std::size_t field, std::size_t part) const noexcept;
  // Of a step, as it is given.
  [[nodiscard]] std::size_t step_bytes(std::size_t field, std::size_t part) const noexcept;
  void pad(std::size_t row) const noexcept;
  [[nodiscard]] std::uint32_t first_slot(const Steps& steps, std::size_t row) const noexcept;
  void put_zeros(const WindowRule::Taken& taken, std::size_t row) const noexcept;
  void say(const WindowRule::Said& said, std::size_t first_row, std::size_t num_rows) const noexcept;
  // Where a part's first row, or the first step of it, begins.
  [[nodiscard]] std::byte* begin_of(std::size_t part, std::size_t step_bytes) const noexcept;
  // Sets steps [begin, end) of a row, of `count` that each has, to a byte.
  void fill(std::byte* part, std::size_t step_bytes, std::size_t row, std::size_t count, std::size_t begin,
            std::size_t end, std::byte value) const noexcept;

  Ring& ring_;
  const Lanes& lanes_;
  const WindowRule& rule_;
  const Block& block_;
  const Ways ways_;
  const ShiftDraw shifts_;
  std::size_t num_rows_;  // from a step to the next of the same row, where steps come first
  mutable Trails trails_;
};

}  // namespace fastreplay
