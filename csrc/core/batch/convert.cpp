// SPDX-License-Identifier: MIT
#include "batch/convert.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include "priority/avx2.hpp"
#include "ring/atomics.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

namespace {

using Convert = void (*)(std::byte* to, const std::byte* from, std::size_t count, float factor) noexcept;

template <Then kThen, class Number>
FASTREPLAY_INLINE void convert_each(std::byte* to, const std::byte* from, std::size_t count, float factor) noexcept {
  float* __restrict given = reinterpret_cast<float*>(to);
  const Number* __restrict stored = reinterpret_cast<const Number*>(from);
  for (std::size_t i = 0; i < count; ++i) given[i] = converted<kThen>(stored[i], factor);
}

template <Then kThen, class Number>
FASTREPLAY_AVX2 void convert_avx2(std::byte* to, const std::byte* from, std::size_t count, float factor) noexcept {
  convert_each<kThen, Number>(to, from, count, factor);
}

template <Then kThen, class Number>
void convert_baseline(std::byte* to, const std::byte* from, std::size_t count, float factor) noexcept {
  convert_each<kThen, Number>(to, from, count, factor);
}

#if defined(__x86_64__) && defined(__GNUC__)
// By the instruction for it, which no compiler makes vectors of: a third of the time.
template <Then kThen>
[[gnu::target("avx2,bmi,bmi2,f16c")]] void convert_halves(std::byte* to, const std::byte* from, std::size_t count,
                                                          float factor) noexcept {
  constexpr std::size_t kTogether = 8;
  const __m256 factors = _mm256_set1_ps(factor);
  std::size_t i = 0;
  for (; i + kTogether <= count; i += kTogether) {
    __m256 given = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * sizeof(Float16))));
    if constexpr (kThen == Then::kDivide) given = _mm256_div_ps(given, factors);
    if constexpr (kThen == Then::kMultiply) given = _mm256_mul_ps(given, factors);
    _mm256_storeu_ps(reinterpret_cast<float*>(to + i * sizeof(float)), given);
  }
  convert_each<kThen, Float16>(to + i * sizeof(float), from + i * sizeof(Float16), count - i, factor);
}

bool has_halves() noexcept {
  static const bool has = has_avx2() && __builtin_cpu_supports("f16c");
  return has;
}
#else
template <Then kThen>
constexpr Convert convert_halves = nullptr;
constexpr bool has_halves() noexcept { return false; }
#endif

Convert convert_of(const Conversion& conversion) noexcept {
  return with_types(conversion, [](auto number, auto then) -> Convert {
    using Number = decltype(number);
    if (std::is_same_v<Number, Float16> && has_halves()) return convert_halves<decltype(then)::value>;
    return has_avx2() ? &convert_avx2<decltype(then)::value, Number> : &convert_baseline<decltype(then)::value, Number>;
  });
}

// Numbers on their way out of the ring, as they are or converted.
class Numbering {
 public:
  explicit Numbering(const Conversion& conversion) noexcept
      : convert_{conversion.from == Numbers::kAsGiven ? nullptr : convert_of(conversion)},
        factor_{conversion.factor},
        stored_bytes_{convert_ == nullptr ? conversion.shift.number_bytes : conversion.number_bytes()},
        given_bytes_{conversion.given_bytes(stored_bytes_)} {}

  [[nodiscard]] std::size_t stored_bytes() const noexcept { return stored_bytes_; }
  [[nodiscard]] std::size_t given_bytes() const noexcept { return given_bytes_; }

  void give(std::byte* to, const std::byte* ring, std::size_t count) const noexcept {
    if (convert_ == nullptr) return load_row(to, ring, count * stored_bytes_);
#if defined(FASTREPLAY_RELAXED_COPY)
    for (std::size_t i = 0; i < count; ++i) {
      alignas(std::uint64_t) std::byte number[sizeof(std::uint64_t)];
      load_row(number, ring + i * stored_bytes_, stored_bytes_);
      convert_(to + i * given_bytes_, number, 1, factor_);
    }
#else
    convert_(to, ring, count, factor_);
#endif
  }

 private:
  Convert convert_;
  float factor_;
  std::size_t stored_bytes_;
  std::size_t given_bytes_;
};

// One after the other, so often.
void repeat(std::byte* to, const std::byte* number, std::size_t num_bytes, std::size_t count) noexcept {
  if (count == 0) return;
  if (num_bytes == 1) {
    std::memset(to, static_cast<int>(*number), count);
    return;
  }
  for (std::size_t i = 0; i < count; ++i) std::memcpy(to + i * num_bytes, number, num_bytes);
}

// One line of an image, of which it is given from column `across` on.
void load_line(std::byte* to, const std::byte* ring, std::size_t width, std::int32_t across,
               const Numbering& numbers) noexcept {
  const std::size_t given = numbers.given_bytes();
  const std::size_t before = across < 0 ? static_cast<std::size_t>(-across) : 0;
  const std::size_t after = across > 0 ? static_cast<std::size_t>(across) : 0;
  const std::size_t count = width - before - after;
  numbers.give(to + before * given, ring + after * numbers.stored_bytes(), count);
  repeat(to, to + before * given, given, before);
  repeat(to + (before + count) * given, to + (before + count - 1) * given, given, after);
}

void load_shifted(std::byte* to, const std::byte* ring, std::size_t num_images, const Shift& shift, Offset offset,
                  const Numbering& numbers) noexcept {
  const std::size_t stored_line = shift.width * numbers.stored_bytes();
  const std::size_t given_line = shift.width * numbers.given_bytes();
  const auto last = static_cast<std::int64_t>(shift.height) - 1;
  for (; num_images > 0; --num_images, ring += shift.height * stored_line) {
    for (std::int64_t y = offset.down; y <= last + offset.down; ++y, to += given_line) {
      const auto line = static_cast<std::size_t>(std::clamp<std::int64_t>(y, 0, last));
      load_line(to, ring + line * stored_line, shift.width, offset.across, numbers);
    }
  }
}

}  // namespace

void load_converted(const RowsOfPart& rows, const Copied& field, std::span<const std::byte* const> records,
                    const Column& column, const FrameMemory& frames, const ShiftDraw& shifts) noexcept {
  const Conversion& conversion = field.conversion;
  const Numbering numbers{conversion};
  const std::size_t num_frames = std::max<std::size_t>(column.num_frames, 1);
  const std::size_t frame_bytes = column.row_bytes / num_frames;
  const std::size_t given_bytes = conversion.given_bytes(frame_bytes);
  std::size_t place = rows.first;
  for (const std::byte* record : records) {
    std::byte* to = rows.part + place * field.row_bytes;
    const Offset offset = conversion.shift.most == 0 ? Offset{} : shifts.of(place, field.field, conversion.shift);
    for (std::size_t frame = 0; frame < num_frames; ++frame, to += given_bytes) {
      const std::byte* from = record + column.offset;
      if (column.num_frames > 0) {
        const auto* places = reinterpret_cast<const FramePlace*>(from);
        // relaxed: as the bytes of a record (storage/copy.hpp).
        from = frames.at(StdAtomics::load(places[frame], std::memory_order_relaxed), frame_bytes);
      }
      if (conversion.shift.most == 0) {
        numbers.give(to, from, frame_bytes / numbers.stored_bytes());
      } else {
        load_shifted(to, from, frame_bytes / conversion.shift.image_bytes(), conversion.shift, offset, numbers);
      }
    }
    place += rows.num_apart;
  }
}

}  // namespace fastreplay
