// SPDX-License-Identifier: MIT
// The prefetcher: order and number of draws, what a send sees, empty rings, failures, ends at every moment,
// beside writers and under ThreadSanitizer.
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <stdexcept>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "batch/prefetch.hpp"
#include "batch/sample.hpp"
#include "check.hpp"
#include "rows.hpp"

using fastreplay::Block;
using fastreplay::Philox;
using fastreplay::Prefetcher;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Sampler;
using fastreplay::Ticket;
using namespace std::chrono_literals;
using Outcome = Prefetcher::Outcome;

namespace {

constexpr Philox::Key kKey{3, 4};
constexpr auto kPatience = 30s;  // a hang is a failure

RecordLayout small_layout() { return RecordLayout{rows::fields_of(std::vector<std::size_t>{12, 4, 1})}; }

std::vector<Ticket> tickets_of(const Block& block) { return {block.tickets().begin(), block.tickets().end()}; }

bool holds_its_rows(const Ring& ring, const Block& block) {
  for (std::size_t row = 0; row < block.batch_size(); ++row) {
    if (!rows::is_row_of(ring, block, row, block.tickets()[row])) return false;
  }
  return true;
}

// Waits for the oldest block and takes it.
Outcome take(Prefetcher& prefetcher, std::chrono::nanoseconds patience) {
  const auto [outcome, number, num_rows] = prefetcher.await(patience);
  if (outcome == Outcome::kFilled) CHECK(prefetcher.take(number));
  return outcome;
}

// A ring that holds transitions 0 to 99, its sampler, and blocks of 16 rows.
struct Bench {
  explicit Bench(std::size_t num_rows = 100) { rows::insert(ring, 0, num_rows); }

  Block* block() {
    blocks.push_back(std::make_unique<Block>(transition_parts(ring.records().layout()), 16));
    return blocks.back().get();
  }

  Ring ring{small_layout(), 128};
  Sampler sampler{kKey};
  std::vector<std::unique_ptr<Block>> blocks;
};

// What sample() in a loop gives.
std::vector<std::vector<Ticket>> draws_of(Ring& ring, std::size_t count, std::uint64_t first_call = 0) {
  Sampler sampler{kKey, first_call};
  std::vector<std::vector<Ticket>> draws;
  for (std::size_t i = 0; i < count; ++i) {
    const Block block{transition_parts(ring.records().layout()), 16};
    CHECK(sampler.sample(ring, block));
    draws.push_back(tickets_of(block));
  }
  return draws;
}

void test_order_and_number_of_draws(std::size_t depth) {
  Bench bench;
  const auto expected = draws_of(bench.ring, 200);
  Prefetcher prefetcher{bench.ring, bench.sampler, depth, nullptr};
  CHECK(take(prefetcher, 0ns) == Outcome::kPending);
  std::deque<Block*> in;
  for (std::size_t i = 0; i < depth; ++i) prefetcher.push(*in.emplace_back(bench.block()), nullptr);
  for (std::size_t i = 0; i + depth < 200; ++i) {
    CHECK_EQ(bench.sampler.calls(), i + depth);
    CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
    Block* block = in.front();
    in.pop_front();
    CHECK(tickets_of(*block) == expected[i]);
    CHECK(holds_its_rows(bench.ring, *block));
    std::memset(block->data(), 0xEE, block->layout().num_bytes());  // it is ours now, and is recycled
    prefetcher.push(*in.emplace_back(block), nullptr);
  }
}

void test_limits() {
  Bench bench;
  CHECK(check::throws<std::invalid_argument>([&] { Prefetcher{bench.ring, bench.sampler, 0, nullptr}; }));
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, nullptr};
  Block* last = nullptr;
  for (int i = 0; i < 2; ++i) prefetcher.push(*bench.block(), nullptr);
  CHECK(check::throws<std::logic_error>([&] { prefetcher.push(*bench.block(), nullptr); }));
  CHECK_EQ(bench.sampler.calls(), 2U);  // a refused push draws nothing
  CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  last = bench.block();
  prefetcher.push(*last, nullptr);
  for (int i = 0; i < 2; ++i) CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  CHECK(holds_its_rows(bench.ring, *last));
  CHECK(take(prefetcher, 1ms) == Outcome::kPending);
}

void test_an_empty_ring_keeps_the_order() {
  Bench bench{0};
  Prefetcher prefetcher{bench.ring, bench.sampler, 3, nullptr};
  std::vector<Block*> in;
  for (int i = 0; i < 3; ++i) prefetcher.push(*in.emplace_back(bench.block()), nullptr);
  for (int i = 0; i < 3; ++i) {
    CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
    prefetcher.retry();
  }
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
  rows::insert(bench.ring, 0, 50);
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);  // what the thread saw, until it is told to look again
  prefetcher.retry();
  const auto expected = draws_of(bench.ring, 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
    CHECK(tickets_of(*in[i]) == expected[i]);
  }
  // A ring that is emptied later: the block after it takes up where it stopped.
  bench.ring.clear();
  prefetcher.push(*in[0], nullptr);
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
  rows::insert(bench.ring, 50, 20);
  prefetcher.retry();
  CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  CHECK(tickets_of(*in[0]) == draws_of(bench.ring, 1, 3)[0]);
}

// In epochs a block for which there was nothing gets its rows before one that came in later, when there was.
void test_an_empty_ring_keeps_the_order_of_an_epoch() {
  Bench bench{0};
  fastreplay::Sampler sampler{kKey, {.is_shuffled = false}, {}};
  Prefetcher prefetcher{bench.ring, sampler, 3, nullptr};
  std::vector<Block*> in;
  const auto push = [&] { prefetcher.push(*in.emplace_back(bench.block()), nullptr); };
  push();
  push();
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
  CHECK(!prefetcher.oldest_call());  // it had none
  rows::insert(bench.ring, 0, 48);
  push();
  prefetcher.retry();
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
    CHECK_EQ(tickets_of(*in[i]).front(), 16 * i);
  }
}

// What the send of a test was called for.
struct Sent {
  const Ring* ring;
  const Block* block;
  int result = 0;
  int num_calls = 0;
  bool was_filled = false;
  std::thread::id thread{};
};

int send(void* context) {
  auto& sent = *static_cast<Sent*>(context);
  ++sent.num_calls;
  sent.thread = std::this_thread::get_id();
  sent.was_filled = holds_its_rows(*sent.ring, *sent.block);
  return sent.result;
}

void test_send_comes_after_each_fill() {
  Bench bench;
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, &send};
  for (int i = 0; i < 50; ++i) {
    Sent sent{.ring = &bench.ring, .block = bench.block()};
    prefetcher.push(*sent.block, &sent);
    CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
    CHECK_EQ(sent.num_calls, 1);
    CHECK(sent.was_filled);
  }
}

void test_a_failed_send_is_told_and_ends_the_filling() {
  Bench bench;
  std::vector<Sent> sent(5, Sent{.ring = &bench.ring, .block = nullptr});
  sent[1].result = 700;
  Prefetcher prefetcher{bench.ring, bench.sampler, 5, &send};
  for (Sent& each : sent) each.block = bench.block();
  // The third may be filled by one of two threads while the other one fails.
  for (std::size_t i = 0; i < 3; ++i) prefetcher.push(*sent[i].block, &sent[i]);
  CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  CHECK(take(prefetcher, kPatience) == Outcome::kFailed);
  for (std::size_t i = 3; i < 5; ++i) prefetcher.push(*sent[i].block, &sent[i]);
  for (int i = 0; i < 3; ++i) {
    CHECK(take(prefetcher, kPatience) == Outcome::kFailed);
    CHECK_EQ(prefetcher.error(), 700);
    prefetcher.retry();  // for empty rings only
  }
  prefetcher.stop();
  for (std::size_t i = 3; i < 5; ++i) CHECK_EQ(sent[i].num_calls, 0);
  CHECK(take(prefetcher, kPatience) == Outcome::kStopped);
}

// The thread sleeps, and takes longer to wake than the consumer to see that nobody fills the block.
void test_the_consumer_fills_what_the_thread_has_not_begun() {
  Bench bench;
  const auto expected = draws_of(bench.ring, 100);
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, &send};
  int num_own = 0;
  for (const auto& tickets : expected) {
    std::this_thread::sleep_for(200us);
    Sent sent{.ring = &bench.ring, .block = bench.block()};
    prefetcher.push(*sent.block, &sent);
    CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
    CHECK_EQ(sent.num_calls, 1);
    CHECK(tickets_of(*sent.block) == tickets);
    num_own += sent.thread == std::this_thread::get_id() ? 1 : 0;
  }
  CHECK(num_own > 0);
}

// A send that stands still until it is let go, and tells that it has begun.
struct Gate {
  std::atomic<std::thread::id> thread{};
  std::atomic<int> num_begun{0};
  std::atomic<bool> is_open{false};
};

int wait_at(void* context) {
  auto& gate = *static_cast<Gate*>(context);
  gate.thread.store(std::this_thread::get_id());
  gate.num_begun.fetch_add(1);
  while (!gate.is_open.load()) std::this_thread::sleep_for(10us);
  return 0;
}

void test_what_the_thread_has_begun_is_waited_for() {
  Bench bench;
  Gate gate;
  Prefetcher prefetcher{bench.ring, bench.sampler, 1, &wait_at};
  prefetcher.push(*bench.block(), &gate);
  while (gate.num_begun.load() == 0) std::this_thread::yield();
  CHECK(take(prefetcher, 0ns) == Outcome::kPending);
  CHECK(take(prefetcher, 1ms) == Outcome::kPending);
  gate.is_open.store(true);
  CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  CHECK_EQ(gate.num_begun.load(), 1);
}

// Without patience there is nothing done that takes long.
void test_no_patience_no_work() {
  Bench bench{0};
  Gate gate;
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, &wait_at};
  for (int i = 0; i < 2; ++i) prefetcher.push(*bench.block(), &gate);
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
  rows::insert(bench.ring, 0, 50);
  prefetcher.retry();
  for (int i = 0; i < 1000; ++i) CHECK(take(prefetcher, 0ns) == Outcome::kPending);
  gate.is_open.store(true);
  for (int i = 0; i < 2; ++i) CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
}

void test_ends_at_every_moment() {
  Bench bench;
  for (int pushed = 0; pushed <= 3; ++pushed) {
    for (int taken = 0; taken <= pushed; ++taken) {
      for (int wait = 0; wait < 3; ++wait) {
        Prefetcher prefetcher{bench.ring, bench.sampler, 3, nullptr};
        for (int i = 0; i < pushed; ++i) prefetcher.push(*bench.block(), nullptr);
        for (int i = 0; i < taken; ++i) CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
        if (wait > 0) std::this_thread::sleep_for(wait * 100us);  // it spins, or sleeps
        if (taken % 2 == 0) prefetcher.stop();
        if (taken % 4 == 0) CHECK(take(prefetcher, kPatience) == Outcome::kStopped);
      }
    }
  }
}

void test_a_waiting_consumer_hears_of_the_end() {
  Bench bench;
  for (int round = 0; round < 50; ++round) {
    Prefetcher prefetcher{bench.ring, bench.sampler, 1, nullptr};
    Outcome outcome = Outcome::kFilled;
    std::thread consumer{[&] { outcome = take(prefetcher, kPatience); }};
    if (round % 2 == 0) std::this_thread::sleep_for(round * 10us);
    std::thread other{[&] { prefetcher.stop(); }};
    prefetcher.stop();
    other.join();
    consumer.join();
    CHECK(outcome == Outcome::kStopped);
  }
}

// Whoever fills a block, the thread or a consumer, is done with it when stop() returns: it may be somebody else's then.
void test_the_end_comes_after_what_is_being_filled() {
  Bench bench;
  int num_by_consumer = 0;
  for (int round = 0; num_by_consumer < 3 && round < 10000; ++round) {
    Prefetcher prefetcher{bench.ring, bench.sampler, 1, &wait_at};
    Gate gate;
    if (round % 4 > 0) std::this_thread::sleep_for(100us);  // the thread sleeps
    std::thread consumer{[&] {
      prefetcher.push(*bench.block(), &gate);
      (void)prefetcher.await(kPatience);
    }};
    const auto consumers = consumer.get_id();
    while (gate.num_begun.load() == 0) std::this_thread::yield();
    std::atomic<bool> is_over{false};
    std::thread closer{[&] {
      prefetcher.stop();
      is_over.store(true);
    }};
    const bool is_by_consumer = gate.thread.load() == consumers;
    if (is_by_consumer) std::this_thread::sleep_for(5ms);
    CHECK(!is_over.load());
    gate.is_open.store(true);
    closer.join();
    consumer.join();
    num_by_consumer += is_by_consumer ? 1 : 0;
  }
  CHECK(num_by_consumer > 0);
}

// Consumer and thread at their own pace, with a writer and clear() beside them: whole rows, each its ticket's.
void test_beside_a_writer() {
  Bench bench;
  std::atomic<bool> is_over{false};
  bool all_went_in = true;
  std::thread writer{[&] {
    // relaxed: only that it is seen in the end.
    for (std::uint64_t id = 100; !is_over.load(std::memory_order_relaxed); id += 8) {
      rows::Writer next{bench.ring, id, 8};
      all_went_in = all_went_in && next.insert(8, kPatience);
    }
  }};
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, nullptr};
  std::deque<Block*> in;
  check::Random random{1};
  for (int i = 0; i < 2; ++i) prefetcher.push(*in.emplace_back(bench.block()), nullptr);
  std::uint64_t num_wrong = 0;
  for (int i = 0; i < 3000; ++i) {
    if (i % 500 == 499) bench.ring.clear();
    Outcome outcome = take(prefetcher, kPatience);
    for (; outcome == Outcome::kEmpty; outcome = take(prefetcher, kPatience)) prefetcher.retry();
    CHECK(outcome == Outcome::kFilled);
    Block* block = in.front();
    in.pop_front();
    num_wrong += holds_its_rows(bench.ring, *block) ? 0 : 1;
    if (random.below(10) == 0) std::this_thread::sleep_for(20us);
    prefetcher.push(*in.emplace_back(block), nullptr);
  }
  prefetcher.stop();
  is_over.store(true, std::memory_order_relaxed);  // relaxed: as above
  writer.join();
  CHECK(all_went_in);
  CHECK_EQ(num_wrong, 0U);
  CHECK_EQ(bench.sampler.calls(), 3002U);
}

// To have waited for a block changes nothing; it is taken once.
void test_a_block_stays_until_it_is_taken() {
  Bench bench;
  const auto expected = draws_of(bench.ring, 30);
  Prefetcher prefetcher{bench.ring, bench.sampler, 2, nullptr};
  std::deque<Block*> in;
  for (int i = 0; i < 2; ++i) prefetcher.push(*in.emplace_back(bench.block()), nullptr);
  for (std::uint64_t i = 0; i < 28; ++i) {
    for (int again = 0; again < 3; ++again) {
      const auto [outcome, number, num_rows] = prefetcher.await(kPatience);
      CHECK(outcome == Outcome::kFilled);
      CHECK_EQ(number, i);
      CHECK(tickets_of(*in.front()) == expected[i]);
    }
    CHECK(!prefetcher.take(i + 1));
    CHECK(prefetcher.take(i));
    CHECK(!prefetcher.take(i));
    in.pop_front();
    prefetcher.push(*in.emplace_back(bench.block()), nullptr);
  }
  CHECK_EQ(prefetcher.await(kPatience).number, 28U);
  prefetcher.stop();
  CHECK(!prefetcher.take(28));
}

// Consumers that wait for the same block: each goes to one of them, and none is left waiting.
void test_several_consumers() {
  Bench bench;
  constexpr std::uint64_t kNumBlocks = 400;
  Prefetcher prefetcher{bench.ring, bench.sampler, kNumBlocks, nullptr};
  std::vector<std::atomic<int>> taken(kNumBlocks);
  std::atomic<std::uint64_t> num_taken{0};
  std::vector<std::thread> consumers;
  for (int i = 0; i < 4; ++i) {
    consumers.emplace_back([&] {
      while (num_taken.load() < kNumBlocks) {
        const auto [outcome, number, num_rows] = prefetcher.await(1ms);
        if (outcome == Outcome::kFilled && prefetcher.take(number)) {
          taken[number].fetch_add(1);
          num_taken.fetch_add(1);
        }
      }
    });
  }
  for (std::uint64_t i = 0; i < kNumBlocks; ++i) {
    prefetcher.push(*bench.block(), nullptr);
    if (i % 50 == 0) std::this_thread::sleep_for(200us);
  }
  for (auto& consumer : consumers) consumer.join();
  for (const auto& times : taken) CHECK_EQ(times.load(), 1);
}

void test_two_on_one_sampler() {
  Bench bench;
  const auto expected = draws_of(bench.ring, 40);
  Prefetcher first{bench.ring, bench.sampler, 1, nullptr};
  Prefetcher second{bench.ring, bench.sampler, 1, nullptr};
  for (std::size_t i = 0; i < 40; i += 2) {
    Block *one = bench.block(), *two = bench.block();
    first.push(*one, nullptr);
    second.push(*two, nullptr);
    CHECK(take(second, kPatience) == Outcome::kFilled);
    CHECK(take(first, kPatience) == Outcome::kFilled);
    CHECK(tickets_of(*one) == expected[i]);
    CHECK(tickets_of(*two) == expected[i + 1]);
  }
}

// Each member fills its share of every block, as it would fill a block of its own; one that is empty holds up all.
void test_members_fill_their_shares() {
  Bench one;
  Bench other{0};
  const std::vector<fastreplay::Part> parts = transition_parts(one.ring.records().layout());
  const std::vector<std::size_t> places{0, 1, 2, 3};
  Prefetcher prefetcher{
      {{.ring = one.ring, .sampler = one.sampler}, {.ring = other.ring, .sampler = other.sampler}}, 2, nullptr};
  CHECK(check::throws<std::logic_error>([&] { prefetcher.push(*one.block(), nullptr); }));  // one piece
  std::deque<std::pair<Block, Block>> in;
  const auto push = [&] {
    const Block* whole = one.block();
    in.emplace_back(std::piecewise_construct, std::forward_as_tuple(*whole, parts, places, 0, 5),
                    std::forward_as_tuple(*whole, parts, places, 5, 11));
    const Prefetcher::Piece pieces[]{{.block = &in.back().first}, {.block = &in.back().second}};
    prefetcher.push(pieces, nullptr);
  };
  for (int i = 0; i < 2; ++i) push();
  CHECK(take(prefetcher, kPatience) == Outcome::kEmpty);
  rows::insert(other.ring, 0, 90);
  prefetcher.retry();
  Sampler first{kKey};
  Sampler second{kKey};
  for (std::uint64_t i = 0; i < 20; ++i) {
    const auto [outcome, number, num_rows] = prefetcher.await(kPatience);
    CHECK(outcome == Outcome::kFilled);
    CHECK_EQ(num_rows, 16U);
    for (const std::size_t member : {0, 1}) CHECK_EQ(prefetcher.oldest_call(member)->number, i);
    CHECK(prefetcher.take(number));
    const Block alone{parts, 5};
    const Block alone_too{parts, 11};
    CHECK(first.sample(one.ring, alone) && second.sample(other.ring, alone_too));
    CHECK(tickets_of(in.front().first) == tickets_of(alone));
    CHECK(tickets_of(in.front().second) == tickets_of(alone_too));
    CHECK(holds_its_rows(one.ring, in.front().first) && holds_its_rows(other.ring, in.front().second));
    in.pop_front();
    push();
  }
  // One that has no share of a block takes no turn.
  for (int i = 0; i < 2; ++i) CHECK(take(prefetcher, kPatience) == Outcome::kFilled);
  const Prefetcher::Piece pieces[]{{.block = nullptr}, {.block = &in.back().second}};
  const std::uint64_t calls = one.sampler.calls();
  prefetcher.push(pieces, nullptr);
  CHECK_EQ(prefetcher.await(kPatience).num_rows, 11U);
  CHECK_EQ(one.sampler.calls(), calls);
  CHECK(!prefetcher.oldest_call(0) && prefetcher.oldest_call(1));
}

void test_blocks_in_borrowed_memory() {
  Bench bench;
  const Block own{transition_parts(bench.ring.records().layout()), 16};
  fastreplay::Region memory{own.layout().num_bytes() + fastreplay::kCacheLine};
  const std::span<std::byte> bytes{memory.data(), memory.num_bytes()};
  const Block borrowed{transition_parts(bench.ring.records().layout()), 16, bytes.first(own.layout().num_bytes())};
  CHECK(borrowed.data() == memory.data());
  Sampler one{kKey};
  Sampler two{kKey};
  CHECK(one.sample(bench.ring, own));
  CHECK(two.sample(bench.ring, borrowed));
  CHECK(std::memcmp(own.data(), borrowed.data(), own.layout().num_bytes()) == 0);
  const auto make = [&](std::span<std::byte> where) {
    (void)Block{transition_parts(bench.ring.records().layout()), 16, where};
  };
  CHECK(check::throws<std::invalid_argument>([&] { make(bytes.first(own.layout().num_bytes() - 1)); }));
  CHECK(check::throws<std::invalid_argument>([&] { make(bytes.subspan(8)); }));
}

}  // namespace

int main() {
  for (const std::size_t depth : {1, 2, 3, 8}) test_order_and_number_of_draws(depth);
  test_limits();
  test_an_empty_ring_keeps_the_order();
  test_an_empty_ring_keeps_the_order_of_an_epoch();
  test_send_comes_after_each_fill();
  test_a_failed_send_is_told_and_ends_the_filling();
  test_the_consumer_fills_what_the_thread_has_not_begun();
  test_what_the_thread_has_begun_is_waited_for();
  test_no_patience_no_work();
  test_ends_at_every_moment();
  test_a_waiting_consumer_hears_of_the_end();
  test_the_end_comes_after_what_is_being_filled();
  test_beside_a_writer();
  test_a_block_stays_until_it_is_taken();
  test_several_consumers();
  test_two_on_one_sampler();
  test_members_fill_their_shares();
  test_blocks_in_borrowed_memory();
  return check::result();
}
