// SPDX-License-Identifier: MIT
// A ring's masses in what stands for a device's memory, and the kernels on them: all threads of each step by turns, in
// a random order, as none may count on another.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "check.hpp"
#include "masses_kernel.hpp"
#include "weighed_draw.hpp"

namespace masses_there {

struct Rule {
  double alpha, eps, floor;
};

template <class Work>
void run_by_turns(const Work& work, check::Random& random) {
  std::vector<unsigned> order(Work::kThreads);
  std::iota(order.begin(), order.end(), 0U);
  typename Work::Shared shared;
  for (unsigned step = 0; step < work.num_steps(); ++step) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (const unsigned thread : order) work.share(step, thread, shared);
  }
}

class There {
  struct alignas(64) Line {
    std::byte bytes[64];
  };

 public:
  There(std::size_t capacity, const Rule& rule)
      : capacity_{capacity},
        rule_{rule},
        memory_{std::make_unique<Line[]>((num_bytes() + sizeof(Line) - 1) / sizeof(Line))} {}

  [[nodiscard]] fastreplay_cuda_masses masses() const {
    return {.memory = data(), .capacity = capacity_, .alpha = rule_.alpha, .eps = rule_.eps, .floor = rule_.floor};
  }
  [[nodiscard]] std::span<float> leaves() const {
    return {reinterpret_cast<float*>(data() + FASTREPLAY_CUDA_FIRST_MASS), capacity_};
  }
  [[nodiscard]] fastreplay_cuda_mass_state& state() const {
    return *reinterpret_cast<fastreplay_cuda_mass_state*>(data());
  }
  [[nodiscard]] std::size_t num_bytes() const { return fastreplay::MassTree::num_bytes(capacity_); }
  [[nodiscard]] std::byte* data() const { return memory_[0].bytes; }

  void settle(std::uint64_t first_lost, std::uint64_t num_lost, std::uint64_t first_new, std::uint64_t num_new) {
    run_by_turns(fastreplay::MassSettling::of({.masses = masses(),
                                               .first_lost = first_lost,
                                               .num_lost = num_lost,
                                               .first_new = first_new,
                                               .num_new = num_new}),
                 random_);
  }

  // Returns (applied, stale).
  template <class Number>
  std::vector<std::int64_t> update(const fastreplay_cuda_window& window, const std::vector<std::int64_t>& tickets,
                                   const std::vector<Number>& priorities) {
    std::vector<std::int64_t> result(2, -1);
    run_by_turns(fastreplay::MassUpdate::of({.masses = masses(),
                                             .window = &window,
                                             .tickets = tickets.data(),
                                             .priorities = priorities.data(),
                                             .is_double = sizeof(Number) == 8,
                                             .count = tickets.size(),
                                             .result = result.data()}),
                 random_);
    return result;
  }

  void draw(const fastreplay_cuda_sampling& sampling) { run_by_turns(fastreplay::WeighedDraw::of(sampling), random_); }

  // Whether all sums are those that are made of the leaves at once.
  [[nodiscard]] bool is_as_made_anew() const {
    There other{capacity_, rule_};
    std::copy_n(leaves().data(), capacity_, other.leaves().data());
    other.state() = state();
    other.settle(0, 0, 0, capacity_);
    return std::memcmp(data(), other.data(), num_bytes()) == 0;
  }

 private:
  std::size_t capacity_;
  Rule rule_;
  std::unique_ptr<Line[]> memory_;
  check::Random random_{7};
};

}  // namespace masses_there
