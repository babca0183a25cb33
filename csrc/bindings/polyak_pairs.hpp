// SPDX-License-Identifier: MIT
// Pairs of tensors for one average, looked at anew at every call: where they are, and whether there is a kernel
// for them. Knows torch only through C functions that were found at run time, and keeps nothing alive.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "target/chunks.hpp"
#include "target/update.hpp"
#include "torch_abi.hpp"

namespace fastreplay {

// More functions of torch's C interface, and what they answer for the tensors there are kernels for: those with
// the dispatch keys of an ordinary tensor on the CPU (fastreplay/support/torch_abi.py).
struct FormAbi {
  int (*get_dtype)(void* tensor, std::int32_t* dtype);
  int (*get_dim)(void* tensor, std::int64_t* dim);
  int (*get_sizes)(void* tensor, std::int64_t** sizes);
  int (*get_strides)(void* tensor, std::int64_t** strides);
  std::int32_t float32, float64;
  std::size_t keys_offset;
  std::uint64_t keys, inference_keys;
};

class PolyakPairs {
 public:
  PolyakPairs() {
    pairs_.reserve(32);  // as many as an actor and twin critics have
    spans_.reserve(64);
  }

  void clear() noexcept {
    pairs_.clear();
    spans_.clear();
    num_bytes_ = 0;
  }

  // Whether there is a kernel for the two Python tensor objects: on the CPU, contiguous, of one shape and of
  // float32 or of float64.
  [[nodiscard]] bool add(void* target, void* online, const TorchAbi& torch, const FormAbi& form) {
    View to{}, from{};
    if (!view_of(handle(torch, target), torch, form, to) || !view_of(handle(torch, online), torch, form, from)) {
      return false;
    }
    if (to.dtype != from.dtype || !std::ranges::equal(to.sizes, from.sizes)) return false;
    if (to.numel == 0) return true;
    const auto count = static_cast<std::size_t>(to.numel);
    pairs_.push_back({{to.data, from.data, nullptr, 0, to.dtype, to.dtype, false}, count});
    add_span(to, true);
    add_span(from, false);
    num_bytes_ += count * size_of(to.dtype);
    return true;
  }

  // Whether no target shares memory with another target or with an online tensor, so that the order in
  // which elements are moved does not matter.
  [[nodiscard]] bool are_disjoint() {
    std::ranges::sort(spans_, {}, &Span::begin);
    std::uintptr_t end = 0, end_of_targets = 0;
    for (const Span& span : spans_) {
      if (span.begin < (span.is_target ? end : end_of_targets)) return false;
      end = std::max(end, span.end);
      if (span.is_target) end_of_targets = std::max(end_of_targets, span.end);
    }
    return true;
  }

  // Bytes of the targets.
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

  void cut() { chunks_ = chunks_of(pairs_); }

  // Of the pairs that were cut.
  void average(double keep, double take, Level level, const TorchAbi& torch) const noexcept {
    in_parts(torch, chunks_, [=](std::span<const Chunk> part) { fastreplay::average(part, keep, take, level); });
  }

 private:
  struct View {
    void* data;
    std::int64_t numel;
    std::span<const std::int64_t> sizes;
    Dtype dtype;
  };
  struct Span {
    std::uintptr_t begin, end;
    bool is_target;
  };

  void add_span(const View& view, bool is_target) {
    const auto begin = reinterpret_cast<std::uintptr_t>(view.data);
    spans_.push_back({begin, begin + static_cast<std::size_t>(view.numel) * size_of(view.dtype), is_target});
  }

  // The keys come first: torch prints to stderr what a question without an answer threw.
  [[nodiscard]] static bool view_of(void* tensor, const TorchAbi& torch, const FormAbi& abi, View& view) {
    const std::uint64_t keys = keys_of(tensor, abi);
    if (keys != abi.keys && keys != abi.inference_keys) return false;
    std::int32_t dtype = 0;
    if (abi.get_dtype(tensor, &dtype) != 0 || (dtype != abi.float32 && dtype != abi.float64)) return false;
    view.dtype = dtype == abi.float32 ? Dtype::kFloat32 : Dtype::kFloat64;
    std::int64_t dim = 0;
    std::int64_t *sizes = nullptr, *strides = nullptr;
    if (abi.get_dim(tensor, &dim) != 0 || abi.get_sizes(tensor, &sizes) != 0) return false;
    if (abi.get_strides(tensor, &strides) != 0 || torch.get_numel(tensor, &view.numel) != 0) return false;
    view.sizes = {sizes, static_cast<std::size_t>(dim)};
    std::int64_t expected = 1;
    for (std::size_t i = view.sizes.size(); i-- > 0;) {
      if (sizes[i] != 1 && strides[i] != expected) return false;
      expected *= sizes[i];
    }
    if (torch.get_data_ptr(tensor, &view.data) != 0) return false;
    // Without an address its storage was freed; for the alignment see _is_aligned in fastreplay/target/plan.py.
    if (view.data == nullptr && view.numel != 0) return false;
    return reinterpret_cast<std::uintptr_t>(view.data) % size_of(view.dtype) == 0;
  }

  // `tensor` is the address of a pointer to the tensor itself.
  [[nodiscard]] static std::uint64_t keys_of(void* tensor, const FormAbi& abi) {
    const std::byte* itself = nullptr;
    std::memcpy(&itself, tensor, sizeof(itself));
    std::uint64_t keys = 0;
    if (itself != nullptr) std::memcpy(&keys, itself + abi.keys_offset, sizeof(keys));
    return keys;
  }

  std::vector<Pair> pairs_;
  std::vector<Span> spans_;
  std::vector<Chunk> chunks_;
  std::size_t num_bytes_ = 0;
};

}  // namespace fastreplay
