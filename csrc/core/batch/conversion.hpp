// SPDX-License-Identifier: MIT
// What becomes of a field on its way out of a record, where its rows are not given as they are stored: its numbers
// become float32, its images are shifted. For the CPU and for CUDA kernels. Knows nothing of where rows lie.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "batch/random.hpp"
#include "halves.hpp"
#include "inline.hpp"

namespace fastreplay {

// What is stored. Every number of these is a float32, too, so that only what is done with it then rounds.
enum class Numbers : std::uint8_t { kAsGiven, kBool, kUInt8, kInt8, kUInt16, kInt16, kFloat16, kBFloat16 };

// What is done with a float32, rounded once: a division is one.
enum class Then : std::uint8_t { kNothing, kDivide, kMultiply };

// Of images, the last two axes of a row: they are given as if their edges were repeated `most` times all around, and
// as many rows and columns cut out as there were, from a place that is drawn (Kostrikov et al. 2020).
struct Shift {
  std::uint16_t most = 0;  // 0 for none
  std::uint16_t number_bytes = 0;
  std::uint32_t height = 0;
  std::uint32_t width = 0;

  [[nodiscard]] bool operator==(const Shift&) const = default;
  [[nodiscard]] FASTREPLAY_INLINE std::size_t image_bytes() const { return std::size_t{height} * width * number_bytes; }
};

struct Conversion {
  Numbers from = Numbers::kAsGiven;
  Then then = Then::kNothing;
  float factor = 0;
  Shift shift{};

  [[nodiscard]] bool operator==(const Conversion&) const = default;
  [[nodiscard]] bool is_none() const noexcept { return from == Numbers::kAsGiven && shift.most == 0; }
  // Of a number that is stored.
  [[nodiscard]] std::size_t number_bytes() const noexcept { return from < Numbers::kUInt16 ? 1 : 2; }
  // What so many stored bytes become.
  [[nodiscard]] std::size_t given_bytes(std::size_t stored_bytes) const noexcept {
    return from == Numbers::kAsGiven ? stored_bytes : stored_bytes / number_bytes() * sizeof(float);
  }
  // Whether it can be done with so many stored bytes.
  [[nodiscard]] bool suits(std::size_t stored_bytes) const noexcept {
    if (from != Numbers::kAsGiven && stored_bytes % number_bytes() != 0) return false;
    if (shift.most == 0) return true;
    const bool is_image = shift.number_bytes > 0 && shift.most < std::min(shift.height, shift.width) &&
                          shift.height <= stored_bytes && shift.width <= stored_bytes / shift.height;
    return is_image && stored_bytes % shift.image_bytes() == 0 &&
           (from == Numbers::kAsGiven || shift.number_bytes == number_bytes());
  }
};

// Where images are cut out, in numbers from where they lie themselves: each in [-most, most].
struct Offset {
  std::int32_t down;
  std::int32_t across;
};

// Which words of the generator rows are shifted by: of a row and a field those of counter (row + 1, call, field, 2^32),
// which no draw takes, whatever else of the minibatch is drawn, or drawn again.
struct ShiftDraw {
  static constexpr std::uint64_t kPurpose = std::uint64_t{1} << 32;

  Philox::Key key{};
  std::uint64_t call = 0;
  // Of a part whose rows have steps: the place of a row's step, to the row. All steps of a row are shifted alike.
  std::size_t num_steps = 1;
  std::size_t num_apart = ~std::size_t{0};  // where steps come first: rows of a step

  [[nodiscard]] FASTREPLAY_INLINE Offset of(std::size_t place, std::size_t field, const Shift& shift) const {
    const std::uint64_t row = place / num_steps % num_apart;
    const Philox::Counter words = Philox::words({row + 1, call, field, kPurpose}, key);
    return {below(shift, words[0]), below(shift, words[1])};
  }

 private:
  // Each of so few is as likely as the others to one in 2^47.
  [[nodiscard]] FASTREPLAY_INLINE static std::int32_t below(const Shift& shift, std::uint64_t word) {
    const auto drawn = static_cast<std::int32_t>(Uint128{word} * (2 * std::uint64_t{shift.most} + 1) >> 64);
    return drawn - std::int32_t{shift.most};
  }
};

struct Bool {
  std::uint8_t byte;
};

template <class Number>
FASTREPLAY_INLINE float as_float(Number number) {
  return static_cast<float>(static_cast<int>(number));
}

FASTREPLAY_INLINE float as_float(Bool flag) { return flag.byte == 0 ? 0.0F : 1.0F; }

// A signalling NaN becomes a quiet one, as by the instructions for this.
FASTREPLAY_INLINE float as_float(Float16 number) {
  const std::uint32_t quiet = (number.bits & 0x7FFF) > 0x7C00 ? 0x00400000 : 0;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(widen(number)) | quiet);
}

// Its bits are those of a float32: a signalling NaN stays one, as torch lets it.
FASTREPLAY_INLINE float as_float(BFloat16 number) { return widen(number); }

template <Then kThen, class Number>
FASTREPLAY_INLINE float converted(Number number, float factor) {
  const float value = as_float(number);
  if constexpr (kThen == Then::kDivide) return value / factor;
  if constexpr (kThen == Then::kMultiply) return value * factor;
  return value;
}

template <Then kThen>
struct ThenConstant {
  static constexpr Then value = kThen;
};

template <class Number, class Of>
FASTREPLAY_INLINE auto with_then(Number number, Then then, Of of) {
  if (then == Then::kDivide) return of(number, ThenConstant<Then::kDivide>{});
  if (then == Then::kMultiply) return of(number, ThenConstant<Then::kMultiply>{});
  return of(number, ThenConstant<Then::kNothing>{});
}

// Calls of(Number{}, then) with the type that is stored, and what is then done as a constant.
template <class Of>
FASTREPLAY_INLINE auto with_types(const Conversion& conversion, Of of) {
  switch (conversion.from) {
    case Numbers::kBool:
      return with_then(Bool{}, conversion.then, of);
    case Numbers::kUInt8:
      return with_then(std::uint8_t{}, conversion.then, of);
    case Numbers::kInt8:
      return with_then(std::int8_t{}, conversion.then, of);
    case Numbers::kUInt16:
      return with_then(std::uint16_t{}, conversion.then, of);
    case Numbers::kInt16:
      return with_then(std::int16_t{}, conversion.then, of);
    case Numbers::kFloat16:
      return with_then(Float16{}, conversion.then, of);
    default:
      return with_then(BFloat16{}, conversion.then, of);
  }
}

}  // namespace fastreplay
