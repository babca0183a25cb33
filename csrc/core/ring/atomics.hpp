// SPDX-License-Identifier: MIT
// What the ring's protocol asks of the machine: atomic accesses, fences, copies into records, and patience. The
// protocol names the order of each access, and why; tests/model has a policy of its own in place of this one.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>

#include "storage/copy.hpp"

namespace fastreplay {

struct StdAtomics {
  template <class T>
  [[gnu::always_inline]] static T load(const T& place, std::memory_order order) noexcept {
    return ref(place).load(order);
  }
  template <class T>
  [[gnu::always_inline]] static void store(T& place, T value, std::memory_order order) noexcept {
    ref(place).store(value, order);
  }
  template <class T>
  [[gnu::always_inline]] static bool compare_exchange_weak(T& place, T& expected, T desired, std::memory_order success,
                                                           std::memory_order failure) noexcept {
    return ref(place).compare_exchange_weak(expected, desired, success, failure);
  }
  template <class T>
  [[gnu::always_inline]] static void fetch_add(T& place, T value, std::memory_order order) noexcept {
    ref(place).fetch_add(value, order);
  }
  template <class T>
  [[gnu::always_inline]] static void fetch_or(T& place, T value, std::memory_order order) noexcept {
    ref(place).fetch_or(value, order);
  }
  template <class T>
  [[gnu::always_inline]] static T exchange(T& place, T value, std::memory_order order) noexcept {
    return ref(place).exchange(value, order);
  }
  [[gnu::always_inline]] static void fence(std::memory_order order) noexcept { std::atomic_thread_fence(order); }

  [[gnu::always_inline]] static void store_row(std::byte* record, const std::byte* row, std::size_t num_bytes,
                                               Reading reading) noexcept {
    fastreplay::store_row(record, row, num_bytes, reading);
  }
  [[gnu::always_inline]] static void store_rows(std::byte* records, std::size_t record_stride, const std::byte* rows,
                                                std::size_t rows_stride, std::size_t row_bytes, std::size_t num_rows,
                                                Reading reading) noexcept {
    fastreplay::store_rows(records, record_stride, rows, rows_stride, row_bytes, num_rows, reading);
  }

  // So many words as they are, each whole: relaxed loads, which production makes of vector moves (storage/copy.hpp).
  template <std::size_t kCount>
  [[gnu::always_inline]] static void load_words(const std::uint64_t* words, std::uint64_t* out) noexcept {
#if defined(FASTREPLAY_RELAXED_COPY)
    // relaxed: for the caller to order.
    for (std::size_t i = 0; i < kCount; ++i) out[i] = load(words[i], std::memory_order_relaxed);
#else
    // By pairs, which compilers keep in registers.
    using Pair = std::uint64_t __attribute__((vector_size(16)));
    compiler_barrier();
    for (std::size_t i = 0; i < kCount; i += 2) {
      Pair pair;
      std::memcpy(&pair, words + i, sizeof pair);
      std::memcpy(out + i, &pair, sizeof pair);
    }
    compiler_barrier();
#endif
  }

  // What only speed depends on: either answer is right, and a model gives both.
  [[gnu::always_inline]] static bool prefers(bool faster) noexcept { return faster; }

  // Of a writer before a shut gate: spins for a while, then gives the processor away until its patience ends.
  class Wait {
   public:
    explicit Wait(std::chrono::nanoseconds patience) noexcept : deadline_{Clock::now() + patience} {}
    [[nodiscard]] bool goes_on() noexcept {
      if (num_spins_++ < kSpinsBeforeYield) return true;
      if (Clock::now() >= deadline_) return false;
      std::this_thread::yield();
      return true;
    }

   private:
    using Clock = std::chrono::steady_clock;
    static constexpr int kSpinsBeforeYield = 64;

    Clock::time_point deadline_;
    int num_spins_ = 0;
  };

 private:
  // atomic_ref takes no const before C++26.
  template <class T>
  [[gnu::always_inline]] static std::atomic_ref<T> ref(const T& place) noexcept {
    static_assert(std::atomic_ref<T>::is_always_lock_free);
    return std::atomic_ref<T>{const_cast<T&>(place)};
  }
};

}  // namespace fastreplay
