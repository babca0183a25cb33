// SPDX-License-Identifier: MIT
#include "lanes/sent_links.hpp"

namespace fastreplay {

void SentLinks::read(Ticket first, std::span<Link> links) {
  const Lanes::Links& all = lanes_.links();
  read_lanes_.resize(links.size());
  for (std::size_t i = 0; i < links.size(); ++i) {
    const Lanes::Links::Place place = all.place(first + i);
    const Gap after = all.after(place);
    links[i] = {.before = all.before(place.slot), .after = is_gap(after) ? After::kOpen : after};
    read_lanes_[i] = all.lane(place.slot);
  }
  // What was overwritten meanwhile is of another lane.
  const Ticket oldest = lanes_.ring().oldest_whole();
  for (std::size_t i = oldest > first ? oldest - first : 0; i < links.size(); ++i) {
    newest_[read_lanes_[i]] = {.ticket = first + i, .may_change = links[i].after == After::kOpen};
  }
}

std::vector<SentLinks::Change> SentLinks::changes() {
  std::vector<Change> found;
  const std::uint64_t num_cuts = lanes_.num_cuts();
  if (num_cuts == num_cuts_) return found;
  std::vector<Newest*> changed;
  for (Newest& newest : newest_) {
    if (!newest.may_change) continue;
    const Lanes::Links::Place place = lanes_.links().place(newest.ticket);
    const Gap after = lanes_.links().after(place);
    if (after != After::kCut && after != After::kUnknown) continue;
    found.push_back({.slot = static_cast<std::uint32_t>(place.slot), .after = after});
    changed.push_back(&newest);
  }
  // Whose slot is another's by now has no link of its own, there and here.
  const Ticket oldest = lanes_.ring().oldest_whole();
  std::size_t num_kept = 0;
  for (std::size_t i = 0; i < changed.size(); ++i) {
    changed[i]->may_change = false;
    if (changed[i]->ticket >= oldest) found[num_kept++] = found[i];
  }
  found.resize(num_kept);
  num_cuts_ = num_cuts;
  return found;
}

}  // namespace fastreplay
