// SPDX-License-Identifier: MIT
// CRC-32, the checksum of zlib and zip (reflected polynomial 0xEDB88320), at the speed of memory. Knows bytes only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastreplay {

// Whether this processor can fold: it multiplies polynomials (PCLMULQDQ). Where it cannot, there are tables, at a fifth
// of the speed.
[[nodiscard]] bool folds_crc32() noexcept;

// Returns the checksum of what `before` is of, 0 for nothing, with the bytes behind it.
[[nodiscard]] std::uint32_t crc32(std::uint32_t before, std::span<const std::byte> bytes, bool folds) noexcept;

}  // namespace fastreplay
