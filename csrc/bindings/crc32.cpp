// SPDX-License-Identifier: MIT
// Checksums of what is written into files and read from them.
#include "storage/crc32.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "gil.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// The checksum of each chunk of parts that lie one after another; the last may be shorter.
std::vector<std::uint32_t> crc32_of_chunks(const std::vector<Bytes>& parts, std::size_t chunk_bytes) {
  if (chunk_bytes == 0) throw py::value_error{"expected chunks of at least a byte"};
  std::size_t num_bytes = 0;
  std::vector<std::span<const std::byte>> left;
  for (const Bytes& part : parts) {
    left.emplace_back(reinterpret_cast<const std::byte*>(part.data()), static_cast<std::size_t>(part.size()));
    num_bytes += left.back().size();
  }
  std::vector<std::uint32_t> checksums(num_bytes / chunk_bytes + (num_bytes % chunk_bytes != 0 ? 1 : 0));
  return without_gil(num_bytes, [&]() noexcept {
    const bool folds = folds_crc32();
    std::size_t at = 0;
    for (std::span<const std::byte> part : left) {
      while (!part.empty()) {
        const auto next = part.first(std::min(part.size(), chunk_bytes - at % chunk_bytes));
        std::uint32_t& checksum = checksums[at / chunk_bytes];
        checksum = crc32(checksum, next, folds);
        part = part.subspan(next.size());
        at += next.size();
      }
    }
    return std::move(checksums);
  });
}

}  // namespace

void bind_crc32(py::module_& m) {
  m.def("crc32_of_chunks", &crc32_of_chunks, py::arg("parts").noconvert(), py::arg("chunk_bytes"));
}

}  // namespace fastreplay
