// SPDX-License-Identifier: MIT
#include "storage/region.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace fastreplay {

namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = 512 * kPage;

}  // namespace

Region::Region(std::size_t num_bytes) : num_bytes_{num_bytes} {
  if (num_bytes > std::numeric_limits<std::ptrdiff_t>::max() - 2 * kHugePage) throw std::bad_alloc{};
#if defined(__unix__) || defined(__APPLE__)
  if (num_bytes >= kHugePage) {
    mapping_bytes_ = num_bytes + kHugePage;
    mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc{};
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    data_ = static_cast<std::byte*>(mapping_) + ((kHugePage - address % kHugePage) % kHugePage);
#if defined(MADV_HUGEPAGE)
    // A refusal costs speed, not correctness.
    (void)madvise(data_, num_bytes, MADV_HUGEPAGE);
#endif
    return;
  }
#endif
  data_ = static_cast<std::byte*>(::operator new(num_bytes, std::align_val_t{kPage}));
  std::memset(data_, 0, num_bytes);
}

Region::~Region() { release(); }

Region::Region(Region&& other) noexcept
    : data_{std::exchange(other.data_, nullptr)},
      num_bytes_{std::exchange(other.num_bytes_, 0)},
      mapping_{std::exchange(other.mapping_, nullptr)},
      mapping_bytes_{std::exchange(other.mapping_bytes_, 0)} {}

Region& Region::operator=(Region&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    mapping_ = std::exchange(other.mapping_, nullptr);
    mapping_bytes_ = std::exchange(other.mapping_bytes_, 0);
  }
  return *this;
}

void Region::release() noexcept {
#if defined(__unix__) || defined(__APPLE__)
  if (mapping_ != nullptr) {
    munmap(mapping_, mapping_bytes_);
    return;
  }
#endif
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kPage});
}

}  // namespace fastreplay
