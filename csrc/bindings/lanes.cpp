// SPDX-License-Identifier: MIT
// The lanes of a ring, and what surrounds a row in one.
#include "lanes/lanes.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "capsule.hpp"
#include "follow.hpp"
#include "gil.hpp"
#include "lanes/sent_links.hpp"
#include "lanes/trajectories.hpp"
#include "module.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

using Ends = std::vector<std::tuple<std::size_t, std::size_t, bool>>;  // (field, bytes of an element, is it signed)
using LaneNumbers = py::array_t<std::uint32_t, py::array::c_style>;
using LinkBits = py::array_t<std::uint8_t, py::array::c_style>;

const Column& column_of(const Ring& ring, std::size_t field) {
  const auto& columns = ring.records().layout().columns();
  if (field >= columns.size()) throw py::value_error{"the record has no such field"};
  return columns[field];
}

std::unique_ptr<Lanes> new_lanes(Ring& ring, std::size_t num_lanes, const Ends& ends, MappedFile* file) {
  if (num_lanes == 0) throw py::value_error{"expected at least one lane"};
  std::vector<EndColumn> columns;
  for (const auto& [field, element_bytes, has_sign] : ends) {
    const Column& column = column_of(ring, field);
    const bool is_whole = element_bytes > 0 && element_bytes <= 8 && column.row_bytes % element_bytes == 0;
    if (!is_whole) throw py::value_error{"an end has elements of up to 8 bytes"};
    columns.push_back({.field = field, .column = column, .element_bytes = element_bytes, .has_sign = has_sign});
  }
  return std::make_unique<Lanes>(ring, num_lanes, std::move(columns), memory_of(file));
}

// Cuts a lane, or all. Returns -1, or the lane that was another's, with nothing cut.
std::int64_t cut_lanes(Lanes& lanes, std::optional<std::size_t> lane) {
  if (lane && *lane >= lanes.num_lanes()) throw py::index_error{"no such lane"};
  const std::span<const std::int64_t> which = lane ? lanes.in_order().subspan(*lane, 1) : lanes.in_order();
  const auto owner = reinterpret_cast<Lanes::Owner>(&which);
  const std::size_t busy = lanes.enter(which, owner);
  if (busy != Lanes::kNone) return which[busy];
  for (const std::int64_t each : which) lanes.cut(static_cast<std::size_t>(each));
  lanes.leave(which, owner);
  return -1;
}

// Lanes that belong to one caller over many calls, until end(): whoever else inserts into one of them, or cuts it, is
// refused meanwhile. A fork's child, where they belong to nobody, takes them again when it goes on.
class HeldLanes {
 public:
  explicit HeldLanes(Lanes& lanes) noexcept : lanes_{lanes} {}
  HeldLanes(const HeldLanes&) = delete;
  HeldLanes& operator=(const HeldLanes&) = delete;
  ~HeldLanes() { lanes_.leave(numbers_, owner()); }

  // Takes lanes, once. Returns -1, or the lane that was another's, with nothing taken.
  std::int64_t take(std::vector<std::int64_t> numbers) {
    for (const std::int64_t each : numbers) {
      if (each < 0 || static_cast<std::size_t>(each) >= lanes_.num_lanes()) throw py::index_error{"no such lane"};
    }
    const std::size_t busy = lanes_.enter(numbers, owner());
    if (busy != Lanes::kNone) return numbers[busy];
    numbers_ = std::move(numbers);
    return -1;
  }
  [[nodiscard]] Lanes::Owner owner() const noexcept { return reinterpret_cast<Lanes::Owner>(this); }

  void cut(std::size_t which) {
    if (which >= numbers_.size()) throw py::index_error{"no such lane"};
    cut(std::span{numbers_}.subspan(which, 1));
  }
  void cut_all() noexcept { cut(std::span{numbers_}); }
  // Cuts them, and lets them go.
  void end() noexcept {
    cut_all();
    lanes_.leave(numbers_, owner());
    numbers_.clear();
  }

 private:
  void cut(std::span<const std::int64_t> which) noexcept {
    if (lanes_.enter(which, owner()) != Lanes::kNone) return;
    for (const std::int64_t each : which) lanes_.cut(static_cast<std::size_t>(each));
  }

  Lanes& lanes_;
  std::vector<std::int64_t> numbers_;
};

// The lanes and links of so many tickets, and the oldest of which they are known.
std::tuple<LaneNumbers, LinkBits, Ticket> save_links(const Lanes& lanes, Ticket first, std::size_t count) {
  LaneNumbers numbers(static_cast<py::ssize_t>(count));
  LinkBits bits(static_cast<py::ssize_t>(count));
  const Ticket oldest = lanes.save(first, {numbers.mutable_data(), count}, {bits.mutable_data(), count});
  return {numbers, bits, oldest};
}

bool restore_links(Lanes& lanes, Ticket first, const LaneNumbers& numbers, const LinkBits& bits) {
  if (numbers.size() != bits.size()) throw py::value_error{"as many lanes as links"};
  const auto count = static_cast<std::size_t>(numbers.size());
  return lanes.restore(first, {numbers.data(), count}, {bits.data(), count});
}

using LaneStates = py::array_t<std::uint8_t, py::array::c_style>;
using LaneTickets = py::array_t<std::uint64_t, py::array::c_style>;

std::pair<LaneStates, LaneTickets> save_states(Lanes& lanes) {
  const auto count = static_cast<py::ssize_t>(lanes.num_lanes());
  LaneStates states(count);
  LaneTickets ends(count);
  std::fill_n(ends.mutable_data(), count, 0);
  lanes.save_states({states.mutable_data(), lanes.num_lanes()}, {ends.mutable_data(), lanes.num_lanes()});
  return {states, ends};
}

bool restore_states(Lanes& lanes, const LaneStates& states, const LaneTickets& ends) {
  return lanes.restore_states({states.data(), static_cast<std::size_t>(states.size())},
                              {ends.data(), static_cast<std::size_t>(ends.size())});
}

using Counts = std::array<std::uint64_t, 5>;  // transitions, trajectories, the longest, the lost, what is complete

Counts counts_of(const Lanes& lanes, const WindowReach& reach) {
  const auto counted = without_gil(lanes.ring().capacity() * Lanes::Links::kLinkBytes,
                                   [&]() noexcept -> std::optional<TrajectoryCounts> {
                                     try {
                                       return count_trajectories(lanes.ring(), lanes, reach);
                                     } catch (const std::bad_alloc&) {
                                       return std::nullopt;
                                     }
                                   });
  if (!counted) throw std::bad_alloc{};
  return {counted->num_transitions, counted->num_trajectories, counted->longest, counted->num_lost,
          counted->num_complete};
}

Counts counts_around(const FollowRule& follow) {
  const auto& [lanes, rule, giving_up] = follow.following();
  return counts_of(lanes, {.before = rule.most_before, .after = rule.most_after});
}

using Memory = py::array_t<std::uint8_t, py::array::c_style>;
using SlotsAndGaps = py::array_t<std::uint32_t, py::array::c_style>;

// Of as many tickets as there is room for.
void read_links(SentLinks& links, Ticket first, Memory& memory) {
  const auto num_bytes = static_cast<std::size_t>(memory.size());
  auto* data = reinterpret_cast<SentLinks::Link*>(memory.mutable_data());
  if (num_bytes % sizeof *data != 0 || reinterpret_cast<std::uintptr_t>(data) % alignof(SentLinks::Link) != 0) {
    throw py::value_error{"expected memory of links"};
  }
  links.read(first, {data, num_bytes / sizeof *data});
}

SlotsAndGaps changes_of_links(SentLinks& links) {
  const std::vector<SentLinks::Change> changes = links.changes();
  SlotsAndGaps found({static_cast<py::ssize_t>(changes.size()), py::ssize_t{2}});
  for (std::size_t i = 0; i < changes.size(); ++i) {
    found.mutable_at(i, 0) = changes[i].slot;
    found.mutable_at(i, 1) = changes[i].after;
  }
  return found;
}

std::optional<Ticket> newest_complete_of(const FollowRule& follow, Ticket first, Ticket end) {
  const py::gil_scoped_release released;
  const auto& [lanes, rule, giving_up] = follow.following();
  return newest_complete(follow.ring(), lanes, rule, first, end);
}

using FieldOfNumbers = std::pair<std::size_t, bool>;  // (field, is it double)

FloatField numbers_in(const Ring& ring, const FieldOfNumbers& field) {
  const Column& column = column_of(ring, field.first);
  if (column.row_bytes % (field.second ? sizeof(double) : sizeof(float)) != 0) {
    throw py::value_error{"the field has other numbers"};
  }
  return {.column = column, .is_double = field.second};
}

using StepNumbers = std::tuple<std::int64_t, std::size_t, std::size_t>;  // (first, count, stride)
using TakenParts = std::tuple<StepNumbers, bool, bool, std::vector<std::size_t>, std::vector<std::size_t>>;
using SaidPart = std::tuple<StepNumbers, std::uint8_t, std::size_t>;
using Sums = std::tuple<double, std::vector<std::pair<FieldOfNumbers, std::size_t>>, std::vector<FieldOfNumbers>,
                        std::size_t, bool>;  // as SumRule

Steps steps_in(const WindowRule& rule, const StepNumbers& numbers) {
  const auto& [first, count, stride] = numbers;
  const std::int64_t most = rule.most_after;
  const bool is_within = count > 0 && stride > 0 && first >= -std::int64_t{rule.most_before} && first <= most &&
                         (count - 1) <= static_cast<std::size_t>(most - first) / stride;
  if (!is_within) throw py::value_error{"no such steps"};
  return {.first = first, .count = count, .stride = stride};
}

void add(WindowRule& rule, const Ring& ring, const TakenParts& taken) {
  const auto& [steps, pads_with_zeros, is_first_only, fields, parts] = taken;
  if (fields.size() != parts.size()) throw py::value_error{"as many parts as fields"};
  for (const std::size_t field : fields) static_cast<void>(column_of(ring, field));
  rule.taken.push_back({.steps = steps_in(rule, steps),
                        .pads_with_zeros = pads_with_zeros,
                        .is_first_only = is_first_only,
                        .fields = fields,
                        .parts = parts});
}

void add(WindowRule& rule, const SaidPart& said) {
  const auto& [steps, what, part] = said;
  if (what > static_cast<std::uint8_t>(Saying::kFirst)) throw py::value_error{"nothing that can be said"};
  rule.said.push_back({.steps = steps_in(rule, steps), .what = static_cast<Saying>(what), .part = part});
}

SumRule sums_in(const Ring& ring, const Sums& numbers) {
  const auto& [gamma, sums, stored_discount, discount_part, is_discount_double] = numbers;
  SumRule rule{.gamma = gamma,
               .sums = {},
               .stored_discount = {},
               .discount_part = discount_part,
               .is_discount_double = is_discount_double};
  for (const auto& [field, part] : sums) rule.sums.push_back({.of = numbers_in(ring, field), .part = part});
  for (const FieldOfNumbers& field : stored_discount) rule.stored_discount.push_back(numbers_in(ring, field));
  return rule;
}

std::unique_ptr<FollowRule> new_follow(const Lanes& lanes, std::uint32_t most_before, std::uint32_t most_after,
                                       bool is_redrawn, bool is_time_major, std::size_t ways_part,
                                       const std::vector<TakenParts>& taken, const std::vector<SaidPart>& said,
                                       const std::optional<Sums>& sums) {
  WindowRule rule;
  rule.most_before = most_before;
  rule.most_after = most_after;
  rule.is_redrawn = is_redrawn;
  rule.is_time_major = is_time_major;
  rule.ways_part = ways_part;
  for (const TakenParts& each : taken) add(rule, lanes.ring(), each);
  for (const SaidPart& each : said) add(rule, each);
  if (sums) rule.sums = sums_in(lanes.ring(), *sums);
  return std::make_unique<FollowRule>(lanes, std::move(rule));
}

// In the child after a fork, where nobody is left to finish an insert.
void begin_in_child(Ring& ring, Priorities* priorities, Lanes* lanes) {
  discard_unfinished(ring, priorities, lanes);
  if (priorities != nullptr) priorities->begin_in_child();
  if (lanes != nullptr) lanes->begin_in_child();
}

void bind_held_lanes(py::module_& m) {
  py::class_<HeldLanes>(m, "HeldLanes")
      .def(py::init<Lanes&>(), py::arg("lanes"), py::keep_alive<1, 2>())
      .def("take", &HeldLanes::take, py::arg("numbers"))
      .def_property_readonly("owner", &HeldLanes::owner)
      .def("cut", py::overload_cast<std::size_t>(&HeldLanes::cut), py::arg("which"))
      .def("cut_all", &HeldLanes::cut_all)
      .def("end", &HeldLanes::end);
}

}  // namespace

void bind_lanes(py::module_& m) {
  py::class_<Lanes>(m, "Lanes")
      .def(py::init(&new_lanes), py::arg("ring"), py::arg("num_lanes"), py::arg("ends"),
           py::arg("file").none(true) = py::none(), py::keep_alive<1, 2>())
      .def_property_readonly("num_lanes", &Lanes::num_lanes)
      .def_property_readonly("num_bytes", &Lanes::num_bytes)
      .def_property("skips_resets", &Lanes::skips_resets, &Lanes::skip_resets)
      .def("cut", &cut_lanes, py::arg("lane"))
      .def("count", [](const Lanes& lanes) { return counts_of(lanes, {}); })
      .def("save", &save_links, py::arg("first"), py::arg("count"))
      .def("save_states", &save_states)
      .def("restore_states", &restore_states, py::arg("states").noconvert(), py::arg("ends").noconvert())
      .def("restore", &restore_links, py::arg("first"), py::arg("lanes").noconvert(), py::arg("links").noconvert())
      .def("link_restored", &Lanes::link_restored, py::arg("first"), py::arg("end"))
      .def("capsule", [](Lanes& lanes) { return py::capsule{&lanes, kLanesCapsule}; });

  bind_held_lanes(m);
  py::class_<SentLinks>(m, "SentLinks")
      .def(py::init<const Lanes&>(), py::arg("lanes"), py::keep_alive<1, 2>())
      .def("read", &read_links, py::arg("first"), py::arg("links").noconvert())
      .def("changes", &changes_of_links);

  m.attr("LINK_UNKNOWN") = static_cast<int>(SavedLink::kUnknown | SavedLink::kAnother);
  m.attr("STEPS_THERE") = static_cast<int>(Saying::kReal);
  m.attr("STEPS_TRAINED") = static_cast<int>(Saying::kTrained);
  m.attr("STEPS_FIRST") = static_cast<int>(Saying::kFirst);
  m.def("bytes_of_way", &Ways::row_bytes, py::arg("num_slots"));
  py::class_<FollowRule>(m, "Follow")
      .def(py::init(&new_follow), py::arg("lanes"), py::arg("most_before"), py::arg("most_after"),
           py::arg("is_redrawn"), py::arg("is_time_major"), py::arg("ways_part"), py::arg("taken"), py::arg("said"),
           py::arg("sums").none(true), py::keep_alive<1, 2>())
      .def_property_readonly("num_steps", &FollowRule::num_steps)
      .def("count", &counts_around)
      .def_property_readonly("redraws", [](const FollowRule& follow) { return follow.following().rule.is_redrawn; })
      .def("newest_complete", &newest_complete_of, py::arg("first"), py::arg("end"))
      .def("staged", &FollowRule::staged, py::keep_alive<0, 1>());

  m.def("begin_in_child", &begin_in_child, py::arg("ring"), py::arg("priorities").none(true),
        py::arg("lanes").none(true));
}

}  // namespace fastreplay
