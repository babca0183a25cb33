// SPDX-License-Identifier: MIT
// Copies of every size at every misalignment: all of the row, nothing beside it.
#include <vector>

#include "check.hpp"
#include "copy.hpp"

namespace {

constexpr std::byte kCanary{0xEE};

std::vector<std::byte> random_bytes(std::size_t num_bytes, std::uint64_t seed) {
  check::Random random{seed};
  std::vector<std::byte> bytes(num_bytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

std::vector<std::size_t> sizes() {
  std::vector<std::size_t> found;
  for (std::size_t size = 1; size <= 300; ++size) found.push_back(size);
  for (const std::size_t size : {8191, 8192, 8193, 28224}) found.push_back(size);
  return found;
}

template <class Copy>
void one_row(Copy copy, std::size_t size, std::size_t to_offset, std::size_t from_offset) {
  const auto from = random_bytes(size + 64, size);
  std::vector<std::byte> to(size + 64, kCanary);
  copy(to.data() + to_offset, from.data() + from_offset, size);
  bool right = true;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const bool inside = i >= to_offset && i < to_offset + size;
    right &= to[i] == (inside ? from[from_offset + i - to_offset] : kCanary);
  }
  CHECK(right);
}

void rows() {
  for (const std::size_t size : sizes()) {
    for (std::size_t offset = 0; offset < 16; ++offset) {
      one_row(fastreplay::store_row, size, offset, 15 - offset);
      one_row(fastreplay::load_row, size, 15 - offset, offset);
    }
  }
}

void many_rows() {
  for (const std::size_t size : sizes()) {
    for (const std::size_t num_rows : {0, 1, 2, 16}) {
      const auto ring = random_bytes((size + 9) * (num_rows + 1), size);
      std::vector<const std::byte*> records;
      for (std::size_t i = 0; i < num_rows; ++i) records.push_back(ring.data() + (num_rows - 1 - i) * (size + 9));
      std::vector<std::byte> to(size * num_rows + 64, kCanary);
      fastreplay::load_rows(to.data(), records, 3, size);
      bool right = true;
      for (std::size_t i = 0; i < to.size(); ++i) {
        right &= to[i] == (i < size * num_rows ? records[i / size][3 + i % size] : kCanary);
      }
      CHECK(right);
    }
  }
}

}  // namespace

int main() {
  rows();
  many_rows();
  return check::result();
}
