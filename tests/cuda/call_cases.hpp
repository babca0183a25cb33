// SPDX-License-Identifier: MIT
// What a call leaves as it was, the thread's current device, and what it keeps nothing of: errors, arguments.
#pragma once

#include <cuda_runtime_api.h>

#include <thread>
#include <utility>
#include <vector>

#include "../cpp/check.hpp"
#include "current_device.hpp"
#include "device.hpp"
#include "sampling.h"
#include "stream.h"

namespace call_cases {

inline CUcontext current_context() {
  CUcontext context = nullptr;
  cuda::ok(fastreplay::Driver::loaded().current(&context), "cuCtxGetCurrent");
  return context;
}

// A window on device 0, set there by a kernel.
class Window {
 public:
  [[nodiscard]] int set(const cuda::Stream& stream, const fastreplay_cuda_window& now) const {
    return fastreplay_cuda_set_window(0, stream.get(), there_.at<fastreplay_cuda_window>(), &now);
  }
  [[nodiscard]] bool is(const fastreplay_cuda_window& now) const {
    cuda::finish();
    return there_.get() == cuda::bytes_of(std::vector{now});
  }

 private:
  cuda::Array there_{sizeof(fastreplay_cuda_window)};
};

// A thread that had none has none afterwards: it gets no context by the way.
inline void a_thread_stays_without_a_device(const cuda::Stream& stream, const Window& window) {
  const fastreplay_cuda_window now{.first = 1, .size = 2, .first_slot = 3};
  int error = 0;
  std::vector<CUcontext> seen;
  std::thread{[&] {
    seen.push_back(current_context());
    error = window.set(stream, now);
    seen.push_back(current_context());
  }}.join();
  CHECK_EQ(error, 0);
  CHECK(seen == std::vector<CUcontext>(2, nullptr));
  CHECK(window.is(now));
}

inline void a_thread_keeps_its_device(const cuda::Stream& stream, const Window& window) {
  const fastreplay_cuda_window now{.first = 4, .size = 5, .first_slot = 6};
  const CUcontext first = current_context();
  CHECK_EQ(window.set(stream, now), 0);
  CHECK(current_context() == first);
  if (fastreplay_cuda_device_count() > 1) {
    cuda::ok(cudaSetDevice(1), "cudaSetDevice");
    const CUcontext second = current_context();
    CHECK(second != first);
    CHECK_EQ(window.set(stream, now), 0);
    CHECK(current_context() == second);
    cuda::ok(cudaSetDevice(0), "cudaSetDevice");
  }
  CHECK(window.is(now));
}

// An error that was told is not told again of a launch that went well.
inline void an_error_is_told_once(const cuda::Stream& stream, const Window& window) {
  const fastreplay_cuda_window now{.first = 7, .size = 8, .first_slot = 9};
  CHECK(fastreplay_cuda_is_done(0, nullptr) < 0);
  CHECK_EQ(window.set(stream, now), 0);
  CHECK(window.is(now));
}

inline void a_captured_window_is_the_graphs_own(const cuda::Stream& stream, const Window& window) {
  fastreplay_cuda_window now{.first = 10, .size = 11, .first_slot = 12};
  const cuda::Graph graph{stream, [&] { CHECK_EQ(window.set(stream, now), 0); }};
  const fastreplay_cuda_window captured = std::exchange(now, {});
  graph.replay(stream);
  CHECK(window.is(captured));
}

inline void check_calls() {
  const cuda::Stream stream;
  const Window window;
  cuda::ok(fastreplay_cuda_prepare_sampling(0), "fastreplay_cuda_prepare_sampling");
  a_thread_stays_without_a_device(stream, window);
  a_thread_keeps_its_device(stream, window);
  an_error_is_told_once(stream, window);
  a_captured_window_is_the_graphs_own(stream, window);
}

}  // namespace call_cases
