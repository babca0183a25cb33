// SPDX-License-Identifier: MIT
// The tensors of one target update, watched and moved. Knows torch only through C functions that were found at run
// time, and owns nothing: fastreplay/target/watched.pyx keeps the tensors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "target/chunks.hpp"
#include "target/update.hpp"
#include "torch_abi.hpp"

namespace fastreplay {

// fastreplay_cuda_update_targets() of csrc/cuda/target.h, whose library is loaded by name.
using CudaLaunch = int (*)(int device, void* stream, const void* pairs, std::int64_t num_pairs, double tau,
                           const void* tau_on_device, int tau_is_double);

class TargetTable {
 public:
  // Remembers where a Python tensor object's elements are.
  void watch(void* object, const void* data, std::int64_t numel) { watched_.push_back({object, data, numel}); }

  // Of a pair that was watched; the target's version is counted up at every update.
  void add(void* object, const Pair& pair) {
    if (!is_supported(pair.chunk)) throw std::invalid_argument{"no kernel for this pair of dtypes"};
    targets_.push_back(object);
    pairs_.push_back(pair);
  }

  // Makes neighbours of those that a launch moves together, bytes behind the others.
  void cut() {
    const auto kind = [](const Pair& pair) {
      return std::tuple{pair.chunk.target_dtype, pair.chunk.online_dtype, pair.chunk.master != nullptr};
    };
    std::ranges::stable_sort(pairs_, {}, kind);
    chunks_ = chunks_of(pairs_);
    num_bytes_ = 0;
    for (const Pair& pair : pairs_) num_bytes_ += pair.num_elements * size_of(pair.chunk.target_dtype);
  }

  [[nodiscard]] const std::vector<Pair>& pairs() const noexcept { return pairs_; }

  // Bytes of the targets.
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

  // Whether every tensor is still where it was.
  [[nodiscard]] bool is_current(const TorchAbi& torch) const noexcept {
    for (const Watched& seen : watched_) {
      void* data = nullptr;
      std::int64_t numel = 0;
      void* tensor = handle(torch, seen.object);
      if (torch.get_data_ptr(tensor, &data) != 0 || data != seen.data) return false;
      if (torch.get_numel(tensor, &numel) != 0 || numel != seen.numel) return false;
    }
    return true;
  }

  void update(double tau, Level level, const TorchAbi& torch) const noexcept {
    in_parts(torch, chunks_, [=](std::span<const Chunk> part) { fastreplay::update(part, tau, level); });
  }

  void bump_versions(const TorchAbi& torch) const noexcept {
    for (void* object : targets_) torch.bump_version(handle(torch, object));
  }

 private:
  struct Watched {
    void* object;
    const void* data;
    std::int64_t numel;
  };

  std::vector<Watched> watched_;
  std::vector<void*> targets_;
  std::vector<Pair> pairs_;
  std::vector<Chunk> chunks_;
  std::size_t num_bytes_ = 0;
};

}  // namespace fastreplay
