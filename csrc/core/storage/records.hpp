// SPDX-License-Identifier: MIT
// Storage without a protocol: packed records in slots 0, 1, ... of one region. Knows nothing of tickets, of who may
// read or write when, or of whose memory it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "storage/paging.hpp"
#include "storage/record_layout.hpp"
#include "storage/region.hpp"

namespace fastreplay {

// n rows of one field: row i starts at data + i * stride_bytes.
struct Rows {
  const std::byte* data;
  std::size_t stride_bytes;
};

// Where the frames of records lie. Whatever number is taken for a place, a frame can be read there: a file that
// somebody else may have written to has wrong ones at worst.
class FrameMemory {
 public:
  FrameMemory() noexcept = default;  // of records without frames
  FrameMemory(const std::byte* first_record, const std::byte* end) noexcept
      : first_record_{first_record}, end_{static_cast<FramePlace>(end - first_record)} {}

  [[nodiscard]] bool has(FramePlace place) const noexcept { return place < end_; }
  [[nodiscard]] const std::byte* at(FramePlace place, std::size_t frame_bytes) const noexcept {
    return first_record_ + std::min(place, end_ - frame_bytes);
  }

 private:
  const std::byte* first_record_ = nullptr;
  FramePlace end_ = 0;
};

class Records {
 public:
  // Throws std::invalid_argument on capacity 0, std::bad_alloc on sizes that do not fit, and what the memory throws.
  Records(RecordLayout layout, std::size_t capacity, Memory& memory = Memory::own());

  [[nodiscard]] const RecordLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return region_.num_bytes(); }
  [[nodiscard]] std::byte* data() noexcept { return region_.data(); }
  // Null where nothing is gained by asking for pages first.
  [[nodiscard]] Paging* paging() const noexcept { return paging_.get(); }
  [[nodiscard]] std::byte* at(std::size_t slot) noexcept { return region_.data() + slot * layout_.stride(); }
  [[nodiscard]] const std::byte* at(std::size_t slot) const noexcept {
    return region_.data() + slot * layout_.stride();
  }

  // Frames, where the layout has some: of this record alone, beside it; and wherever a place says.
  [[nodiscard]] std::byte* beside(std::size_t slot) noexcept { return region_.sparse() + slot * layout_.extra_bytes(); }
  [[nodiscard]] const FrameMemory& frames() const noexcept { return frames_; }
  [[nodiscard]] FramePlace place(const std::byte* frame) const noexcept {
    return static_cast<FramePlace>(frame - region_.data());
  }
  // The slot whose record has a frame, or has it beside it; of a place that frames() has.
  [[nodiscard]] std::size_t owner(FramePlace place) const noexcept {
    const auto begin = static_cast<FramePlace>(region_.sparse() - region_.data());
    return place < begin ? place / layout_.stride() : (place - begin) / layout_.extra_bytes();
  }
  [[nodiscard]] bool is_beside(FramePlace place) const noexcept {
    return place >= static_cast<FramePlace>(region_.sparse() - region_.data());
  }
  // Whether room beside records is paid for only where something lies in it.
  [[nodiscard]] bool is_sparse() const noexcept { return !region_.is_lent(); }
  // Whether the room beside a record is pages of its own; then these bytes of it, in whole pages, are given back.
  [[nodiscard]] bool drops_pages() const noexcept {
    return layout_.extra_bytes() > 0 && layout_.extra_bytes() % Region::kPageBytes == 0;
  }
  void drop_beside(std::size_t slot, std::size_t begin, std::size_t end) noexcept {
    if (drops_pages()) region_.drop(beside(slot) + begin, end - begin);
  }

 private:
  RecordLayout layout_;
  std::size_t capacity_;
  Region region_;
  FrameMemory frames_;
  std::shared_ptr<Paging> paging_;
};

}  // namespace fastreplay
