// SPDX-License-Identifier: MIT
// How far rows get in their trajectories on a device: Walks of core/batch/walks.hpp, over what its window holds, in
// which every ticket is published. Knows no CUDA, and nothing of how rows are drawn.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch/ways.hpp"
#include "following.h"
#include "inline.hpp"
#include "lanes/gaps.hpp"
#include "linked_slots.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

class FollowedWalk {
 public:
  [[nodiscard]] static FollowedWalk of(const fastreplay_cuda_sampling& sampling) {
    const fastreplay_cuda_following& following = *sampling.following;
    FollowedWalk walk{};
    walk.linked_ = {following.links, sampling.capacity};
    walk.ways_data_ = static_cast<std::byte*>(sampling.block) + following.ways_offset;
    walk.way_bytes_ = following.way_bytes;
    walk.most_before_ = following.most_before;
    walk.most_after_ = following.most_after;
    return walk;
  }

  [[nodiscard]] FASTREPLAY_INLINE Ways ways() const { return {as_global(ways_data_), way_bytes_, most_before_}; }

  // That a row has, if it is complete.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t num_steps() const { return most_before_ + most_after_ + 1; }

  // Where a ticket of the window lies, by how many are older.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t slot_of(const fastreplay_cuda_window& window,
                                                        std::uint64_t position) const {
    return linked_.place(window, position).slot;
  }

  // Makes the way of a row. Returns whether it is complete.
  FASTREPLAY_INLINE bool walk(const fastreplay_cuda_window& window, std::uint64_t row, std::uint64_t position) const {
    const Ways all = ways();
    Way& way = all[row];
    std::uint32_t* slots = all.slots(row);
    const Step start{linked_.place(window, position), 0};
    slots[0] = static_cast<std::uint32_t>(start.at.slot);
    const Step last = go_later(window, start, slots, all.num_kept());
    const Step first = go_earlier(window, start, slots);
    way.oldest = window.first + first.at.position;
    way.num_before = first.num_steps;
    way.num_after = last.num_steps;
    way.first_slot = static_cast<std::uint32_t>(first.at.slot);
    way.last_slot = static_cast<std::uint32_t>(last.at.slot);
    way.begins = begins(first);
    way.is_complete = ends(last) && (first.num_steps == most_before_ || way.begins);
    return way.is_complete;
  }

  // Whether the way of what lies there would be.
  [[nodiscard]] FASTREPLAY_INLINE bool is_complete(const fastreplay_cuda_window& window, std::uint64_t position) const {
    const Step start{linked_.place(window, position), 0};
    if (!ends(go_later(window, start, nullptr, 0))) return false;
    const Step first = go_earlier(window, start, nullptr);
    return first.num_steps == most_before_ || begins(first);
  }

  // The slot of what comes after one, of which a way says that there is something.
  [[nodiscard]] FASTREPLAY_INLINE std::uint64_t next(std::uint64_t slot) const {
    const std::uint64_t later = slot + linked_.after(slot);
    return later < linked_.capacity ? later : later - linked_.capacity;
  }

 private:
  struct Step {
    LinkedSlots::Place at;
    std::uint32_t num_steps;
  };

  [[nodiscard]] FASTREPLAY_INLINE bool begins(const Step& first) const {
    return linked_.before(first.at.slot) == Before::kFirst;
  }
  [[nodiscard]] FASTREPLAY_INLINE bool ends(const Step& last) const {
    return last.num_steps == most_after_ || is_end(linked_.after(last.at.slot));
  }

  FASTREPLAY_INLINE Step go_later(const fastreplay_cuda_window& window, Step step, std::uint32_t* slots,
                                  std::uint64_t num_kept) const {
    while (step.num_steps < most_after_ && linked_.go_later(window, step.at)) {
      if (++step.num_steps < num_kept) slots[step.num_steps] = static_cast<std::uint32_t>(step.at.slot);
    }
    return step;
  }
  FASTREPLAY_INLINE Step go_earlier(const fastreplay_cuda_window& window, Step step, std::uint32_t* slots) const {
    while (step.num_steps < most_before_ && linked_.go_earlier(window, step.at)) {
      ++step.num_steps;
      if (slots != nullptr)
        slots[-static_cast<std::int64_t>(step.num_steps)] = static_cast<std::uint32_t>(step.at.slot);
    }
    return step;
  }

  LinkedSlots linked_;
  std::byte* ways_data_;
  std::uint64_t way_bytes_;
  std::uint64_t most_before_;
  std::uint64_t most_after_;
};

}  // namespace fastreplay
