/* SPDX-License-Identifier: MIT */
/* What surrounds the rows that are drawn from a ring in a CUDA device's memory: n steps, sequences, windows. Plain C:
   loaded by name, linked to nothing of Python or torch. */
#pragma once

#include <stdint.h>

#include "sampling.h"

#if defined(__cplusplus)
extern "C" {
#endif

/* What comes before and after a slot's transition in its lane, as core/lanes/gaps.hpp says it. In the device's memory,
   one a slot. */
struct fastreplay_cuda_link {
  uint32_t before; /* as the host has it */
  uint32_t after;  /* copied: whether the trajectory ends there; the distance to what comes after is made here */
};

/* Links of transitions that were copied, before any of them is drawn. */
struct fastreplay_cuda_linking {
  struct fastreplay_cuda_link* links;
  uint64_t capacity;
  uint64_t first_slot; /* of a run without the ring's end in it */
  uint64_t count;
  /* Of transitions that were copied earlier, and cut since: (slot, after), pairs of them; the device's. */
  const uint32_t* changes;
  uint64_t num_changes;
};

/* What becomes of a part of the block. */
enum fastreplay_cuda_making {
  FASTREPLAY_CUDA_OF_START,      /* a field of the drawn record */
  FASTREPLAY_CUDA_OF_END,        /* of the last step that is there */
  FASTREPLAY_CUDA_OF_STEPS,      /* of some steps; of one that is not there, the nearest one's */
  FASTREPLAY_CUDA_OF_STEPS_OR_0, /* the same, or zeros */
  FASTREPLAY_CUDA_OF_FIRST,      /* of the first of some steps that is there */
  FASTREPLAY_CUDA_SAY_THERE,     /* one byte for each of some steps: whether it is there */
  FASTREPLAY_CUDA_SAY_TRAINED,   /* the same, and it is not before the drawn record */
  FASTREPLAY_CUDA_SAY_FIRST,     /* whether it begins its trajectory */
  FASTREPLAY_CUDA_SUM_FLOATS,    /* discounted sums of a field, as core/batch/discounted_sums.hpp makes them */
  FASTREPLAY_CUDA_SUM_DOUBLES,
  FASTREPLAY_CUDA_DISCOUNT_FLOAT, /* what all steps discount */
  FASTREPLAY_CUDA_DISCOUNT_DOUBLE
};

/* A piece of a part: of num_steps successive rows of the block (elements, where it is sums) for each drawn row. */
struct fastreplay_cuda_made {
  struct fastreplay_cuda_piece piece; /* of one row, or an element */
  uint64_t making;
  int64_t first_step;
  uint64_t num_steps;
  uint64_t stride;
};

/* A rule (core/batch/windows.hpp). Pointers are the device's, but for `made`, which is read during the call only. */
struct fastreplay_cuda_following {
  struct fastreplay_cuda_link* links;
  uint64_t most_before;
  uint64_t most_after;
  uint64_t is_redrawn;    /* rows are drawn again that have fewer steps, though their trajectories have more */
  uint64_t is_time_major; /* steps follow each other, each of all rows; else rows, each of all steps */
  uint64_t ways_offset;
  uint64_t way_bytes;
  double gamma;
  uint64_t discount_bytes;  /* of the stored discount: 8, 4, or 0 where there is none */
  uint64_t discount_offset; /* in a record */
  const struct fastreplay_cuda_made* made;
  uint64_t num_made;
};

/* As fastreplay_cuda_prepare_sampling, for what follows. */
int fastreplay_cuda_prepare_following(int device);

/* Queues on `stream` that copied links are completed: each says to the one before it how far it is. Neither allocates
   nor waits. Returns a cudaError_t, and reads its struct during the call only. */
int fastreplay_cuda_complete_links(int device, void* stream, const struct fastreplay_cuda_linking* linking);

#if defined(__cplusplus)
}
#endif
