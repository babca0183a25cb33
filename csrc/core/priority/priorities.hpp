// SPDX-License-Identifier: MIT
// The priorities of a ring's transitions (Schaul et al. 2016): what each weighs, and draws in proportion. Must not know
// Python, torch or minibatches.
//
// Writers and updates change leaves and mark their groups, and never wait. A sampler, one at a time, takes the marks,
// makes the sums of these groups anew by the window of the moment, and draws: a leaf counts if it is of the ticket that
// its slot has in the window, and that ticket is published. What is reserved and unpublished, cleared or overwritten
// weighs nothing; the groups of newly reserved tickets are looked at whether their writers have marked them or not.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "priority/leaves.hpp"
#include "priority/mass.hpp"
#include "priority/sums.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// What was drawn for one row.
struct Drawn {
  Ticket ticket;
  float mass;  // 0 where every mass was, and the draw was uniform
};

// What a draw was made from.
struct Population {
  double total = 0;         // of all masses; 0 where every mass is zero
  std::uint64_t count = 0;  // transitions with a mass above zero
  float smallest = 0;       // mass above zero, where smallest masses are kept
};

class Priorities {
 public:
  // `initial` is the priority of new transitions, below 0 for the largest so far. Where the masses are kept elsewhere,
  // and this only brings them there, the sign of a new transition's says that the largest so far is to be told from
  // what was updated there, too. The ring outlives this. Throws std::bad_alloc, and what the memory of its leaves
  // throws.
  Priorities(Ring& ring, const MassRule& rule, double initial, bool keeps_smallest, bool is_kept_elsewhere = false,
             Memory& memory = Memory::own());

  [[nodiscard]] Ring& ring() const noexcept { return ring_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept;

  // Inserts as Ring::insert does. priorities[i] is that of row i, NaN for one that is not to be drawn yet; null for
  // all new.
  [[nodiscard]] bool insert(std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                            std::chrono::nanoseconds patience, const double* priorities) noexcept;

  // What an insert does beside the ring, of rows of these priorities.
  class NewRows {
   public:
    NewRows(Priorities& all, const double* priorities) noexcept : all_{all}, priorities_{priorities} {}
    void begin(Ticket first, std::size_t first_row, std::size_t num_rows) noexcept;
    void end(Ticket /*first*/, std::size_t num_rows) noexcept { all_.leaves_.mark_from(first_slot_, num_rows); }

   private:
    [[nodiscard]] float given_mass(double priority) const noexcept;

    Priorities& all_;
    const double* priorities_;
    std::size_t first_slot_ = 0;
  };

  struct Updated {
    std::size_t applied = 0;
    std::size_t stale = 0;  // overwritten or cleared
  };

  // priorities[i] is finite and that of tickets[i], which was issued; the last of equal tickets wins.
  Updated update(std::span<const Ticket> tickets, std::span<const double> priorities) noexcept;

  // In units of |p| + eps, the largest that was stored.
  [[nodiscard]] double largest() const noexcept;
  void set_largest(double base) noexcept;

  // The masses of tickets first, first + 1, ...; 0 for those that are not there.
  void read(Ticket first, std::span<float> masses) const noexcept;
  // Gives published tickets these masses, for restoring; nobody else uses the ring.
  void restore(Ticket first, std::span<const float> masses) noexcept;

  // In the child after a fork, the ring's unfinished tickets discarded: each transition that was moved to an earlier
  // ticket, in ascending order; then nobody holds the lock, and every leaf is looked at again.
  void move(Ticket from, Ticket to) noexcept;
  void begin_in_child() noexcept;
  // Over a ring that was found as somebody left it: what has no mass that can be weighs as if it were new.
  void go_on() noexcept;

  // For samplers. Holds the others off as long as it lives.
  class Turn {
   public:
    explicit Turn(Priorities& priorities) noexcept;

    // Takes the window and the masses of now.
    void refresh() noexcept;

    [[nodiscard]] const Population& population() const noexcept { return population_; }
    [[nodiscard]] const Window& window() const noexcept { return window_; }
    [[nodiscard]] float mass(Ticket ticket) const noexcept;
    // Draws one transition for each target in [0, population().total), which is above 0. A ticket of which the mass is
    // 0 was lost meanwhile, and is to be drawn again.
    void find(std::span<double> targets, std::span<Drawn> drawn) const noexcept;

   private:
    Priorities& priorities_;
    std::unique_lock<std::mutex> lock_;
    Window window_{};
    Population population_;
  };

 private:
  static constexpr std::size_t kTogether = 256;  // that are updated, or looked for

  // Which ticket a slot has in a window.
  class Slots;

  void repair(const Window& window) noexcept;
  void repair_groups(const Slots& slots, std::span<const std::uint32_t> groups) noexcept;
  void masses_of(const Slots& slots, std::size_t group, float* masses) const noexcept;
  void masses_one_by_one(const Slots& slots, std::size_t first, float* masses) const noexcept;
  void sum_groups(const Slots& slots, std::span<const std::uint32_t> groups) noexcept;
  void sum_groups_avx2(const Slots& slots, std::span<const std::uint32_t> groups) noexcept;
  void find_leaves(const Slots& slots, std::span<std::uint32_t> places, double* targets, Drawn* drawn) const noexcept;
  void find_leaves_avx2(const Slots& slots, std::span<std::uint32_t> places, double* targets,
                        Drawn* drawn) const noexcept;
  [[nodiscard]] Drawn find_leaf(const Slots& slots, std::size_t group, double target) const noexcept;
  [[nodiscard]] float new_mass() noexcept;
  [[nodiscard]] float mass_of_newest(double base) noexcept;
  void raise_largest(double base) noexcept;

  Ring& ring_;
  MassRule rule_;
  double initial_;
  bool keeps_smallest_;
  bool is_kept_elsewhere_;
  Region largest_memory_;
  // The largest |p| + eps so far. Written by updates and inserts (CAS), read by inserts; orders nothing.
  double& largest_;
  // A base as a float32, and its mass: the latest new transition's, since a power takes longer than all else of an
  // insert. Written and read by inserts; orders nothing.
  std::atomic<std::uint64_t> newest_{0};
  Leaves leaves_;

  std::mutex mutex_;  // guards what follows
  Sums sums_;
  Tree<Smallest> smallest_;                  // without groups where it is not kept
  std::vector<std::uint8_t> num_with_mass_;  // of each group
  std::uint64_t count_ = 0;                  // their sum
  Ticket end_ = 0;                           // of the last sampler's window
  Ticket cleared_ = 0;                       // tickets below it were taken out by clear(), as far as samplers know
};

}  // namespace fastreplay
