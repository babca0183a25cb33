// SPDX-License-Identifier: MIT
// Writers and samplers at once. Every word of a row is a mix of the transition's id, its field and its
// place, so that a row that mixes two transitions shows itself; the id holds writer and sequence
// number, so that a ticket order that contradicts a writer's own order shows itself too.
//
// FASTREPLAY_STRESS_ROWS sets how many rows are inserted in all (default 20 million).
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "check.hpp"
#include "minibatch.hpp"
#include "ring.hpp"

using fastreplay::Block;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::Sampler;
using fastreplay::Ticket;

namespace {

constexpr std::array<std::size_t, 3> kWords{1, 4, 2};  // 8-byte words of each field; field 0 is the id
constexpr std::size_t kBatchSize = 64;
constexpr int kWriterShift = 48;

std::uint64_t mix(std::uint64_t id, std::size_t field, std::size_t place) {
  std::uint64_t z = id + 0x9E3779B97F4A7C15 * (field * 16 + place + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  return z ^ (z >> 27);
}

RecordLayout layout() {
  std::vector<fastreplay::FieldSize> fields;
  for (const std::size_t words : kWords) fields.push_back({.row_bytes = 8 * words, .alignment = 8});
  return RecordLayout{fields};
}

struct Case {
  std::size_t capacity;
  std::size_t num_writers;
  std::size_t num_samplers;
  std::size_t rows_per_insert;
};

struct Totals {
  std::uint64_t inserted = 0;
  std::uint64_t verified = 0;
  std::uint64_t redraws = 0;
  std::uint64_t wrong = 0;
};

void write(Ring& ring, std::uint64_t writer, std::uint64_t num_rows, std::size_t rows_per_insert) {
  const std::size_t chunk = std::min(rows_per_insert, ring.max_rows_per_insert());
  std::vector<std::vector<std::uint64_t>> data;
  for (const std::size_t words : kWords) data.emplace_back(words * chunk);
  std::vector<Rows> fields;
  for (std::size_t f = 0; f < kWords.size(); ++f) {
    fields.push_back({.data = reinterpret_cast<const std::byte*>(data[f].data()), .stride_bytes = 8 * kWords[f]});
  }
  for (std::uint64_t sequence = 0; sequence < num_rows; sequence += chunk) {
    for (std::size_t row = 0; row < chunk; ++row) {
      const std::uint64_t id = (writer << kWriterShift) + sequence + row;
      data[0][row] = id;
      for (std::size_t f = 1; f < kWords.size(); ++f) {
        for (std::size_t w = 0; w < kWords[f]; ++w) data[f][row * kWords[f] + w] = mix(id, f, w);
      }
    }
    while (!ring.insert(fields, 0, chunk, std::chrono::seconds{1})) {
    }
  }
}

std::uint64_t word_of(const Block& block, std::size_t field, std::size_t index) {
  std::uint64_t word = 0;
  std::memcpy(&word, block.data() + block.layout().offsets()[field] + 8 * index, sizeof word);
  return word;
}

std::uint64_t num_wrong(const Block& block, std::vector<std::pair<Ticket, std::uint64_t>>& order) {
  std::uint64_t wrong = 0;
  order.clear();
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    const std::uint64_t id = word_of(block, 0, row);
    bool right = true;
    for (std::size_t f = 1; f < kWords.size(); ++f) {
      for (std::size_t w = 0; w < kWords[f]; ++w) right &= word_of(block, f, row * kWords[f] + w) == mix(id, f, w);
    }
    wrong += right ? 0 : 1;
    order.emplace_back(block.tickets()[row], id);
  }
  // Later tickets of one writer hold later rows, and one ticket holds one row.
  std::sort(order.begin(), order.end());
  for (std::size_t i = 1; i < order.size(); ++i) {
    for (std::size_t j = i; j-- > 0;) {
      if (order[i].second >> kWriterShift != order[j].second >> kWriterShift) {
        wrong += order[i].first == order[j].first ? 1 : 0;
        continue;
      }
      wrong += (order[i].first == order[j].first) != (order[i].second == order[j].second) ? 1 : 0;
      wrong += order[i].second < order[j].second ? 1 : 0;
      break;
    }
  }
  return wrong;
}

Totals run(const Case& c, std::uint64_t num_rows) {
  Ring ring{layout(), c.capacity};
  Sampler sampler{{c.capacity, c.num_writers}};
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> verified{0};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> samplers;
  for (std::size_t s = 0; s < c.num_samplers; ++s) {
    samplers.emplace_back([&] {
      const Block block{ring.layout(), kBatchSize};
      std::vector<std::pair<Ticket, std::uint64_t>> order;
      // acquire: pairs with the release store below; only ends the loop.
      while (!done.load(std::memory_order_acquire)) {
        if (!sampler.sample(ring, block)) continue;
        // relaxed: counters, read after the threads were joined.
        wrong.fetch_add(num_wrong(block, order), std::memory_order_relaxed);
        // relaxed: as above.
        verified.fetch_add(kBatchSize, std::memory_order_relaxed);
      }
    });
  }
  std::vector<std::thread> writers;
  for (std::size_t w = 0; w < c.num_writers; ++w) {
    writers.emplace_back([&, w] { write(ring, w, num_rows / c.num_writers, c.rows_per_insert); });
  }
  for (std::thread& writer : writers) writer.join();
  // release: pairs with the acquire load above.
  done.store(true, std::memory_order_release);
  for (std::thread& thread : samplers) thread.join();
  CHECK_EQ(ring.window().committed, ring.window().end);
  // relaxed: every thread was joined.
  return {ring.num_inserted(), verified.load(std::memory_order_relaxed), sampler.num_redraws(),
          // relaxed: as above.
          wrong.load(std::memory_order_relaxed)};
}

}  // namespace

int main() {
  const char* setting = std::getenv("FASTREPLAY_STRESS_ROWS");
  const std::uint64_t num_rows = setting != nullptr ? std::strtoull(setting, nullptr, 10) : 20'000'000;
  std::vector<Case> cases;
  for (const std::size_t capacity : {1, 2, 7, 64, 1000, 100000}) {
    for (const std::size_t num_writers : {1, 2, 4}) {
      for (const std::size_t num_samplers : {1, 2}) {
        for (const std::size_t rows_per_insert : {1, 4, 64}) {
          if (rows_per_insert <= std::max<std::size_t>(1, capacity / 8)) {
            cases.push_back({capacity, num_writers, num_samplers, rows_per_insert});
          }
        }
      }
    }
  }
  Totals totals;
  for (const Case& c : cases) {
    const Totals of_case = run(c, num_rows / cases.size());
    if (of_case.wrong > 0) {
      std::cerr << "capacity " << c.capacity << ", writers " << c.num_writers << ", samplers " << c.num_samplers
                << ", rows per insert " << c.rows_per_insert << ": " << of_case.wrong << " wrong rows\n";
    }
    CHECK_EQ(of_case.wrong, 0U);
    totals.inserted += of_case.inserted;
    totals.verified += of_case.verified;
    totals.redraws += of_case.redraws;
  }
  CHECK(totals.verified > 0);
  std::cout << totals.inserted << " rows inserted, " << totals.verified << " sampled rows verified, " << totals.redraws
            << " redraws\n";
  return check::result();
}
