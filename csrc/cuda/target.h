/* SPDX-License-Identifier: MIT */
/* The target update on a CUDA device. Plain C: loaded by name, linked to nothing of Python or torch. */
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* Loads the kernel onto a device, so that no launch does it later, within the capture of a graph. Returns a
   cudaError_t: not 0 where the kernel cannot run there. */
int fastreplay_cuda_prepare_updates(int device);

/* Queues one launch on `stream` (a cudaStream_t of `device`) that updates all chunks (struct Chunk of
   core/target/chunks.hpp, on the device). Neither allocates nor waits. Where tau_on_device is not null, tau is
   read there when the kernel runs: a double if tau_is_double, else a float. Returns a cudaError_t. */
int fastreplay_cuda_update_targets(int device, void* stream, const void* chunks, int64_t num_chunks, double tau,
                                   const void* tau_on_device, int tau_is_double);

#if defined(__cplusplus)
}
#endif
