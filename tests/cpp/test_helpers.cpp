// SPDX-License-Identifier: MIT
// Helpers: each part once, whoever does it; several callers, forks; large minibatches by many threads beside writers
// that lap them, and under ThreadSanitizer.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "batch/helpers.hpp"
#include "batch/sample.hpp"
#include "certified.hpp"
#include "check.hpp"
#include "rows.hpp"

using fastreplay::Block;
using fastreplay::do_parts;
using fastreplay::FieldSize;
using fastreplay::kPartBytes;
using fastreplay::Philox;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::set_num_threads;
using namespace std::chrono_literals;

namespace {

constexpr Philox::Key kKey{7, 8};

// Does a job whose parts count themselves in plain memory: only what do_parts() promises makes that visible here.
bool does_each_part_once(std::size_t num_parts, unsigned num_threads) {
  std::vector<int> times(num_parts, 0);
  do_parts(num_parts, num_threads, [&](std::size_t part) noexcept { ++times[part]; });
  for (const int each : times) {
    if (each != 1) return false;
  }
  return true;
}

void each_part_is_done_once() {
  for (const unsigned num_threads : {0U, 1U, 2U, 4U, 7U}) {
    for (const std::size_t num_parts : {0, 1, 2, 3, 57, 1000}) {
      for (int times = 0; times < 20; ++times) CHECK(does_each_part_once(num_parts, num_threads));
    }
  }
}

// Whether as many threads do the parts of a job: each waits, for a while, until all were begun.
bool is_done_by(unsigned num_threads) {
  std::mutex mutex;
  std::set<std::thread::id> who;
  std::atomic<unsigned> begun{0};
  const auto end = std::chrono::steady_clock::now() + 30s;
  do_parts(num_threads, num_threads, [&](std::size_t) noexcept {
    begun.fetch_add(1);
    while (begun.load() < num_threads && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    const std::scoped_lock lock{mutex};
    who.insert(std::this_thread::get_id());
  });
  return who.size() == num_threads;
}

void others_help() {
  for (const unsigned num_threads : {4U, 2U, 7U}) {
    CHECK(is_done_by(num_threads));
    std::this_thread::sleep_for(5ms);  // they sleep by then
  }
}

void no_more_help_than_was_asked_for() {
  for (int times = 0; times < 20; ++times) {
    std::atomic<int> at_once{0}, most{0};
    do_parts(20, 2, [&](std::size_t) noexcept {
      const int now = at_once.fetch_add(1) + 1;
      for (int seen = most.load(); seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      std::this_thread::sleep_for(200us);
      at_once.fetch_sub(1);
    });
    CHECK(most.load() <= 2);
  }
}

void many_callers_at_once() {
  std::vector<std::thread> callers;
  std::atomic<int> num_wrong{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int times = 0; times < 500; ++times) num_wrong += !does_each_part_once(37, 3);
    });
  }
  for (std::thread& each : callers) each.join();
  CHECK_EQ(num_wrong.load(), 0);
}

// Whoever forks, and whatever the helpers are at: the child has its own.
[[maybe_unused]] void a_child_has_helpers_of_its_own() {
  std::atomic<bool> is_over{false};
  std::thread busy{[&] {
    while (!is_over.load()) do_parts(64, 3, [](std::size_t) noexcept {});
  }};
  for (int times = 0; times < 10; ++times) {
    const pid_t child = fork();
    if (child == 0) {
      bool is_right = true;
      for (int k = 0; k < 20; ++k) is_right &= does_each_part_once(37, 3);
      is_right &= is_done_by(3);
      _exit(is_right ? 0 : 1);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
  }
  is_over = true;
  busy.join();
}

RecordLayout large_layout() {
  return RecordLayout{std::vector{FieldSize{.row_bytes = 5000, .alignment = 8},
                                  FieldSize{.row_bytes = 1, .alignment = 1},
                                  FieldSize{.row_bytes = 3001, .alignment = 1}}};
}

// However many copy, a call's rows are the same.
void many_threads_draw_what_one_does() {
  for (const std::size_t batch_size : {1, 70, 255, 256, 257, 1100, 2400}) {
    Ring ring{large_layout(), 300};
    rows::insert(ring, 0, 450);
    const auto parts = transition_parts(ring.records().layout());
    Block alone{parts, batch_size}, shared{parts, batch_size};
    Sampler first{kKey}, second{kKey};
    for (int call = 0; call < 3; ++call) {
      set_num_threads(1);
      CHECK(first.sample(ring, alone) > 0);
      set_num_threads(5);
      CHECK(second.sample(ring, shared) > 0);
      for (std::size_t row = 0; row < batch_size; ++row) {
        CHECK_EQ(alone.tickets()[row], shared.tickets()[row]);
        CHECK(rows::is_row_of(ring, shared, row, shared.tickets()[row]));
      }
    }
  }
  set_num_threads(1);
}

// Small rows, so that a minibatch that is shared has many, and writers that lap its readers: each row is one
// transition's, whole.
void shared_rows_are_whole_beside_writers() {
  Ring ring{certified::layout(), 512};
  certified::Batch batch{64};
  std::atomic<bool> is_over{false};
  std::uint64_t id = 0, num_refused = 0;
  const auto write = [&] {
    for (std::size_t row = 0; row < 64; ++row) batch.set(row, id++);
    num_refused += !ring.insert(batch.rows(), 0, 64, 30s);
  };
  for (int i = 0; i < 8; ++i) write();
  std::thread writer{[&] {
    while (!is_over.load()) write();
  }};
  set_num_threads(4);
  Block block{transition_parts(ring.records().layout()), 4 * kPartBytes / 64};
  Sampler sampler{kKey};
  std::size_t num_torn = 0;
  // Until the writer has met the reader, which a machine with much to do puts off.
  for (int times = 0; times < 30 || (sampler.num_redraws() == 0 && times < 5000); ++times) {
    CHECK(sampler.sample(ring, block) > 0);
    for (std::size_t row = 0; row < block.batch_size(); ++row) num_torn += !certified::id_in(block, row).has_value();
  }
  is_over = true;
  writer.join();
  set_num_threads(1);
  CHECK_EQ(num_refused, 0U);
  CHECK_EQ(num_torn, 0U);
  CHECK(sampler.num_redraws() > 0);
}

}  // namespace

int main() {
  each_part_is_done_once();
  others_help();
  no_more_help_than_was_asked_for();
  many_callers_at_once();
#if !defined(FASTREPLAY_RELAXED_COPY)  // ThreadSanitizer ends a child that makes threads
  a_child_has_helpers_of_its_own();
#endif
  many_threads_draw_what_one_does();
  shared_rows_are_whole_beside_writers();
  return check::result();
}
