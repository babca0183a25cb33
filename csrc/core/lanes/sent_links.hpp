// SPDX-License-Identifier: MIT
// Links for who keeps a ring's transitions elsewhere as well, and makes the distances to what comes after from those to
// what comes before. One thread at a time may ask.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lanes/gaps.hpp"
#include "lanes/lanes.hpp"

namespace fastreplay {

class SentLinks {
 public:
  struct Link {
    Gap before;
    Gap after;  // as far as it is no distance
  };
  // Of a transition that was read before.
  struct Change {
    std::uint32_t slot;
    Gap after;
  };

  // The lanes outlive this. Throws std::bad_alloc.
  explicit SentLinks(const Lanes& lanes) : lanes_{lanes}, newest_(lanes.num_lanes()) {}

  // Reads the links of tickets first, first + 1, ..., all published, those after what was read last. Beside writers,
  // what is below ring.oldest_whole() afterwards is of no use. Throws std::bad_alloc.
  void read(Ticket first, std::span<Link> links);

  // What has been cut since it was read, or is followed by a row that was left out. To be asked for before transitions
  // are read that were published by now: later it would not be known any more. Throws std::bad_alloc.
  [[nodiscard]] std::vector<Change> changes();

 private:
  // Of a lane, what was read last: of nothing else what comes after may still be said.
  struct Newest {
    Ticket ticket = 0;
    bool may_change = false;
  };

  const Lanes& lanes_;
  std::vector<Newest> newest_;
  std::vector<std::uint32_t> read_lanes_;
  std::uint64_t num_cuts_ = 0;
};

}  // namespace fastreplay
