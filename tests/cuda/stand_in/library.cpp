// SPDX-License-Identifier: MIT
// What stands in for the CUDA part's library: the same functions, by what the CPU has.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "batch/random.hpp"
#include "device.h"
#include "sampling.h"
#include "stream.h"
#include "target.h"
#include "target/chunks.hpp"
#include "target/update.hpp"
#include "transfer.h"

namespace {

stand_in::Stream* as_stream(void* stream) { return static_cast<stand_in::Stream*>(stream); }

// One call, with the host's part of what it was given kept as a graph keeps it.
struct Draw {
  explicit Draw(const fastreplay_cuda_sampling& given)
      : sampling{given}, pieces(given.pieces, given.pieces + given.num_pieces) {
    if (given.now != nullptr) now = *given.now;
  }

  void operator()() const {
    if (sampling.now != nullptr) *sampling.window = now;
    const auto [first, size, first_slot] = *sampling.window;
    if (size == 0) return;
    auto& [key, calls, num_sampled] = *sampling.generator;
    fastreplay::WordStream words{{key[0], key[1]}, calls++};
    auto* block = static_cast<std::byte*>(sampling.block);
    for (std::uint64_t row = 0; row < sampling.batch_size; ++row) {
      const std::uint64_t position = words.below(size), ticket = first + position;
      std::memcpy(block + sampling.tickets_offset + row * sizeof ticket, &ticket, sizeof ticket);
      const std::uint64_t slot = (first_slot + position) % sampling.capacity;
      const auto* record = static_cast<const std::byte*>(sampling.records) + slot * sampling.stride;
      for (const auto& piece : pieces) {
        std::memcpy(block + piece.block_offset + row * piece.row_bytes, record + piece.record_offset, piece.num_bytes);
      }
    }
    num_sampled += sampling.batch_size;
  }

  fastreplay_cuda_sampling sampling;
  std::vector<fastreplay_cuda_piece> pieces;
  fastreplay_cuda_window now{};
};

}  // namespace

extern "C" {

int fastreplay_cuda_runtime_version() { return 0; }
int fastreplay_cuda_driver_version() { return 0; }
int fastreplay_cuda_device_count() { return 1; }
const char* fastreplay_cuda_error_string(int) { return "an error"; }
int fastreplay_cuda_prepare_updates(int) { return 0; }
int fastreplay_cuda_prepare_sampling(int) { return 0; }

int fastreplay_cuda_send(void* transfer) {
  const auto copy = *static_cast<fastreplay_cuda_transfer*>(transfer);
  stand_in::queue(as_stream(copy.stream), [copy] { std::memcpy(copy.target, copy.host, copy.num_bytes); });
  return 0;
}

int fastreplay_cuda_set_window(int, void* stream, fastreplay_cuda_window* window, const fastreplay_cuda_window* now) {
  stand_in::queue(as_stream(stream), [window, copy = *now] { *window = copy; });
  return 0;
}

int fastreplay_cuda_sample(int, void* stream, const fastreplay_cuda_sampling* sampling) {
  stand_in::queue(as_stream(stream), Draw{*sampling});
  return 0;
}

int fastreplay_cuda_is_done(int, void*) { return 1; }
int fastreplay_cuda_wait_for(int, void*) { return 0; }
int fastreplay_cuda_is_captured(int, void* stream) { return as_stream(stream)->captured != nullptr ? 1 : 0; }

int fastreplay_cuda_update_targets(int, void* stream, const void* pairs, std::int64_t num_pairs, double tau,
                                   const void* tau_on_device, int tau_is_double) {
  const std::span all{static_cast<const fastreplay::Pair*>(pairs), static_cast<std::size_t>(num_pairs)};
  stand_in::queue(as_stream(stream), [=, chunks = fastreplay::chunks_of(all)] {
    double weight = tau;
    if (tau_on_device != nullptr) {
      weight = tau_is_double != 0 ? *static_cast<const double*>(tau_on_device)
                                  : static_cast<double>(*static_cast<const float*>(tau_on_device));
    }
    fastreplay::update(chunks, weight, fastreplay::best_level());
  });
  return 0;
}

}  // extern "C"
