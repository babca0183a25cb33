// SPDX-License-Identifier: MIT
#include "storage/paging.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

#include "storage/region.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/resource.h>
#endif

namespace fastreplay {

namespace {

constexpr int kCopiesAfterFault = 64;

#if defined(__linux__)

long major_faults() noexcept {
  rusage usage{};
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_majflt : 0;
}

// Asks for what is not there of a few pages. Returns whether anything was missing.
bool ask_for_missing(const std::byte* begin, std::size_t num_bytes) noexcept {
  constexpr std::size_t kMostPages = 64;
  constexpr std::uintptr_t kPage = Region::kPageBytes;
  std::array<unsigned char, kMostPages> is_there;
  bool is_missing = false;
  const auto end = reinterpret_cast<std::uintptr_t>(begin) + num_bytes;
  for (std::uintptr_t at = reinterpret_cast<std::uintptr_t>(begin) / kPage * kPage; at < end;
       at += kMostPages * kPage) {
    const std::size_t count = std::min(kMostPages, (end - at + kPage - 1) / kPage);
    auto* address = reinterpret_cast<void*>(at);
    if (mincore(address, count * kPage, is_there.data()) != 0) continue;
    if (std::all_of(is_there.begin(), is_there.begin() + count, [](unsigned char page) { return (page & 1) != 0; })) {
      continue;
    }
    is_missing = true;
    (void)madvise(address, count * kPage, MADV_WILLNEED);
  }
  return is_missing;
}

#else

long major_faults() noexcept { return 0; }
bool ask_for_missing(const std::byte* /*begin*/, std::size_t /*num_bytes*/) noexcept { return false; }

#endif

}  // namespace

Paging::Copy::Copy(Paging* paging) noexcept
    // relaxed: a hint.
    : paging_{paging}, asks_{paging != nullptr && paging->copies_left_.load(std::memory_order_relaxed) > 0} {
  if (paging_ != nullptr && !asks_) faults_before_ = major_faults();
}

Paging::Copy::~Copy() {
  if (paging_ == nullptr) return;
  if (asks_ && !has_asked_) {
    // relaxed: a hint; several may count down from the same number.
    paging_->copies_left_.fetch_sub(1, std::memory_order_relaxed);
  } else if (asks_ || major_faults() > faults_before_) {
    // relaxed: a hint.
    paging_->copies_left_.store(kCopiesAfterFault, std::memory_order_relaxed);
  }
}

void Paging::Copy::ask(const std::byte* row, std::size_t num_bytes) noexcept {
  has_asked_ |= ask_for_missing(row, num_bytes);
}

void Paging::ask(const std::byte* begin, std::size_t num_bytes) noexcept { (void)ask_for_missing(begin, num_bytes); }

}  // namespace fastreplay
