// SPDX-License-Identifier: MIT
// What is searched: how many threads do what to a ring of which size, which locations of memory they share, and what
// must not happen. Knows nothing of the protocol's steps.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "memory.hpp"

namespace model {

constexpr std::size_t kHead = 0;
constexpr std::size_t kCommit = 1;
constexpr std::size_t kBase = 2;
constexpr std::size_t kFirstWord = 3;  // lap words, then the records, or the leaves and their marks, or the links
constexpr std::size_t kNoLocation = kMaxLocations;
constexpr std::size_t kWordsPerRecord = 2;  // one for each of two fields
constexpr std::size_t kMaxRows = 2;

// What a record of a ticket holds in each word. 0 is memory that never was written.
constexpr unsigned content(std::uint64_t ticket) { return static_cast<unsigned>(ticket) + 1; }

// Of the slot of a ticket that is published in that lap; 0 if none was.
constexpr std::uint64_t lap_word(std::uint64_t lap) { return 2 * (lap + 1); }

// What the leaf of a ticket holds: which lap it is of, and which mass it has: the owner's, or that of an updater's
// first or second update. 0 is memory that never was written.
constexpr unsigned kMasses = 3;
constexpr unsigned kOwnersMass = 1;
constexpr unsigned leaf_of(std::uint64_t lap, unsigned mass) { return static_cast<unsigned>(lap) * kMasses + mass; }
constexpr unsigned lap_of_leaf(unsigned leaf) { return (leaf - 1) / kMasses; }
constexpr unsigned mass_of_leaf(unsigned leaf) { return (leaf - 1) % kMasses + 1; }

// What a link says of what comes after a ticket: which lap it is of, and that nothing is known, the distance to the
// successor (of which two slots allow one), an end or a cut. Memory that never was written is of lap 0, and open.
enum class AfterIt : std::uint8_t { kOpen, kNext, kEnded, kCut };
constexpr unsigned kAfters = 4;
constexpr unsigned after_of(std::uint64_t lap, AfterIt after) {
  return static_cast<unsigned>(lap) * kAfters + static_cast<unsigned>(after);
}

// What comes before it: nothing, the ticket before, or something that had left the ring.
enum class BeforeIt : std::uint8_t { kFirst, kPrevious, kLost };

// What a location is. In place of a lane a link has the ticket that comes before it in truth, plus one; 0 for none.
enum class Place : std::uint8_t {
  kHeaderHead,
  kHeaderCommit,
  kHeaderBase,
  kWord,
  kData,
  kLeaf,
  kMark,
  kSummary,
  kAfter,
  kBefore,
  kLane,
  kNone
};

// Who repairs sums is a sampler, of which there is one; it learns at last what it counts when all others are done.
enum class Role : std::uint8_t { kWriter, kReader, kClearer, kUpdater, kSampler };

struct Config {
  const char* name;
  std::size_t capacity;
  std::size_t num_writers;
  unsigned inserts = 1;  // of each writer
  unsigned rows = 1;     // of each insert
  std::size_t num_readers = 0;
  unsigned reads = 1;  // of each reader
  std::size_t num_clearers = 0;
  // With one of these, leaves are there in place of records.
  std::size_t num_updaters = 0;
  unsigned updates = 1;  // of each updater
  std::size_t num_samplers = 0;
  unsigned refreshes = 1;  // of a sampler beside others; one more when they are done
  // Or links: each writer has a lane. A reader follows one step.
  bool has_links = false;
  unsigned inserts_of_others = 0;  // of each writer but the first
  unsigned ends_at = 0;            // the how manieth transition of each lane ends its trajectory; 0 for none
  unsigned cuts_after = 0;         // or after which it is cut
  bool is_lazy = false;            // nobody moves commit but who must
  // A record has a frame of the record so many tickets before it, which its reader looks up; so many slots are spare.
  std::size_t looks_back = 0;

  [[nodiscard]] bool has_records() const { return !has_leaves() && !has_links; }
  // Of several writers each looks back in its insert alone, the first ticket of which is known.
  [[nodiscard]] bool has_frame(std::uint64_t ticket) const {
    return looks_back > 0 && (num_writers == 1 ? ticket : ticket % rows) >= looks_back;
  }
  [[nodiscard]] bool has_leaves() const { return num_updaters + num_samplers > 0; }
  [[nodiscard]] std::size_t num_threads() const {
    return num_writers + num_readers + num_clearers + num_updaters + num_samplers;
  }
  [[nodiscard]] std::size_t num_tickets() const {
    return (has_links ? inserts + (num_writers - 1) * inserts_of_others : num_writers * inserts) * rows;
  }
  [[nodiscard]] Role role_of(std::size_t thread) const {
    std::size_t role = 0;
    for (const std::size_t count : {num_writers, num_readers, num_clearers, num_updaters}) {
      if (thread < count) break;
      thread -= count;
      ++role;
    }
    return static_cast<Role>(role);
  }
  [[nodiscard]] unsigned num_operations_of(std::size_t thread) const {
    if (has_links && thread > 0 && thread < num_writers) return inserts_of_others;
    const std::array counts{inserts, reads, 1U, updates, 1U};
    return counts[static_cast<std::size_t>(role_of(thread))];
  }
  [[nodiscard]] std::size_t num_locations() const {
    return has_links ? lane(capacity) : has_leaves() ? summary() + 1 : data(capacity, 0);
  }
  [[nodiscard]] std::size_t word(std::uint64_t slot) const { return kFirstWord + slot; }
  [[nodiscard]] std::size_t data(std::uint64_t slot, std::size_t w) const {
    return kFirstWord + capacity + slot * kWordsPerRecord + w;
  }
  [[nodiscard]] std::size_t leaf(std::uint64_t slot) const { return kFirstWord + capacity + slot; }
  [[nodiscard]] std::size_t after(std::uint64_t slot) const { return kFirstWord + capacity + slot; }
  [[nodiscard]] std::size_t before(std::uint64_t slot) const { return after(capacity) + slot; }
  [[nodiscard]] std::size_t lane(std::uint64_t slot) const { return before(capacity) + slot; }
  [[nodiscard]] std::size_t mark() const { return leaf(capacity); }
  [[nodiscard]] std::size_t summary() const { return mark() + 1; }
  [[nodiscard]] Place place_of(std::size_t location) const {
    if (location == kNoLocation) return Place::kNone;
    if (location < kFirstWord) return static_cast<Place>(location);
    if (location < kFirstWord + capacity) return Place::kWord;
    if (has_links) {
      return location < before(0) ? Place::kAfter : location < lane(0) ? Place::kBefore : Place::kLane;
    }
    if (!has_leaves()) return Place::kData;
    return location == mark() ? Place::kMark : location == summary() ? Place::kSummary : Place::kLeaf;
  }
  [[nodiscard]] std::uint64_t oldest(std::uint64_t head) const { return head > capacity ? head - capacity : 0; }
};

enum class Violation : std::uint8_t {
  kNone,
  kTwoOwners,
  kCommitPastHead,
  kCommitUnwritten,
  kBadWindow,
  kGatedHolder,
  kUnfinishedInsert,
  kUninitialised,
  kTorn,
  kOtherTicket,
  kOtherFrame,
  kLostRow,
  kStuckCommit,
  kOldLeaf,
  kLostUpdate,
  kLeafUnseen,
  kWrongLeaf,
  kCountsGone,
  kLostChange,
  kWrongStep,
  kFalseHint,
  kLostLink,
  kDeadlock,
  kNoWayOut,
};

constexpr const char* describe(Violation violation) {
  constexpr std::array kTexts{"nothing",
                              "two writers own one slot",
                              "commit passes head",
                              "commit passes a ticket that is not written",
                              "a window whose base or commit is past its end",
                              "a gated writer holds a ticket",
                              "an insert returns before its rows are published",
                              "a row accepted that was never written",
                              "a torn row accepted",
                              "a row of another ticket accepted",
                              "a frame of another ticket accepted",
                              "at rest a slot does not hold its last ticket",
                              "at rest commit cannot reach head",
                              "a leaf of an older lap follows a newer one",
                              "a leaf's first mass follows an update of it",
                              "a ticket seen published of which the leaf is not there",
                              "at rest a slot's leaf is not its last ticket's",
                              "a sampler counts what its window does not hold",
                              "at rest a sampler misses a change",
                              "a step to a transition that does not come next",
                              "a row stops early at a hint that is none",
                              "at rest a transition's link is not what came after it",
                              "no thread can go on",
                              "a state from which the threads cannot finish"};
  return kTexts[static_cast<std::size_t>(violation)];
}

}  // namespace model
