// SPDX-License-Identifier: MIT
// One call at a time: a lock that Python code cannot leave locked. A `with` statement can, where an exception comes
// between its body and its end; and a lock that its thread may take twice lets a signal handler or a finalizer into
// the middle of what it guards.
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <mutex>

#include "module.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

class Turn {
 public:
  // Null with an error set: this thread has the turn already, a signal handler raised, or the function did. Looks for
  // signals while it waits. Holds nothing with a destructor while Python code runs: see hand_out().
  PyObject* call(PyObject* function) noexcept {
    const unsigned long self = PyThread_get_thread_ident();
    // relaxed: only this thread writes its own number; partners: the stores below.
    if (owner_.load(std::memory_order_relaxed) == self) {
      PyErr_SetString(PyExc_RuntimeError,
                      "a signal handler or a finalizer interrupted a call that is not to be entered again before it is "
                      "over");
      return nullptr;
    }
    while (!mutex_.try_lock()) {
      if (PyErr_CheckSignals() != 0) return nullptr;
      PyThreadState* state = PyEval_SaveThread();
      const bool is_ours = mutex_.try_lock_for(kSignalPeriod);
      PyEval_RestoreThread(state);
      if (is_ours) break;
    }
    owner_.store(self, std::memory_order_relaxed);  // relaxed: as above
    PyObject* result = PyObject_CallNoArgs(function);
    owner_.store(0, std::memory_order_relaxed);  // relaxed: as above
    mutex_.unlock();
    return result;
  }

 private:
  static constexpr std::chrono::milliseconds kSignalPeriod{50};

  std::timed_mutex mutex_;
  std::atomic<unsigned long> owner_{0};
};

PyObject* call_in_turn(PyObject* /*module*/, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !py::isinstance<Turn>(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "call_in_turn: expected a Turn and a function");
    return nullptr;
  }
  Turn* turn = nullptr;
  try {
    turn = &py::handle{arguments[0]}.cast<Turn&>();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
    return nullptr;
  }
  return turn->call(arguments[1]);
}

PyMethodDef call_in_turn_method{
    "call_in_turn", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call_in_turn)), METH_FASTCALL,
    "Call a function without arguments while nobody else is in a call of the same turn."};

}  // namespace

void bind_turn(py::module_& m) {
  py::class_<Turn>(m, "Turn").def(py::init<>());
  m.attr("call_in_turn") = py::reinterpret_steal<py::object>(PyCFunction_New(&call_in_turn_method, nullptr));
}

}  // namespace fastreplay
