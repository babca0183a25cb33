/* SPDX-License-Identifier: MIT */
/* What the transitions of a ring in a CUDA device's memory weigh, for draws by priority. Plain C: loaded by name,
   linked to nothing of Python or torch. */
#pragma once

#include <stdint.h>

#include "sampling.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* What is known of all masses. In the device's memory. */
struct fastreplay_cuda_mass_state {
  double largest;       /* the largest |p| + eps of an update, that new transitions get */
  uint64_t num_refused; /* priorities of updates that were no finite numbers */
};

/* Masses and the rule that they follow (core/priority/mass.hpp). */
struct fastreplay_cuda_masses {
  /* Of fastreplay_cuda_masses_bytes(capacity), at a multiple of 64. At FASTREPLAY_CUDA_FIRST_MASS the mass of each
     slot, float32: 0 where the slot has no transition of the window. Before it a fastreplay_cuda_mass_state, behind it
     what masses make together. */
  void* memory;
  uint64_t capacity;
  double alpha;
  double eps;
  double floor;
};

#define FASTREPLAY_CUDA_FIRST_MASS 64

/* What a draw by priority takes beside. */
struct fastreplay_cuda_weighing {
  struct fastreplay_cuda_masses masses;
  uint64_t is_stratified;
  uint64_t normalize; /* 0: not at all, 1: by the minibatch's largest weight, 2: by the buffer's */
  double uniform_mix;
  double beta;
  uint64_t weights_offset; /* in the block */
  uint64_t probabilities_offset;
};

/* Slots of transitions that came and went since the last time, each a run that may go around the ring's end. */
struct fastreplay_cuda_settling {
  struct fastreplay_cuda_masses masses;
  uint64_t first_lost;
  uint64_t num_lost;
  uint64_t first_new;
  uint64_t num_new;
};

/* New priorities for transitions of the window. Pointers are the device's. */
struct fastreplay_cuda_update {
  struct fastreplay_cuda_masses masses;
  const struct fastreplay_cuda_window* window;
  const int64_t* tickets;
  const void* priorities; /* float64 if is_double, else float32 */
  uint64_t is_double;
  uint64_t count;
  int64_t* result; /* gets how many took effect, and how many were of transitions outside the window */
};

/* Bytes of the memory of so many slots. */
uint64_t fastreplay_cuda_masses_bytes(uint64_t capacity);

/* As fastreplay_cuda_prepare_sampling, for what follows. */
int fastreplay_cuda_prepare_masses(int device);

/* Queues on `stream` that there are no masses yet. Neither this nor what follows allocates or waits; all may be
   captured in a graph. Each returns a cudaError_t, and reads its struct during the call only. */
int fastreplay_cuda_begin_masses(int device, void* stream, const struct fastreplay_cuda_masses* masses);

/* Queues that lost slots weigh nothing, and that new ones, to which a mass was copied, count with it; where its sign is
   set, the transition gets the largest priority so far, but no less than the number. */
int fastreplay_cuda_settle_masses(int device, void* stream, const struct fastreplay_cuda_settling* settling);

/* Queues an update: of equal tickets the last wins; what is of no transition of the window, and what is no finite
   number, is passed over and counted. At most 2^31 - 1 at once. */
int fastreplay_cuda_update_masses(int device, void* stream, const struct fastreplay_cuda_update* update);

#if defined(__cplusplus)
}
#endif
