/* SPDX-License-Identifier: MIT */
/* Minibatches out of a ring in the memory of a CUDA device. Plain C: loaded by name, linked to nothing of
   Python or torch. */
#pragma once

#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* The transitions to draw from: tickets [first, first + size), at most as many as there are slots. */
struct fastreplay_cuda_window {
  uint64_t first;
  uint64_t size;
  uint64_t first_slot; /* where `first` lies */
};

/* The generator of core/batch/random.hpp, whose state is a call number, and what it drew. In the device's memory. */
struct fastreplay_cuda_generator {
  uint64_t key[2];
  uint64_t calls;
  uint64_t num_sampled;
  uint64_t num_without_mass; /* calls by priority that were uniform, as every mass was zero */
  uint64_t num_redraws;      /* rows that were drawn again, as they were not complete */
  uint64_t num_incomplete;   /* of these, given as they are, as nothing is complete */
};

/* A piece of a part that is copied (core/batch/layout.hpp): where it lies in a record, and in row 0 of the block. How a
   minibatch lies is said by its pieces and tickets_offset alone. Or a piece of a frame, which lies where the record
   says: so far from the first record, modulo 2^64, as 8 bytes. */
struct fastreplay_cuda_piece {
  uint64_t record_offset; /* in the record, or in the frame */
  uint64_t block_offset;
  uint64_t row_bytes; /* from one row of the block to the next */
  uint64_t num_bytes;
  uint64_t place_offset;    /* in the record, of where the frame lies */
  uint64_t frame_alignment; /* how all these frames are aligned, if the first record is; 0: it lies in the record */
  /* What becomes of it, if not 0: core/batch/conversion.hpp's Numbers, above 8 bits of these its Then, and above 16
     bits the float that is divided or multiplied by. num_bytes are those that are stored, of whole numbers. */
  uint64_t converting;
  /* How far images are shifted at most, if not 0: core/batch/conversion.hpp's Shift, by the words of the field. Then
     record_offset is that of the row, or of the frame, and the piece begins with a number of it. */
  uint64_t shift;
  uint64_t first_number;
  uint64_t number_bytes;
  uint64_t height;
  uint64_t width;
  uint64_t field;
};

/* By priority (masses.h). */
struct fastreplay_cuda_weighing;

/* With what surrounds the rows (following.h). */
struct fastreplay_cuda_following;

/* What comes before and after a transition (following.h). */
struct fastreplay_cuda_link;

/* One minibatch. Pointers are the device's, but for `now`, `pieces`, `weighing` and `following`, which are the host's
   and read during the call only: a captured graph has a copy of its own. fastreplay/gpu/ring.py fills it in and keeps
   the memory alive. */
struct fastreplay_cuda_sampling {
  const struct fastreplay_cuda_window* now; /* becomes the window with the draw; null: the draw is from *window */
  struct fastreplay_cuda_window* window;
  struct fastreplay_cuda_generator* generator;
  const void* records; /* ticket t at t % capacity * stride */
  uint64_t stride;
  uint64_t capacity;
  const struct fastreplay_cuda_piece* pieces;
  uint64_t num_pieces;
  void* block;
  uint64_t tickets_offset; /* of the part whose source is the ticket */
  uint64_t batch_size;
  const struct fastreplay_cuda_weighing* weighing; /* null: each as likely as every other */
  /* Null: transitions by themselves. Else it says what is made, and there are no pieces. */
  const struct fastreplay_cuda_following* following;
  /* Not null, where there is no weighing: each trajectory as likely as every other, which these links tell. */
  const struct fastreplay_cuda_link* trajectories;
};

/* Loads the kernels onto a device, so that no launch does it later, within the capture of a graph. Returns a
   cudaError_t: not 0 where they cannot run there. */
int fastreplay_cuda_prepare_sampling(int device);

/* Queues on `stream` (a cudaStream_t of `device`) that what is drawn later is drawn from *now, which is the host's and
   read during the call. Neither allocates nor waits. Returns a cudaError_t. */
int fastreplay_cuda_set_window(int device, void* stream, struct fastreplay_cuda_window* window,
                               const struct fastreplay_cuda_window* now);

/* Queues on `stream` that a minibatch is drawn and gathered: the rows that the Sampler of core/batch/sample.hpp would
   draw from that window at that call, and from the masses as they are by then. Where the window is empty, nothing is
   written. Two launches, and one more for each 80 pieces above 80, and
   for each 48 that are shifted. Where rows are to be complete and none is, they
   are given as they are, and counted: it never draws for ever, and never gives what is not there. Neither allocates nor
   waits; may be captured in a graph. Returns a cudaError_t. */
int fastreplay_cuda_sample(int device, void* stream, const struct fastreplay_cuda_sampling* sampling);

#if defined(__cplusplus)
}
#endif
