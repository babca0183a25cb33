// SPDX-License-Identifier: MIT
// Bytes are a polynomial over {0, 1}, the first bit of the first byte its highest power; the checksum is its remainder.
// 16 bytes that lie D bits before others are folded into them: times x^D modulo the checksum's polynomial, added. What
// is left in the end has the same remainder (Gopal et al. 2009, "Fast CRC Computation for Generic Polynomials Using
// PCLMULQDQ Instruction", Intel).
#include "storage/crc32.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define FASTREPLAY_X86 1
#include <wmmintrin.h>
#endif

namespace fastreplay {

namespace {

constexpr std::uint32_t kPolynomial = 0xEDB8'8320;  // without x^32; bit 31 is the power 0

constexpr std::uint32_t times_x(std::uint32_t remainder) noexcept {
  return (remainder >> 1) ^ ((remainder & 1) != 0 ? kPolynomial : 0);
}

// kOfByte[n][byte]: the remainder of a byte that n others follow.
constexpr std::size_t kWordBytes = sizeof(std::uint64_t);
constexpr auto kOfByte = [] {
  std::array<std::array<std::uint32_t, 256>, kWordBytes> tables{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t remainder = byte;
    for (auto& table : tables) {
      for (int bit = 0; bit < 8; ++bit) remainder = times_x(remainder);
      table[byte] = remainder;
    }
  }
  return tables;
}();

std::uint32_t by_tables(std::uint32_t state, std::span<const std::byte> bytes) noexcept {
  for (; bytes.size() >= kWordBytes; bytes = bytes.subspan(kWordBytes)) {
    std::array<std::uint8_t, kWordBytes> word;
    std::memcpy(word.data(), bytes.data(), kWordBytes);
    std::uint32_t next = 0;
    for (std::size_t i = 0; i < kWordBytes; ++i) {
      const std::uint32_t of_state = i < sizeof state ? state >> 8 * i : 0;
      next ^= kOfByte[kWordBytes - 1 - i][(word[i] ^ of_state) & 0xFF];
    }
    state = next;
  }
  for (const std::byte byte : bytes) {
    state = (state >> 8) ^ kOfByte[0][(state ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
  }
  return state;
}

#if defined(FASTREPLAY_X86)
constexpr std::size_t kLaneBytes = 16;
constexpr std::size_t kTogether = 4 * kLaneBytes;  // that a processor multiplies side by side

// x^power modulo the polynomial, as the upper half of 64 bits of which bit 63 is the power 0.
constexpr std::uint64_t power_of_x(unsigned power) noexcept {
  std::uint32_t remainder = 0x8000'0000;
  while (power-- > 0) remainder = times_x(remainder);
  return std::uint64_t{remainder} << 32;
}

// What 16 bytes are multiplied with that go so many bits on. Of these bits the first 64 stand for powers higher by 64;
// and a product of reflected numbers is one power too high.
struct Factors {
  explicit constexpr Factors(unsigned bits) noexcept : first{power_of_x(bits + 63)}, last{power_of_x(bits - 1)} {}
  std::uint64_t first, last;
};

[[gnu::target("pclmul,sse2")]] inline __m128i folded(__m128i lane, __m128i factors, __m128i behind) noexcept {
  const __m128i first = _mm_clmulepi64_si128(lane, factors, 0x00);
  const __m128i last = _mm_clmulepi64_si128(lane, factors, 0x11);
  return _mm_xor_si128(_mm_xor_si128(first, last), behind);
}

[[gnu::target("pclmul,sse2")]] inline __m128i load(const std::byte* at) noexcept {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
}

[[gnu::target("pclmul,sse2")]] inline __m128i register_of(Factors factors) noexcept {
  return _mm_set_epi64x(static_cast<long long>(factors.last), static_cast<long long>(factors.first));
}

// For at least kTogether bytes.
[[gnu::target("pclmul,sse2")]] std::uint32_t by_folding(std::uint32_t state,
                                                        std::span<const std::byte> bytes) noexcept {
  constexpr Factors kFar{8 * kTogether};
  constexpr Factors kNear{8 * kLaneBytes};
  const __m128i far = register_of(kFar), near = register_of(kNear);
  const std::byte* at = bytes.data();
  const std::byte* const end = at + bytes.size() / kTogether * kTogether;
  __m128i a = _mm_xor_si128(load(at), _mm_cvtsi32_si128(static_cast<int>(state)));
  __m128i b = load(at + kLaneBytes), c = load(at + 2 * kLaneBytes), d = load(at + 3 * kLaneBytes);
  for (at += kTogether; at < end; at += kTogether) {
    a = folded(a, far, load(at));
    b = folded(b, far, load(at + kLaneBytes));
    c = folded(c, far, load(at + 2 * kLaneBytes));
    d = folded(d, far, load(at + 3 * kLaneBytes));
  }
  d = folded(folded(folded(a, near, b), near, c), near, d);
  std::array<std::byte, kLaneBytes> left;
  std::memcpy(left.data(), &d, left.size());
  return by_tables(by_tables(0, left), bytes.subspan(bytes.size() / kTogether * kTogether));
}
#endif

}  // namespace

bool folds_crc32() noexcept {
#if defined(FASTREPLAY_X86)
  return __builtin_cpu_supports("pclmul") != 0;
#else
  return false;
#endif
}

std::uint32_t crc32(std::uint32_t before, std::span<const std::byte> bytes, bool folds) noexcept {
#if defined(FASTREPLAY_X86)
  if (folds && bytes.size() >= kTogether) return ~by_folding(~before, bytes);
#else
  (void)folds;
#endif
  return ~by_tables(~before, bytes);
}

}  // namespace fastreplay
