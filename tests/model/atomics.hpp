// SPDX-License-Identifier: MIT
// The atomics policy that the ring is made of here: each access is asked of the run (run.hpp) in place of memory.
// Knows where in the ring a location lies, and nothing of the protocol.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "lanes/links.hpp"
#include "priority/leaves.hpp"
#include "ring/protocol.hpp"
#include "ring/unshared.hpp"
#include "run.hpp"
#include "storage/copy.hpp"

namespace model {

constexpr Order order_of(std::memory_order order) {
  switch (order) {
    case std::memory_order_relaxed:
      return Order::kRelaxed;
    case std::memory_order_acquire:
      return Order::kAcquire;
    case std::memory_order_release:
      return Order::kRelease;
    case std::memory_order_acq_rel:
      return Order::kAcqRel;
    default:
      throw std::invalid_argument{"an order that the memory does not have"};
  }
}

// A leaf's word as a number of few bits (config.hpp), and back.
inline std::uint64_t number_of_leaf(std::uint64_t word) {
  const auto mass = std::bit_cast<float>(static_cast<std::uint32_t>(word));
  return word == 0 ? 0 : leaf_of((word >> 32) - 1, static_cast<unsigned>(mass));
}
inline std::uint64_t word_of_leaf(std::uint64_t number) {
  const auto leaf = static_cast<unsigned>(number);
  return leaf == 0 ? 0 : fastreplay::Leaf::word(lap_of_leaf(leaf), static_cast<float>(mass_of_leaf(leaf)));
}

// The same of what links say of what comes after, and of what comes before.
inline std::uint64_t number_of_after(std::uint64_t word) {
  using fastreplay::After;
  const auto after = static_cast<fastreplay::Gap>(word);
  return after_of(word >> 32, after == After::kOpen    ? AfterIt::kOpen
                              : after == After::kEnded ? AfterIt::kEnded
                              : after == After::kCut   ? AfterIt::kCut
                                                       : AfterIt::kNext);
}
inline std::uint64_t word_of_after(std::uint64_t number) {
  using fastreplay::After;
  constexpr std::array<fastreplay::Gap, kAfters> kGaps{After::kOpen, 1, After::kEnded, After::kCut};
  return number / kAfters << 32 | kGaps[number % kAfters];
}
inline std::uint64_t number_of_before(std::uint64_t before) {
  return static_cast<std::uint64_t>(before == fastreplay::Before::kLost ? BeforeIt::kLost
                                    : before == 0                       ? BeforeIt::kFirst
                                                                        : BeforeIt::kPrevious);
}
inline std::uint64_t before_of(std::uint64_t number) {
  return number == static_cast<std::uint64_t>(BeforeIt::kLost) ? fastreplay::Before::kLost : number;
}

// Addresses of what the threads share.
struct Places {
  const fastreplay::RingHeader* header;
  const std::uint32_t* words;
  const std::uint64_t* leaves;
  const std::uint64_t* mark;
  const std::uint64_t* summary;
  const std::byte* links;
  const std::byte* records;
  std::size_t stride;
  const std::uint64_t* rows;  // of the transitions that are inserted: of the first field, then of the second
  const Config* config;

  static inline const Places* current = nullptr;

  [[nodiscard]] std::uint8_t of(const std::uint64_t& place) const {
    if (&place == &header->head) return narrow(kHead);
    if (&place == &header->commit) return narrow(kCommit);
    if (&place == &header->base) return narrow(kBase);
    if (&place == mark) return narrow(config->mark());
    if (&place == summary) return narrow(config->summary());
    if (const std::size_t at = in_links(&place); at < kLinkBytes * config->capacity) {
      return narrow(config->after(at / kLinkBytes));
    }
    const auto slot = static_cast<std::size_t>(&place - leaves);
    return narrow(slot < config->capacity ? config->leaf(slot) : kNoLocation);
  }
  [[nodiscard]] std::uint8_t of(const std::uint32_t& word) const {
    if (const std::size_t at = in_links(&word); at < kLinkBytes * config->capacity) {
      const std::size_t slot = at / kLinkBytes;
      return narrow(at % kLinkBytes == kBeforeBytes ? config->before(slot) : config->lane(slot));
    }
    return narrow(config->word(static_cast<std::uint64_t>(&word - words)));
  }
  [[nodiscard]] std::uint8_t of(const std::byte* row_in_record) const {
    const auto offset = static_cast<std::size_t>(row_in_record - records);
    return narrow(config->data(offset / stride, offset % stride / sizeof(std::uint64_t)));
  }

  // What is at a location is kept as a number.
  [[nodiscard]] std::uint64_t number(std::uint8_t location, std::uint64_t value) const {
    const Place place = config->place_of(location);
    return place == Place::kLeaf     ? number_of_leaf(value)
           : place == Place::kAfter  ? number_of_after(value)
           : place == Place::kBefore ? number_of_before(value)
                                     : value;
  }
  [[nodiscard]] std::uint64_t value(std::uint8_t location, std::uint64_t number) const {
    const Place place = config->place_of(location);
    return place == Place::kLeaf     ? word_of_leaf(number)
           : place == Place::kAfter  ? word_of_after(number)
           : place == Place::kBefore ? before_of(number)
                                     : number;
  }

 private:
  static constexpr std::size_t kLinkBytes = 16;
  static constexpr std::size_t kBeforeBytes = 8;  // into a link

  [[nodiscard]] std::size_t in_links(const void* place) const {
    return static_cast<std::size_t>(static_cast<const std::byte*>(place) - links);
  }
};

// What calls one of these is named by __builtin_FUNCTION().
struct Atomics {
  template <class T>
  [[gnu::always_inline]] static T load(const T& place, std::memory_order order,
                                       const char* function = __builtin_FUNCTION()) noexcept {
    const std::uint8_t location = Places::current->of(place);
    // Where nobody clears, base is what it was for ever.
    if (location == kBase && Places::current->config->num_clearers == 0) return 0;
    if (location == kNoLocation) return 0;  // a leaf of a slot that the ring does not have
    const std::uint64_t number =
        Run::current->load({.kind = Kind::kLoad, .order = order_of(order), .location = location, .function = function});
    return static_cast<T>(Places::current->value(location, number));
  }
  [[gnu::always_inline]] static void store(std::uint32_t& word, std::uint32_t value, std::memory_order order,
                                           const char* function = __builtin_FUNCTION()) noexcept {
    const Places& places = *Places::current;
    const std::uint8_t location = places.of(word);
    const Access store{.kind = Kind::kStore,
                       .order = order_of(order),
                       .location = location,
                       .value = places.number(location, value),
                       .function = function};
    if (places.config->place_of(location) == Place::kWord) {
      Run::current->store_word(store);
    } else {
      Run::current->access(store);
    }
  }
  // A leaf, or what comes after.
  [[gnu::always_inline]] static void store(std::uint64_t& place, std::uint64_t word, std::memory_order order,
                                           const char* function = __builtin_FUNCTION()) noexcept {
    const Places& places = *Places::current;
    const std::uint8_t location = places.of(place);
    Run::current->access({.kind = Kind::kStore,
                          .order = order_of(order),
                          .location = location,
                          .value = places.number(location, word),
                          .function = function});
  }
  [[gnu::always_inline]] static std::uint64_t fetch_or(std::uint64_t& place, std::uint64_t value,
                                                       std::memory_order order,
                                                       const char* function = __builtin_FUNCTION()) noexcept {
    return change(Kind::kFetchOr, place, value, order, function);
  }
  [[gnu::always_inline]] static std::uint64_t exchange(std::uint64_t& place, std::uint64_t value,
                                                       std::memory_order order,
                                                       const char* function = __builtin_FUNCTION()) noexcept {
    return change(Kind::kExchange, place, value, order, function);
  }
  [[gnu::always_inline]] static bool compare_exchange_weak(std::uint64_t& place, std::uint64_t& expected,
                                                           std::uint64_t desired, std::memory_order success,
                                                           std::memory_order failure,
                                                           const char* function = __builtin_FUNCTION()) noexcept {
    const Places& places = *Places::current;
    const std::uint8_t location = places.of(place);
    std::uint64_t number = places.number(location, expected);
    const bool succeeds = Run::current->update({.kind = Kind::kUpdate,
                                                .order = order_of(success),
                                                .failure = order_of(failure),
                                                .location = location,
                                                .value = places.number(location, desired),
                                                .expected = number,
                                                .function = function},
                                               number);
    if (!succeeds) expected = places.value(location, number);
    return succeeds;
  }
  template <std::size_t kCount>
  [[gnu::always_inline]] static void load_words(const std::uint64_t* words, std::uint64_t* out,
                                                const char* function = __builtin_FUNCTION()) noexcept {
    for (std::size_t i = 0; i < kCount; ++i) out[i] = load(words[i], std::memory_order_relaxed, function);
  }
  // A statistic, of which only the sum matters.
  static void fetch_add(std::uint64_t& /*place*/, std::uint64_t /*value*/, std::memory_order /*order*/) noexcept {}
  [[gnu::always_inline]] static void fence(std::memory_order order,
                                           const char* function = __builtin_FUNCTION()) noexcept {
    Run::current->fence({.kind = Kind::kFence, .order = order_of(order), .function = function});
  }

  [[gnu::always_inline]] static void store_row(std::byte* record, const std::byte* row, std::size_t /*num_bytes*/,
                                               fastreplay::Reading /*reading*/,
                                               const char* function = __builtin_FUNCTION()) noexcept {
    if (!Places::current->config->has_records()) return;
    const auto index = static_cast<std::size_t>(reinterpret_cast<const std::uint64_t*>(row) - Places::current->rows);
    Run::current->store_data({.kind = Kind::kStore, .location = Places::current->of(record), .function = function},
                             index % kMaxRows);
  }
  [[gnu::always_inline]] static void store_rows(std::byte* records, std::size_t record_stride, const std::byte* rows,
                                                std::size_t rows_stride, std::size_t row_bytes, std::size_t num_rows,
                                                fastreplay::Reading reading,
                                                const char* function = __builtin_FUNCTION()) noexcept {
    for (std::size_t i = 0; i < num_rows; ++i) {
      store_row(records + i * record_stride, rows + i * rows_stride, row_bytes, reading, function);
    }
  }
  [[gnu::always_inline]] static std::uint64_t load_row(const std::byte* row_in_record,
                                                       const char* function = __builtin_FUNCTION()) noexcept {
    return Run::current->load(
        {.kind = Kind::kLoad, .location = Places::current->of(row_in_record), .function = function});
  }

  [[gnu::always_inline]] static std::uint64_t choose(std::uint64_t num_options,
                                                     const char* function = __builtin_FUNCTION()) noexcept {
    return Run::current->access({.kind = Kind::kChoice, .value = num_options, .function = function});
  }
  [[gnu::always_inline]] static bool prefers(bool /*faster*/, const char* function = __builtin_FUNCTION()) noexcept {
    if (Places::current->config->is_lazy) return false;
    return choose(2, function) == 1;
  }

  // Patience never ends.
  struct Wait {
    explicit Wait(std::chrono::nanoseconds /*patience*/) noexcept {}
    [[nodiscard]] static bool goes_on() noexcept {
      Run::current->wait();
      return true;
    }
  };

 private:
  [[gnu::always_inline]] static std::uint64_t change(Kind kind, std::uint64_t& place, std::uint64_t value,
                                                     std::memory_order order, const char* function) noexcept {
    return Run::current->change({.kind = kind,
                                 .order = order_of(order),
                                 .location = Places::current->of(place),
                                 .value = value,
                                 .function = function});
  }
};

// The ring, of which the threads run the code: nothing is ever written to its memory.
class Ring : public fastreplay::BasicRing<Atomics> {
 public:
  using BasicRing::BasicRing;
  [[nodiscard]] const fastreplay::RingHeader* header() const { return &header_; }
  [[nodiscard]] const std::uint32_t* words() const { return &word_at(0); }
};

// The leaves beside it: the same.
class Leaves : public fastreplay::BasicLeaves<Atomics> {
 public:
  using BasicLeaves::BasicLeaves;
  [[nodiscard]] const std::uint64_t* words() const { return &at(0); }
};

// And the links: the same.
class Links : public fastreplay::BasicLinks<Atomics> {
 public:
  using BasicLinks::BasicLinks;
  [[nodiscard]] const std::byte* bytes() const { return reinterpret_cast<const std::byte*>(&in(0)); }
};

}  // namespace model
