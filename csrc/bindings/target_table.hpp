// SPDX-License-Identifier: MIT
// The C++ that _target.pyx calls: the tensors of one target update, watched and moved. Knows torch only
// through C functions that were found at run time, and owns nothing: _target.pyx keeps the tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include "target.hpp"

namespace fastreplay {

// Functions of torch's libraries (fastreplay/support/torch_abi.py looks them up and tries them). A tensor is
// given as the address of an at::Tensor, which a Python tensor object holds at handle_offset.
struct TorchAbi {
  int (*get_data_ptr)(void* tensor, void** data);
  int (*get_numel)(void* tensor, std::int64_t* numel);
  void (*bump_version)(const void* tensor);
  // Calls work(begin, end, context) over parts of [begin, end) of at least `grain` on torch's own
  // threads, as many as torch.set_num_threads allows. Null before torch 2.10.
  int (*parallel_for)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                      void (*work)(std::int64_t begin, std::int64_t end, void* context), void* context);
  std::size_t handle_offset;
};

// fastreplay_cuda_update_targets() of csrc/cuda/target.h, whose library is loaded by name.
using CudaLaunch = int (*)(int device, void* stream, const void* chunks, std::int64_t num_chunks, double tau,
                           const void* tau_on_device, int tau_is_double);

// The address that torch's functions take for a Python tensor object.
inline void* handle(const TorchAbi& torch, void* object) noexcept {
  return static_cast<std::byte*>(object) + torch.handle_offset;
}

// A share that is worth waking a thread for: 131 k elements, some 15 us.
inline constexpr std::int64_t kChunksPerThread = 32;

// Calls work(part) for parts of the chunks that make up all of them, on torch's threads where there is enough to do.
template <class Work>
void in_parts(const TorchAbi& torch, std::span<const Chunk> chunks, const Work& work) noexcept {
  struct Context {
    std::span<const Chunk> chunks;
    const Work& work;
  } all{chunks, work};
  const auto run = [](std::int64_t begin, std::int64_t end, void* context) {
    const auto& from = *static_cast<const Context*>(context);
    const auto first = static_cast<std::size_t>(begin);
    from.work(from.chunks.subspan(first, static_cast<std::size_t>(end) - first));
  };
  const auto num_chunks = static_cast<std::int64_t>(chunks.size());
  // A failure is one of starting, before anything was moved.
  if (torch.parallel_for != nullptr && num_chunks > kChunksPerThread &&
      torch.parallel_for(0, num_chunks, kChunksPerThread, run, &all) == 0) {
    return;
  }
  work(chunks);
}

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

  void cut() {
    chunks_ = chunks_of(pairs_);
    num_bytes_ = 0;
    for (const Pair& pair : pairs_) num_bytes_ += pair.num_elements * size_of(pair.chunk.target_dtype);
  }

  [[nodiscard]] const std::vector<Chunk>& chunks() const noexcept { return chunks_; }

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
