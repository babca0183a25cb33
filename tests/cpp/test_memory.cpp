// SPDX-License-Identifier: MIT
// Memory: zeroed, aligned, owned once.
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

#include "check.hpp"
#include "memory.hpp"

using fastreplay::Memory;

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

void zeroed_and_aligned() {
  for (const std::size_t num_bytes : {std::size_t{1}, std::size_t{63}, std::size_t{4097}, kHugePage - 1, kHugePage,
                                      kHugePage + 1, 3 * kHugePage + 12345}) {
    const Memory memory{num_bytes};
    CHECK_EQ(memory.num_bytes(), num_bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    CHECK_EQ(address % fastreplay::kCacheLine, 0U);
    if (num_bytes >= kHugePage) CHECK_EQ(address % kHugePage, 0U);
    bool zero = true;
    for (std::size_t i = 0; i < num_bytes; ++i) zero &= memory.data()[i] == std::byte{0};
    CHECK(zero);
    memory.data()[0] = memory.data()[num_bytes - 1] = std::byte{1};
  }
}

void moves() {
  for (const std::size_t num_bytes : {std::size_t{100}, 2 * kHugePage}) {
    Memory first{num_bytes};
    first.data()[num_bytes - 1] = std::byte{7};
    std::byte* const address = first.data();
    Memory second{std::move(first)};
    CHECK(second.data() == address);
    CHECK_EQ(second.num_bytes(), num_bytes);
    Memory third{50};
    third = std::move(second);
    CHECK(third.data() == address);
    CHECK(third.data()[num_bytes - 1] == std::byte{7});
    third = Memory{};
    CHECK(third.data() == nullptr);
  }
}

void absurd_sizes() {
  for (const std::size_t num_bytes :
       {std::numeric_limits<std::size_t>::max(), std::numeric_limits<std::size_t>::max() / 2, std::size_t{1} << 60}) {
    CHECK(check::throws<std::bad_alloc>([&] { Memory{num_bytes}; }));
  }
}

}  // namespace

int main() {
  zeroed_and_aligned();
  moves();
  absurd_sizes();
  return check::result();
}
