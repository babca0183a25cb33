// SPDX-License-Identifier: MIT
#include "storage/region.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fastreplay {

namespace {

constexpr std::size_t kPage = Region::kPageBytes;
constexpr std::size_t kHugePage = Region::kHugePageBytes;
constexpr std::size_t kMostBytes = std::numeric_limits<std::ptrdiff_t>::max() - 2 * kHugePage;

class OwnMemory final : public Memory {
 public:
  [[nodiscard]] Region take(std::size_t num_bytes, std::size_t num_sparse_bytes) override {
    return Region{num_bytes, num_sparse_bytes};
  }
};

constexpr std::size_t whole_pages(std::size_t num_bytes) noexcept { return (num_bytes + kPage - 1) / kPage * kPage; }

}  // namespace

Region::Region(std::size_t num_bytes, std::size_t num_sparse_bytes) : num_bytes_{num_bytes} {
  if (num_bytes > kMostBytes || num_sparse_bytes > kMostBytes - num_bytes) throw std::bad_alloc{};
  const std::size_t total = num_sparse_bytes == 0 ? num_bytes : whole_pages(num_bytes) + num_sparse_bytes;
#if defined(__unix__) || defined(__APPLE__)
  if (total >= kHugePage) {
    mapping_bytes_ = total + kHugePage;
    // What is sparse is not counted as if all of it were needed.
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (num_sparse_bytes == 0 ? 0 : MAP_NORESERVE);
    mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc{};
    const auto address = reinterpret_cast<std::uintptr_t>(mapping_);
    data_ = static_cast<std::byte*>(mapping_) + ((kHugePage - address % kHugePage) % kHugePage);
#if defined(MADV_HUGEPAGE)
    // A refusal costs speed, not correctness.
    (void)madvise(data_, num_bytes, MADV_HUGEPAGE);
    // Nor would it here, but memory.
    if (num_sparse_bytes > 0) (void)madvise(sparse(), num_sparse_bytes, MADV_NOHUGEPAGE);
#endif
    return;
  }
#endif
  data_ = static_cast<std::byte*>(::operator new(total, std::align_val_t{kPage}));
  std::memset(data_, 0, total);
}

Region::Region(std::shared_ptr<const void> keeper, std::byte* data, std::size_t num_bytes) noexcept
    : data_{data}, num_bytes_{num_bytes}, keeper_{std::move(keeper)} {}

std::byte* Region::sparse() const noexcept { return data_ + whole_pages(num_bytes_); }

void Region::drop(std::byte* begin, std::size_t num_bytes) const noexcept {
#if defined(MADV_DONTNEED)
  if (mapping_ == nullptr) return;
  // The machine's pages may be larger than ours, and what is advised is rounded up to them.
  static const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + num_bytes) / page * page;
  if (first < end) (void)madvise(begin + (first - address), end - first, MADV_DONTNEED);
#endif
}

Region::~Region() { release(); }

Region::Region(Region&& other) noexcept
    : data_{std::exchange(other.data_, nullptr)},
      num_bytes_{std::exchange(other.num_bytes_, 0)},
      mapping_{std::exchange(other.mapping_, nullptr)},
      mapping_bytes_{std::exchange(other.mapping_bytes_, 0)},
      keeper_{std::move(other.keeper_)} {}

Region& Region::operator=(Region&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    mapping_ = std::exchange(other.mapping_, nullptr);
    mapping_bytes_ = std::exchange(other.mapping_bytes_, 0);
    keeper_ = std::move(other.keeper_);
  }
  return *this;
}

void Region::release() noexcept {
  if (keeper_ != nullptr) return;
#if defined(__unix__) || defined(__APPLE__)
  if (mapping_ != nullptr) {
    munmap(mapping_, mapping_bytes_);
    return;
  }
#endif
  if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kPage});
}

Memory& Memory::own() noexcept {
  static OwnMemory memory;
  return memory;
}

}  // namespace fastreplay
