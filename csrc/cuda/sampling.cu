// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "block_steps.hpp"
#include "current_device.hpp"
#include "followed_draw.hpp"
#include "followed_gather.hpp"
#include "following.h"
#include "launch.hpp"
#include "sampling.h"
#include "sampling_kernel.hpp"
#include "trajectory_rows.hpp"
#include "weighed_draw.hpp"

namespace {

using namespace fastreplay;

// One block: the draws of a call are counted once all are made.
__global__ void __launch_bounds__(kDrawThreads) draw_tickets(const __grid_constant__ Draw draw) {
  const fastreplay_cuda_window window = draw.drawn_from();
  if (draw.has_window && threadIdx.x == 0) *draw.window = window;  // for the gather, and for graphs that are replayed
  if (window.size == 0) return;
  draw_share(draw, window, threadIdx.x);
  __syncthreads();  // all have read the call's number
  if (threadIdx.x == 0) count_draws(draw);
}

template <class Copied, bool kHasFrames>
__global__ void __launch_bounds__(kGatherThreads) gather_rows(const __grid_constant__ Gather<Copied> gather) {
  if (gather.window->size == 0) return;
  gather_share<kHasFrames>(gather, std::uint64_t{blockIdx.x} * kGatherThreads + threadIdx.x, blockIdx.y);
}

template <class Copied, bool kHasFrames>
__global__ void __launch_bounds__(kGatherThreads) follow_rows(const __grid_constant__ FollowedGather<Copied> gather) {
  if (gather.window->size == 0) return;
  follow_share<kHasFrames>(gather, std::uint64_t{blockIdx.x} * kGatherThreads + threadIdx.x, blockIdx.y);
}

template <class Work>
cudaError_t queue_steps(void* stream, const fastreplay_cuda_sampling& sampling) {
  return launch(in_steps<Work>, dim3{1}, Work::kThreads, stream, Work::of(sampling));
}

cudaError_t queue_draw(void* stream, const fastreplay_cuda_sampling& sampling) {
  const bool is_weighed = sampling.weighing != nullptr;
  if (sampling.following != nullptr) {
    return is_weighed                         ? queue_steps<FollowedDraw<WeighedDraw>>(stream, sampling)
           : sampling.trajectories != nullptr ? queue_steps<FollowedDraw<TrajectoryRows>>(stream, sampling)
                                              : queue_steps<FollowedDraw<UniformRows>>(stream, sampling);
  }
  if (is_weighed) return queue_steps<WeighedDraw>(stream, sampling);
  if (sampling.trajectories != nullptr) return queue_steps<TrajectoryRows>(stream, sampling);
  return launch(draw_tickets, dim3{1}, kDrawThreads, stream, Draw::of(sampling));
}

bool is_of_frame(const fastreplay_cuda_piece& piece) { return piece.frame_alignment != 0; }

// In as many launches as it takes.
template <class Gathering, class Piece>
cudaError_t queue_gather(void (*kernel)(Gathering), void* stream, const fastreplay_cuda_sampling& sampling,
                         std::span<const Piece> rest) {
  Gathering gather{sampling};
  while (!rest.empty()) {
    const std::uint64_t num_blocks = (gather.take(rest) + kGatherThreads - 1) / kGatherThreads;
    if (num_blocks == 0) break;
    if (num_blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidConfiguration;
    const dim3 blocks{static_cast<unsigned>(num_blocks), gather.num_pieces};
    if (const auto error = launch(kernel, blocks, kGatherThreads, stream, gather)) return error;
  }
  return cudaSuccess;
}

struct NewWindow {
  fastreplay_cuda_window* window;
  fastreplay_cuda_window now;
};

__global__ void set_window(const __grid_constant__ NewWindow parameters) { *parameters.window = parameters.now; }

}  // namespace

extern "C" {

int fastreplay_cuda_prepare_sampling(int device) {
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  cudaFuncAttributes attributes;
  if (const auto error = cudaFuncGetAttributes(&attributes, draw_tickets)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<WeighedDraw>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<TrajectoryRows>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<FollowedDraw<TrajectoryRows>>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<FollowedDraw<UniformRows>>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<FollowedDraw<WeighedDraw>>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, gather_rows<GatheredPiece, false>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, gather_rows<GatheredPiece, true>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, gather_rows<ShiftedPiece, true>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, follow_rows<GatheredPiece, false>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, follow_rows<GatheredPiece, true>)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, follow_rows<ShiftedPiece, true>)) return error;
  return cudaFuncGetAttributes(&attributes, set_window);
}

int fastreplay_cuda_set_window(int device, void* stream, fastreplay_cuda_window* window,
                               const fastreplay_cuda_window* now) {
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  return launch(set_window, dim3{1}, 1, stream, NewWindow{window, *now});
}

int fastreplay_cuda_sample(int device, void* stream, const fastreplay_cuda_sampling* sampling) {
  if (sampling->batch_size == 0) return cudaSuccess;
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  if (const auto error = queue_draw(stream, *sampling)) return error;
  if (const fastreplay_cuda_following* following = sampling->following; following != nullptr) {
    const std::span made{following->made, following->num_made};
    const bool has_frames = std::ranges::any_of(made, [](const auto& each) { return is_of_frame(each.piece); });
    const auto follow = has_frames ? follow_rows<GatheredPiece, true> : follow_rows<GatheredPiece, false>;
    if (const auto error = queue_gather(follow, stream, *sampling, made)) return error;
    return queue_gather(follow_rows<ShiftedPiece, true>, stream, *sampling, made);
  }
  const std::span pieces{sampling->pieces, sampling->num_pieces};
  const bool has_frames = std::ranges::any_of(pieces, is_of_frame);
  const auto gather = has_frames ? gather_rows<GatheredPiece, true> : gather_rows<GatheredPiece, false>;
  if (const auto error = queue_gather(gather, stream, *sampling, pieces)) return error;
  return queue_gather(gather_rows<ShiftedPiece, true>, stream, *sampling, pieces);
}

}  // extern "C"
