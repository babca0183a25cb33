// SPDX-License-Identifier: MIT
// Times what the insert and sampling protocol costs, and what threads do to each other, without Python.
// Compared are things that take turns, a round each, so that they share the machine's moods.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "batch/random.hpp"
#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "ring/ring.hpp"

namespace py = pybind11;
namespace fr = fastreplay;

namespace {

using Clock = std::chrono::steady_clock;
using Pair = std::pair<double, double>;

constexpr int kRounds = 101;
constexpr std::chrono::milliseconds kRound{5};
constexpr std::chrono::milliseconds kSlice{20};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Nanoseconds a call, over a round.
template <class Call>
double time_ns(Call call, std::size_t calls) {
  const auto start = Clock::now();
  for (std::size_t i = 0; i < calls; ++i) call();
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() / static_cast<double>(calls);
}

template <class A, class B>
Pair by_turns(A a, B b) {
  std::size_t calls = 1;
  while (time_ns(a, calls) * static_cast<double>(calls) < std::chrono::duration<double, std::nano>(kRound).count()) {
    calls *= 2;
  }
  std::vector<double> of_a, of_b;
  for (int round = 0; round < kRounds; ++round) {
    of_a.push_back(time_ns(a, calls));
    of_b.push_back(time_ns(b, calls));
  }
  return {median(of_a), median(of_b)};
}

// One field of row_bytes, and a ring of it that is full.
struct Filled {
  Filled(std::size_t row_bytes, std::size_t capacity)
      : row(row_bytes, std::byte{1}),
        ring{fr::RecordLayout{std::vector<fr::FieldSize>{{row_bytes, 4}}}, capacity},
        rows{{row.data(), 0}} {
    for (std::size_t i = 0; i < capacity; ++i) insert();
  }
  void insert() noexcept { (void)ring.insert(rows, 0, 1, std::chrono::seconds{1}); }

  std::vector<std::byte> row;
  fr::Ring ring;
  std::vector<fr::Rows> rows;
};

// A ring without any protocol: the next slot, a copy, a count.
struct Bare {
  Bare(std::size_t row_bytes, std::size_t capacity_)
      : row(row_bytes, std::byte{1}),
        stride{fr::RecordLayout{std::vector<fr::FieldSize>{{row_bytes, 4}}}.stride()},
        capacity{capacity_},
        records{capacity * stride} {
    std::memset(records.data(), 1, records.num_bytes());
  }
  void insert() noexcept {
    std::memcpy(records.data() + next * stride, row.data(), row.size());
    next = next + 1 == capacity ? 0 : next + 1;
    ++count;
    asm volatile("" ::: "memory");  // one insert must not be merged with the next
  }

  std::vector<std::byte> row;
  std::size_t stride;
  std::size_t capacity;
  fr::Region records;
  std::size_t next = 0;
  std::size_t count = 0;
};

// Nanoseconds of an insert of one row: ours, bare.
Pair insert_ns(std::size_t row_bytes, std::size_t capacity) {
  Filled ours{row_bytes, capacity};
  Bare bare{row_bytes, capacity};
  return by_turns([&] { ours.insert(); }, [&] { bare.insert(); });
}

// Nanoseconds a sampled row: ours; draws and the same gather, without window, words and check.
Pair sample_ns(std::size_t row_bytes, std::size_t capacity, std::size_t batch_size) {
  Filled filled{row_bytes, capacity};
  fr::Sampler sampler{{1, 2}};
  const auto parts = fr::transition_parts(filled.ring.records().layout());
  const fr::Block ours{parts, batch_size}, bare{parts, batch_size};
  std::uint64_t call = 0;
  const Pair of_batch = by_turns([&] { (void)sampler.sample(filled.ring, ours); },
                                 [&] {
                                   fr::WordStream words{{3, 4}, call++};
                                   for (fr::Ticket& ticket : bare.tickets()) ticket = words.below(capacity);
                                   (void)fr::read_tickets(filled.ring, bare);
                                 });
  return {of_batch.first / static_cast<double>(batch_size), of_batch.second / static_cast<double>(batch_size)};
}

// Calls a second of `call`, over one slice.
template <class Call>
double rate(Call call) {
  const auto start = Clock::now();
  std::size_t calls = 0;
  auto now = start;
  for (; now - start < kSlice; now = Clock::now()) {
    for (int i = 0; i < 16; ++i) call();
    calls += 16;
  }
  return static_cast<double>(calls) / std::chrono::duration<double>(now - start).count();
}

// Samples a second: alone, and while another thread inserts at full speed. By turns.
Pair sample_rates(std::size_t row_bytes, std::size_t capacity, std::size_t batch_size) {
  Filled filled{row_bytes, capacity};
  fr::Sampler sampler{{1, 2}};
  const fr::Block block{transition_parts(filled.ring.records().layout()), batch_size};
  const auto sample = [&] { (void)sampler.sample(filled.ring, block); };
  std::vector<double> alone, beside;
  for (int round = 0; round < kRounds; ++round) {
    alone.push_back(rate(sample));
    std::atomic<bool> done{false};
    std::thread writer{[&] {
      while (!done.load(std::memory_order_relaxed)) filled.insert();
    }};
    beside.push_back(rate(sample));
    done.store(true, std::memory_order_relaxed);
    writer.join();
  }
  return {median(alone), median(beside)};
}

// Calls a second of `first` alone, and of both, each in a thread of its own. By turns.
template <class First, class Second>
Pair one_and_two(First first, Second second) {
  std::vector<double> one, two;
  for (int round = 0; round < kRounds; ++round) {
    one.push_back(rate(first));
    double of_second = 0;
    std::thread thread{[&] { of_second = rate(second); }};
    const double of_first = rate(first);
    thread.join();
    two.push_back(of_first + of_second);
  }
  return {median(one), median(two)};
}

// Rows a second inserted by one thread, and by two together.
Pair insert_rates(std::size_t row_bytes, std::size_t capacity, std::size_t rows_per_insert) {
  Filled filled{row_bytes, capacity};
  const std::vector<std::byte> mine(row_bytes * rows_per_insert, std::byte{1}), others{mine};
  const auto insert = [&](const std::vector<std::byte>& rows) {
    const fr::Rows field{rows.data(), row_bytes};
    (void)filled.ring.insert({&field, 1}, 0, rows_per_insert, std::chrono::seconds{1});
  };
  const Pair inserts = one_and_two([&] { insert(mine); }, [&] { insert(others); });
  const auto rows = static_cast<double>(rows_per_insert);
  return {inserts.first * rows, inserts.second * rows};
}

// The same of the least that hands out one place after the other: an atomic count and a copy. Nobody could
// read what it stores.
Pair count_rates(std::size_t row_bytes, std::size_t capacity) {
  Bare bare{row_bytes, capacity};
  const std::vector<std::byte> mine{bare.row}, others{bare.row};
  alignas(fr::kCacheLine) std::atomic<std::size_t> next{0};
  const auto insert = [&](const std::vector<std::byte>& row) {
    // relaxed: only that no two threads get the same place.
    const std::size_t slot = next.fetch_add(1, std::memory_order_relaxed) % capacity;
    std::memcpy(bare.records.data() + slot * bare.stride, row.data(), row.size());
    asm volatile("" ::: "memory");
  };
  return one_and_two([&] { insert(mine); }, [&] { insert(others); });
}

}  // namespace

PYBIND11_MODULE(_protocol_timer, m) {
  m.def("insert_ns", &insert_ns, py::arg("row_bytes"), py::arg("capacity"));
  m.def("sample_ns", &sample_ns, py::arg("row_bytes"), py::arg("capacity"), py::arg("batch_size"));
  m.def("sample_rates", &sample_rates, py::arg("row_bytes"), py::arg("capacity"), py::arg("batch_size"));
  m.def("insert_rates", &insert_rates, py::arg("row_bytes"), py::arg("capacity"), py::arg("rows_per_insert"));
  m.def("count_rates", &count_rates, py::arg("row_bytes"), py::arg("capacity"));
}
