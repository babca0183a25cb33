// SPDX-License-Identifier: MIT
// What each kind of thread does with the ring and its leaves, in the code's own words, and what it says of what it
// sees. Knows nothing of states and memory.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "atomics.hpp"
#include "config.hpp"
#include "run.hpp"

namespace model {

class Operations {
 public:
  Operations(const Config& config, const Faults& faults, Run& run)
      : config_{config},
        faults_{faults},
        run_{run},
        ring_{fastreplay::RecordLayout{{{.row_bytes = 8, .alignment = 8}, {.row_bytes = 8, .alignment = 8}}},
              config.capacity, faults.has_spare ? config.looks_back : 0},
        leaves_{config.capacity},
        links_{config.capacity} {
    for (std::size_t f = 0; f < kWordsPerRecord; ++f) {
      fields_[f] = {.data = reinterpret_cast<const std::byte*>(&rows_[f * kMaxRows]), .stride_bytes = 8};
    }
    places_ = {.header = ring_.header(),
               .words = ring_.words(),
               .leaves = leaves_.words(),
               .mark = &leaves_.marks().first_word(),
               .summary = &leaves_.marks().first_summary(),
               .links = links_.bytes(),
               .records = ring_.records().data(),
               .stride = ring_.records().layout().stride(),
               .rows = rows_.data(),
               .config = &config_};
  }
  Operations(const Operations&) = delete;
  Operations& operator=(const Operations&) = delete;

  // One of `left` that a thread has to do.
  void operate(Role role, unsigned left) {
    Places::current = &places_;
    switch (role) {
      case Role::kWriter:
        if (config_.has_leaves()) return insert_with_leaves();
        if (config_.has_links) return insert_in_lane();
        return static_cast<void>(ring_.insert(fields_, 0, config_.rows, std::chrono::nanoseconds{0}));
      case Role::kReader:
        return config_.has_links ? follow() : read();
      case Role::kClearer:
        return ring_.clear();
      case Role::kUpdater:
        return update(kOwnersMass + 1 + config_.updates - left);
      case Role::kSampler:
        return sample();
    }
  }

 private:
  // A published ticket, or none: what would be drawn in its place is another run. Apart, so that the window goes.
  [[gnu::noinline]] std::optional<fastreplay::Ticket> draw() {
    const fastreplay::Window window = ring_.window_to_draw_from();
    if (!is_good(window)) return {};
    if (window.first == window.end) return {};
    const fastreplay::Ticket ticket = window.first + Atomics::choose(window.reserved());
    if (faults_.checks_word && !ring_.is_published(ticket, window)) return {};
    return ticket;
  }

  bool is_good(const fastreplay::Window& window) {
    if (window.first <= window.end && window.committed <= window.end) return true;
    run_.effects.violation = Violation::kBadWindow;
    return false;
  }

  // As Sampler::sample() does, of one row.
  void read() {
    const std::optional<fastreplay::Ticket> drawn = draw();
    if (!drawn.has_value()) return;
    const fastreplay::Ticket ticket = *drawn;
    const bool is_early = faults_.validation == Validation::kBeforeCopy;
    fastreplay::Ticket oldest_whole = is_early ? ring_.oldest_whole() : 0;
    std::array<std::uint64_t, kWordsPerRecord> copy{};
    for (std::size_t w = 0; w < kWordsPerRecord; ++w) {
      copy[w] = Atomics::load_row(ring_.record(ticket) + ring_.records().layout().columns()[w].offset);
    }
    // The frame that it has of another, last of all.
    const bool has_frame = config_.has_frame(ticket);
    const fastreplay::Ticket owner = ticket - config_.looks_back;
    const std::size_t in_frame = ring_.records().layout().columns()[kWordsPerRecord - 1].offset;
    const std::uint64_t frame = has_frame ? Atomics::load_row(ring_.record(owner) + in_frame) : content(owner);
    if (faults_.validation == Validation::kAfterCopy) oldest_whole = ring_.oldest_whole();
    if (ticket < oldest_whole) return;
    accept(ticket, copy);
    if (frame != content(owner)) run_.effects.violation = Violation::kOtherFrame;
  }

  void accept(fastreplay::Ticket ticket, const std::array<std::uint64_t, kWordsPerRecord>& copy) {
    run_.effects.accepts = true;
    const bool is_torn = copy[0] != copy[1];
    if (copy[0] == content(ticket) && !is_torn) return;
    const bool is_uninitialised = copy[0] == 0 || copy[1] == 0;
    run_.effects.violation = is_uninitialised ? Violation::kUninitialised
                             : is_torn        ? Violation::kTorn
                                              : Violation::kOtherTicket;
  }

  // As Priorities::insert() does.
  void insert_with_leaves() {
    fastreplay::Ticket first = 0;
    if (!ring_.reserve(config_.rows, std::chrono::nanoseconds{0}, first)) return;
    {
      const Ring::Claim claim{ring_, first, config_.rows};
      ring_.write(fields_, 0, claim.slot(), config_.rows);
      if (faults_.insertion != Insertion::kLeafAfterPublishing) begin_leaves(first);
      if (faults_.insertion == Insertion::kMarkBeforePublishing) leaves_.mark(first, config_.rows);
    }
    const Insertion insertion = faults_.insertion;
    if (insertion == Insertion::kLeafAfterPublishing || insertion == Insertion::kLeafAgain) begin_leaves(first);
    if (insertion == Insertion::kMarkBeforePublishing || insertion == Insertion::kNoMark) return;
    leaves_.mark(first, config_.rows);
  }

  void begin_leaves(fastreplay::Ticket first) {
    for (std::size_t i = 0; i < config_.rows; ++i) leaves_.begin(first + i, static_cast<float>(kOwnersMass));
  }

  // Where a lane stands, as in Lanes; and how many transitions it got. A number carries it from one insert to the next.
  struct Lane {
    fastreplay::Ticket last = 0;
    bool is_midway = false;
    unsigned num_rows = 0;

    explicit Lane(std::uint64_t carried)
        : last{carried >> 8}, is_midway{(carried & 1) != 0}, num_rows{static_cast<unsigned>(carried >> 1 & 127)} {}
    [[nodiscard]] std::uint64_t carried() const { return last << 8 | num_rows << 1 | (is_midway ? 1U : 0U); }
  };

  // As Lanes::NewRows and Lanes::cut() do.
  void insert_in_lane() {
    Lane lane{run_.carried};
    fastreplay::Ticket first = 0;
    if (!ring_.reserve(config_.rows, std::chrono::nanoseconds{0}, first)) return;
    {
      const Ring::Claim claim{ring_, first, config_.rows};
      if (faults_.links_early && is_there(first, lane)) links_.join(lane.last, 1);
      ring_.write(fields_, 0, claim.slot(), config_.rows);
      begin_links(first, lane);
    }
    end_links(first);
    if (lane.num_rows == config_.cuts_after) {
      links_.join(lane.last, fastreplay::After::kCut);
      lane.is_midway = false;
    }
    run_.carried = lane.carried();
  }

  // Whether what comes before the lane's next ticket may still be in the ring: the ticket before that, of two slots.
  [[nodiscard]] bool is_there(fastreplay::Ticket ticket, const Lane& lane) const {
    return lane.is_midway && ticket - lane.last < config_.capacity;
  }

  void begin_links(fastreplay::Ticket first, Lane& lane) {
    for (fastreplay::Ticket ticket = first; ticket < first + config_.rows; ++ticket) {
      const bool has_previous = is_there(ticket, lane);
      const fastreplay::Gap before = has_previous     ? static_cast<fastreplay::Gap>(ticket - lane.last)
                                     : lane.is_midway ? fastreplay::Before::kLost
                                                      : fastreplay::Before::kFirst;
      const bool is_end = ++lane.num_rows == config_.ends_at;
      links_.begin(ticket, has_previous ? static_cast<std::uint32_t>(lane.last + 1) : 0, before,
                   is_end ? fastreplay::After::kEnded : fastreplay::After::kOpen);
      lane.last = ticket;
      lane.is_midway = !is_end;
    }
  }

  void end_links(fastreplay::Ticket first) {
    for (fastreplay::Ticket ticket = first; ticket < first + config_.rows; ++ticket) {
      const fastreplay::Gap before = links_.before(ring_.slot(ticket));
      if (fastreplay::is_gap(before) && before <= ticket) links_.join(ticket - before, before);
    }
  }

  // As NSteps does, of one row and a step.
  void follow() {
    const fastreplay::Window window = ring_.window_to_draw_from();
    if (!is_good(window) || window.first == window.end) return;
    const fastreplay::Ticket ticket = window.first + Atomics::choose(window.reserved());
    if (!ring_.is_published(ticket, window)) return;
    const fastreplay::Gap gap = links_.after(links_.place(ticket));
    if (gap == fastreplay::After::kUnknown && ticket >= ring_.oldest_whole()) {
      run_.effects.violation = Violation::kFalseHint;  // it is not overwritten
    }
    if (!fastreplay::is_gap(gap) || gap >= config_.capacity) return;
    const fastreplay::Ticket next = ticket + gap;
    if (faults_.checks_successor && !ring_.is_published(next, window)) return;
    const bool goes_on = !faults_.checks_before || links_.before(ring_.slot(next)) == gap;
    const std::uint32_t lane = goes_on ? links_.lane(ring_.slot(next)) : 0;
    const bool is_whole = faults_.validation == Validation::kNever || ticket >= ring_.oldest_whole();
    if (!is_whole) return;
    run_.effects.accepts = true;
    if (!goes_on) run_.effects.violation = Violation::kFalseHint;
    if (goes_on && lane != ticket + 1) run_.effects.violation = Violation::kWrongStep;
  }

  // As Priorities::update() does, of a ticket that this thread drew. What the drawing says of the window is not asked
  // again: that only finds stale tickets sooner.
  void update(unsigned mass) {
    run_.marks_early = faults_.marks_before_update;
    const std::optional<fastreplay::Ticket> drawn = draw();
    if (!drawn.has_value()) return;
    Leaves::Update update{leaves_};
    if (update.replace(ring_.slot(*drawn), *drawn / config_.capacity, static_cast<float>(mass))) {
      run_.effects.accepts = true;
    } else {
      check_overwritten(*drawn);
    }
  }

  // Of a published ticket whose slot has the leaf of another: it must be a newer one. Looks again, which sees what was
  // seen before or something newer, so that a search over all that a look may see misses nothing.
  void check_overwritten(fastreplay::Ticket ticket) {
    const std::uint64_t leaf = number_of_leaf(leaves_.word(ring_.slot(ticket)));
    if (leaf == 0 || lap_of_leaf(static_cast<unsigned>(leaf)) < ticket / config_.capacity) {
      run_.effects.violation = Violation::kLeafUnseen;
    }
  }

  // What a sampler knows from one refresh to the next: for each slot the ticket that it counts and its mass, or none.
  struct Counted {
    static constexpr std::size_t kMaxCapacity = 2;

    fastreplay::Ticket end = 0;
    fastreplay::Ticket cleared = 0;
    std::array<std::uint8_t, kMaxCapacity> leaves{};
  };

  // Refreshes beside the others, and once more when they are done: what is counted then is what is there.
  void sample() {
    Counted counted;
    for (unsigned i = 0; i < config_.refreshes; ++i) refresh(counted);
    run_.join();
    const fastreplay::Window window = refresh(counted);
    if (run_.effects.violation != Violation::kNone) return;
    Counted anew;
    count(window, anew);
    if (anew.leaves != counted.leaves) run_.effects.violation = Violation::kLostChange;
  }

  // As Priorities::Turn::refresh() and Priorities::repair() do.
  [[gnu::noinline]] fastreplay::Window refresh(Counted& counted) {
    const fastreplay::Window window = ring_.window();
    if (!is_good(window)) return window;
    mark_what_is_new(window, counted);
    leaves_.marks().take([&](std::size_t /*group*/) { count(window, counted); });
    for (std::size_t slot = 0; slot < config_.capacity; ++slot) {
      if (counted.leaves[slot] == 0) continue;
      const std::uint64_t ticket = lap_of_leaf(counted.leaves[slot]) * config_.capacity + slot;
      if (ticket < window.first || ticket + config_.capacity < window.end) {
        run_.effects.violation = Violation::kCountsGone;
      }
    }
    return window;
  }

  void mark_what_is_new(const fastreplay::Window& window, Counted& counted) {
    const fastreplay::Ticket oldest = config_.oldest(window.end);
    const fastreplay::Ticket cleared = window.first > oldest ? window.first : 0;
    if ((cleared != 0 && cleared != counted.cleared && faults_.marks_cleared) || window.end < counted.end ||
        (window.end - counted.end >= config_.capacity && faults_.marks_new_tickets)) {
      leaves_.marks().mark_all();
    } else if (window.end > counted.end && faults_.marks_new_tickets) {
      leaves_.mark(counted.end, window.end - counted.end);
    }
    counted.cleared = cleared;
    counted.end = window.end;
  }

  // As Priorities::masses_of() does, of all slots as of one whole group.
  void count(const fastreplay::Window& window, Counted& counted) {
    const fastreplay::Ticket begin = window.end / config_.capacity * config_.capacity;
    if (begin == window.end && begin > 0 && window.first + config_.capacity == window.end &&
        window.committed == window.end) {
      return count_whole(window.first / config_.capacity, counted);
    }
    for (std::size_t slot = 0; slot < config_.capacity; ++slot) {
      counted.leaves[slot] = 0;
      const bool is_of_last_lap = begin + slot >= window.end;
      if (is_of_last_lap && begin == 0) continue;
      const fastreplay::Ticket ticket = begin + slot - (is_of_last_lap ? config_.capacity : 0);
      if (ticket < window.first || !ring_.is_published(ticket, window)) continue;
      const std::uint64_t lap = ticket / config_.capacity;
      count_mass(ticket, fastreplay::Leaf::mass_in(leaves_.word(slot), lap), counted);
    }
  }

  void count_whole(std::uint64_t lap, Counted& counted) {
    std::array<float, fastreplay::kGroupLeaves> masses;
    leaves_.masses_in(0, lap, masses.data());
    for (std::size_t slot = 0; slot < config_.capacity; ++slot) {
      counted.leaves[slot] = 0;
      count_mass(lap * config_.capacity + slot, masses[slot], counted);
    }
  }

  void count_mass(fastreplay::Ticket ticket, float mass, Counted& counted) {
    if (mass == 0) return check_overwritten(ticket);
    run_.effects.accepts = true;
    counted.leaves[ring_.slot(ticket)] = narrow(leaf_of(ticket / config_.capacity, static_cast<unsigned>(mass)));
  }

  const Config& config_;
  const Faults& faults_;
  Run& run_;
  Ring ring_;
  Leaves leaves_;
  Links links_;
  std::array<std::uint64_t, kWordsPerRecord * kMaxRows> rows_{};
  std::array<fastreplay::Rows, kWordsPerRecord> fields_{};
  Places places_{};
};

}  // namespace model
