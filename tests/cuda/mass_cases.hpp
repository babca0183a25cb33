// SPDX-License-Identifier: MIT
// Masses on a device beside the same kernels on the CPU: all that lies in their memory, and what is drawn, bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../cpp/check.hpp"
#include "../cpp/masses_there.hpp"
#include "device.hpp"
#include "masses.h"

namespace mass_cases {

using cuda::Array;
using cuda::Bytes;
using fastreplay::DeviceMassRule;

inline double uniform(check::Random& random) { return static_cast<double>(random.next() >> 11) * 0x1p-53; }

// A ring's masses on the device, and on the CPU, where what is queued is done at once.
class Twins {
 public:
  Twins(std::size_t capacity, const masses_there::Rule& rule)
      : cpu{capacity, rule},
        memory_{static_cast<std::size_t>(fastreplay_cuda_masses_bytes(capacity))},
        window_{sizeof(fastreplay_cuda_window)},
        capacity_{capacity} {
    CHECK_EQ(fastreplay_cuda_masses_bytes(capacity), cpu.num_bytes());
    const fastreplay_cuda_masses masses = on_device();
    cuda::ok(fastreplay_cuda_begin_masses(0, stream.get(), &masses), "fastreplay_cuda_begin_masses");
    CHECK(is_same());
  }

  [[nodiscard]] fastreplay_cuda_masses on_device() const {
    fastreplay_cuda_masses masses = cpu.masses();
    masses.memory = memory_.at();
    return masses;
  }

  [[nodiscard]] bool is_same() const {
    cuda::finish();
    const Bytes found = memory_.get();
    return std::memcmp(found.data(), cpu.data(), found.size()) == 0;
  }

  // Gives `count` slots from one on, around the end, masses of which some are to be the largest so far.
  void arrive(std::uint64_t first, std::size_t count, check::Random& random) {
    cuda::finish();
    Bytes all = memory_.get();
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t slot = (first + i) % capacity_;
      const auto mass = static_cast<float>(random.below(5) == 0 ? 0 : std::pow(uniform(random), 6));
      cpu.leaves()[slot] = random.below(3) == 0 ? -mass : mass;
      std::memcpy(all.data() + FASTREPLAY_CUDA_FIRST_MASS + slot * sizeof mass, &cpu.leaves()[slot], sizeof mass);
    }
    memory_.set(all);
    settle(0, 0, first, count);
  }

  void settle(std::uint64_t first_lost, std::uint64_t num_lost, std::uint64_t first_new, std::uint64_t num_new) {
    const fastreplay_cuda_settling settling{.masses = on_device(),
                                            .first_lost = first_lost,
                                            .num_lost = num_lost,
                                            .first_new = first_new,
                                            .num_new = num_new};
    cuda::ok(fastreplay_cuda_settle_masses(0, stream.get(), &settling), "fastreplay_cuda_settle_masses");
    cpu.settle(first_lost, num_lost, first_new, num_new);
  }

  void set_window(const fastreplay_cuda_window& now) {
    window = now;
    cuda::ok(fastreplay_cuda_set_window(0, stream.get(), window_.at<fastreplay_cuda_window>(), &now),
             "fastreplay_cuda_set_window");
    cuda::finish();
  }

  [[nodiscard]] fastreplay_cuda_window* device_window() const { return window_.at<fastreplay_cuda_window>(); }

  cuda::Stream stream;
  masses_there::There cpu;
  fastreplay_cuda_window window{};

 private:
  Array memory_;
  Array window_;
  std::size_t capacity_;
};

// Elements with duplicates, transitions that are gone or never were, and what is no finite number.
template <class Number>
struct Elements {
  Elements(const fastreplay_cuda_window& window, std::size_t count, check::Random& random) {
    for (std::size_t i = 0; i < count; ++i) {
      tickets.push_back(static_cast<std::int64_t>(window.first + random.below(window.size + 2)) - 1);
      priorities.push_back(static_cast<Number>(random.below(9) == 0 ? 0 : 4 * uniform(random) - 2));
      if (random.below(11) == 0) priorities.back() = std::numeric_limits<Number>::quiet_NaN();
      if (random.below(11) == 0) priorities.back() = std::numeric_limits<Number>::infinity();
    }
  }
  std::vector<std::int64_t> tickets;
  std::vector<Number> priorities;
};

// Called twice on the device: as it is, and out of a graph. What the second does over again changes nothing but counts.
template <class Number>
void check_update(Twins& twins, std::size_t count, check::Random& random) {
  const Elements<Number> elements{twins.window, count, random};
  const Array tickets{cuda::bytes_of(elements.tickets)};
  const Array priorities{cuda::bytes_of(elements.priorities)};
  const Array result{2 * sizeof(std::int64_t)};
  fastreplay_cuda_update update{.masses = twins.on_device(),
                                .window = twins.device_window(),
                                .tickets = tickets.at<std::int64_t>(),
                                .priorities = priorities.at(),
                                .is_double = sizeof(Number) == 8,
                                .count = count,
                                .result = result.at<std::int64_t>()};
  const auto queue = [&] {
    cuda::ok(fastreplay_cuda_update_masses(0, twins.stream.get(), &update), "fastreplay_cuda_update_masses");
  };
  const auto expect = [&] {
    const std::vector<std::int64_t> wanted = twins.cpu.update(twins.window, elements.tickets, elements.priorities);
    CHECK(twins.is_same());
    CHECK(result.get() == cuda::bytes_of(wanted));
  };
  cuda::finish();
  queue();
  expect();
  const cuda::Graph graph{twins.stream, queue};
  update = {};  // the graph has its own
  graph.replay(twins.stream);
  expect();
}

// The parts of a minibatch drawn by priority, without fields.
class Drawn {
 public:
  explicit Drawn(std::size_t batch_size)
      : batch_size_{batch_size}, part_bytes_{fastreplay::MassTree::padded(batch_size) * 8}, block_{3 * part_bytes_} {}

  [[nodiscard]] fastreplay_cuda_weighing weighing(const fastreplay_cuda_masses& masses, unsigned options) const {
    return {.masses = masses,
            .is_stratified = options & 1,
            .normalize = options / 2 % 3,
            .uniform_mix = options / 6 % 2 == 0 ? 0.0 : 0.3,
            .beta = 0.4,
            .weights_offset = part_bytes_,
            .probabilities_offset = 2 * part_bytes_};
  }

  // Of the device or of the CPU, at `block`.
  [[nodiscard]] fastreplay_cuda_sampling sampling(std::byte* block, const fastreplay_cuda_weighing* weighing) const {
    fastreplay_cuda_sampling made{};
    made.block = block;
    made.batch_size = batch_size_;
    made.weighing = weighing;
    return made;
  }

  // Weights are of float functions, which are not the CPU's.
  [[nodiscard]] bool is(const Bytes& wanted) const {
    cuda::finish();
    const Bytes weights = block_.get(part_bytes_, batch_size_ * sizeof(float));
    bool is_near = true;
    for (std::size_t i = 0; i < batch_size_; ++i) {
      const float found = number_in(weights, i * sizeof found);
      const float expected = number_in(wanted, part_bytes_ + i * sizeof found);
      is_near = is_near && std::fabs(found - expected) <= 1e-6F * expected;
    }
    return is_near && is_equal(wanted, 0, 8) && is_equal(wanted, 2 * part_bytes_, 4);
  }

  [[nodiscard]] std::byte* on_device() const { return block_.at(); }
  [[nodiscard]] Bytes new_block() const { return Bytes(3 * part_bytes_); }

 private:
  [[nodiscard]] static float number_in(const Bytes& bytes, std::size_t offset) {
    float number = 0;
    std::memcpy(&number, bytes.data() + offset, sizeof number);
    return number;
  }
  // Nothing between the parts is read, which nobody wrote.
  [[nodiscard]] bool is_equal(const Bytes& wanted, std::size_t offset, std::size_t row_bytes) const {
    const Bytes found = block_.get(offset, batch_size_ * row_bytes);
    return std::memcmp(found.data(), wanted.data() + offset, found.size()) == 0;
  }

  std::size_t batch_size_;
  std::size_t part_bytes_;
  Array block_;
};

inline void check_draws(Twins& twins, std::size_t batch_size, unsigned options) {
  fastreplay_cuda_generator generator{
      .key = {5, 6}, .calls = 7, .num_sampled = 0, .num_without_mass = 0, .num_redraws = 0, .num_incomplete = 0};
  const Array there{cuda::bytes_of(std::vector{generator})};
  const Drawn drawn{batch_size};
  fastreplay_cuda_weighing weighing = drawn.weighing(twins.on_device(), options);
  fastreplay_cuda_sampling sampling = drawn.sampling(drawn.on_device(), &weighing);
  sampling.window = twins.device_window();
  sampling.generator = there.at<fastreplay_cuda_generator>();
  const fastreplay_cuda_weighing on_cpu = drawn.weighing(twins.cpu.masses(), options);
  Bytes block = drawn.new_block();
  fastreplay_cuda_sampling wanted = drawn.sampling(block.data(), &on_cpu);
  wanted.window = &twins.window;
  wanted.generator = &generator;
  const auto queue = [&] {
    cuda::ok(fastreplay_cuda_sample(0, twins.stream.get(), &sampling), "fastreplay_cuda_sample");
  };
  const auto expect = [&] {
    twins.cpu.draw(wanted);
    CHECK(drawn.is(block));
    CHECK(there.get() == cuda::bytes_of(std::vector{generator}));
  };
  cuda::finish();
  queue();
  expect();
  const cuda::Graph graph{twins.stream, queue};
  weighing = {};  // the graph has its own
  sampling = {};
  graph.replay(twins.stream);
  expect();
}

// On a card powers are worked out otherwise than here: a mass may be its neighbour.
inline void check_powers() {
  const masses_there::Rule rule{.alpha = 0.6, .eps = 1e-6, .floor = 0};
  Twins twins{1000, rule};
  twins.set_window({.first = 0, .size = 1000, .first_slot = 0});
  std::vector<std::int64_t> tickets;
  std::vector<double> priorities;
  for (int i = 0; i < 1000; ++i) {
    tickets.push_back(i);
    priorities.push_back(std::pow(10, (i - 500) / 15.0));
  }
  const Array named{cuda::bytes_of(tickets)};
  const Array numbers{cuda::bytes_of(priorities)};
  const Array result{2 * sizeof(std::int64_t)};
  const fastreplay_cuda_masses masses = twins.on_device();
  const fastreplay_cuda_update update{.masses = masses,
                                      .window = twins.device_window(),
                                      .tickets = named.at<std::int64_t>(),
                                      .priorities = numbers.at(),
                                      .is_double = 1,
                                      .count = tickets.size(),
                                      .result = result.at<std::int64_t>()};
  cuda::ok(fastreplay_cuda_update_masses(0, twins.stream.get(), &update), "fastreplay_cuda_update_masses");
  cuda::finish();
  std::vector<float> found(1000);
  const auto* leaves = static_cast<const std::byte*>(masses.memory) + FASTREPLAY_CUDA_FIRST_MASS;
  cuda::ok(cudaMemcpy(found.data(), leaves, 4000, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
  (void)twins.cpu.update(twins.window, tickets, priorities);
  for (std::size_t i = 0; i < found.size(); ++i) {
    const float expected = twins.cpu.leaves()[i];
    CHECK(found[i] >= std::nextafter(expected, 0.0F) && found[i] <= std::nextafter(expected, INFINITY));
  }
}

inline void check_masses(bool is_brief) {
  cuda::ok(fastreplay_cuda_prepare_masses(0), "fastreplay_cuda_prepare_masses");
  cuda::ok(fastreplay_cuda_prepare_sampling(0), "fastreplay_cuda_prepare_sampling");
  for (const std::size_t capacity : {1, 16, 17, 256, 257, 5000, 70000}) {
    if (is_brief && (capacity == 16 || capacity == 256 || capacity == 70000)) continue;
    check::Random random{capacity};
    Twins twins{capacity, {.alpha = 1, .eps = 0, .floor = 0}};
    const std::size_t first = 3 * capacity + capacity / 3;  // the window wraps, if it may
    const std::size_t size = capacity - capacity / 7;
    twins.arrive(first % capacity, size, random);
    twins.set_window({.first = first, .size = size, .first_slot = first % capacity});
    CHECK(twins.is_same());
    for (const std::size_t count : {1, 40, 700, 5000}) {
      if (is_brief && count == 5000) continue;
      check_update<float>(twins, count, random);
      check_update<double>(twins, count, random);
      for (unsigned options = 0; options < 12; ++options) {
        if (is_brief && options % 5 != 0) continue;
        check_draws(twins, count == 40 ? 33 : 600, options);
      }
    }
    twins.settle(first % capacity, size / 2, 0, 0);
    CHECK(twins.is_same());
    twins.settle(first % capacity, size, 0, 0);
    CHECK(twins.is_same());
    check_draws(twins, 20, 1);  // uniformly, as nothing is left
  }
  check_powers();
}

}  // namespace mass_cases
