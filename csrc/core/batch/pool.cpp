// SPDX-License-Identifier: MIT
#include "batch/pool.hpp"

#include <utility>

namespace fastreplay {

std::shared_ptr<BlockPool> BlockPool::make(std::vector<Part> parts, std::size_t batch_size, std::size_t max_free) {
  static_cast<void>(BatchLayout{parts, batch_size});  // throws before there is a pool
  return std::shared_ptr<BlockPool>{new BlockPool{std::move(parts), batch_size, max_free}};
}

BlockPool::BlockPool(std::vector<Part> parts, std::size_t batch_size, std::size_t max_free)
    : parts_{std::move(parts)}, batch_size_{batch_size}, max_free_{max_free} {}

BlockPool::~BlockPool() {
  // relaxed: the last shared pointer to the pool is gone, so nobody pushes, and its count orders what was pushed.
  Node* node = free_.load(std::memory_order_relaxed);
  while (node != nullptr) delete std::exchange(node, node->below);
}

std::shared_ptr<Block> BlockPool::take() {
  Node* node = pop();
  if (node == nullptr) node = new Node{Block{parts_, batch_size_}, nullptr};
  // Makes the block's one count. Where that throws, the deleter has been called.
  return {&node->block, [pool = weak_from_this(), node](Block*) noexcept {
            if (const std::shared_ptr<BlockPool> alive = pool.lock()) {
              alive->give_back(node);
            } else {
              delete node;
            }
          }};
}

std::size_t BlockPool::num_free() const noexcept {
  // relaxed: a statistic.
  return num_free_.load(std::memory_order_relaxed);
}

BlockPool::Node* BlockPool::pop() noexcept {
  // acquire: what the block's last owners did with its memory comes before what its next owner does; pairs with the
  // release in push().
  Node* const top = free_.exchange(nullptr, std::memory_order_acquire);
  if (top == nullptr) return nullptr;
  // relaxed: a bound; the exchange has ordered the blocks themselves.
  num_free_.fetch_sub(1, std::memory_order_relaxed);
  if (Node* const rest = top->below; rest != nullptr) {
    Node* last = rest;
    while (last->below != nullptr) last = last->below;
    push(rest, last);
  }
  return top;
}

void BlockPool::push(Node* first, Node* last) noexcept {
  // relaxed: only compared, and stored below; the exchange below decides.
  Node* top = free_.load(std::memory_order_relaxed);
  do {
    last->below = top;
    // release: pairs with the acquire in pop(). relaxed on failure: as the load above.
  } while (!free_.compare_exchange_weak(top, first, std::memory_order_release, std::memory_order_relaxed));
}

void BlockPool::give_back(Node* node) noexcept {
  // relaxed: a bound that may be missed by those who give back at once.
  if (num_free_.fetch_add(1, std::memory_order_relaxed) < max_free_) {
    push(node, node);
  } else {
    // relaxed: as above.
    num_free_.fetch_sub(1, std::memory_order_relaxed);
    delete node;
  }
}

}  // namespace fastreplay
