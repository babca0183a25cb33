// SPDX-License-Identifier: MIT
// Blocks of page-locked memory sent to a device.
#pragma once

#include <cstddef>
#include <cstring>

#include "../cpp/check.hpp"
#include "device.hpp"
#include "stream.h"
#include "transfer.h"

namespace transfer_cases {

// cudaEventQuery would end it.
inline void a_capture_goes_on_while_events_are_asked(const cuda::Stream& stream, cudaEvent_t event) {
  CHECK_EQ(fastreplay_cuda_is_captured(0, stream.get()), 0);
  const cuda::Graph graph{stream, [&] {
                            CHECK_EQ(fastreplay_cuda_is_captured(0, stream.get()), 1);
                            CHECK_EQ(fastreplay_cuda_is_done(0, event), 1);
                            cuda::ok(fastreplay_cuda_wait_for(0, event), "fastreplay_cuda_wait_for");
                          }};
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  cuda::ok(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  CHECK_EQ(static_cast<int>(mode), static_cast<int>(cudaStreamCaptureModeGlobal));  // as it was
}

inline void check_transfers() {
  const cuda::Stream stream;
  cudaEvent_t release = nullptr, copied = nullptr;
  for (cudaEvent_t* event : {&release, &copied}) cuda::ok(cudaEventCreate(event), "cudaEventCreate");
  for (const std::size_t num_bytes : {1, 4097, 1 << 20}) {
    const cuda::Array target{num_bytes};
    void* host = nullptr;
    cuda::ok(cudaMallocHost(&host, num_bytes), "cudaMallocHost");
    std::memset(host, 0x5A, num_bytes);
    fastreplay_cuda_transfer transfer{.target = target.at(),
                                      .host = host,
                                      .num_bytes = num_bytes,
                                      .stream = stream.get(),
                                      .release = release,
                                      .copied = copied,
                                      .device = 0};
    cuda::ok(fastreplay_cuda_send(&transfer), "fastreplay_cuda_send");
    cuda::ok(fastreplay_cuda_wait_for(0, copied), "fastreplay_cuda_wait_for");
    CHECK_EQ(fastreplay_cuda_is_done(0, copied), 1);
    CHECK(target.get() == cuda::Bytes(num_bytes, std::byte{0x5A}));
    cuda::ok(cudaFreeHost(host), "cudaFreeHost");
  }
  a_capture_goes_on_while_events_are_asked(stream, copied);
  for (const cudaEvent_t event : {release, copied}) cuda::ok(cudaEventDestroy(event), "cudaEventDestroy");
}

}  // namespace transfer_cases
