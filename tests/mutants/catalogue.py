# SPDX-License-Identifier: MIT
"""The mutants: small mistakes in the core, each of which a test must catch (run.py).

A mutant replaces a text that stands exactly once in its file, so that the list cannot outlive the code
it is about. What only weak memory shows (fences and memory orders that are missing or too weak: R1, R2,
release on lap words and commit) never fails on x86 and is the model's part, tests/model.
"""

from __future__ import annotations

from dataclasses import dataclass

RING, UNSHARED = "ring/protocol.hpp", "ring/unshared.hpp"
LAYOUT = "batch/layout.cpp"
DRAW, READ, SAMPLE = "batch/draw.cpp", "batch/read.cpp", "batch/sample.cpp"
LEAF, LEAVES, MARKS, NODE = "priority/leaf.hpp", "priority/leaves.hpp", "priority/marks.hpp", "priority/node.hpp"
CHECKSUMS = "lanes/checksums.cpp"
FRAMES, GAPS, LINKS, LANES = "lanes/frames.cpp", "lanes/gaps.hpp", "lanes/links.hpp", "lanes/lanes.cpp"
FRAME_STEPS, STEPS = "lanes/frame_steps.cpp", "steps/step_table.cpp"
WALKS, WINDOWS, DISCOUNTED = "batch/walks.hpp", "batch/windows.cpp", "batch/discounted_sums.cpp"
PRIORITIES, SUMS = "priority/priorities.cpp", "priority/sums.cpp"


@dataclass(frozen=True)
class Mutant:
    """One mistake, and the test program that must notice."""

    name: str
    file: str
    old: str
    new: str
    test: str = "stress"


MUTANTS = (
    # Writers: the lap gate.
    Mutant("no lap gate", RING, "if (head + num_rows > free + capacity_) return false;", "(void)free;"),
    Mutant(
        "lap gate opens one row early",
        RING,
        "if (head + num_rows > free + capacity_)",
        "if (head + num_rows > free + capacity_ + 1)",
    ),
    Mutant("lap gate forgets how many rows", RING, "if (head + num_rows > free", "if (head + 1 > free"),
    Mutant(
        "lap gate asks head, not commit",
        RING,
        "if (head + num_rows > free + capacity_)",
        "if (head + num_rows > std::max(head, free) + capacity_)",
    ),
    # Writers: publishing.
    Mutant(
        "published before it is written",
        RING,
        "  const Claim claim{*this, first, num_rows};\n  write(fields, first_row, claim.slot(), num_rows);\n",
        "  { const Claim claim{*this, first, num_rows}; }\n"
        "  write(fields, first_row, static_cast<std::size_t>(first % capacity_), num_rows);\n",
    ),
    Mutant(
        "a publisher moves commit over others' unfinished rows",
        RING,
        "  if (Atomics::prefers(((first + num_rows) ^ first) >= commit_interval_)) advance();\n",
        "  Ticket seen = first;\n"
        "  while (seen < first + num_rows &&\n"
        "         !Atomics::compare_exchange_weak(header_.commit, seen, first + num_rows, std::memory_order_acq_rel,\n"
        "                                         std::memory_order_acquire)) {\n  }\n",
    ),
    Mutant(
        "commit set to the latest publisher's rows",
        RING,
        "  if (Atomics::prefers(((first + num_rows) ^ first) >= commit_interval_)) advance();\n",
        "  Atomics::store(header_.commit, first + num_rows, std::memory_order_release);\n",
    ),
    Mutant("lap word of the next lap", RING, "lap_word(lap), std::memory", "lap_word(lap + 1), std::memory"),
    Mutant(
        "lap word of the insert's first lap",
        RING,
        "    if (++slot == capacity_) {\n      slot = 0;\n      ++lap;\n    }\n  }\n"
        "  at_stop_point(StopPoint::kAllPublished);",
        "    if (++slot == capacity_) slot = 0;\n  }\n  at_stop_point(StopPoint::kAllPublished);",
    ),
    # Anybody: helping.
    Mutant(
        "helping looks at no lap word",
        RING,
        "while (finished < end && Atomics::load(word_at(at), std::memory_order_acquire) == lap_word(lap)) {",
        "while (finished < end) {",
    ),
    Mutant(
        "helping takes any lap for this one",
        RING,
        "while (finished < end && Atomics::load(word_at(at), std::memory_order_acquire) == lap_word(lap)) {",
        "while (finished < end && Atomics::load(word_at(at), std::memory_order_acquire) != 0) {",
    ),
    Mutant(
        "helping goes one row too far",
        RING,
        "  if (seen < finished) at_stop_point(StopPoint::kHelping);",
        "  if (seen < finished && finished < end) ++finished;\n"
        "  if (seen < finished) at_stop_point(StopPoint::kHelping);",
    ),
    Mutant(
        "helping stays in the lap it began in",
        RING,
        "    if (++at == capacity_) {\n      at = 0;\n      ++lap;\n    }\n  }\n  if (seen",
        "    if (++at == capacity_) at = 0;\n  }\n  if (seen",
        test="history",
    ),
    # Readers: the window and the lap word.
    Mutant("reserved rows pass for published", RING, "if (ticket < window.committed) return true;", "return true;"),
    Mutant(
        "any lap passes for this one",
        RING,
        "Atomics::load(word_at(slot(ticket)), std::memory_order_acquire) == lap_word(ticket / capacity_);",
        "Atomics::load(word_at(slot(ticket)), std::memory_order_acquire) != 0;",
    ),
    Mutant(
        "commit is taken one row too far", RING, "if (ticket < window.committed)", "if (ticket <= window.committed)"
    ),
    Mutant("window ignores what was cleared", RING, ".first = std::max(base, oldest)", ".first = oldest"),
    Mutant("clear clears nothing", RING, "  while (base < head) {", "  while (base > head) {"),
    Mutant(
        "clear leaves the newest row",
        RING,
        "compare_exchange_weak(header_.base, base, head,",
        "compare_exchange_weak(header_.base, base, head - 1,",
    ),
    # Readers: validation.
    Mutant(
        "no validation",
        RING,
        "  const Ticket head = Atomics::load(header_.head, std::memory_order_relaxed);\n"
        "  return head > window_capacity_ ? head - window_capacity_ : 0;",
        "  return 0;",
    ),
    Mutant(
        "validation accepts one row too many",
        RING,
        "  return head > window_capacity_ ? head - window_capacity_ : 0;",
        "  return head > window_capacity_ ? head - window_capacity_ - 1 : 0;",
    ),
    Mutant(
        "validation accepts one lap too many",
        RING,
        "  return head > window_capacity_ ? head - window_capacity_ : 0;",
        "  return head > 2 * window_capacity_ ? head - 2 * window_capacity_ : 0;",
    ),
    Mutant(
        "validation asks commit, not head",
        RING,
        "  // relaxed: the fence orders it.\n  const Ticket head = Atomics::load(header_.head",
        "  const Ticket head = Atomics::load(header_.commit",
    ),
    Mutant(
        "validation before the copy",
        SAMPLE,
        "    const Ticket least = copy_asked(ring, follow, block, row, num_rows, shares);\n"
        "    const Ticket oldest_whole = ring.oldest_whole();\n",
        "    const Ticket oldest_whole = ring.oldest_whole();\n"
        "    const Ticket least = copy_asked(ring, follow, block, row, num_rows, shares);\n",
    ),
    Mutant("the first draw may be unfinished", DRAW, " && window.first + position < window.committed;", ";"),
    Mutant(
        "the draw in place of an unfinished row may be unfinished",
        DRAW,
        "return is_drawn && ring_.is_published(ticket, window_);",
        "return is_drawn;",
    ),
    Mutant(
        "validation keeps the largest ticket",
        SAMPLE,
        "smallest = std::min(smallest, ticket);",
        "smallest = smallest == ~Ticket{0} ? ticket : std::max(smallest, ticket);",
    ),
    Mutant(
        "redrawn rows are not validated",
        SAMPLE,
        "} while (follow.copy(row, 1) <= ring.oldest_whole());",
        "} while (follow.copy(row, 1) > ring.oldest_whole() + ring.capacity());",
    ),
    Mutant(
        "one rejected row is kept",
        SAMPLE,
        "if (follow.rank(row) > oldest_whole) continue;",
        "if (follow.rank(row) + 1 > oldest_whole) continue;",
    ),
    Mutant("reads are not validated", READ, "if (smallest >= ring.oldest_whole())", "if (smallest + 1 > 0)"),
    Mutant("slots are counted from the wrong end", READ, "newest_slot - value + capacity;", "value - newest_slot;"),
    # Orders that no order of the operations explains.
    Mutant(
        "a count leaves out what stands above commit",
        RING,
        "  return Atomics::load(header_.head, std::memory_order_relaxed) - header_.start;",
        "  return Atomics::load(header_.commit, std::memory_order_relaxed) - header_.start;",
        test="history",
    ),
    Mutant(
        "clear leaves what stands above commit",
        RING,
        "  const Ticket head = Atomics::load(header_.head, std::memory_order_acquire);\n  // relaxed: re-read",
        "  const Ticket head = Atomics::load(header_.commit, std::memory_order_acquire);\n  // relaxed: re-read",
        test="history",
    ),
    # Draws that are not uniform.
    Mutant(
        "a rejected row is replaced by its neighbour",
        DRAW,
        "const bool is_drawn = another(row, attempt, suitable);",
        "const bool is_drawn = (tickets_[row] = ring_.oldest_whole() + row % 4, suitable.are_all() || attempt > 0);",
        test="uniform",
    ),
    Mutant(
        "the newest rows are never drawn",
        DRAW,
        "draw_below(window.reserved(), word, position)",
        "draw_below(window.reserved() - window.reserved() / 100, word, position)",
        test="uniform",
    ),
    # Draws by priority.
    Mutant(
        "a leaf is checked and then stored",
        LEAVES,
        "      } while (!Atomics::compare_exchange_weak(place, word, Leaf::word(lap, mass), "
        "std::memory_order_relaxed,\n                                               std::memory_order_relaxed));\n",
        "      } while (false);\n      Atomics::store(place, Leaf::word(lap, mass), std::memory_order_relaxed);\n",
        test="priorities",
    ),
    Mutant(
        "an update marks nothing",
        LEAVES,
        "      marking_.add(slot / kGroupLeaves);\n",
        "",
        test="priorities",
    ),
    Mutant(
        "of groups that are marked together the last is forgotten",
        MARKS,
        "    ~Marking() {\n      mark();\n",
        "    ~Marking() {\n",
        test="priorities",
    ),
    Mutant(
        "of words that are marked one after another the last alone is",
        MARKS,
        "        mark();\n        word_ = word;\n",
        "        bits_ = 0;\n        word_ = word;\n",
        test="priorities",
    ),
    Mutant(
        "a mass of another lap counts",
        LEAF,
        "low & reinterpret_cast<Quad>(high == expected);",
        "low;",
        test="priorities",
    ),
    Mutant(
        "a mass of another lap counts where a group is not whole",
        LEAF,
        "std::bit_cast<float>(static_cast<std::uint32_t>(word) & mask);",
        "(void)mask, std::bit_cast<float>(static_cast<std::uint32_t>(word));",
        test="priorities",
    ),
    Mutant(
        "what is reserved weighs what its slot held",
        PRIORITIES,
        "    leaves_.mark(end_, window.end - end_);\n",
        "",
        test="priorities",
    ),
    Mutant(
        "what is cleared weighs what it did",
        PRIORITIES,
        "if ((cleared != 0 && cleared != cleared_) || ",
        "if (",
        test="priorities",
    ),
    Mutant(
        "a target falls on the edge before",
        NODE,
        "load(prefixes) > targets",
        "load(prefixes) >= targets",
        test="priorities",
    ),
    Mutant(
        "a target lies beyond the last prefix",
        NODE,
        "std::min(static_cast<float>(target), largest)",
        "((void)largest, static_cast<float>(target))",
        test="priorities",
    ),
    Mutant(
        "sums are adjusted by differences",
        PRIORITIES,
        "sums_.set(group, sum_of(masses));",
        "sums_.set(group, sums_.of_group(group) + (sum_of(masses) - sums_.of_group(group)));",
        test="priorities",
    ),
    Mutant("sums stop below the top", SUMS, "i + 1 < levels_.size()", "i + 2 < levels_.size()", test="priorities"),
    # Lanes, and n steps along them. That a reader asks for the successor's `before`, and whether it is published, shows
    # on weak memory alone (tests/model, links).
    Mutant(
        "an end is not linked as one",
        LANES,
        "is_end ? After::kEnded : After::kOpen);\n    lane.last = ticket;\n    "
        "lane.state = is_end ? State::kEnd : State::kMidway;",
        "After::kOpen);\n    lane.last = ticket;\n    lane.state = State::kMidway;",
        test="lanes",
    ),
    Mutant(
        "-0 ends a trajectory",
        LANES,
        "(has_sign ? bits << (65 - 8 * num_bytes) : bits) != 0",
        "((void)has_sign, bits) != 0",
        test="lanes",
    ),
    Mutant(
        "a cut cuts nothing",
        LANES,
        "After::kCut);\n  each.state = State::kBeginning;\n",
        "After::kCut);\n",
        test="lanes",
    ),
    Mutant(
        "a row that is left out leaves no hole",
        LANES,
        "is_end ? State::kEnd : State::kBroken",
        "each.state",
        test="lanes",
    ),
    Mutant(
        "a successor is linked into any lap",
        LINKS,
        "    const std::uint64_t desired = word(place, after);\n",
        "    expected = Atomics::load(in(place.slot).after, std::memory_order_relaxed) >> 32 << 32;\n"
        "    const std::uint64_t desired = expected | after;\n",
        test="lanes",
    ),
    Mutant(
        "a successor is linked by a store",
        LINKS,
        "    const std::uint64_t desired = word(place, after);\n",
        "    const std::uint64_t desired = word(place, after);\n"
        "    Atomics::store(in(place.slot).after, desired, std::memory_order_release);\n",
        test="lanes",
    ),
    Mutant(
        "a distance of the whole ring is one",
        LANES,
        "ticket - lane.last < all_.ring_.capacity()",
        "ticket - lane.last <= all_.ring_.capacity()",
        test="lanes",
    ),
    Mutant(
        "a lost predecessor passes for none",
        LANES,
        "    } else if (lane.state == State::kMidway || lane.state == State::kBroken) {\n"
        "      before = Before::kLost;\n    }",
        "    }",
        test="lanes",
    ),
    Mutant(
        "a step counts with the weight of the next",
        DISCOUNTED,
        "total += (*weights)[k] *",
        "total += (*weights)[k + 1] *",
        test="lanes",
    ),
    Mutant(
        "far steps are summed again from the second",
        DISCOUNTED,
        "place(block_.tickets()[row]);;) {",
        "place(block_.tickets()[row] + (num_steps > 1 ? 1 : 0));;) {",
        test="lanes",
    ),
    Mutant(
        "the last record is that of one step before",
        WALKS,
        "way.last_slot = static_cast<std::uint32_t>(steps.at.slot);",
        "way.last_slot = ways.slots(first_row + i)[way.num_after > 1 ? 1 : 0];",
        test="lanes",
    ),
    Mutant(
        "a row is whole if its newest step is",
        WINDOWS,
        "least = std::min(least, rank(row));",
        "least = rank(row);",
        test="lanes",
    ),
    Mutant(
        "what a row was made of need not be whole",
        WALKS,
        "      way.oldest = steps.ticket;\n",
        "      way.oldest = window_.end;\n",
        test="lanes",
    ),
    Mutant(
        "evenly spaced steps go back beyond what is there",
        WALKS,
        "steps.at.slot - std::min(steps.at.slot, steps.ticket - walks.window_.first);",
        "0;",
        test="lanes",
    ),
    Mutant(
        "a lost beginning is one",
        WALKS,
        "way.begins = links_.before(steps.at.slot) == Before::kFirst;",
        "way.begins = !is_gap(links_.before(steps.at.slot));",
        test="lanes",
    ),
    Mutant(
        "what has no successor yet is complete",
        GAPS,
        "return after == After::kEnded || after == After::kCut; }",
        "return !is_gap(after); }",
        test="lanes",
    ),
    Mutant(
        "steps before the drawn one are trained",
        WINDOWS,
        "said.what == Saying::kTrained ? reached(steps, 0) : 0;",
        "said.what == Saying::kReal ? reached(steps, 0) : 0;",
        test="lanes",
    ),
    Mutant(
        "what is missing at the end is what came first",
        WINDOWS,
        "rule_.most_after + 1, way.last_slot);",
        "rule_.most_after + 1, way.first_slot);",
        test="lanes",
    ),
    Mutant("a lane has two owners", LANES, "        found == owner) {", "        found != 0) {", test="lanes"),
    Mutant("a busy lane leaves others taken", LANES, "    leave(lanes.first(i), owner);\n", "", test="lanes"),
    Mutant(
        "what was not saved is of lane 0",
        LANES,
        "  relink(known, known_end);",
        "  relink(window.first, window.end);",
        test="lanes",
    ),
    Mutant("a child goes on after what it lost", LANES, "if (is_unfinished || (", "if ((", test="lanes"),
    # Frames that records have in common. That what was compared is handed on behind a fence shows on weak memory alone
    # (tests/model, litmus).
    Mutant(
        "a frame is taken of a record that is too old",
        FRAMES,
        "if (ticket - previous + age <= ring_.num_spare()) stack",
        "if (age < ring_.capacity()) stack",
        test="frames",
    ),
    Mutant(
        "a frame is taken for the one that should come",
        FRAMES,
        "is_same_row(records.frames().at(expected.places[i], frame_bytes), frame, frame_bytes)",
        "true",
        test="frames",
    ),
    Mutant(
        "a frame is taken for the next in its stack",
        FRAMES,
        "i + 1 < num_frames && std::memcmp(frame, frame + frame_bytes, frame_bytes) == 0",
        "i + 1 < num_frames",
        test="frames",
    ),
    Mutant(
        "a repeated frame is stored again",
        FRAMES,
        "i + 1 < num_frames && std::memcmp(frame, frame + frame_bytes, frame_bytes) == 0",
        "false",
        test="frames",
    ),
    Mutant(
        "a stack goes on from itself",
        FRAMES,
        "return frames.group.fields.size() == 1 ? stack.next(num_frames) : stack;",
        "return stack;",
        test="frames",
    ),
    Mutant(
        "readers are given the spare slots",
        RING,
        "  return head > window_capacity_ ? head - window_capacity_ : 0;",
        "  return head > capacity_ ? head - capacity_ : 0;",
        test="frames",
    ),
    Mutant(
        "a child finds frames where they were",
        FRAMES,
        "    place += static_cast<FramePlace>(begin(slot) - begin(old_slot));\n",
        "    (void)begin;\n",
        test="frames",
    ),
    Mutant(
        "what lies beside a record does not move with it",
        FRAMES,
        "  std::memcpy(records.beside(slot), records.beside(old_slot), bytes_beside(old_slot));\n",
        "",
        test="frames",
    ),
    Mutant(
        "a child counts what is discarded",
        LANES,
        "if (frames_ != nullptr && has_unfinished) frames_",
        "if (false) frames_",
        test="frames",
    ),
    Mutant(
        "a window begins behind its end",
        UNSHARED,
        "std::min(end - base > window_capacity_ ? end - base - window_capacity_ : 0, next - base);",
        "end - base > window_capacity_ ? end - base - window_capacity_ : 0;",
        test="frames",
    ),
    # Whoever finds a ring in a file.
    Mutant(
        "where a record moves is not said",
        UNSHARED,
        "Atomics::store(header_.moving_from_end, ticket + 1, std::memory_order_release);",
        "set_words(next, next + 1, 0);",
        test="ring_file",
    ),
    Mutant(
        "the end is moved before the beginning",
        UNSHARED,
        "  Atomics::store(header_.base, base + overwritten, std::memory_order_release);\n",
        "  Atomics::store(header_.head, next, std::memory_order_release);\n"
        "  Atomics::store(header_.base, base + overwritten, std::memory_order_release);\n",
        test="ring_file",
    ),
    Mutant(
        "what was confirmed may be of another ticket",
        CHECKSUMS,
        "  Mix mix{ticket + 1};",
        "  Mix mix{1};",
        test="ring_file",
    ),
    Mutant(
        "frames are not confirmed",
        CHECKSUMS,
        "mix.add_copied(frame, num_bytes); });",
        "mix.add(num_bytes); (void)frame; });",
        test="ring_file",
    ),
    Mutant(
        "later transitions look for frames where they were",
        FRAMES,
        "  for (Ticket later = from + 1; later < end; ++later) at_each_place(ring_.slot(later), follow);\n",
        "  (void)end;\n",
        test="ring_file",
    ),
    Mutant(
        "who has reserved is not waited for",
        RING,
        "    if (!is_published(ticket, window)) return false;\n",
        "",
        test="ring_file",
    ),
    Mutant(
        "a closed ring can be read",
        RING,
        "  header.base = header.start = header.head = unfinished + capacity_;\n",
        "  header.base = header.start = header.head = unfinished;\n",
        test="ring_file",
    ),
    Mutant(
        "a lane that is found goes on",
        LANES,
        "  if (window.end > 0) std::ranges::for_each(lanes_,",
        "  if (window.end == 0) std::ranges::for_each(lanes_,",
        test="ring_file",
    ),
    Mutant(
        "what left the window weighs what it did",
        PRIORITIES,
        "if (ring_.num_spare() > 0 && left < oldest) leaves_",
        "if (false) leaves_",
        test="frames",
    ),
    Mutant(
        "another record's frames are let go",
        FRAMES,
        "ring_.records().drop_beside(slot, num_bytes",
        "ring_.records().drop_beside(slot == 0 ? ring_.capacity() - 1 : slot - 1, num_bytes",
        test="frames",
    ),
    Mutant(
        "frames beside a record are never let go",
        FRAMES,
        "  if (num_bytes < bytes_before) ring_.records().drop_beside(slot, num_bytes, bytes_before);\n",
        "",
        test="frames",
    ),
    # Steps that have frames in common, whose rows move through the slots.
    Mutant(
        "a row without a step can be read",
        FRAME_STEPS,
        "    is_stored &= before <= num_stored_;\n",
        "",
        test="frame_steps",
    ),
    Mutant(
        "after the newest step comes what its slot is followed by",
        FRAME_STEPS,
        "follow_newest_by(slot_before(1), slot_before(num_rows()));",
        "follow_newest_by(slot_before(1), next_slot_);",
        test="frame_steps",
    ),
    Mutant(
        "steps go on into rows that have none",
        STEPS,
        "    if (!is_in_row(slot, stop_)) continue;\n",
        "    if (k < num_steps) continue;\n",
        test="frame_steps",
    ),
    # Mixtures: what each member fills of a block.
    Mutant(
        "a share begins with the block's first row",
        LAYOUT,
        "whole.offsets_[places[i]] + first_row * whole.parts_[places[i]].row_bytes",
        "whole.offsets_[places[i]]",
        "batch_layout",
    ),
    Mutant(
        "a share's rows are as far apart as its own parts are wide",
        LAYOUT,
        "+ first_row * whole.parts_[places[i]].row_bytes",
        "+ first_row * parts_[i].row_bytes",
        "batch_layout",
    ),
    Mutant(
        "a share reaches beyond the block",
        LAYOUT,
        "num_rows > whole_rows_ - first_row",
        "num_rows > whole_rows_",
        "batch_layout",
    ),
    Mutant(
        "a share takes a part that is wider than its place",
        LAYOUT,
        "whole.parts_[places[i]].row_bytes < parts_[i].row_bytes",
        "whole.parts_[places[i]].row_bytes < 1",
        "batch_layout",
    ),
)
