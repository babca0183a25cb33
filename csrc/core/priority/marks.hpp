// SPDX-License-Identifier: MIT
// Which groups of leaves have changed: a bit a group, and a bit for every 64 of them, set by any thread and taken by
// one. Knows nothing of what a group is.
//
// Whoever changes a leaf marks its group afterwards, always: to look first whether the bit is set would lose a change
// (store leaf, load bit, beside clear bit, load leaf). An exchange that takes a bit sees, by the chain of atomic
// updates from its mark, what was changed before the mark; a bit that it does not take waits for the next.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "ring/atomics.hpp"
#include "storage/region.hpp"

namespace fastreplay {

template <class Atomics>
class BasicMarks {
 public:
  explicit BasicMarks(std::size_t num_groups)
      : num_groups_{num_groups}, words_{num_words(num_groups) * 8}, summary_{num_words(num_words(num_groups)) * 8} {}

  // For a model, which tells accesses by their addresses.
  [[nodiscard]] const std::uint64_t& first_word() const noexcept { return at(words_, 0); }
  [[nodiscard]] const std::uint64_t& first_summary() const noexcept { return at(summary_, 0); }

  [[nodiscard]] std::size_t num_bytes() const noexcept { return words_.num_bytes() + summary_.num_bytes(); }

  // Marks groups one after another: those of one word together, as an atomic update takes longer than all the rest.
  // They are marked once this is gone, at the latest.
  class Marking {
   public:
    explicit Marking(BasicMarks& marks) noexcept : marks_{marks} {}
    ~Marking() {
      mark();
      mark_above();
    }
    Marking(const Marking&) = delete;
    Marking& operator=(const Marking&) = delete;

    void add(std::size_t group) noexcept { add(group / kBits, ones(group % kBits, group % kBits)); }
    void add(std::size_t word, std::uint64_t bits) noexcept {
      if (word != word_) {
        mark();
        word_ = word;
      }
      bits_ |= bits;
    }

   private:
    void mark() noexcept {
      if (bits_ == 0) return;
      // acq_rel: release, so that who takes the bit sees the leaf that changed; acquire is spare. Partner: the
      // exchange in take().
      Atomics::fetch_or(at(marks_.words_, word_), bits_, std::memory_order_acq_rel);
      bits_ = 0;
      if (word_ / kBits != above_) {
        mark_above();
        above_ = word_ / kBits;
      }
      bits_above_ |= ones(word_ % kBits, word_ % kBits);
    }
    void mark_above() noexcept {
      if (bits_above_ == 0) return;
      // acq_rel: release, so that who takes the bit above finds those below set; acquire is spare. Partner: the other
      // exchange in take().
      Atomics::fetch_or(at(marks_.summary_, above_), bits_above_, std::memory_order_acq_rel);
      bits_above_ = 0;
    }

    BasicMarks& marks_;
    std::size_t word_ = 0;
    std::uint64_t bits_ = 0;  // of it, to be set
    std::size_t above_ = 0;
    std::uint64_t bits_above_ = 0;  // of words that are marked
  };

  // Marks groups first, first + 1, ..., last.
  void mark(std::size_t first, std::size_t last) noexcept {
    Marking marking{*this};
    for (std::size_t word = first / kBits; word <= last / kBits; ++word) {
      const std::size_t begin = word == first / kBits ? first % kBits : 0;
      const std::size_t end = word == last / kBits ? last % kBits : kBits - 1;
      marking.add(word, ones(begin, end));
    }
  }

  void mark_all() noexcept {
    if (num_groups_ > 0) mark(0, num_groups_ - 1);
  }

  // Takes all marks and calls f(group) for each, in ascending order. For one thread at a time.
  template <class F>
  void take(F f) noexcept {
    for (std::size_t i = 0; i < summary_.num_bytes() / 8; ++i) {
      // relaxed: a hint that saves an atomic update; a bit that is not seen yet waits for the next call.
      if (Atomics::load(at(summary_, i), std::memory_order_relaxed) == 0) continue;
      // acq_rel: acquire, to find the groups' bits; release is spare. Partner: the mark of the bit above.
      std::uint64_t words = Atomics::exchange(at(summary_, i), std::uint64_t{0}, std::memory_order_acq_rel);
      for (; words != 0; words &= words - 1) {
        const std::size_t word = i * kBits + static_cast<std::size_t>(std::countr_zero(words));
        // acq_rel: acquire, to see the leaves; release is spare. Partner: the mark of the bit.
        std::uint64_t groups = Atomics::exchange(at(words_, word), std::uint64_t{0}, std::memory_order_acq_rel);
        for (; groups != 0; groups &= groups - 1) f(word * kBits + static_cast<std::size_t>(std::countr_zero(groups)));
      }
    }
  }

 private:
  static constexpr std::size_t kBits = 64;

  static constexpr std::size_t num_words(std::size_t num_bits) noexcept { return (num_bits + kBits - 1) / kBits; }
  // Bits begin to end, both included.
  static constexpr std::uint64_t ones(std::size_t begin, std::size_t end) noexcept {
    return (~std::uint64_t{0} >> (kBits - 1 - (end - begin))) << begin;
  }
  [[nodiscard]] static std::uint64_t& at(const Region& region, std::size_t i) noexcept {
    return reinterpret_cast<std::uint64_t*>(region.data())[i];
  }

  std::size_t num_groups_;
  Region words_;
  Region summary_;
};

using Marks = BasicMarks<StdAtomics>;

}  // namespace fastreplay
