/* SPDX-License-Identifier: MIT */
/* One copy of a minibatch to a CUDA device. Plain C: loaded by name, linked to nothing of Python or torch. */
#pragma once

#include <stddef.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* A block of page-locked memory, where it goes, and what orders the copy. fastreplay/gpu/device.py fills it in and
   keeps memory, stream and events alive; torch's handles are those of any CUDA run-time. */
struct fastreplay_cuda_transfer {
  void* target;     /* on the device */
  const void* host; /* page-locked */
  size_t num_bytes;
  void* stream;  /* cudaStream_t that copies */
  void* release; /* cudaEvent_t: the work that still reads the target */
  void* copied;  /* cudaEvent_t, recorded after the copy */
  int device;
};

/* Queues, on the stream: wait for `release`, copy, record `copied`. Neither allocates nor waits. May be called
   from any thread. Takes a struct fastreplay_cuda_transfer; returns a cudaError_t. */
int fastreplay_cuda_send(void* transfer);

#if defined(__cplusplus)
}
#endif
