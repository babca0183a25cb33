// SPDX-License-Identifier: MIT
// What is searched, how it is broken, and which orders are stronger than they must be. Knows nothing of how.
#pragma once

#include <optional>
#include <vector>

#include "config.hpp"
#include "faults.hpp"

namespace model {

inline const std::vector<Config> kQuick{
    {"capacity 1, 2 writers, 1 reader", 1, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers, 1 reader", 2, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers of 2 rows, 1 reader", 2, 2, 1, 2, 1, 1},
    {"capacity 3, 2 writers of 2 rows, 1 reader", 3, 2, 1, 2, 1, 1},
    {"capacity 1, 2 writers, 1 reader, clear", 1, 2, 1, 1, 1, 1, 1},
    {"capacity 1, 3 writers, 1 reader", 1, 3, 1, 1, 1, 1},
    {"capacity 1, 2 writers twice, 1 reader", 1, 2, 2, 1, 1, 1},
    {"capacity 1, 2 writers twice, 1 reader twice", 1, 2, 2, 1, 1, 2},
};

// 130 million states in all, in a quarter of an hour of one core.
inline const std::vector<Config> kLarge{
    {"capacity 2, 2 writers twice, 1 reader", 2, 2, 2, 1, 1, 1},
    {"capacity 2, 3 writers, 1 reader", 2, 3, 1, 1, 1, 1},
    {"capacity 3, 3 writers, 1 reader", 3, 3, 1, 1, 1, 1},
    {"capacity 3, 2 writers of 2 rows, 2 readers", 3, 2, 1, 2, 2, 1},
    {"capacity 2, 2 writers, 1 reader twice, clear", 2, 2, 1, 1, 1, 2, 1},
    {"capacity 2, 2 writers of 2 rows twice, 1 reader", 2, 2, 2, 2, 1, 1},
    {"capacity 3, 2 writers of 2 rows twice, 1 reader", 3, 2, 2, 2, 1, 1},
    {"capacity 1, 2 writers twice, 2 readers", 1, 2, 2, 1, 2, 1},
    {"capacity 2, 2 writers twice, 1 reader, clear", 2, 2, 2, 1, 1, 1, 1},
    {"capacity 2, 2 writers thrice, 1 reader", 2, 2, 3, 1, 1, 1},
    {"capacity 1, 3 writers twice, 1 reader", 1, 3, 2, 1, 1, 1},
};

// Records that have frames of others in common with them.
inline const std::vector<Config> kQuickFrames{
    {.name = "1 slot and 1 spare: writer thrice, reader",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 3,
     .num_readers = 1,
     .looks_back = 1},
    {.name = "1 slot and 2 spare: writer 4 times, reader",
     .capacity = 3,
     .num_writers = 1,
     .inserts = 4,
     .num_readers = 1,
     .looks_back = 2},
    {.name = "2 slots and 1 spare: 2 writers of 2 rows, reader",
     .capacity = 3,
     .num_writers = 2,
     .rows = 2,
     .num_readers = 1,
     .looks_back = 1},
};

// Leaves in place of records, each with what is behind their rules: laps, updates, marks, a moving window.
inline const std::vector<Config> kQuickLeaves{
    {.name = "1 slot: writer, updater, sampler", .capacity = 1, .num_writers = 1, .num_updaters = 1, .num_samplers = 1},
    {.name = "1 slot: 2 writers, updater", .capacity = 1, .num_writers = 2, .num_updaters = 1},
    {.name = "1 slot: writer, updater twice, sampler",
     .capacity = 1,
     .num_writers = 1,
     .num_updaters = 1,
     .updates = 2,
     .num_samplers = 1},
    {.name = "1 slot: writer, updater, sampler twice",
     .capacity = 1,
     .num_writers = 1,
     .num_updaters = 1,
     .num_samplers = 1,
     .refreshes = 2},
    {.name = "1 slot: writer, sampler twice, clear",
     .capacity = 1,
     .num_writers = 1,
     .num_clearers = 1,
     .num_samplers = 1,
     .refreshes = 2},
    {.name = "1 slot: writer twice, sampler twice",
     .capacity = 1,
     .num_writers = 1,
     .inserts = 2,
     .num_samplers = 1,
     .refreshes = 2},
    {.name = "2 slots: writer of 2 rows, updater, sampler",
     .capacity = 2,
     .num_writers = 1,
     .rows = 2,
     .num_updaters = 1,
     .num_samplers = 1},
    {.name = "1 slot: writer twice, updater, sampler",
     .capacity = 1,
     .num_writers = 1,
     .inserts = 2,
     .num_updaters = 1,
     .num_samplers = 1},
};

// 15 million states in all, in two minutes of one core.
inline const std::vector<Config> kLargeLeaves{
    {.name = "1 slot: 2 writers, 2 updaters", .capacity = 1, .num_writers = 2, .num_updaters = 2},
    {.name = "2 slots: 2 writers, sampler", .capacity = 2, .num_writers = 2, .num_samplers = 1},
    {.name = "1 slot: writer, 2 updaters, sampler",
     .capacity = 1,
     .num_writers = 1,
     .num_updaters = 2,
     .num_samplers = 1},
    {.name = "1 slot: 2 writers, updater, sampler",
     .capacity = 1,
     .num_writers = 2,
     .num_updaters = 1,
     .num_samplers = 1},
    {.name = "1 slot: writer twice, updater twice, sampler",
     .capacity = 1,
     .num_writers = 1,
     .inserts = 2,
     .num_updaters = 1,
     .updates = 2,
     .num_samplers = 1},
    {.name = "1 slot: writer twice, updater, sampler twice",
     .capacity = 1,
     .num_writers = 1,
     .inserts = 2,
     .num_updaters = 1,
     .num_samplers = 1,
     .refreshes = 2},
    {.name = "2 slots: writer thrice, updater, sampler",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 3,
     .num_updaters = 1,
     .num_samplers = 1},
    {.name = "1 slot: writer twice, updater, sampler, clear",
     .capacity = 1,
     .num_writers = 1,
     .inserts = 2,
     .num_clearers = 1,
     .num_updaters = 1,
     .num_samplers = 1},
};

// Links in place of records, of two slots: one has no neighbour. With three of one lane and one of another, a writer
// may find its slot the next lap's when it links; where it moves commit, too, is left to the larger ones.
inline const std::vector<Config> kQuickLinks{
    {.name = "2 slots: lane twice, reader",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 2,
     .num_readers = 1,
     .has_links = true},
    {.name = "2 slots: lane twice with an end, reader",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 2,
     .num_readers = 1,
     .has_links = true,
     .ends_at = 1},
    {.name = "2 slots: lane twice with a cut, reader",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 2,
     .num_readers = 1,
     .has_links = true,
     .cuts_after = 1},
    {.name = "2 slots: lane thrice, reader",
     .capacity = 2,
     .num_writers = 1,
     .inserts = 3,
     .num_readers = 1,
     .has_links = true},
    {.name = "2 slots: lanes of 3 and 1, reader, lazy",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 3,
     .num_readers = 1,
     .has_links = true,
     .inserts_of_others = 1,
     .is_lazy = true},
    {.name = "2 slots: lanes of 2 and 1, reader",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 2,
     .num_readers = 1,
     .has_links = true,
     .inserts_of_others = 1},
    {.name = "2 slots: lanes of 2 and 2",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 2,
     .has_links = true,
     .inserts_of_others = 2},
    {.name = "2 slots: lanes of 2 rows, reader",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 1,
     .rows = 2,
     .num_readers = 1,
     .has_links = true,
     .inserts_of_others = 1},
};

// 5 million states in all, in half a minute of one core.
inline const std::vector<Config> kLargeLinks{
    {.name = "2 slots: lanes of 2 and 2, reader",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 2,
     .num_readers = 1,
     .has_links = true,
     .inserts_of_others = 2},
    {.name = "2 slots: lanes of 3 and 1, reader",
     .capacity = 2,
     .num_writers = 2,
     .inserts = 3,
     .num_readers = 1,
     .has_links = true,
     .inserts_of_others = 1},
};

constexpr Order kRelaxed = Order::kRelaxed;

struct Mutant {
  const char* name;
  Faults faults;
};

inline Faults weaker(const Site& site, std::optional<Order> order, std::optional<Order> failure = {}) {
  return {.changes = {{.site = site, .order = order, .failure = failure}}};
}
inline Faults without(const Site& site) { return {.changes = {{.site = site, .leaves_out = true}}}; }
inline Faults lying(const Site& site, int lie) { return {.changes = {{.site = site, .lie = lie}}}; }

constexpr Site kGate{"try_reserve", Kind::kLoad, Place::kHeaderCommit};
constexpr Site kReservation{"try_reserve", Kind::kUpdate, Place::kHeaderHead};
constexpr Site kFenceR1{"write", Kind::kFence};
constexpr Site kWordStore{"publish", Kind::kStore, Place::kWord};
constexpr Site kAdvanceCommit{"advance", Kind::kLoad, Place::kHeaderCommit};
constexpr Site kAdvanceHead{"advance", Kind::kLoad, Place::kHeaderHead};
constexpr Site kAdvanceWord{"advance", Kind::kLoad, Place::kWord};
constexpr Site kAdvanceUpdate{"advance", Kind::kUpdate, Place::kHeaderCommit};
constexpr Site kWindowBase{"window_within", Kind::kLoad, Place::kHeaderBase};
constexpr Site kWindowCommit{"window_within", Kind::kLoad, Place::kHeaderCommit};
constexpr Site kWindowHead{"window_within", Kind::kLoad, Place::kHeaderHead};
constexpr Site kIsPublished{"is_published", Kind::kLoad, Place::kWord};
constexpr Site kFenceR2{"oldest_whole", Kind::kFence};
constexpr Site kValidation{"oldest_whole", Kind::kLoad, Place::kHeaderHead};
constexpr Site kClearHead{"clear", Kind::kLoad, Place::kHeaderHead};
constexpr Site kClearUpdate{"clear", Kind::kUpdate, Place::kHeaderBase};
constexpr Site kLeafUpdate{"replace", Kind::kUpdate, Place::kLeaf};
constexpr Site kJoin{"join", Kind::kUpdate, Place::kAfter};
constexpr Site kAfterLoad{"after", Kind::kLoad, Place::kAfter};
constexpr Site kMarkGroup{"mark", Kind::kFetchOr, Place::kMark};
constexpr Site kMarkAbove{"mark_above", Kind::kFetchOr, Place::kSummary};
constexpr Site kTakeAbove{"take", Kind::kExchange, Place::kSummary};
constexpr Site kTakeGroup{"take", Kind::kExchange, Place::kMark};

inline const std::vector<Mutant> kMutants{
    {"no-gate", lying(kGate, 1000)},
    {"gate-off-by-one", lying(kGate, 1)},
    {"gate-too-tight", lying(kGate, -1)},
    {"gate-relaxed", weaker(kGate, kRelaxed)},
    {"no-validation", {.validation = Validation::kNever}},
    {"validation-off-by-one", lying(kValidation, -1)},
    {"validation-before-copy", {.validation = Validation::kBeforeCopy}},
    {"no-word-check", {.checks_word = false}},
    {"word-before-data", {.data_last = true}},
    {"word-store-relaxed", weaker(kWordStore, kRelaxed)},
    {"advance-cas-relaxed", weaker(kAdvanceUpdate, Order::kAcquire)},
    {"no-fence-r1", without(kFenceR1)},
    {"no-fence-r2", without(kFenceR2)},
    {"is-published-relaxed", weaker(kIsPublished, kRelaxed)},
    {"window-commit-relaxed", weaker(kWindowCommit, kRelaxed)},
    {"window-base-relaxed", weaker(kWindowBase, kRelaxed)},
    {"clear-relaxed", weaker(kClearUpdate, kRelaxed)},
    {"advance-word-relaxed", weaker(kAdvanceWord, kRelaxed)},
    {"advance-commit-relaxed", weaker(kAdvanceCommit, kRelaxed)},
    {"advance-failure-relaxed", weaker(kAdvanceUpdate, {}, kRelaxed)},
};

inline const std::vector<Mutant> kFrameMutants{
    {"frames-no-spare-slots", {.has_spare = false}},
    {"frames-no-validation", {.validation = Validation::kNever}},
    {"frames-validation-before-copy", {.validation = Validation::kBeforeCopy}},
    {"frames-validation-off-by-one", lying(kValidation, -1)},
    {"frames-no-fence-r1", without(kFenceR1)},
    {"frames-no-fence-r2", without(kFenceR2)},
};

inline const std::vector<Mutant> kLeafMutants{
    {"leaf-checked-then-stored", {.changes = {{.site = kLeafUpdate, .only_stores = true}}}},
    {"leaf-after-publishing", {.insertion = Insertion::kLeafAfterPublishing}},
    {"leaf-stored-again", {.insertion = Insertion::kLeafAgain}},
    {"leaf-word-relaxed", weaker(kWordStore, kRelaxed)},
    {"leaf-is-published-relaxed", weaker(kIsPublished, kRelaxed)},
    {"leaf-advance-word-relaxed", weaker(kAdvanceWord, kRelaxed)},
    {"leaf-gate-relaxed", weaker(kGate, kRelaxed)},
    {"mark-before-publishing", {.insertion = Insertion::kMarkBeforePublishing}},
    {"insert-marks-nothing", {.insertion = Insertion::kNoMark}},
    {"new-tickets-not-marked", {.marks_new_tickets = false}},
    {"cleared-not-marked", {.marks_cleared = false}},
    {"mark-before-update", {.marks_before_update = true}},
    {"mark-looks-first", {.changes = {{.site = kMarkGroup, .looks_first = true}}}},
    {"summary-before-group", {.summary_first = true}},
    {"summary-taken-last", {.summary_taken_last = true}},
    {"mark-relaxed", weaker(kMarkGroup, kRelaxed)},
    {"mark-acquire", weaker(kMarkGroup, Order::kAcquire)},
    {"take-relaxed", weaker(kTakeGroup, kRelaxed)},
    {"take-release", weaker(kTakeGroup, Order::kRelease)},
};

// A reader asks twice, so that three faults are harmless alone and are not here. Where it does not ask whether the
// successor is published, following the link by acquire has shown it that and the successor's link; where what comes
// before is linked too early, it asks. (Both at once are here.) And a predecessor that had left the ring and passes for
// none is followed no more than one that is said to be lost: that is test_lanes' part, as are distances of the whole
// ring, which two slots do not tell from a lap.
//
// It must ask for the successor's `before` since a writer that comes late, its slot another's, links by what that one
// says came before it; and it must follow by acquire what was linked by release, lest it see the older `before` and
// stop there, as though nothing came next, at a beginning that it does not find overwritten either.
inline const std::vector<Mutant> kLinkMutants{
    {"link-checked-then-stored", {.changes = {{.site = kJoin, .only_stores = true}}}},
    {"link-of-any-lap", {.any_lap = true}},
    {"link-early-and-not-asked", {.links_early = true, .checks_successor = false}},
    {"link-before-not-asked", {.checks_before = false}},
    {"link-no-validation", {.validation = Validation::kNever}},
    {"link-after-relaxed", weaker(kAfterLoad, kRelaxed)},
    {"link-join-relaxed", weaker(kJoin, kRelaxed)},
    {"link-word-relaxed", weaker(kWordStore, kRelaxed)},
    {"link-is-published-relaxed", weaker(kIsPublished, kRelaxed)},
    {"link-advance-word-relaxed", weaker(kAdvanceWord, kRelaxed)},
    {"link-gate-relaxed", weaker(kGate, kRelaxed)},
    {"link-no-fence-r1", without(kFenceR1)},
    {"link-no-fence-r2", without(kFenceR2)},
};

// Orders that are stronger than this model needs, and why. Weaker orders allow more, so one search
// with all of them weakened at once shows that each alone is harmless.
struct Spare {
  const char* name;
  Change change;
  const char* reason;
};

inline const std::vector<Spare> kSpares{
    {"reserve-relaxed",
     {.site = kReservation, .order = kRelaxed},
     "the gate orders writers of a slot, fence R1 and the commit's release show the reservation to readers"},
    {"advance-cas-release",
     {.site = kAdvanceUpdate, .order = Order::kRelease},
     "the commit that it replaces was read by acquire before"},
    {"advance-head-relaxed",
     {.site = kAdvanceHead, .order = kRelaxed},
     "the commit read before, by acquire, brings a head as new"},
    {"window-head-relaxed",
     {.site = kWindowHead, .order = kRelaxed},
     "the commit and base read before, by acquire, bring a head as new"},
    {"clear-head-relaxed",
     {.site = kClearHead, .order = kRelaxed},
     "releasing base hands on the head that was read, whatever the order of that read"},
};

// Of marks. By the letter of C++ a relaxed update may take effect before an earlier one of its thread (load buffering),
// which this memory does not have: the bit above could be taken, and the group's looked at before it is set, were there
// neither the orders of the bit above nor both of the group's.
inline const std::vector<Spare> kLeafSpares{
    {"mark-release",
     {.site = kMarkGroup, .order = Order::kRelease},
     "who sets a bit looks at nothing afterwards; by the letter so with the orders of the bit above"},
    {"take-acquire",
     {.site = kTakeGroup, .order = Order::kAcquire},
     "updates hand on what was before them, whatever their order; by the letter as mark-release"},
    {"summary-mark-relaxed",
     {.site = kMarkAbove, .order = kRelaxed},
     "the group's bit brings the leaf; by the letter so with both orders of mark and take of that bit"},
    {"summary-take-relaxed", {.site = kTakeAbove, .order = kRelaxed}, "as summary-mark-relaxed"},
};

}  // namespace model
