/* SPDX-License-Identifier: MIT */
/* What streams and events of a CUDA device are asked. Plain C: loaded by name, linked to nothing of Python or torch,
   whose handles are those of any CUDA run-time. */
#pragma once

#if defined(__cplusplus)
extern "C" {
#endif

/* 1 where what `event` (a cudaEvent_t) marks is done, 0 where it is not yet, else minus a cudaError_t. Ends no capture
   of a graph, of whichever thread: cudaEventQuery alone ends those that are in global mode, as torch's are. */
int fastreplay_cuda_is_done(int device, void* event);

/* Waits until what `event` marks is done; ends no capture. Returns a cudaError_t. */
int fastreplay_cuda_wait_for(int device, void* event);

/* 1 where `stream` (a cudaStream_t) is being captured in a graph, 0 where not, else minus a cudaError_t. */
int fastreplay_cuda_is_captured(int device, void* stream);

#if defined(__cplusplus)
}
#endif
