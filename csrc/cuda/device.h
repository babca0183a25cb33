/* SPDX-License-Identifier: MIT */
/* What the CUDA part tells of itself. Plain C: loaded by name, linked to nothing of Python or torch. */
#pragma once

#if defined(__cplusplus)
extern "C" {
#endif

/* CUDA run-time version this library was compiled with, 1000 * major + 10 * minor. */
int fastreplay_cuda_runtime_version(void);

/* CUDA version the driver supports, 0 without a driver. */
int fastreplay_cuda_driver_version(void);

/* Number of usable devices, or minus the cudaError_t where the run-time refuses. Never blocks on a
   missing driver. */
int fastreplay_cuda_device_count(void);

/* The run-time's words for an error number; static storage. */
const char* fastreplay_cuda_error_string(int error);

#if defined(__cplusplus)
}
#endif
