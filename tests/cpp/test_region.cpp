// SPDX-License-Identifier: MIT
// Region: zeroed, aligned, owned once, given back.
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "check.hpp"
#include "storage/region.hpp"

using fastreplay::Region;

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

static_assert(!std::is_copy_constructible_v<Region> && !std::is_copy_assignable_v<Region>);
static_assert(std::is_nothrow_move_constructible_v<Region> && std::is_nothrow_move_assignable_v<Region>);

void zeroed_and_aligned() {
  for (const std::size_t num_bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{63}, std::size_t{64}, std::size_t{4096}, std::size_t{4097},
        kHugePage - 1, kHugePage, kHugePage + 1, 2 * kHugePage, 3 * kHugePage + 12345}) {
    for (int turn = 0; turn < 3; ++turn) {  // again, in memory that the allocator may have given out before
      const Region memory{num_bytes};
      CHECK_EQ(memory.num_bytes(), num_bytes);
      const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
      CHECK_EQ(address % fastreplay::kCacheLine, 0U);
      if (num_bytes >= kHugePage) CHECK_EQ(address % kHugePage, 0U);
      bool zero = true;
      for (std::size_t i = 0; i < num_bytes; ++i) zero &= memory.data()[i] == std::byte{0};
      CHECK(zero);
      if (num_bytes > 0) std::memset(memory.data(), 0xEE, num_bytes);
    }
  }
}

void empty() {
  const Region memory;
  CHECK(memory.data() == nullptr);
  CHECK_EQ(memory.num_bytes(), 0U);
}

void moves() {
  for (const std::size_t num_bytes : {std::size_t{100}, 2 * kHugePage}) {
    Region first{num_bytes};
    first.data()[num_bytes - 1] = std::byte{7};
    std::byte* const address = first.data();
    Region second{std::move(first)};
    CHECK(second.data() == address);
    CHECK_EQ(second.num_bytes(), num_bytes);
    CHECK(first.data() == nullptr);  // NOLINT(bugprone-use-after-move): what is left is asked for
    CHECK_EQ(first.num_bytes(), 0U);
    for (const std::size_t replaced_bytes : {std::size_t{50}, kHugePage}) {
      Region third{replaced_bytes};
      third = std::move(second);
      CHECK(third.data() == address);
      CHECK_EQ(third.num_bytes(), num_bytes);
      CHECK(second.data() == nullptr);  // NOLINT(bugprone-use-after-move): as above
      Region& itself = third;
      third = std::move(itself);
      CHECK(third.data() == address);
      CHECK(third.data()[num_bytes - 1] == std::byte{7});
      second = std::move(third);
    }
    second = Region{};
    CHECK(second.data() == nullptr);
    CHECK_EQ(second.num_bytes(), 0U);
  }
}

bool is_mapped(std::byte* page) { return msync(page, 1, MS_ASYNC) == 0 || errno != ENOMEM; }

// What the allocator gave, the leak check of AddressSanitizer watches; a mapping it does not see.
void mappings_end() {
  std::byte* page = nullptr;
  {
    const Region memory{3 * kHugePage};
    page = memory.data() + kHugePage;
    CHECK(is_mapped(page));
  }
  CHECK(!is_mapped(page));
  Region replaced{3 * kHugePage};
  page = replaced.data() + kHugePage;
  replaced = Region{};
  CHECK(!is_mapped(page));
}

void absurd_sizes() {
  constexpr std::size_t kLargest = std::numeric_limits<std::size_t>::max();
  for (const std::size_t num_bytes : {kLargest, kLargest - kHugePage, kLargest / 2, kLargest / 2 - 2 * kHugePage,
                                      kLargest / 2 - 2 * kHugePage + 1, std::size_t{1} << 60}) {
    CHECK(check::throws<std::bad_alloc>([&] { Region{num_bytes}; }));
  }
}

}  // namespace

int main() {
  zeroed_and_aligned();
  empty();
  moves();
  mappings_end();
  absurd_sizes();
  return check::result();
}
