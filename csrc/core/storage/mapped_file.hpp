// SPDX-License-Identifier: MIT
// Regions of a file, which every process that maps it has in common, and which outlive it. Knows nothing of what lies
// in them, nor of what the file begins with.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "storage/paging.hpp"
#include "storage/region.hpp"

namespace fastreplay {

class MappedFile final : public Memory, public std::enable_shared_from_this<MappedFile> {
 public:
  // Whether regions are mapped here at all.
  [[nodiscard]] static bool is_supported() noexcept;

  // Of an open file, of which it has a descriptor of its own; regions lie from `begin` on, a multiple of kPageBytes.
  // Where it is new, the file gets longer by each region that is taken, the disk having room for all of it; else the
  // regions are those that were taken before in the same order. Where all of it fits into memory, its pages are huge,
  // and come by so many; else alone. To be held by a shared_ptr; each region holds it, too. Throws std::system_error
  // where there are too many.
  MappedFile(int descriptor, std::size_t begin, bool is_new, bool fits);
  ~MappedFile() override;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  // Throws std::system_error where the file system cannot, std::invalid_argument where the file ends before, or on a
  // sparse part, of which it is not known whether the disk has room.
  [[nodiscard]] Region take(std::size_t num_bytes, std::size_t num_sparse_bytes = 0) override;

  [[nodiscard]] std::shared_ptr<Paging> paging() const override { return paging_; }

  // One past the last region.
  [[nodiscard]] std::size_t end() const noexcept { return end_; }

  // In the child after a fork: what the parent has is none of its business. Every region becomes memory of its own, of
  // zeros; the file is closed.
  void leave() noexcept;

 private:
  struct Mapping {
    void* address;
    std::size_t num_bytes;
  };

  void make_room(std::size_t begin, std::size_t num_bytes) const;

  int descriptor_;
  std::size_t end_;
  bool is_new_;
  std::shared_ptr<Paging> paging_;
  std::vector<Mapping> mappings_;
};

}  // namespace fastreplay
