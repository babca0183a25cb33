// SPDX-License-Identifier: MIT
// What loaders are made of: minibatches that are drawn ahead, and the one step in which one of them is handed out.
//
// Whatever Python code runs between two steps may be interrupted by an exception (of a signal handler), may be
// entered again (by a handler, by a finalizer) and runs beside other threads. So all that changes is here, in calls
// that run nothing of Python's and either happen or do not:
//
//   start: the first minibatches get their turns.  put: a spare one is kept, without a turn.
//   take(n): minibatch n goes, if it is still the oldest, and the spare gets a turn in its place.
//
// oldest() waits and changes nothing. Whoever is interrupted anywhere before take() finds everything as it was.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "batch/prefetch.hpp"
#include "follow.hpp"
#include "module.hpp"
#include "rows.hpp"
#include "waits.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// A minibatch, and what keeps the memory that it is to be filled into.
struct Ahead {
  py::object minibatch;
  py::object owner;                       // of the block, or of the shares that members have of it
  std::vector<Prefetcher::Piece> pieces;  // none where something else than the thread fills it
  void* context = nullptr;
};

// Who draws: the ring, or what surrounds the rows drawn from one, and the sampler.
using Member = std::pair<py::object, py::object>;

// The minibatches of a loader, and the core's prefetcher that fills them. Python calls it a Prefetcher.
class MinibatchQueue {
 public:
  // Several members each fill a share of every block. Without a source there is no thread, and every block counts as
  // filled. `steps`: how many minibatches there are.
  MinibatchQueue(std::vector<Member> members, std::size_t depth, std::optional<std::uint64_t> steps,
                 std::shared_ptr<Waits> waits, std::uintptr_t send)
      : process_{this_process()}, members_{std::move(members)}, undrawn_{steps}, waits_{std::move(waits)} {
    if (steps) depth = static_cast<std::size_t>(std::min<std::uint64_t>(depth, *steps));
    ahead_.resize(depth);
    const bool is_thread_wanted =
        std::ranges::none_of(members_, [](const Member& each) { return each.first.is_none(); });
    if (!is_thread_wanted || depth == 0) return;
    std::vector<Prefetcher::Member> native;
    for (const auto& [source, sampler] : members_) {
      const FollowRule* follow = follow_in(source);
      native.push_back({.ring = follow == nullptr ? ring_in(source) : follow->ring(),
                        .sampler = sampler.cast<Sampler&>(),
                        .following = follow == nullptr ? nullptr : &follow->following()});
    }
    native_ = std::make_unique<Prefetcher>(std::move(native), depth, reinterpret_cast<Prefetcher::Send>(send));
  }

  ~MinibatchQueue() { stop(); }
  MinibatchQueue(const MinibatchQueue&) = delete;
  MinibatchQueue& operator=(const MinibatchQueue&) = delete;

  // How many minibatches start() takes.
  [[nodiscard]] std::size_t num_first() const noexcept { return ahead_.size(); }

  // Gives the first minibatches their turns: (minibatch, block, context, beta) each; in place of the block a sequence
  // of (share, beta) where there are several members, a share of None for nothing.
  void start(const std::vector<std::tuple<py::object, py::object, std::uintptr_t, double>>& first) {
    check_process();
    std::vector<Ahead> checked;
    for (const auto& [minibatch, block, context, beta] : first) {
      checked.push_back(this->checked(minibatch, block, context, beta));
    }
    const std::scoped_lock lock{mutex_};
    if (first.size() != ahead_.size()) throw py::value_error{"expected as many minibatches as there are to begin with"};
    if (is_started_) throw std::runtime_error{"loader: it was started before"};
    is_started_ = true;
    for (Ahead& each : checked) push(std::move(each));
  }

  // Whether put() would keep a minibatch.
  [[nodiscard]] bool wants_spare() {
    check_process();
    const std::scoped_lock lock{mutex_};
    return needs_spare();
  }

  // Keeps a minibatch that is to get its turn when the oldest goes. False where that is not wanted (any more).
  bool put(const py::object& minibatch, const py::object& block, std::uintptr_t context, double beta) {
    check_process();
    Ahead checked = this->checked(minibatch, block, context, beta);
    const std::scoped_lock lock{mutex_};
    if (!needs_spare()) return false;
    spare_ = std::move(checked);
    return true;
  }

  // (number, minibatch, rows that were filled) of the oldest, once it is filled; None where it cannot be, because the
  // ring is empty or by error(). The end of iteration: the thread was stopped, or nothing is left.
  py::object oldest() {
    check_process();
    std::uint64_t number = 0;
    std::size_t rows = 0;
    if (native_) {
      const auto [outcome, awaited, num_rows] = wait();
      if (outcome == Outcome::kStopped || outcome == Outcome::kPending) throw py::stop_iteration{};
      if (outcome != Outcome::kFilled) return py::none{};
      number = awaited;
      rows = num_rows;
    }
    py::object minibatch;
    {
      const std::scoped_lock lock{mutex_};
      if (is_stopped_ || num_in_ == num_out_) throw py::stop_iteration{};
      // Another thread may have taken the one that was waited for. Then take() will refuse its number.
      if (!native_) number = num_out_;
      minibatch = at(std::max(number, num_out_)).minibatch;
    }
    return py::make_tuple(number, std::move(minibatch), rows);
  }

  // A member's draw for the oldest minibatch in which it has a share: its number, how far epochs were; None without.
  [[nodiscard]] py::object oldest_call(std::size_t member) {
    check_process();
    if (member >= members_.size()) throw py::index_error{"no such member"};
    const auto call = native_ ? native_->oldest_call(member) : std::nullopt;
    if (!call) return py::none{};
    return py::make_tuple(call->number, numbers_of(call->epoch));
  }

  // What the oldest minibatch was given with for a block; None where there is none.
  [[nodiscard]] py::object oldest_block() {
    check_process();
    const std::scoped_lock lock{mutex_};
    return num_in_ == num_out_ ? py::none{} : at(num_out_).owner;
  }

  // Hands minibatch `number` out. False, with nothing changed, where it is not the oldest any more, or the spare one
  // that was to take its place has done so for another. Runs nothing of Python's.
  bool take(std::uint64_t number) {
    check_process();
    Ahead gone;
    const std::scoped_lock lock{mutex_};
    if (is_stopped_ || number != num_out_ || num_in_ == num_out_ || needs_spare()) return false;
    if (native_ && !native_->take(number)) return false;
    gone = std::move(at(num_out_++));
    if (spare_) push(std::move(*std::exchange(spare_, std::nullopt)));
    return true;
  }

  // All minibatches in order, the spare one last; none of another process's.
  [[nodiscard]] std::vector<py::object> minibatches() {
    if (!is_here()) return {};
    const std::scoped_lock lock{mutex_};
    std::vector<py::object> all;
    for (std::uint64_t n = num_out_; n < num_in_; ++n) all.push_back(at(n).minibatch);
    if (spare_) all.push_back(spare_->minibatch);
    return all;
  }

  // Rows that the first member has drawn and nobody has got; none of draws that a device makes.
  [[nodiscard]] std::size_t num_rows_ahead() { return is_here() && native_ ? native_->num_rows_ahead() : 0; }
  [[nodiscard]] std::size_t num_ahead() {
    const std::scoped_lock lock{mutex_};
    return num_in_ - num_out_;
  }

  [[nodiscard]] bool is_stopped() {
    const std::scoped_lock lock{mutex_};
    return is_stopped_;
  }

  void retry() {
    check_process();
    if (native_) native_->retry();
  }

  [[nodiscard]] int error() {
    check_process();
    return native_ ? native_->error() : 0;
  }

  // Ends the thread; nothing is handed out any more. In a child after a fork there is none: what is left is forgotten.
  void stop() {
    if (!is_here()) {
      (void)native_.release();
      is_stopped_ = true;
      return;
    }
    {
      const std::scoped_lock lock{mutex_};
      is_stopped_ = true;
      if (has_ended_ || !native_)
        return;  // and keep the GIL: a destructor must not be unwound where it is not given back
    }
    PyThreadState* state = PyEval_SaveThread();  // not by a guard: see without_gil()
    native_->stop();
    PyEval_RestoreThread(state);
    const std::scoped_lock lock{mutex_};
    has_ended_ = true;
  }

  // Forgets the minibatches that nobody is to have, after stop().
  void drop() {
    std::vector<Ahead> gone;
    const std::scoped_lock lock{mutex_};
    if (!is_stopped_) throw std::runtime_error{"loader: it is not stopped"};
    for (; num_out_ < num_in_; ++num_out_) gone.push_back(std::move(at(num_out_)));
    if (spare_) gone.push_back(std::move(*std::exchange(spare_, std::nullopt)));
  }

 private:
  using Outcome = Prefetcher::Outcome;
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] bool is_here() const noexcept { return process_ == this_process(); }

  void check_process() const {
    if (!is_here()) {
      throw std::runtime_error{"loader: its thread is in the process that made it; make another after the fork"};
    }
  }

  Ahead checked(const py::object& minibatch, const py::object& block, std::uintptr_t context, double beta) const {
    if (!native_) return {.minibatch = minibatch, .owner = block, .pieces = {}};
    std::vector<Prefetcher::Piece> pieces;
    if (py::isinstance<Block>(block)) {
      pieces.push_back({.block = &block.cast<const Block&>(), .beta = beta});
    } else {
      for (const py::handle each : block.cast<py::tuple>()) {
        const auto [share, its_beta] = each.cast<std::pair<py::object, double>>();
        pieces.push_back({.block = share.is_none() ? nullptr : &share.cast<const Block&>(), .beta = its_beta});
      }
    }
    if (pieces.size() != members_.size()) throw py::value_error{"expected a share for each who draws"};
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (pieces[i].block != nullptr) check(members_[i], *pieces[i].block);
    }
    return {.minibatch = minibatch,
            .owner = block,
            .pieces = std::move(pieces),
            .context = reinterpret_cast<void*>(context)};
  }

  static void check(const Member& member, const Block& block) {
    const auto& [source, of_source] = member;
    const auto& sampler = of_source.cast<const Sampler&>();
    if (const FollowRule* follow = follow_in(source); follow != nullptr) {
      check_draws(block, sampler, follow->ring());
      follow->check(block, sampler);
    } else {
      check_draws(block, sampler, source.cast<const Ring&>());
      check_fits(block, source.cast<const Ring&>());
      check_makes_no_parts(block);
    }
  }

  [[nodiscard]] Ahead& at(std::uint64_t number) noexcept { return ahead_[number % ahead_.size()]; }

  [[nodiscard]] bool needs_spare() const noexcept {
    return is_started_ && !is_stopped_ && !spare_ && (!undrawn_ || *undrawn_ > 0);
  }

  // There is room.
  void push(Ahead&& next) {
    if (native_) native_->push(next.pieces, next.context);
    at(num_in_++) = std::move(next);
    if (undrawn_) --*undrawn_;
  }

  // Without the GIL; looks for signals meanwhile. Pending where nothing is left to wait for.
  Prefetcher::Oldest wait() {
    constexpr std::chrono::milliseconds kSignalPeriod{50};
    Prefetcher::Oldest oldest = native_->await(std::chrono::nanoseconds{0});
    if (oldest.outcome != Outcome::kPending || num_ahead() == 0) return oldest;
    const auto start = Clock::now();
    while (oldest.outcome == Outcome::kPending) {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set{};
      check_process();  // a signal handler may fork
      if (num_ahead() == 0) break;
      PyThreadState* state = PyEval_SaveThread();
      oldest = native_->await(kSignalPeriod);
      PyEval_RestoreThread(state);
    }
    waits_->note(Clock::now() - start);
    return oldest;
  }

  const std::uint64_t process_;
  const std::vector<Member> members_;

  // Guards what follows. Never held while anything of Python's runs: what is let go of goes after it.
  std::mutex mutex_;
  std::vector<Ahead> ahead_;  // minibatch n at n % size
  std::optional<Ahead> spare_;
  std::uint64_t num_in_ = 0;              // that got their turns
  std::uint64_t num_out_ = 0;             // that were handed out
  std::optional<std::uint64_t> undrawn_;  // that have not got their turns, the spare one among them; none for no end
  bool is_started_ = false;
  bool is_stopped_ = false;
  bool has_ended_ = false;  // the thread

  const std::shared_ptr<Waits> waits_;
  std::unique_ptr<Prefetcher> native_;  // the last member: its thread ends before what it uses
};

// Hands out what _prepare() has made ready: a MinibatchQueue, a number, a minibatch. Null with an error set, or with
// none where another call was first.
PyObject* hand_out_prepared(PyObject* prepared) noexcept {
  if (!PyTuple_CheckExact(prepared) || PyTuple_GET_SIZE(prepared) != 3 ||
      !py::isinstance<MinibatchQueue>(PyTuple_GET_ITEM(prepared, 0))) {
    PyErr_SetString(PyExc_TypeError, "loader: _prepare() gave no prefetcher, number and minibatch");
    return nullptr;
  }
  const std::uint64_t number = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(prepared, 1));
  if (PyErr_Occurred() != nullptr || PyErr_CheckSignals() != 0) return nullptr;
  try {
    if (!py::handle{PyTuple_GET_ITEM(prepared, 0)}.cast<MinibatchQueue&>().take(number)) return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  return Py_NewRef(PyTuple_GET_ITEM(prepared, 2));
}

// The `__next__` of loaders. `_prepare` makes ready what is to be handed out, and changes nothing that matters if it is
// interrupted. Signals are heard once more before it goes, and not between its going and its being the caller's.
//
// In C, without an object that has a destructor: at the interpreter's exit a thread that would run Python code again
// is unwound instead, and must not touch anything of Python's then.
PyObject* hand_out(PyObject* /*module*/, PyObject* loader) {
  for (;;) {
    PyObject* prepared = PyObject_CallMethod(loader, "_prepare", nullptr);
    if (prepared == nullptr) return nullptr;
    PyObject* minibatch = hand_out_prepared(prepared);
    Py_DECREF(prepared);
    if (minibatch != nullptr || PyErr_Occurred() != nullptr) return minibatch;
  }
}

PyMethodDef hand_out_method{"hand_out", &hand_out, METH_O, "Hand out a loader's next minibatch, which it prepares."};

}  // namespace

void bind_prefetcher(py::module_& m) {
  pthread_atfork(nullptr, nullptr, &count_fork);
  py::class_<Waits, std::shared_ptr<Waits>>(m, "Waits")
      .def(py::init<>())
      .def("add", &Waits::add, py::arg("seconds"))
      .def_property_readonly("count", &Waits::count)
      .def_property_readonly("seconds", &Waits::seconds);

  py::class_<MinibatchQueue>(m, "Prefetcher")
      .def(py::init([](py::object source, py::object sampler, std::size_t depth, std::optional<std::uint64_t> steps,
                       std::shared_ptr<Waits> waits, std::uintptr_t send) {
             std::vector<Member> members{{std::move(source), std::move(sampler)}};
             return std::make_unique<MinibatchQueue>(std::move(members), depth, steps, std::move(waits), send);
           }),
           py::arg("source"), py::arg("sampler"), py::arg("depth"), py::arg("steps"), py::arg("waits").none(false),
           py::arg("send") = 0)
      .def(py::init<std::vector<Member>, std::size_t, std::optional<std::uint64_t>, std::shared_ptr<Waits>,
                    std::uintptr_t>(),
           py::arg("members"), py::arg("depth"), py::arg("steps"), py::arg("waits").none(false), py::arg("send") = 0)
      .def_property_readonly("num_first", &MinibatchQueue::num_first)
      .def("start", &MinibatchQueue::start, py::arg("first"))
      .def_property_readonly("wants_spare", &MinibatchQueue::wants_spare)
      .def("put", &MinibatchQueue::put, py::arg("minibatch"), py::arg("block"), py::arg("context"), py::arg("beta"))
      .def("oldest", &MinibatchQueue::oldest)
      .def_property_readonly("oldest_call", [](MinibatchQueue& queue) { return queue.oldest_call(0); })
      .def("oldest_call_of", &MinibatchQueue::oldest_call, py::arg("member"))
      .def_property_readonly("oldest_block", &MinibatchQueue::oldest_block)
      .def("take", &MinibatchQueue::take, py::arg("number"))
      .def_property_readonly("minibatches", &MinibatchQueue::minibatches)
      .def_property_readonly("num_ahead", &MinibatchQueue::num_ahead)
      .def_property_readonly("num_rows_ahead", &MinibatchQueue::num_rows_ahead)
      .def_property_readonly("is_stopped", &MinibatchQueue::is_stopped)
      .def("retry", &MinibatchQueue::retry)
      .def_property_readonly("error", &MinibatchQueue::error)
      .def("stop", &MinibatchQueue::stop)
      .def("drop", &MinibatchQueue::drop);

  // A descriptor, so that a class may have it as its method.
  const auto function = py::reinterpret_steal<py::object>(PyCFunction_New(&hand_out_method, nullptr));
  m.attr("hand_out") = py::reinterpret_steal<py::object>(PyInstanceMethod_New(function.ptr()));
}

}  // namespace fastreplay
