/* SPDX-License-Identifier: MIT */
/* The target update on a CUDA device. Plain C: loaded by name, linked to nothing of Python or torch. */
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* Loads the kernels onto a device, so that no launch does it later, within the capture of a graph. Returns a
   cudaError_t: not 0 where they cannot run there. */
int fastreplay_cuda_prepare_updates(int device);

/* Queues on `stream` (a cudaStream_t of `device`) that all pairs are updated: an array of struct Pair of
   core/target/chunks.hpp, in the host's memory, read during the call only; a captured graph has a copy of its own. One
   launch moves up to 817 neighbours of the same dtypes, and of bytes among them; 101 before CUDA 12.1. Neither
   allocates nor waits. Where tau_on_device is not null, tau is read there when the kernels run: a double if
   tau_is_double, else a float. Returns a cudaError_t. */
int fastreplay_cuda_update_targets(int device, void* stream, const void* pairs, int64_t num_pairs, double tau,
                                   const void* tau_on_device, int tau_is_double);

#if defined(__cplusplus)
}
#endif
