// SPDX-License-Identifier: MIT
// When work is long enough to be done without the GIL, and how.
#pragma once

#include <Python.h>

#include <cstddef>

namespace fastreplay {

// From here on an insert, a read, a target update goes without the GIL. Below, it is kept: beside a thread
// that runs Python without pause, whoever gave it away waits 5 ms (sys.getswitchinterval) to get it back.
// 256 cheetah rows (43 kB, 12 us) a call: 200 minibatches a second without it, 46,000 with it.
inline constexpr std::size_t kReleaseInsertBytes = std::size_t{32} << 10;
inline constexpr std::size_t kReleaseReadBytes = std::size_t{512} << 10;
inline constexpr std::size_t kReleaseUpdateBytes = std::size_t{2} << 20;  // of the targets

// Calls a noexcept function, without the GIL for copies of at least kReleaseReadBytes. Not by a guard: at the
// interpreter's exit the GIL is not given back, the thread is unwound instead, which a destructor would turn into an
// abort.
template <class Call>
auto without_gil(std::size_t num_bytes, Call call) {
  if (num_bytes < kReleaseReadBytes) return call();
  PyThreadState* state = PyEval_SaveThread();
  auto result = call();
  PyEval_RestoreThread(state);
  return result;
}

}  // namespace fastreplay
