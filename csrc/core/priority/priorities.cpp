// SPDX-License-Identifier: MIT
#include "priority/priorities.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <new>
#include <utility>

#include "priority/avx2.hpp"
#include "ring/insert.hpp"

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

  struct Place {
    std::size_t slot;
    std::uint64_t lap;
  };
  // Where a ticket of the window lies, without a division.
  [[nodiscard]] Place place(Ticket ticket) const noexcept {
    const Ticket begin = window_.end - end_slot_;  // of the newest lap
    return ticket >= begin ? Place{ticket - begin, lap_} : Place{ticket - (begin - capacity_), lap_ - 1};
  }

 private:
  [[nodiscard]] std::uint64_t lap_of(std::size_t slot) const noexcept { return slot < end_slot_ ? lap_ : lap_ - 1; }

  const Ring& ring_;
  const Window& window_;
  std::size_t capacity_;
  std::uint64_t lap_;
  std::size_t end_slot_;
};

Priorities::Priorities(Ring& ring, const MassRule& rule, double initial, bool keeps_smallest, bool is_kept_elsewhere,
                       Memory& memory)
    : ring_{ring},
      rule_{rule},
      initial_{initial},
      keeps_smallest_{keeps_smallest},
      is_kept_elsewhere_{is_kept_elsewhere},
      largest_memory_{memory.take(sizeof(double))},
      largest_{*reinterpret_cast<double*>(largest_memory_.data())},
      leaves_{ring.capacity(), memory},
      sums_{Leaves::num_groups(ring.capacity())},
      smallest_{keeps_smallest ? Leaves::num_groups(ring.capacity()) : 0},
      num_with_mass_(Leaves::num_groups(ring.capacity())) {
  if (!(largest_ > 0) || std::isinf(largest_)) largest_ = 1;  // which it is not in memory that nobody had
}

std::size_t Priorities::num_bytes() const noexcept {
  return leaves_.num_bytes() + sums_.num_bytes() + smallest_.num_bytes() + num_with_mass_.size();
}

bool Priorities::insert(std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                        std::chrono::nanoseconds patience, const double* priorities) noexcept {
  return insert_beside(ring_, fields, first_row, num_rows, patience, NewRows{*this, priorities});
}

void Priorities::NewRows::begin(Ticket first, std::size_t first_row, std::size_t num_rows) noexcept {
  const std::size_t capacity = all_.ring_.capacity();
  std::size_t slot = first_slot_ = first % capacity;
  std::uint64_t lap = first / capacity;
  const float mass = priorities_ == nullptr ? all_.new_mass() : 0;
  for (std::size_t i = 0; i < num_rows; ++i) {
    all_.leaves_.begin(slot, lap, priorities_ == nullptr ? mass : given_mass(priorities_[first_row + i]));
    if (++slot == capacity) {
      slot = 0;
      ++lap;
    }
  }
}

float Priorities::NewRows::given_mass(double priority) const noexcept {
  if (std::isnan(priority)) return 0;
  const double base = all_.rule_.base(priority);
  all_.raise_largest(base);
  return all_.rule_.mass(base, all_.ring_.capacity());
}

Priorities::Updated Priorities::update(std::span<const Ticket> tickets, std::span<const double> priorities) noexcept {
  std::array<double, kTogether> bases;
  std::array<float, kTogether> masses;
  const Window window = ring_.window();
  const Slots slots{ring_, window};
  Leaves::Update update{leaves_};
  Updated updated;
  double largest = 0;
  for (std::size_t done = 0; done < tickets.size(); done += kTogether) {
    const std::size_t count = std::min(kTogether, tickets.size() - done);
    for (std::size_t i = 0; i < count; ++i) {
      bases[i] = rule_.base(priorities[done + i]);
      // On its way while powers are made: a learner was at other work since the draw.
      const Ticket ticket = tickets[done + i];
      if (ticket - window.first < window.reserved()) leaves_.prefetch_for_update(slots.place(ticket).slot);
    }
    rule_.masses({bases.data(), count}, ring_.capacity(), masses.data());
    for (std::size_t i = 0; i < count; ++i) {
      const Ticket ticket = tickets[done + i];
      const bool is_there = ticket - window.first < window.reserved();
      const auto [slot, lap] = slots.place(is_there ? ticket : window.first);
      if (is_there && update.replace(slot, lap, masses[i])) {
        ++updated.applied;
        largest = std::max(largest, bases[i]);
      }
    }
  }
  updated.stale = tickets.size() - updated.applied;
  raise_largest(largest);
  return updated;
}

double Priorities::largest() const noexcept {
  // relaxed: a number that orders nothing.
  return StdAtomics::load(largest_, std::memory_order_relaxed);
}

void Priorities::set_largest(double base) noexcept {
  // relaxed: as above.
  StdAtomics::store(largest_, base, std::memory_order_relaxed);
}

void Priorities::raise_largest(double base) noexcept {
  // relaxed, here and below: a number that orders nothing.
  double largest = StdAtomics::load(largest_, std::memory_order_relaxed);
  while (base > largest && !StdAtomics::compare_exchange_weak(largest_, largest, base, std::memory_order_relaxed,
                                                              std::memory_order_relaxed)) {
  }
}

float Priorities::new_mass() noexcept {
  const float mass = mass_of_newest(initial_ < 0 ? largest() : rule_.base(initial_));
  return initial_ < 0 && is_kept_elsewhere_ ? -mass : mass;
}

// That of the newest before, as a rule.
float Priorities::mass_of_newest(double base) noexcept {
  const auto key = std::bit_cast<std::uint32_t>(static_cast<float>(base));
  const bool has_key = rule_.is_of_floats(base);
  // relaxed, here and below: both are in one word, which orders nothing.
  const std::uint64_t newest = newest_.load(std::memory_order_relaxed);
  if (has_key && newest >> 32 == key) return std::bit_cast<float>(static_cast<std::uint32_t>(newest));
  const float mass = rule_.mass(base, ring_.capacity());
  if (has_key) {
    newest_.store(std::uint64_t{key} << 32 | std::bit_cast<std::uint32_t>(mass), std::memory_order_relaxed);
  }
  return mass;
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

void Priorities::move(Ticket from, Ticket to) noexcept {
  leaves_.begin(to, Leaf::mass_in(leaves_.word(ring_.slot(from)), from / ring_.capacity()));
}

void Priorities::begin_in_child() noexcept {
  new (&mutex_) std::mutex;
  leaves_.marks().mark_all();
}

void Priorities::go_on() noexcept {
  const Window window = ring_.window();
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    const std::uint64_t word = leaves_.word(ring_.slot(ticket));
    const float mass = Leaf::mass_in(word, ticket / ring_.capacity());
    const bool can_be = Leaf::is_of(word, ticket / ring_.capacity()) && mass >= 0 && std::isfinite(mass);
    if (!can_be) leaves_.begin(ticket, new_mass());
  }
  leaves_.marks().mark_all();
}

void Priorities::repair(const Window& window) noexcept {
  const Ticket oldest = window.end - std::min<Ticket>(window.end, ring_.window_capacity());
  const Ticket cleared = window.first > oldest ? window.first : 0;
  if ((cleared != 0 && cleared != cleared_) || window.end < end_ || window.end - end_ >= ring_.capacity()) {
    leaves_.marks().mark_all();
  } else if (window.end > end_) {
    leaves_.mark(end_, window.end - end_);
    // What left the window into spare slots is nobody's to mark.
    const Ticket left = end_ - std::min<Ticket>(end_, ring_.window_capacity());
    if (ring_.num_spare() > 0 && left < oldest) leaves_.mark(left, oldest - left);
  }
  cleared_ = cleared;
  end_ = window.end;
  const Slots slots{ring_, window};
  // Taken first and made anew then: behind an atomic update nothing goes on.
  std::array<std::uint32_t, Sums::kTogether> groups;
  std::size_t count = 0;
  leaves_.marks().take([&](std::size_t group) {
    leaves_.prefetch(group);
    groups[count++] = static_cast<std::uint32_t>(group);
    if (count == groups.size()) repair_groups(slots, {groups.data(), std::exchange(count, 0)});
  });
  repair_groups(slots, {groups.data(), count});
}

FASTREPLAY_INLINE void Priorities::sum_groups(const Slots& slots, std::span<const std::uint32_t> groups) noexcept {
  for (const std::uint32_t group : groups) {
    alignas(kCacheLine) float masses[kGroupLeaves];
    masses_of(slots, group, masses);
    const unsigned num_with_mass = count_mass(masses);
    count_ += num_with_mass - std::uint64_t{num_with_mass_[group]};
    num_with_mass_[group] = static_cast<std::uint8_t>(num_with_mass);
    sums_.set(group, sum_of(masses));
    if (!keeps_smallest_) continue;
    for (float& mass : masses) mass = mass > 0 ? mass : Smallest::kNothing;
    smallest_.set(group, *std::ranges::min_element(masses));
  }
}

FASTREPLAY_AVX2 void Priorities::sum_groups_avx2(const Slots& slots, std::span<const std::uint32_t> groups) noexcept {
  sum_groups(slots, groups);
}

void Priorities::repair_groups(const Slots& slots, std::span<const std::uint32_t> groups) noexcept {
  has_avx2() ? sum_groups_avx2(slots, groups) : sum_groups(slots, groups);
  sums_.finish(groups);
  if (keeps_smallest_) smallest_.finish(groups);
}

FASTREPLAY_INLINE void Priorities::masses_of(const Slots& slots, std::size_t group, float* masses) const noexcept {
  const std::size_t first = group * kGroupLeaves;
  std::uint64_t lap = 0;
  if (slots.are_published(first, first + kGroupLeaves - 1, lap)) [[likely]] {
    leaves_.masses_in(group, lap, masses);
  } else {
    masses_one_by_one(slots, first, masses);
  }
}

[[gnu::noinline]] void Priorities::masses_one_by_one(const Slots& slots, std::size_t first,
                                                     float* masses) const noexcept {
  for (std::size_t i = 0; i < kGroupLeaves; ++i) {
    std::uint64_t lap = 0;
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

// Where leaves have changed since the sum was made, the group's share of it stays what it was.
FASTREPLAY_INLINE Drawn Priorities::find_leaf(const Slots& slots, std::size_t group, double target) const noexcept {
  alignas(kCacheLine) float masses[kGroupLeaves];
  alignas(kCacheLine) float prefixes[kGroupLeaves];
  masses_of(slots, group, masses);
  const float sum = make_prefixes(masses, prefixes);
  const float sum_then = sums_.of_group(group);
  if (sum != sum_then) [[unlikely]]
    target *= static_cast<double>(sum) / static_cast<double>(sum_then);
  const std::size_t child = find_child(prefixes, target);
  return {.ticket = slots.ticket(group * kGroupLeaves + child), .mass = masses[child]};
}

// From places among nodes of groups. Each leaf is looked at some draws after its group was found and asked for.
FASTREPLAY_INLINE void Priorities::find_leaves(const Slots& slots, std::span<std::uint32_t> places, double* targets,
                                               Drawn* drawn) const noexcept {
  constexpr std::size_t kAhead = 16;
  const std::size_t count = places.size();
  const auto find_group = [&](std::size_t i) {
    places[i] = sums_.find_group(places[i], targets[i]);
    leaves_.prefetch(places[i]);
    sums_.prefetch(places[i]);
  };
  for (std::size_t i = 0; i < std::min(count, kAhead); ++i) find_group(i);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) find_group(i + kAhead);
    drawn[i] = find_leaf(slots, places[i], targets[i]);
  }
}

FASTREPLAY_AVX2 void Priorities::find_leaves_avx2(const Slots& slots, std::span<std::uint32_t> places, double* targets,
                                                  Drawn* drawn) const noexcept {
  find_leaves(slots, places, targets, drawn);
}

void Priorities::Turn::find(std::span<double> targets, std::span<Drawn> drawn) const noexcept {
  std::array<std::uint32_t, kTogether> places;
  const Slots slots{priorities_.ring_, window_};
  for (std::size_t done = 0; done < targets.size(); done += kTogether) {
    const std::span<double> some = targets.subspan(done, std::min(kTogether, targets.size() - done));
    priorities_.sums_.find_nodes(some, places.data());
    const std::span<std::uint32_t> found{places.data(), some.size()};
    has_avx2() ? priorities_.find_leaves_avx2(slots, found, some.data(), &drawn[done])
               : priorities_.find_leaves(slots, found, some.data(), &drawn[done]);
  }
}

}  // namespace fastreplay
