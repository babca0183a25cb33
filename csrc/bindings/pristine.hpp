// SPDX-License-Identifier: MIT
// Whether a tensor is, byte for byte, what it was when it was made. Must not know torch: where its objects lie in
// each other is asked at run time (fastreplay/batch/tensor_offsets.py).
#pragma once

#include <malloc.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastreplay {

// Offsets in bytes: of the tensor in the Python object, of its storage and its version counter in the tensor, and of
// the version in its counter.
struct TensorOffsets {
  std::size_t tensor;
  std::size_t storage;
  std::size_t counter;
  std::size_t shell_bytes;   // of the Python object
  std::size_t compare_from;  // in the Python object, behind its count of references
};

// The bytes of the four objects that a tensor is made of: the Python object, torch's tensor, its storage, its version
// counter. Counts of references from elsewhere are among them, and so is every pointer to anything that an object
// gets only when somebody does something to it.
class Snapshot {
 public:
  // False where the objects have no sizes that can be.
  [[nodiscard]] bool take(const void* shell, const TensorOffsets& offsets) noexcept {
    shell_ = static_cast<const std::byte*>(shell);
    const std::byte* tensor = pointer_at(shell_ + offsets.tensor);
    spans_[0] = {shell_ + offsets.compare_from, offsets.shell_bytes - offsets.compare_from};
    spans_[1] = whole(tensor);
    if (offsets.counter < offsets.storage + sizeof(void*) || spans_[1].num_bytes < offsets.counter + sizeof(void*))
      return false;
    storage_ = offsets.storage;
    counter_ = offsets.counter;
    spans_[2] = whole(pointer_at(tensor + offsets.storage));
    spans_[3] = whole(pointer_at(tensor + offsets.counter));
    std::size_t used = 0;
    for (const Span& span : spans_) {
      if (span.num_bytes == 0 || span.num_bytes > bytes_.size() - used) return false;
      std::memcpy(bytes_.data() + used, span.first, span.num_bytes);
      used += span.num_bytes;
    }
    return true;
  }

  // From the outside in: each object is known to be there by the pointer to it in the one before, which is as it was.
  [[nodiscard]] bool holds() const noexcept {
    const std::byte* expected = bytes_.data();
    for (const Span& span : spans_) {
      if (std::memcmp(span.first, expected, span.num_bytes) != 0) return false;
      expected += span.num_bytes;
    }
    // acquire: whoever gave up a reference on another thread is done with the tensor; pairs with the release of
    // torch's own counts.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
  }

  // Whether torch's tensor is of the same form and storage: shape, strides, dtype, keys; whatever else was done to it,
  // and whoever has it. Only where the tensor itself is known to be the same.
  [[nodiscard]] bool has_form() const noexcept {
    const std::size_t form = counter_ + sizeof(void*);
    return is_same(storage_, storage_ + sizeof(void*)) && is_same(form, spans_[1].num_bytes);
  }

  // Whether autograd has nothing to do with torch's tensor: what it keeps hangs between the storage and the counter.
  // Where has_form() may be asked.
  [[nodiscard]] bool is_plain() const noexcept { return is_same(storage_ + sizeof(void*), counter_); }

  [[nodiscard]] const void* tensor() const noexcept { return spans_[1].first; }

 private:
  struct Span {
    const std::byte* first;
    std::size_t num_bytes;
  };

  // Bytes [from, to) of torch's tensor.
  [[nodiscard]] bool is_same(std::size_t from, std::size_t to) const noexcept {
    return std::memcmp(spans_[1].first + from, bytes_.data() + spans_[0].num_bytes + from, to - from) == 0;
  }

  static const std::byte* pointer_at(const std::byte* place) noexcept {
    const std::byte* pointer;
    std::memcpy(&pointer, place, sizeof pointer);
    return pointer;
  }

  // As many bytes as the allocator gave the object: none of its own lie behind them.
  static Span whole(const std::byte* object) noexcept {
    return {object, object == nullptr ? 0 : malloc_usable_size(const_cast<std::byte*>(object))};
  }

  const std::byte* shell_ = nullptr;
  // In torch's tensor: its storage and the counter of its versions, behind which its form is.
  std::size_t storage_ = 0;
  std::size_t counter_ = 0;
  std::array<Span, 4> spans_{};
  std::array<std::byte, 640> bytes_{};
};

}  // namespace fastreplay
