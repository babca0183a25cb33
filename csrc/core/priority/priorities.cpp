// SPDX-License-Identifier: MIT
#include "priority/priorities.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>

namespace fastreplay {

class Priorities::Slots {
 public:
  Slots(const Ring& ring, const Window& window) noexcept
      : ring_{ring},
        window_{window},
        capacity_{ring.capacity()},
        lap_{window.end / ring.capacity()},
        end_slot_{window.end % ring.capacity()} {}

  // The one lap of all tickets in slots [first, last], if all of them are in the window and known to be published.
  [[nodiscard]] bool are_published(std::size_t first, std::size_t last, std::uint64_t& lap) const noexcept {
    if (first < end_slot_ && last >= end_slot_) return false;
    if (last >= capacity_ || (first >= end_slot_ && lap_ == 0)) return false;
    lap = lap_of(first);
    return lap * capacity_ + first >= window_.first && lap * capacity_ + last < window_.committed;
  }

  // Whether the slot's ticket can be drawn, and its lap then.
  [[nodiscard]] bool is_published(std::size_t slot, std::uint64_t& lap) const noexcept {
    if (slot >= capacity_ || (slot >= end_slot_ && lap_ == 0)) return false;
    lap = lap_of(slot);
    return ticket(slot) >= window_.first && ring_.is_published(ticket(slot), window_);
  }

  [[nodiscard]] Ticket ticket(std::size_t slot) const noexcept { return lap_of(slot) * capacity_ + slot; }

 private:
  [[nodiscard]] std::uint64_t lap_of(std::size_t slot) const noexcept { return slot < end_slot_ ? lap_ : lap_ - 1; }

  const Ring& ring_;
  const Window& window_;
  std::size_t capacity_;
  std::uint64_t lap_;
  std::size_t end_slot_;
};

Priorities::Priorities(Ring& ring, const MassRule& rule, double initial, bool keeps_smallest, bool is_kept_elsewhere)
    : ring_{ring},
      rule_{rule},
      initial_{initial},
      keeps_smallest_{keeps_smallest},
      is_kept_elsewhere_{is_kept_elsewhere},
      leaves_{ring.capacity()},
      sums_{Leaves::num_groups(ring.capacity())},
      smallest_{keeps_smallest ? Leaves::num_groups(ring.capacity()) : 0},
      num_with_mass_(Leaves::num_groups(ring.capacity())) {}

std::size_t Priorities::num_bytes() const noexcept {
  return leaves_.num_bytes() + sums_.num_bytes() + smallest_.num_bytes() + num_with_mass_.size();
}

bool Priorities::insert(std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                        std::chrono::nanoseconds patience, const double* priorities) noexcept {
  Ticket first = 0;
  if (!ring_.reserve(num_rows, patience, first)) return false;
  {
    const Ring::Claim claim{ring_, first, num_rows};
    ring_.write(fields, first_row, claim.slot(), num_rows);
    const float mass = new_mass();
    for (std::size_t i = 0; i < num_rows; ++i) {
      if (priorities == nullptr) {
        leaves_.begin(first + i, mass);
      } else if (const double p = priorities[first_row + i]; std::isnan(p)) {
        leaves_.begin(first + i, 0);
      } else {
        raise_largest(rule_.base(p));
        leaves_.begin(first + i, rule_.mass(rule_.base(p), ring_.capacity()));
      }
    }
  }
  leaves_.mark(first, num_rows);
  return true;
}

Priorities::Updated Priorities::update(std::span<const Ticket> tickets, std::span<const double> priorities) noexcept {
  const Ticket first = ring_.window().first;
  Updated updated;
  double largest = 0;
  for (std::size_t i = 0; i < tickets.size(); ++i) {
    const double base = rule_.base(priorities[i]);
    if (tickets[i] >= first && leaves_.replace(tickets[i], rule_.mass(base, ring_.capacity()))) {
      ++updated.applied;
      largest = std::max(largest, base);
    } else {
      ++updated.stale;
    }
  }
  raise_largest(largest);
  return updated;
}

double Priorities::largest() const noexcept {
  // relaxed: a number that orders nothing.
  return largest_.load(std::memory_order_relaxed);
}

void Priorities::set_largest(double base) noexcept {
  // relaxed: as above.
  largest_.store(base, std::memory_order_relaxed);
}

void Priorities::raise_largest(double base) noexcept {
  // relaxed, here and below: a number that orders nothing.
  double largest = largest_.load(std::memory_order_relaxed);
  while (base > largest && !largest_.compare_exchange_weak(largest, base, std::memory_order_relaxed)) {
  }
}

float Priorities::new_mass() const noexcept {
  const float mass = rule_.mass(initial_ < 0 ? largest() : rule_.base(initial_), ring_.capacity());
  return initial_ < 0 && is_kept_elsewhere_ ? -mass : mass;
}

void Priorities::read(Ticket first, std::span<float> masses) const noexcept {
  for (std::size_t i = 0; i < masses.size(); ++i) {
    const Ticket ticket = first + i;
    masses[i] = Leaf::mass_in(leaves_.word(ring_.slot(ticket)), ticket / ring_.capacity());
  }
}

void Priorities::restore(Ticket first, std::span<const float> masses) noexcept {
  const Window window = ring_.window();
  for (std::size_t i = 0; i < masses.size(); ++i) {
    if (first + i >= window.first && first + i < window.end) leaves_.begin(first + i, masses[i]);
  }
  leaves_.marks().mark_all();
}

void Priorities::begin_in_child() noexcept {
  new (&mutex_) std::mutex;
  leaves_.marks().mark_all();
}

void Priorities::repair(const Window& window) noexcept {
  const Ticket oldest = window.end - std::min<Ticket>(window.end, ring_.capacity());
  const Ticket cleared = window.first > oldest ? window.first : 0;
  if ((cleared != 0 && cleared != cleared_) || window.end < end_ || window.end - end_ >= ring_.capacity()) {
    leaves_.marks().mark_all();
  } else if (window.end > end_) {
    leaves_.mark(end_, window.end - end_);
  }
  cleared_ = cleared;
  end_ = window.end;
  const Slots slots{ring_, window};
  // Leaves of scattered groups are asked for some way ahead.
  constexpr std::size_t kAhead = 16;
  std::array<std::size_t, kAhead> groups;
  std::size_t num_taken = 0;
  leaves_.marks().take([&](std::size_t group) {
    leaves_.prefetch(group);
    if (num_taken >= kAhead) repair_group(slots, groups[num_taken % kAhead]);
    groups[num_taken++ % kAhead] = group;
  });
  for (std::size_t i = num_taken - std::min(num_taken, kAhead); i < num_taken; ++i)
    repair_group(slots, groups[i % kAhead]);
  sums_.finish();
  smallest_.finish();
}

void Priorities::repair_group(const Slots& slots, std::size_t group) noexcept {
  alignas(kCacheLine) float masses[kGroupLeaves];
  alignas(kCacheLine) float prefixes[kGroupLeaves];
  masses_of(slots, group, masses);
  const unsigned num_with_mass = count_mass<kGroupLeaves>(masses);
  count_ += num_with_mass - std::uint64_t{num_with_mass_[group]};
  num_with_mass_[group] = static_cast<std::uint8_t>(num_with_mass);
  sums_.set(group, make_prefixes<kGroupLeaves>(masses, prefixes));
  if (!keeps_smallest_) return;
  for (float& mass : masses) mass = mass > 0 ? mass : Smallest::kNothing;
  smallest_.set(group, *std::ranges::min_element(masses));
}

void Priorities::masses_of(const Slots& slots, std::size_t group, float* masses) const noexcept {
  const std::size_t first = group * kGroupLeaves;
  std::uint64_t lap = 0;
  if (slots.are_published(first, first + kGroupLeaves - 1, lap)) [[likely]] {
    leaves_.masses_in(group, lap, masses);
    return;
  }
  for (std::size_t i = 0; i < kGroupLeaves; ++i) {
    masses[i] = slots.is_published(first + i, lap) ? Leaf::mass_in(leaves_.word(first + i), lap) : 0;
  }
}

Priorities::Turn::Turn(Priorities& priorities) noexcept : priorities_{priorities}, lock_{priorities.mutex_} {
  refresh();
}

void Priorities::Turn::refresh() noexcept {
  window_ = priorities_.ring_.window();
  priorities_.repair(window_);
  population_ = {
      .total = priorities_.sums_.total(), .count = priorities_.count_, .smallest = priorities_.smallest_.total()};
}

float Priorities::Turn::mass(Ticket ticket) const noexcept {
  const std::uint64_t word = priorities_.leaves_.word(priorities_.ring_.slot(ticket));
  return Leaf::mass_in(word, ticket / priorities_.ring_.capacity());
}

void Priorities::Turn::find(std::span<double> targets, std::span<Drawn> drawn) const noexcept {
  constexpr std::size_t kTargets = 256;
  std::uint32_t groups[kTargets];
  const Slots slots{priorities_.ring_, window_};
  for (std::size_t done = 0; done < targets.size(); done += kTargets) {
    const std::span<double> some = targets.subspan(done, std::min(kTargets, targets.size() - done));
    priorities_.sums_.find(some, groups);
    constexpr std::size_t kAhead = 32;
    for (std::size_t i = 0; i < some.size() && i < kAhead; ++i) priorities_.leaves_.prefetch(groups[i]);
    for (std::size_t i = 0; i < some.size(); ++i) {
      if (i + kAhead < some.size()) priorities_.leaves_.prefetch(groups[i + kAhead]);
      drawn[done + i] = priorities_.find_leaf(slots, groups[i], some[i]);
    }
  }
}

// Where leaves have changed since the sum was made, the group's share of it stays what it was.
Drawn Priorities::find_leaf(const Slots& slots, std::size_t group, double target) const noexcept {
  alignas(kCacheLine) float masses[kGroupLeaves];
  alignas(kCacheLine) float prefixes[kGroupLeaves];
  masses_of(slots, group, masses);
  const float sum = make_prefixes<kGroupLeaves>(masses, prefixes);
  const float sum_then = sums_.of_group(group);
  if (sum != sum_then) [[unlikely]]
    target *= static_cast<double>(sum) / static_cast<double>(sum_then);
  const std::size_t child = find_child<kGroupLeaves>(prefixes, target);
  return {.ticket = slots.ticket(group * kGroupLeaves + child), .mass = masses[child]};
}

}  // namespace fastreplay
