// SPDX-License-Identifier: MIT
// The checksum against its definition, bit by bit, and against the number that everybody's is compared with.
#include <cstring>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "storage/crc32.hpp"

using fastreplay::crc32;
using fastreplay::folds_crc32;

namespace {

std::uint32_t by_bits(std::uint32_t before, std::span<const std::byte> bytes) {
  std::uint32_t state = ~before;
  for (const std::byte byte : bytes) {
    state ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) != 0 ? 0xEDB8'8320 : 0);
  }
  return ~state;
}

}  // namespace

int main() {
  const std::string_view digits = "123456789";
  CHECK_EQ(crc32(0, std::as_bytes(std::span{digits}), false), 0xCBF4'3926U);

  check::Random random{7};
  std::vector<std::byte> data(5000);
  for (std::byte& byte : data) byte = static_cast<std::byte>(random.next());
  const std::span<const std::byte> all{data};
  for (const bool folds : {false, true}) {
    if (folds && !folds_crc32()) continue;
    for (std::size_t length = 0; length <= 400; ++length) {
      const auto part = all.subspan(random.below(16), length);  // wherever it lies
      const auto before = static_cast<std::uint32_t>(random.next());
      CHECK_EQ(crc32(before, part, folds), by_bits(before, part));
    }
    CHECK_EQ(crc32(0, all, folds), by_bits(0, all));
    const std::size_t cut = random.below(data.size());  // what goes on is what was not cut
    CHECK_EQ(crc32(crc32(0, all.first(cut), folds), all.subspan(cut), folds), by_bits(0, all));
  }
  return check::result();
}
