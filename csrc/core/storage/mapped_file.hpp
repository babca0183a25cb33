// SPDX-License-Identifier: MIT
// Regions of a file, which every process that maps it has in common, and which outlive it. Knows nothing of what lies
// in them, nor of what the file begins with.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
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

  // The disk has room for sparse parts, too: what is found missing when it is written to ends the process. Throws
  // std::system_error where the file system cannot, std::invalid_argument where the file ends before.
  [[nodiscard]] Region take(std::size_t num_bytes, std::size_t num_sparse_bytes = 0) override;

  [[nodiscard]] std::shared_ptr<Paging> paging() const override { return paging_; }

  // One past the last region.
  [[nodiscard]] std::size_t end() const noexcept { return end_; }

  // Puts memory of this process in the place of a region's, which begins with these bytes: at once for whoever is using
  // it, and what they store goes there from then on. Throws std::system_error.
  void take_over(const Region& region, std::span<const std::byte> bytes);
  // The file's again. Throws std::system_error.
  void give_back(const Region& region);
  // What the file has of a region. Throws std::system_error.
  void read(const Region& region, std::span<std::byte> bytes);

  // Every region becomes memory of this process, of zeros, unless it is so already; the file is closed. So in the child
  // after a fork, where what the parent has is none of its business.
  void leave() noexcept;

 private:
  struct Mapping {
    void* reserved;
    std::size_t num_reserved_bytes;
    std::byte* data;  // within what is reserved
    std::size_t num_bytes;
    std::size_t begin;  // in the file
    bool is_own = false;
  };

  void make_room(std::size_t begin, std::size_t num_bytes) const;
  [[nodiscard]] Mapping& mapping_of(const Region& region);

  int descriptor_;
  std::size_t end_;
  bool is_new_;
  std::shared_ptr<Paging> paging_;
  std::vector<Mapping> mappings_;
};

}  // namespace fastreplay
