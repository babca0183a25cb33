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
#include <atomic>
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

namespace py = pybind11;

namespace fastreplay {

namespace {

// How often somebody waited, and how long in all.
class Waits {
 public:
  void add(double seconds) noexcept { note(std::chrono::duration_cast<Nanoseconds>(Seconds{seconds})); }

  void note(std::chrono::nanoseconds waited) noexcept {
    // relaxed, here and below: statistics, each by itself; partners: the loads below.
    count_.fetch_add(1, std::memory_order_relaxed);
    nanoseconds_.fetch_add(waited.count(), std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t count() const noexcept { return count_.load(std::memory_order_relaxed); }
  [[nodiscard]] double seconds() const noexcept {
    return Seconds{Nanoseconds{nanoseconds_.load(std::memory_order_relaxed)}}.count();
  }

 private:
  using Seconds = std::chrono::duration<double>;
  using Nanoseconds = std::chrono::nanoseconds;

  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::int64_t> nanoseconds_{0};
};

// Tells a child after a fork from its parent, at less than the system call getpid() costs.
std::atomic<std::uint64_t> num_forks{0};

std::uint64_t this_process() noexcept {
  // relaxed: set before the child has a second thread; partner: the increment in the child.
  return num_forks.load(std::memory_order_relaxed);
}

void count_fork() noexcept {
  // relaxed: as above; partner: the load in this_process().
  num_forks.fetch_add(1, std::memory_order_relaxed);
}

// A minibatch, and what keeps the memory that it is to be filled into.
struct Ahead {
  py::object minibatch;
  py::object owner;              // of the block
  const Block* block = nullptr;  // null where something else than the thread fills it
  void* context = nullptr;
  double beta = 0;  // of its weights
};

// The minibatches of a loader, and the core's prefetcher that fills them. Python calls it a Prefetcher.
class MinibatchQueue {
 public:
  // `source` is the ring, or what surrounds the rows drawn from one. Without it there is no thread, and every block
  // counts as filled. `steps`: how many minibatches there are.
  MinibatchQueue(py::object source, py::object sampler, std::size_t depth, std::optional<std::uint64_t> steps,
                 std::shared_ptr<Waits> waits, std::uintptr_t send)
      : process_{this_process()},
        source_{std::move(source)},
        sampler_{std::move(sampler)},
        undrawn_{steps},
        waits_{std::move(waits)} {
    if (steps) depth = static_cast<std::size_t>(std::min<std::uint64_t>(depth, *steps));
    ahead_.resize(depth);
    if (source_.is_none() || depth == 0) return;
    const FollowRule* follow = follow_in(source_);
    native_ = std::make_unique<Prefetcher>(follow == nullptr ? source_.cast<Ring&>() : follow->ring(),
                                           sampler_.cast<Sampler&>(), depth, reinterpret_cast<Prefetcher::Send>(send),
                                           follow == nullptr ? nullptr : &follow->following());
  }

  ~MinibatchQueue() { stop(); }
  MinibatchQueue(const MinibatchQueue&) = delete;
  MinibatchQueue& operator=(const MinibatchQueue&) = delete;

  // How many minibatches start() takes.
  [[nodiscard]] std::size_t num_first() const noexcept { return ahead_.size(); }

  // Gives the first minibatches their turns: (minibatch, block, context, beta) each.
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

  // The draw that the oldest minibatch is of, its number and how far epochs were before it; None where there is none.
  [[nodiscard]] py::object oldest_call() {
    check_process();
    const auto call = native_ ? native_->oldest_call() : std::nullopt;
    if (!call) return py::none{};
    return py::make_tuple(call->number, numbers_of(call->epoch));
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

  // Ends the thread; nothing is handed out any more. In a child after a fork there is no thread, and its mutexes are
  // as they were: what is left of it is forgotten.
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
    if (!native_) return {.minibatch = minibatch};
    const auto& native = block.cast<const Block&>();
    const auto& sampler = sampler_.cast<const Sampler&>();
    if (const FollowRule* follow = follow_in(source_); follow != nullptr) {
      check_draws(native, sampler, follow->ring());
      follow->check(native, sampler);
    } else {
      check_draws(native, sampler, source_.cast<const Ring&>());
      check_fits(native, source_.cast<const Ring&>());
      check_makes_no_parts(native);
    }
    return {.minibatch = minibatch,
            .owner = block,
            .block = &native,
            .context = reinterpret_cast<void*>(context),
            .beta = beta};
  }

  [[nodiscard]] Ahead& at(std::uint64_t number) noexcept { return ahead_[number % ahead_.size()]; }

  [[nodiscard]] bool needs_spare() const noexcept {
    return is_started_ && !is_stopped_ && !spare_ && (!undrawn_ || *undrawn_ > 0);
  }

  // There is room.
  void push(Ahead&& next) {
    if (native_) native_->push(*next.block, next.context, next.beta);
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
  const py::object source_;
  const py::object sampler_;

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
      .def(py::init<py::object, py::object, std::size_t, std::optional<std::uint64_t>, std::shared_ptr<Waits>,
                    std::uintptr_t>(),
           py::arg("source"), py::arg("sampler"), py::arg("depth"), py::arg("steps"), py::arg("waits").none(false),
           py::arg("send") = 0)
      .def_property_readonly("num_first", &MinibatchQueue::num_first)
      .def("start", &MinibatchQueue::start, py::arg("first"))
      .def_property_readonly("wants_spare", &MinibatchQueue::wants_spare)
      .def("put", &MinibatchQueue::put, py::arg("minibatch"), py::arg("block"), py::arg("context"), py::arg("beta"))
      .def("oldest", &MinibatchQueue::oldest)
      .def_property_readonly("oldest_call", &MinibatchQueue::oldest_call)
      .def("take", &MinibatchQueue::take, py::arg("number"))
      .def_property_readonly("minibatches", &MinibatchQueue::minibatches)
      .def_property_readonly("num_ahead", &MinibatchQueue::num_ahead)
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
