// SPDX-License-Identifier: MIT
// torch's functions, found at run time, and the chunks of an update in parts on torch's threads. Must not know Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "target/chunks.hpp"

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

}  // namespace fastreplay
