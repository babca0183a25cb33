// SPDX-License-Identifier: MIT
// BlockPool: a block has one owner at a time to whom it was given, comes back when the last is gone, whatever thread
// that is on, and outlives its pool.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "batch/pool.hpp"
#include "check.hpp"

using fastreplay::Block;
using fastreplay::BlockPool;
using fastreplay::RecordLayout;

namespace {

const RecordLayout kRecord{{{4, 4}, {12, 4}}};

void comes_back_with_its_last_owner() {
  const auto pool = BlockPool::make(transition_parts(kRecord), 8, 4);
  std::shared_ptr<Block> block = pool->take();
  const std::byte* const data = block->data();
  CHECK_EQ(block->batch_size(), 8U);
  std::shared_ptr<Block> second = block;
  block.reset();
  CHECK(pool->take()->data() != data);  // still owned
  second.reset();
  CHECK_EQ(pool->num_free(), 2U);
  CHECK(pool->take()->data() == data);  // the last that came back
}

void keeps_no_more_than_asked() {
  for (const std::size_t max_free : {0U, 1U, 3U}) {
    const auto pool = BlockPool::make(transition_parts(kRecord), 1, max_free);
    std::vector<std::shared_ptr<Block>> held;
    for (int i = 0; i < 10; ++i) held.push_back(pool->take());
    held.clear();
    CHECK_EQ(pool->num_free(), max_free);
    for (int i = 0; i < 10; ++i) held.push_back(pool->take());
    std::set<const std::byte*> places;
    for (const auto& block : held) places.insert(block->data());
    CHECK_EQ(places.size(), held.size());
    CHECK_EQ(pool->num_free(), 0U);
  }
}

void outlives_its_pool() {
  auto pool = BlockPool::make(transition_parts(kRecord), 100, 4);
  std::shared_ptr<Block> block = pool->take();
  (void)pool->take();  // one that waits
  pool.reset();
  std::memset(block->data(), 0xAB, block->layout().num_bytes());  // as ASan sees
  block.reset();
}

void refuses_what_has_no_layout() {
  CHECK(check::throws<std::invalid_argument>([] { (void)BlockPool::make(transition_parts(kRecord), SIZE_MAX, 1); }));
}

// Threads take, mark, hold and give back, the blocks of others too; two owners of one block at once would see each
// other's marks. Under ThreadSanitizer also: what one owner wrote is ordered before what the next does.
void threads() {
  constexpr std::size_t kThreads = 4;
  constexpr std::uint64_t kTurns = 20000;
  auto pool = BlockPool::make(transition_parts(kRecord), 4, 3);
  std::vector<std::atomic<std::shared_ptr<Block>*>> exchanged(8);
  std::atomic<std::uint64_t> num_wrong{0};
  const auto work = [&](std::uint64_t id) {
    check::Random random{id};
    for (std::uint64_t turn = 0; turn < kTurns; ++turn) {
      auto block = std::make_unique<std::shared_ptr<Block>>(pool->take());
      const std::uint64_t mark = id * kTurns + turn;
      std::memcpy((*block)->data(), &mark, sizeof mark);
      if (random.below(4) == 0) std::this_thread::yield();
      std::uint64_t seen = 0;
      std::memcpy(&seen, (*block)->data(), sizeof seen);
      // relaxed: read after the threads were joined.
      if (seen != mark) num_wrong.fetch_add(1, std::memory_order_relaxed);
      // acq_rel: hands the block's pointer from thread to thread; pairs with itself.
      delete exchanged[random.below(exchanged.size())].exchange(block.release(), std::memory_order_acq_rel);
    }
  };
  std::vector<std::thread> workers;
  for (std::uint64_t id = 0; id < kThreads; ++id) workers.emplace_back(work, id);
  for (std::thread& worker : workers) worker.join();
  CHECK_EQ(num_wrong.load(), 0U);
  pool.reset();
  for (auto& slot : exchanged) delete slot.load();
}

}  // namespace

int main() {
  comes_back_with_its_last_owner();
  keeps_no_more_than_asked();
  outlives_its_pool();
  refuses_what_has_no_layout();
  threads();
  return check::result();
}
