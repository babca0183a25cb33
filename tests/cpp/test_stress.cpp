// SPDX-License-Identifier: MIT
// Writers and samplers at once. Every word of a row is a mix of the transition's id, its field and its
// place, so that a row that mixes two transitions shows itself; the id holds writer and sequence
// number, so that a ticket order that contradicts a writer's own order, and a row that got lost, show
// themselves too.
//
// FASTREPLAY_STRESS_ROWS sets how many rows are inserted in all (default 20 million, about a second);
// an argument how many seconds that may take at most.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>
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

using Clock = std::chrono::steady_clock;

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

// Inserts num_rows transitions, or fewer if the deadline comes first; returns how many.
std::uint64_t write(Ring& ring, std::uint64_t writer, std::uint64_t num_rows, std::size_t chunk,
                    Clock::time_point deadline) {
  std::vector<std::vector<std::uint64_t>> data;
  for (const std::size_t words : kWords) data.emplace_back(words * chunk);
  std::vector<Rows> fields;
  for (std::size_t f = 0; f < kWords.size(); ++f) {
    fields.push_back({.data = reinterpret_cast<const std::byte*>(data[f].data()), .stride_bytes = 8 * kWords[f]});
  }
  std::uint64_t sequence = 0;
  for (std::uint64_t turn = 0; sequence < num_rows; ++turn, sequence += chunk) {
    if (turn % 256 == 255 && Clock::now() >= deadline) break;
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
  return sequence;
}

std::uint64_t word_at(const std::byte* row, std::size_t place) {
  std::uint64_t word = 0;
  std::memcpy(&word, row + 8 * place, sizeof word);
  return word;
}

// The id of the transition whose row of field f lies at row_of(f), if all of them are of one.
template <class RowOf>
std::optional<std::uint64_t> id_of(RowOf row_of) {
  const std::uint64_t id = word_at(row_of(0), 0);
  bool right = true;
  for (std::size_t f = 1; f < kWords.size(); ++f) {
    for (std::size_t w = 0; w < kWords[f]; ++w) right &= word_at(row_of(f), w) == mix(id, f, w);
  }
  return right ? std::optional{id} : std::nullopt;
}

std::uint64_t num_wrong(const Block& block, std::vector<std::pair<Ticket, std::uint64_t>>& order) {
  std::uint64_t wrong = 0;
  order.clear();
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    const auto id =
        id_of([&](std::size_t f) { return block.data() + block.layout().offsets()[f] + 8 * kWords[f] * row; });
    wrong += id ? 0 : 1;
    order.emplace_back(block.tickets()[row], id.value_or(0));
  }
  if (wrong > 0) return wrong;
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

// When all writers are done, the ring holds its last tickets, and in them each writer's last rows: in
// order, none missing, none twice.
std::uint64_t num_wrong_at_rest(Ring& ring, std::vector<std::uint64_t> next_of_writer) {
  const auto window = ring.window();
  std::uint64_t wrong = window.committed == window.end ? 0 : 1;
  for (Ticket ticket = window.end; ticket-- > window.first;) {
    const auto id = id_of([&](std::size_t f) { return ring.record(ticket) + ring.layout().columns()[f].offset; });
    const std::uint64_t writer = id.value_or(~std::uint64_t{0}) >> kWriterShift;
    if (writer >= next_of_writer.size() || *id != (writer << kWriterShift) + --next_of_writer[writer]) ++wrong;
  }
  return wrong;
}

// Samples until `done`, and once more.
Totals verify(Ring& ring, Sampler& sampler, const std::atomic<bool>& done) {
  const Block block{ring.layout(), kBatchSize};
  std::vector<std::pair<Ticket, std::uint64_t>> order;
  Totals totals;
  for (bool last = false; !last;) {
    // acquire: the last sample comes after every insert; pairs with the release store in run().
    last = done.load(std::memory_order_acquire);
    if (sampler.sample(ring, block)) {
      totals.wrong += num_wrong(block, order);
      totals.verified += kBatchSize;
    } else if (last) {
      ++totals.wrong;  // a ring at rest can be sampled
    }
  }
  return totals;
}

Totals run(const Case& c, std::uint64_t num_rows, Clock::time_point deadline) {
  Ring ring{layout(), c.capacity};
  Sampler sampler{{c.capacity, c.num_writers}};
  std::atomic<bool> done{false};
  std::vector<Totals> of_sampler(c.num_samplers);
  std::vector<std::uint64_t> of_writer(c.num_writers);
  std::vector<std::thread> samplers;
  for (Totals& totals : of_sampler) {
    samplers.emplace_back([&] { totals = verify(ring, sampler, done); });
  }
  std::vector<std::thread> writers;
  for (std::size_t w = 0; w < c.num_writers; ++w) {
    writers.emplace_back(
        [&, w] { of_writer[w] = write(ring, w, num_rows / c.num_writers, c.rows_per_insert, deadline); });
  }
  for (std::thread& writer : writers) writer.join();
  // release: pairs with the acquire load in verify().
  done.store(true, std::memory_order_release);
  for (std::thread& thread : samplers) thread.join();
  Totals totals{.redraws = sampler.num_redraws(), .wrong = num_wrong_at_rest(ring, of_writer)};
  for (const Totals& of_one : of_sampler) {
    totals.verified += of_one.verified;
    totals.wrong += of_one.wrong;
  }
  for (const std::uint64_t inserted : of_writer) totals.inserted += inserted;
  CHECK_EQ(ring.num_inserted(), totals.inserted);
  return totals;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::size_t capacity : {1, 2, 7, 64, 1000, 100000}) {
    for (const std::size_t num_writers : {1, 2, 4}) {
      for (const std::size_t num_samplers : {1, 2}) {
        for (const std::size_t rows_per_insert : {1, 4, 64}) {
          // What one insert may take, once for each capacity.
          if (rows_per_insert > std::max<std::size_t>(1, capacity / 8)) continue;
          all.push_back({capacity, num_writers, num_samplers, rows_per_insert});
        }
      }
    }
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const char* setting = std::getenv("FASTREPLAY_STRESS_ROWS");
  const std::uint64_t num_rows = setting != nullptr ? std::strtoull(setting, nullptr, 10) : 20'000'000;
  const double seconds = argc > 1 ? std::strtod(argv[1], nullptr) : 1e6;
  const std::vector<Case> all = cases();
  const auto share = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>{seconds}) / all.size();
  Totals totals;
  for (const Case& c : all) {
    const Totals of_case = run(c, num_rows / all.size(), Clock::now() + share);
    if (of_case.wrong > 0) {
      std::cerr << "capacity " << c.capacity << ", writers " << c.num_writers << ", samplers " << c.num_samplers
                << ", rows per insert " << c.rows_per_insert << ": " << of_case.wrong << " wrong rows\n";
    }
    CHECK_EQ(of_case.wrong, 0U);
    CHECK(of_case.verified >= c.num_samplers * kBatchSize);
    totals.inserted += of_case.inserted;
    totals.verified += of_case.verified;
    totals.redraws += of_case.redraws;
  }
  std::cout << totals.inserted << " rows inserted, " << totals.verified << " sampled rows verified, " << totals.redraws
            << " redraws\n";
  return check::result();
}
