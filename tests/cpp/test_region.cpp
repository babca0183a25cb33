// SPDX-License-Identifier: MIT
// Region: zeroed, aligned, owned once, given back; and a sparse part, of which pages are.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
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
    CHECK(check::throws<std::bad_alloc>([&] { Region(100, num_bytes); }));
    CHECK(check::throws<std::bad_alloc>([&] { Region(num_bytes, num_bytes); }));
  }
}

bool is_zero(const std::byte* bytes, std::size_t num_bytes) {
  return std::all_of(bytes, bytes + num_bytes, [](std::byte each) { return each == std::byte{0}; });
}

void sparse_parts() {
  for (const std::size_t num_bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{10'000}, kHugePage + 1}) {
    for (const std::size_t num_sparse_bytes : {std::size_t{1}, 3 * Region::kPageBytes, kHugePage}) {
      for (int turn = 0; turn < 2; ++turn) {  // again, as above
        Region first{num_bytes, num_sparse_bytes};
        CHECK_EQ(first.num_bytes(), num_bytes);
        std::byte* const sparse = first.sparse();
        CHECK(sparse >= first.data() + num_bytes && sparse < first.data() + num_bytes + Region::kPageBytes);
        CHECK_EQ(reinterpret_cast<std::uintptr_t>(sparse) % Region::kPageBytes, 0U);
        CHECK(is_zero(first.data(), num_bytes) && is_zero(sparse, num_sparse_bytes));
        std::memset(first.data(), 0xEE, num_bytes);
        std::memset(sparse, 0xEE, num_sparse_bytes);
        const Region second{std::move(first)};
        CHECK(second.sparse() == sparse);
      }
    }
  }
}

// Of the sparse part; the rest stays as it is.
void pages_are_dropped() {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const Region memory{100, kHugePage};
  std::byte* const sparse = memory.sparse() + (page - reinterpret_cast<std::uintptr_t>(memory.sparse()) % page) % page;
  const auto is_resident = [&](std::size_t number) {
    unsigned char state = 0;
    CHECK_EQ(mincore(sparse + number * page, page, &state), 0);
    return (state & 1) != 0;
  };
  CHECK(!is_resident(0));
  std::memset(sparse, 0xEE, 6 * page);
  memory.drop(sparse + page, 2 * page);
  for (std::size_t i = 0; i < 6; ++i) CHECK_EQ(is_resident(i), i != 1 && i != 2);
  CHECK(is_zero(sparse + page, 2 * page));
  // Of a part of a page nothing goes, as where the machine's pages are larger than ours.
  memory.drop(sparse + page - 1, page);
  memory.drop(sparse + 3 * page, page - 1);
  memory.drop(sparse + 4 * page, 0);
  memory.drop(sparse + 3 * page + 1, 2 * page);  // one page lies in it
  for (std::size_t i = 0; i < 6; ++i) {
    const bool is_gone = i == 1 || i == 2 || i == 4;
    CHECK(is_gone ? is_zero(sparse + i * page, page) : sparse[i * page] == std::byte{0xEE});
    if (!is_gone) CHECK(sparse[(i + 1) * page - 1] == std::byte{0xEE});
  }
  // What is too small to be mapped keeps its bytes.
  const Region small{100, 2 * Region::kPageBytes};
  small.sparse()[0] = std::byte{7};
  small.drop(small.sparse(), Region::kPageBytes);
  CHECK(small.sparse()[0] == std::byte{7});
}

// Far more than any machine has: what is not written costs nothing.
[[maybe_unused]] void sparse_parts_of_terabytes() {
  constexpr std::size_t kTerabyte = std::size_t{1} << 40;
  const Region memory{kHugePage, 4 * kTerabyte};
  for (const std::size_t offset : {std::size_t{0}, kTerabyte, 4 * kTerabyte - 1}) {
    CHECK(memory.sparse()[offset] == std::byte{0});
    memory.sparse()[offset] = std::byte{9};
    CHECK(memory.sparse()[offset] == std::byte{9});
  }
}

}  // namespace

int main() {
  zeroed_and_aligned();
  empty();
  moves();
  mappings_end();
  absurd_sizes();
  sparse_parts();
  pages_are_dropped();
#if !defined(__SANITIZE_ADDRESS__)  // whose shadow of that would be too large
  sparse_parts_of_terabytes();
#endif
  return check::result();
}
