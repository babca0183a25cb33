// SPDX-License-Identifier: MIT
#include "storage/mapped_file.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include "storage/record_layout.hpp"

#if defined(__linux__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace fastreplay {

#if defined(__linux__)

namespace {

constexpr std::size_t kMostFileBytes = std::numeric_limits<std::ptrdiff_t>::max() / 2;

[[noreturn]] void throw_errno(const char* what) { throw std::system_error{errno, std::generic_category(), what}; }

std::size_t file_bytes(int descriptor) {
  struct stat found{};
  if (fstat(descriptor, &found) != 0) throw_errno("fstat");
  return static_cast<std::size_t>(found.st_size);
}

}  // namespace

bool MappedFile::is_supported() noexcept { return true; }

MappedFile::MappedFile(int descriptor, std::size_t begin, bool is_new, bool fits)
    : descriptor_{fcntl(descriptor, F_DUPFD_CLOEXEC, 0)},
      end_{begin},
      is_new_{is_new},
      paging_{fits ? nullptr : std::make_shared<Paging>()} {
  if (descriptor_ < 0) throw_errno("fcntl");
}

Region MappedFile::take(std::size_t num_bytes, std::size_t num_sparse_bytes) {
  if (num_bytes > kMostFileBytes - end_ || num_sparse_bytes > kMostFileBytes - end_ - num_bytes) throw std::bad_alloc{};
  // Address and place in the file alike: else pages are not huge.
  const std::size_t alignment = num_bytes < Region::kHugePageBytes ? Region::kPageBytes : Region::kHugePageBytes;
  const std::size_t begin = round_up(end_, alignment);
  const std::size_t dense_bytes = round_up(num_bytes, Region::kPageBytes);
  const std::size_t mapped_bytes = dense_bytes + round_up(num_sparse_bytes, Region::kPageBytes);
  make_room(begin, mapped_bytes);
  mappings_.reserve(mappings_.size() + 1);
  const std::size_t room = mapped_bytes + alignment;
  void* reserved = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) throw_errno("mmap");
  auto* data = reinterpret_cast<std::byte*>(round_up(reinterpret_cast<std::uintptr_t>(reserved), alignment));
  const auto place = static_cast<off_t>(begin);
  if (mmap(data, mapped_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor_, place) == MAP_FAILED) {
    const int error = errno;
    (void)munmap(reserved, room);
    errno = error;
    throw_errno("mmap");
  }
  mappings_.push_back(
      {.reserved = reserved, .num_reserved_bytes = room, .data = data, .num_bytes = mapped_bytes, .begin = begin});
  // Rows are read at random: where memory is short, their neighbours are not worth the disk's time. A refusal costs
  // speed.
  (void)madvise(data, dense_bytes, paging_ == nullptr ? MADV_HUGEPAGE : MADV_RANDOM);
  if (num_sparse_bytes > 0) (void)madvise(data + dense_bytes, mapped_bytes - dense_bytes, MADV_RANDOM);
  end_ = begin + mapped_bytes;
  return Region{shared_from_this(), data, num_bytes};
}

void MappedFile::make_room(std::size_t begin, std::size_t num_bytes) const {
  if (is_new_) {
    // For all of it: a page that the disk has no room for, found when it is written to, would end the process.
    while (fallocate(descriptor_, 0, static_cast<off_t>(end_), static_cast<off_t>(begin + num_bytes - end_)) != 0) {
      if (errno != EINTR) throw_errno("fallocate");
    }
  } else if (const std::size_t there = file_bytes(descriptor_); there < begin + num_bytes) {
    throw std::invalid_argument{"the file ends at " + std::to_string(there) + ", before " +
                                std::to_string(begin + num_bytes)};
  }
}

MappedFile::Mapping& MappedFile::mapping_of(const Region& region) {
  const auto found = std::ranges::find(mappings_, region.data(), &Mapping::data);
  if (found == mappings_.end()) throw std::invalid_argument{"a region of another file"};
  return *found;
}

void MappedFile::take_over(const Region& region, std::span<const std::byte> bytes) {
  Mapping& mapping = mapping_of(region);
  void* own = mmap(nullptr, mapping.num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (own == MAP_FAILED) throw_errno("mmap");
  std::memcpy(own, bytes.data(), std::min(bytes.size(), mapping.num_bytes));
  if (mremap(own, mapping.num_bytes, mapping.num_bytes, MREMAP_MAYMOVE | MREMAP_FIXED, mapping.data) == MAP_FAILED) {
    const int error = errno;
    (void)munmap(own, mapping.num_bytes);
    errno = error;
    throw_errno("mremap");
  }
  mapping.is_own = true;
}

void MappedFile::give_back(const Region& region) {
  Mapping& mapping = mapping_of(region);
  if (mmap(mapping.data, mapping.num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, descriptor_,
           static_cast<off_t>(mapping.begin)) == MAP_FAILED) {
    throw_errno("mmap");
  }
  mapping.is_own = false;
}

void MappedFile::read(const Region& region, std::span<std::byte> bytes) {
  const auto begin = static_cast<off_t>(mapping_of(region).begin);
  const ssize_t num_read = pread(descriptor_, bytes.data(), bytes.size(), begin);
  if (num_read != static_cast<ssize_t>(bytes.size())) throw_errno("pread");
}

MappedFile::~MappedFile() {
  for (const Mapping& each : mappings_) (void)munmap(each.reserved, each.num_reserved_bytes);
  if (descriptor_ >= 0) (void)close(descriptor_);
}

void MappedFile::leave() noexcept {
  constexpr int kFlags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  for (Mapping& each : mappings_) {
    // It replaces what lies there, and so takes no more of anything but of the counts that overcommitting ignores.
    if (!each.is_own) (void)mmap(each.data, each.num_bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    each.is_own = true;
  }
  if (descriptor_ >= 0) (void)close(descriptor_);
  descriptor_ = -1;
}

#else

bool MappedFile::is_supported() noexcept { return false; }

MappedFile::MappedFile(int /*descriptor*/, std::size_t begin, bool is_new, bool /*fits*/)
    : descriptor_{-1}, end_{begin}, is_new_{is_new} {}

Region MappedFile::take(std::size_t /*num_bytes*/, std::size_t /*num_sparse_bytes*/) {
  throw std::invalid_argument{"files are not mapped on this system"};
}

MappedFile::~MappedFile() = default;

void MappedFile::take_over(const Region& /*region*/, std::span<const std::byte> /*bytes*/) {}

void MappedFile::give_back(const Region& /*region*/) {}

void MappedFile::read(const Region& /*region*/, std::span<std::byte> /*bytes*/) {}

void MappedFile::leave() noexcept {}

#endif

}  // namespace fastreplay
