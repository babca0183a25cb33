// SPDX-License-Identifier: MIT
// What is drawn: minibatches, and integers by themselves.
#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "batch/helpers.hpp"
#include "batch/random.hpp"
#include "batch/sample.hpp"
#include "follow.hpp"
#include "gil.hpp"
#include "instances.hpp"
#include "module.hpp"
#include "rows.hpp"
#include "shares.hpp"
#include "steps/hindsight.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// Transitions by themselves.
std::size_t sample_alone_into(Sampler& sampler, Ring& ring, double beta, const Block& block) {
  check_fits(block, ring);
  check_draws(block, sampler, ring);
  check_makes_no_parts(block);
  return without_gil(block.layout().num_bytes(), [&] { return sampler.sample(ring, block, beta); });
}

// With what surrounds each row.
std::size_t sample_following_into(Sampler& sampler, const FollowRule& follow, double beta, const Block& block) {
  follow.check(block, sampler);
  check_draws(block, sampler, follow.ring());
  if (follow.is_staged() && block.layout().is_share()) throw py::value_error{"a share changes with its block"};
  const WindowRule& rule = follow.following().rule;
  const std::size_t num_steps = std::min(std::size_t{rule.most_before} + rule.most_after + 1, follow.ring().capacity());
  std::optional<Block> unseen;
  if (follow.is_staged()) unseen.emplace(block.layout().parts(), block.batch_size());
  const Block& filled = unseen ? *unseen : block;
  HearingSignals signals;
  GivingUp giving_up{[](void* heard) noexcept { return static_cast<HearingSignals*>(heard)->hear(); }, &signals};
  const Following following{follow.following().lanes, rule, &giving_up};
  const std::size_t num_rows = signals.run(block.layout().num_bytes() + block.batch_size() * num_steps, [&] {
    const std::size_t num_filled = sampler.sample(follow.ring(), filled, beta, &following);
    if (unseen && num_filled > 0) std::memcpy(block.data(), filled.data(), block.layout().num_bytes());
    return num_filled;
  });
  if (signals.has_raised()) throw py::error_already_set{};
  return num_rows;
}

// From a ring, or by a rule of what surrounds rows drawn from one; `beta` is the exponent of weights.
std::size_t sample_into(Sampler& sampler, const py::object& source, double beta, const Block& block) {
  const FollowRule* follow = follow_in(source);
  return follow != nullptr ? sample_following_into(sampler, *follow, beta, block)
                           : sample_alone_into(sampler, ring_in(source), beta, block);
}

// pybind11's way to sample_into(), for whatever is no usual call.
PyObject* general_sample = nullptr;

// The usual call, of transitions by themselves.
PyObject* sample_at_once(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  if (count == 3 && names == nullptr && PyFloat_CheckExact(arguments[1])) {
    auto* const sampler = instance_in<Sampler>(self);
    auto* const ring = instance_in<Ring>(arguments[0]);
    const auto* const block = instance_in<Block>(arguments[2]);
    if (sampler != nullptr && ring != nullptr && block != nullptr && can_draw_alone(*block, *sampler, *ring)) {
      const double beta = PyFloat_AS_DOUBLE(arguments[1]);
      return PyLong_FromSize_t(
          without_gil(block->layout().num_bytes(), [&] { return sampler->sample(*ring, *block, beta); }));
    }
  }
  std::vector<PyObject*> all{self};
  all.insert(all.end(), arguments, arguments + count + (names == nullptr ? 0 : PyTuple_GET_SIZE(names)));
  return PyObject_Vectorcall(general_sample, all.data(), static_cast<std::size_t>(count) + 1, names);
}

PyMethodDef sample_method{"sample", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&sample_at_once)),
                          METH_FASTCALL | METH_KEYWORDS,
                          "sample($self, source, beta, block)\n--\n\nFill a block by draws; return how many rows."};

void bind_sample(py::class_<Sampler>& sampler) {
  sampler.def("sample", &sample_into, py::arg("source"), py::arg("beta"), py::arg("block"));
  general_sample = py::object{sampler.attr("sample")}.release().ptr();
  auto* const type = reinterpret_cast<PyTypeObject*>(sampler.ptr());
  sampler.attr("sample") = py::reinterpret_steal<py::object>(PyDescr_NewMethod(type, &sample_method));
}

// One member's share of a minibatch: its number, what it draws from and by, which part of the block, its first row, how
// many it has, and the exponent of its weights.
using ShareToDraw = std::tuple<std::int64_t, py::object, Sampler*, const BlockShare*, std::size_t, std::size_t, double>;

// Has each draw its share, in this order, and says whose the rows are. Returns the member that had nothing to draw
// from, -1 where all had something.
std::int64_t sample_shares(const Block& block, const std::vector<ShareToDraw>& draws, std::int64_t source_part,
                           std::int64_t weight_part) {
  const ShareMarks marks{block, source_part, weight_part};
  for (const auto& [member, source, sampler, share, first_row, num_rows, beta] : draws) {
    if (sampler == nullptr || share == nullptr) throw py::type_error{"expected a sampler and a share"};
    const Block rows = share->of(block, first_row, num_rows);
    if (sample_into(*sampler, source, beta, rows) == 0) return member;
    marks.set(member, first_row, num_rows, sampler->draws_by_priority());
  }
  return -1;
}

// Says whose rows are that are drawn later: (member, first row, rows, whether they get weights) each.
void mark_shares(const Block& block,
                 const std::vector<std::tuple<std::int64_t, std::size_t, std::size_t, bool>>& shares,
                 std::int64_t source_part, std::int64_t weight_part) {
  const ShareMarks marks{block, source_part, weight_part};
  for (const auto& [member, first_row, num_rows, has_weights] : shares) {
    if (first_row > block.batch_size() || num_rows > block.batch_size() - first_row) {
      throw py::value_error{"the block has no such rows"};
    }
    marks.set(member, first_row, num_rows, has_weights);
  }
}

EpochState state_of(const EpochNumbers& numbers) {
  const auto& [epoch, first, size, position] = numbers;
  if (position > size || size > std::numeric_limits<std::uint64_t>::max() - first) {
    throw py::value_error{"no such state of an epoch"};
  }
  return {.epoch = epoch, .first = first, .size = size, .position = position};
}

const Epochs& epochs_of(const Sampler& sampler) {
  if (sampler.epochs() == nullptr) throw py::attribute_error{"the sampler draws with replacement"};
  return *sampler.epochs();
}

// A number that any thread adds to. Without a lock, which a fork would copy locked and a signal handler meet.
class Counter {
 public:
  explicit Counter(std::uint64_t value) noexcept : value_{value} {}

  // Returns the value before.
  std::uint64_t add(std::uint64_t count) noexcept {
    // relaxed: only that no two calls get the same numbers.
    return value_.fetch_add(count, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t value() const noexcept {
    // relaxed: a count that orders nothing.
    return value_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> value_;
};

// Uniform integers; call k uses the words that sample call k of a Sampler of this key would.
class UniformIntegers {
 public:
  using Drawn = py::array_t<std::int64_t>;

  UniformIntegers(Philox::Key key, std::uint64_t calls) noexcept : key_{key}, calls_{calls} {}

  Drawn below(std::uint64_t bound, std::size_t count) {
    if (bound == 0) throw py::value_error{"nothing to draw from"};
    Drawn drawn(static_cast<py::ssize_t>(count));
    WordStream words{key_, calls_.add(1)};
    std::int64_t* values = drawn.mutable_data();
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::int64_t>(words.below(bound));
    return drawn;
  }

  // Rows and environments (B,), and rows of goals (num_goals,), as Hindsight::draw() says.
  std::tuple<Drawn, Drawn, Drawn> hindsight(const py::object& complete, const Integers& trajectories,
                                            std::size_t num_envs, std::uint8_t goal_of, std::size_t batch_size,
                                            std::size_t num_goals) {
    if (goal_of > static_cast<std::uint8_t>(GoalOf::kAny)) throw py::value_error{"no such strategy"};
    if (num_goals > batch_size) throw py::value_error{"expected at most as many goals as transitions"};
    const auto size = static_cast<py::ssize_t>(batch_size);
    Drawn rows(size), envs(size), goal_rows(static_cast<py::ssize_t>(num_goals));
    const py::scoped_critical_section lock{complete};
    if (!py::isinstance<IndexSet>(complete)) throw py::type_error{"expected an IndexSet"};
    const auto& set = complete.cast<const IndexSet&>();
    if (set.size() == 0) throw py::value_error{"nothing to draw from"};
    if (num_envs == 0 || set.bound() % num_envs != 0 ||
        static_cast<std::size_t>(trajectories.size()) != 2 * set.bound()) {
      throw py::value_error{"expected the trajectory of each transition"};
    }
    const Hindsight hindsight{.complete = set,
                              .trajectories = {reinterpret_cast<const Trajectory*>(trajectories.data()), set.bound()},
                              .num_envs = num_envs,
                              .goal_of = static_cast<GoalOf>(goal_of)};
    hindsight.draw({key_, calls_.add(1)}, {rows.mutable_data(), batch_size}, {envs.mutable_data(), batch_size},
                   {goal_rows.mutable_data(), num_goals});
    return {std::move(rows), std::move(envs), std::move(goal_rows)};
  }

  [[nodiscard]] Philox::Key key() const noexcept { return key_; }
  [[nodiscard]] std::uint64_t calls() const noexcept { return calls_.value(); }

 private:
  Philox::Key key_;
  Counter calls_;
};

// How many of so many rows fall to each of several, of which a row is the first whose bound is above its word, or the
// last. Call k uses the words that sample call k of a Sampler of this key would.
std::vector<std::size_t> draw_shares(Philox::Key key, std::uint64_t call, const std::vector<std::uint64_t>& bounds,
                                     std::size_t num_rows) {
  std::vector<std::size_t> counts(bounds.size() + 1);
  WordStream words{key, call};
  for (std::size_t row = 0; row < num_rows; ++row) {
    const auto above = std::ranges::upper_bound(bounds, words.next());
    ++counts[static_cast<std::size_t>(above - bounds.begin())];
  }
  return counts;
}

std::unique_ptr<Sampler> sampler_over_trajectories(Philox::Key key, std::uint64_t calls, const Lanes& lanes) {
  return std::make_unique<Sampler>(key, lanes, calls);
}

void bind_counts(py::class_<Sampler>& sampler) {
  sampler.def("count_on_from", py::overload_cast<const Sampler&>(&Sampler::count_on_from), py::arg("before"))
      .def("count_on_from", py::overload_cast<std::uint64_t, std::uint64_t, std::uint64_t>(&Sampler::count_on_from),
           py::arg("num_sampled"), py::arg("num_redraws"), py::arg("num_without_mass"))
      .def_property_readonly("num_sampled", &Sampler::num_sampled)
      .def_property_readonly("num_redraws", &Sampler::num_redraws)
      .def_property_readonly("num_without_mass", &Sampler::num_without_mass);
}

void bind_sampler(py::module_& m) {
  py::class_<Sampler> sampler(m, "Sampler");
  bind_counts(sampler);
  bind_sample(sampler);
  sampler
      .def(py::init([](Philox::Key key, std::uint64_t calls, std::uint64_t newest_of, std::uint64_t newest) {
             const Recency recency{.newest_of = newest_of, .newest = newest};
             return std::make_unique<Sampler>(key, calls, recency);
           }),
           py::arg("key"), py::arg("calls") = 0, py::arg("newest_of") = 0, py::arg("newest") = 0)
      .def(py::init(&sampler_over_trajectories), py::arg("key"), py::arg("calls"), py::arg("lanes"),
           py::keep_alive<1, 4>())
      .def(py::init(
               [](Philox::Key key, std::uint64_t calls, bool is_shuffled, bool drops_last, const EpochNumbers& state) {
                 const EpochOptions options{.is_shuffled = is_shuffled, .drops_last = drops_last};
                 return std::make_unique<Sampler>(key, options, state_of(state), calls);
               }),
           py::arg("key"), py::arg("calls"), py::arg("is_shuffled"), py::arg("drops_last"), py::arg("state"))
      .def(py::init([](Philox::Key key, std::uint64_t calls, Priorities& priorities, bool is_stratified,
                       std::uint8_t normalize, double uniform_mix) {
             if (normalize > static_cast<std::uint8_t>(Normalize::kBuffer))
               throw py::value_error{"no such normalization"};
             const PriorityOptions options{.is_stratified = is_stratified,
                                           .normalize = static_cast<Normalize>(normalize),
                                           .uniform_mix = uniform_mix};
             return std::make_unique<Sampler>(key, priorities, options, calls);
           }),
           py::arg("key"), py::arg("calls"), py::arg("priorities"), py::arg("is_stratified"), py::arg("normalize"),
           py::arg("uniform_mix"), py::keep_alive<1, 4>())
      .def_property_readonly("epoch_state",
                             [](const Sampler& sampler) { return numbers_of(epochs_of(sampler).state()); })
      .def("begin_in_child", &Sampler::begin_in_child)
      .def_property_readonly("num_left_out", [](const Sampler& sampler) { return epochs_of(sampler).num_left_out(); })
      .def_property_readonly("key", &Sampler::key)
      .def_property_readonly("calls", &Sampler::calls);
}

}  // namespace

void bind_sampling(py::module_& m) {
  bind_sampler(m);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"));
  m.def("sample_shares", &sample_shares, py::arg("block"), py::arg("draws"), py::arg("source_part"),
        py::arg("weight_part"));
  m.def("mark_shares", &mark_shares, py::arg("block"), py::arg("shares"), py::arg("source_part"),
        py::arg("weight_part"));
  m.def("draw_shares", &draw_shares, py::arg("key"), py::arg("call"), py::arg("bounds"), py::arg("num_rows"));
  py::class_<Counter>(m, "Counter")
      .def(py::init<std::uint64_t>(), py::arg("value") = 0)
      .def("add", &Counter::add, py::arg("count"))
      .def_property_readonly("value", &Counter::value);

  py::class_<UniformIntegers>(m, "UniformIntegers")
      .def(py::init<Philox::Key, std::uint64_t>(), py::arg("key"), py::arg("calls") = 0)
      .def("below", &UniformIntegers::below, py::arg("bound"), py::arg("count"))
      .def("hindsight", &UniformIntegers::hindsight, py::arg("complete"), py::arg("trajectories").noconvert(),
           py::arg("num_envs"), py::arg("goal_of"), py::arg("batch_size"), py::arg("num_goals"))
      .def_property_readonly("key", &UniformIntegers::key)
      .def_property_readonly("calls", &UniformIntegers::calls);
}

}  // namespace fastreplay
