// SPDX-License-Identifier: MIT
// The one way that row bytes enter and leave the ring. Knows nothing of tickets or fields.
//
// A reader copies a row that a writer may be overwriting and only then learns whether the copy is
// whole (ring/ring.hpp). By the letter of the C++ memory model such a copy must be made of atomic
// accesses, so under ThreadSanitizer it is one: relaxed words on the ring's side. In production it
// is made of ordinary vector moves between two compiler barriers: no compiler can see, move or
// repeat them across the barriers, and no hardware that we build for invents values (Boehm, "Can
// seqlocks get along with programming language memory models?", MSPC 2012).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define FASTREPLAY_RELAXED_COPY 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FASTREPLAY_RELAXED_COPY 1
#endif
#endif

namespace fastreplay {

// When a row is likely to be read after it was stored. One that is read soon stays in the caches, whatever its length.
enum class Reading { kLate, kSoon };

// Keeps the compiler from moving memory accesses over this point; no instruction is made.
inline void compiler_barrier() noexcept { asm volatile("" ::: "memory"); }

#if defined(FASTREPLAY_RELAXED_COPY)

namespace detail {

inline bool on_word(const std::byte* ring, std::size_t left) noexcept {
  return left >= sizeof(std::uint64_t) && reinterpret_cast<std::uintptr_t>(ring) % sizeof(std::uint64_t) == 0;
}

}  // namespace detail

inline void store_row(std::byte* ring, const std::byte* row, std::size_t num_bytes, Reading = {}) noexcept {
  for (std::size_t i = 0; i < num_bytes;) {
    if (detail::on_word(ring + i, num_bytes - i)) {
      std::uint64_t word;
      std::memcpy(&word, row + i, sizeof word);
      // relaxed: the fences around the copy order it (ring/protocol.hpp, R1 and publish).
      std::atomic_ref{*reinterpret_cast<std::uint64_t*>(ring + i)}.store(word, std::memory_order_relaxed);
      i += sizeof word;
    } else {
      // relaxed: as above.
      std::atomic_ref{*reinterpret_cast<unsigned char*>(ring + i)}.store(static_cast<unsigned char>(row[i]),
                                                                         std::memory_order_relaxed);
      ++i;
    }
  }
}

inline void load_row(std::byte* row, const std::byte* ring, std::size_t num_bytes) noexcept {
  auto* source = const_cast<std::byte*>(ring);  // atomic_ref takes no const before C++26
  for (std::size_t i = 0; i < num_bytes;) {
    if (detail::on_word(source + i, num_bytes - i)) {
      // relaxed: the acquire fence after the copy orders it (ring/protocol.hpp, R2).
      const std::uint64_t word =
          std::atomic_ref{*reinterpret_cast<std::uint64_t*>(source + i)}.load(std::memory_order_relaxed);
      std::memcpy(row + i, &word, sizeof word);
      i += sizeof word;
    } else {
      // relaxed: as above.
      row[i] = static_cast<std::byte>(
          std::atomic_ref{*reinterpret_cast<unsigned char*>(source + i)}.load(std::memory_order_relaxed));
      ++i;
    }
  }
}

namespace detail {

template <class To, class From>
inline void load_each(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) load_row(to(i), from(i), row_bytes);
}

template <class To, class From>
inline void store_each(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) store_row(to(i), from(i), row_bytes);
}

}  // namespace detail

#else

namespace detail {

using Vector = char __attribute__((vector_size(16)));

template <class Word>
inline void copy_word(std::byte* to, const std::byte* from) noexcept {
  Word word;
  std::memcpy(&word, from, sizeof word);
  std::memcpy(to, &word, sizeof word);
}

// num_bytes in [sizeof(Word), 2 * sizeof(Word)]: two words that may overlap cover it.
template <class Word>
inline void copy_two_words(std::byte* to, const std::byte* from, std::size_t num_bytes) noexcept {
  copy_word<Word>(to, from);
  copy_word<Word>(to + num_bytes - sizeof(Word), from + num_bytes - sizeof(Word));
}

// From here on the C library's memcpy wins: one inserted row of 1.4 KiB takes 0.6 of the time, of 28 KiB 0.85. (On an
// older machine rows of 1.4 KiB took 3 % longer by it.)
inline constexpr std::size_t kLibraryCopyBytes = 1024;

// Of less than a vector.
inline void copy_short_row(std::byte* to, const std::byte* from, std::size_t num_bytes) noexcept {
  if (num_bytes >= 8) {
    copy_two_words<std::uint64_t>(to, from, num_bytes);
  } else if (num_bytes >= 4) {
    copy_two_words<std::uint32_t>(to, from, num_bytes);
  } else if (num_bytes >= 2) {
    copy_two_words<std::uint16_t>(to, from, num_bytes);
  } else {
    *to = *from;
  }
}

inline void copy_row(std::byte* to, const std::byte* from, std::size_t num_bytes) noexcept {
  if (num_bytes < sizeof(Vector)) return copy_short_row(to, from, num_bytes);
  if (num_bytes >= kLibraryCopyBytes) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  std::size_t i = 0;
  for (; i + sizeof(Vector) <= num_bytes; i += sizeof(Vector)) copy_word<Vector>(to + i, from + i);
  if (i < num_bytes) copy_word<Vector>(to + num_bytes - sizeof(Vector), from + num_bytes - sizeof(Vector));
}

// From here on a row is stored past the caches: what it covers in the ring need not be read first, and is not looked
// for soon (measured: rows of 8 KiB take 0.76 of the time, of 28 KiB 0.6; of 4 KiB the same; of 2 KiB up to 1.7).
inline constexpr std::size_t kStreamedBytes = 8192;

inline void stream_row(std::byte* ring, const std::byte* row, std::size_t num_bytes) noexcept {
#if defined(__SSE2__)
  constexpr std::size_t kLine = 64;
  // Such stores keep no order with others, so they have a fence on either side: for whoever sees what this thread did
  // before and after, they are stores like any.
  _mm_sfence();
  std::size_t i = -reinterpret_cast<std::uintptr_t>(ring) % kLine;
  std::memcpy(ring, row, i);
  for (; i + kLine <= num_bytes; i += kLine) {
    for (std::size_t at = i; at < i + kLine; at += sizeof(__m128i)) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(ring + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at)));
    }
  }
  std::memcpy(ring + i, row + i, num_bytes - i);
  _mm_sfence();
#else
  std::memcpy(ring, row, num_bytes);
#endif
}

// Not inlined, lest the short rows' loops get what it needs of registers.
[[gnu::noinline]] inline void stream_rows(std::byte* records, std::size_t record_stride, const std::byte* rows,
                                          std::size_t rows_stride, std::size_t row_bytes,
                                          std::size_t num_rows) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) stream_row(records + i * record_stride, rows + i * rows_stride, row_bytes);
}

// row_bytes in [16 * kVectors, 16 * kVectors + 16): whole vectors, then one that ends with the row.
template <std::size_t kVectors, class To, class From>
inline void copy_vector_rows(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) {
    std::byte* target = to(i);
    const std::byte* source = from(i);
    for (std::size_t v = 0; v < kVectors; ++v) {
      copy_word<Vector>(target + v * sizeof(Vector), source + v * sizeof(Vector));
    }
    copy_word<Vector>(target + row_bytes - sizeof(Vector), source + row_bytes - sizeof(Vector));
  }
}

// row_bytes in [sizeof(Word), 2 * sizeof(Word)].
template <class Word, class To, class From>
inline void copy_two_word_rows(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) copy_two_words<Word>(to(i), from(i), row_bytes);
}

template <class Word, class To, class From>
inline void copy_word_rows(std::size_t num_rows, To to, From from) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) copy_word<Word>(to(i), from(i));
}

// Copies row i from from(i) to to(i). What a size needs is decided once, not for each row. Inlined by force: else what
// `to` and `from` are made of goes by the stack, and a few rows take no longer than that.
template <class To, class From>
[[gnu::always_inline]] inline void copy_each(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  switch (row_bytes) {
    case 1:
      return copy_word_rows<std::uint8_t>(num_rows, to, from);
    case 2:
      return copy_word_rows<std::uint16_t>(num_rows, to, from);
    case 4:
      return copy_word_rows<std::uint32_t>(num_rows, to, from);
    case 8:
      return copy_word_rows<std::uint64_t>(num_rows, to, from);
    default:
      break;
  }
  switch (row_bytes / sizeof(Vector)) {
    case 0:
      if (row_bytes > sizeof(std::uint64_t)) return copy_two_word_rows<std::uint64_t>(num_rows, row_bytes, to, from);
      break;
    case 1:
      return copy_vector_rows<1>(num_rows, row_bytes, to, from);
    case 2:
      return copy_vector_rows<2>(num_rows, row_bytes, to, from);
    case 3:
      return copy_vector_rows<3>(num_rows, row_bytes, to, from);
    case 4:
      return copy_vector_rows<4>(num_rows, row_bytes, to, from);
    case 5:
      return copy_vector_rows<5>(num_rows, row_bytes, to, from);
    case 6:
      return copy_vector_rows<6>(num_rows, row_bytes, to, from);
    case 7:
      return copy_vector_rows<7>(num_rows, row_bytes, to, from);
    default:
      break;
  }
  for (std::size_t i = 0; i < num_rows; ++i) copy_row(to(i), from(i), row_bytes);
}

template <class To, class From>
[[gnu::always_inline]] inline void load_each(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  copy_each(num_rows, row_bytes, to, from);
}

template <class To, class From>
[[gnu::always_inline]] inline void store_each(std::size_t num_rows, std::size_t row_bytes, To to, From from) noexcept {
  copy_each(num_rows, row_bytes, to, from);
}

}  // namespace detail

inline void store_row(std::byte* ring, const std::byte* row, std::size_t num_bytes,
                      Reading reading = Reading::kLate) noexcept {
  if (num_bytes >= detail::kStreamedBytes && reading == Reading::kLate) [[unlikely]]
    return detail::stream_rows(ring, 0, row, 0, num_bytes, 1);
  detail::copy_row(ring, row, num_bytes);
}

inline void load_row(std::byte* row, const std::byte* ring, std::size_t num_bytes) noexcept {
  detail::copy_row(row, ring, num_bytes);
}

#endif

// The same where rows of many sizes come in turn, some of them of hundreds of bytes: by the C library, which has to
// guess less of a size (by a third less time for records of 3 KiB).
inline void load_long_row(std::byte* row, const std::byte* ring, std::size_t num_bytes) noexcept {
#if defined(FASTREPLAY_RELAXED_COPY)
  load_row(row, ring, num_bytes);
#else
  std::memcpy(row, ring, num_bytes);
#endif
}

// Whether a row in the ring is the same, which a writer may be overwriting.
inline bool is_same_row(const std::byte* ring, const std::byte* row, std::size_t num_bytes) noexcept {
#if defined(FASTREPLAY_RELAXED_COPY)
  for (std::size_t i = 0; i < num_bytes; ++i) {
    std::byte loaded;
    load_row(&loaded, ring + i, 1);
    if (loaded != row[i]) return false;
  }
  return true;
#else
  compiler_barrier();
  const bool is_same = std::memcmp(ring, row, num_bytes) == 0;
  compiler_barrier();
  return is_same;
#endif
}

// Copies row i of a field from records[i] + offset to rows + i * row_bytes.
inline void load_rows(std::byte* rows, std::span<const std::byte* const> records, std::size_t offset,
                      std::size_t row_bytes) noexcept {
  detail::load_each(
      records.size(), row_bytes, [=](std::size_t i) { return rows + i * row_bytes; },
      [=](std::size_t i) { return records[i] + offset; });
}

// The same to rows + i * rows_stride.
inline void load_rows_apart(std::byte* rows, std::size_t rows_stride, std::span<const std::byte* const> records,
                            std::size_t offset, std::size_t row_bytes) noexcept {
  detail::load_each(
      records.size(), row_bytes, [=](std::size_t i) { return rows + i * rows_stride; },
      [=](std::size_t i) { return records[i] + offset; });
}

// Copies row i of a field from rows + i * rows_stride to records + i * record_stride.
inline void store_rows(std::byte* records, std::size_t record_stride, const std::byte* rows, std::size_t rows_stride,
                       std::size_t row_bytes, std::size_t num_rows,
                       [[maybe_unused]] Reading reading = Reading::kLate) noexcept {
#if !defined(FASTREPLAY_RELAXED_COPY)
  if (row_bytes >= detail::kStreamedBytes && reading == Reading::kLate) [[unlikely]]
    return detail::stream_rows(records, record_stride, rows, rows_stride, row_bytes, num_rows);
#endif
  detail::store_each(
      num_rows, row_bytes, [=](std::size_t i) { return records + i * record_stride; },
      [=](std::size_t i) { return rows + i * rows_stride; });
}

}  // namespace fastreplay
