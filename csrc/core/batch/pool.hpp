// SPDX-License-Identifier: MIT
// Minibatch blocks that come back to be used again when their last owner is gone. Must not know who the owners
// are: tensors, arrays and the library itself each keep a copy of the shared pointer, and none of them is counted
// by anything else.
//
//   waiting in free_ --take()--> owned, one to many times --the last owner goes--> waiting in free_, or freed
//
// The last owner may go on any thread, with or without an interpreter, in a signal handler's finalizer or in the
// child after a fork; so giving back takes no lock. A block that is held when the pool dies is freed by its last
// owner.
//
// Ownership: free_ is a stack, pushed by who gives back, and emptied as a whole by who takes (so that no node can
// be taken and pushed again behind a comparison, the ABA problem). num_free_ is a bound, not a count to rely on.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "batch/block.hpp"
#include "batch/layout.hpp"

namespace fastreplay {

class BlockPool : public std::enable_shared_from_this<BlockPool> {
 public:
  // At most about `max_free` blocks wait at a time. Throws std::invalid_argument where a block of batch_size rows
  // has no layout.
  [[nodiscard]] static std::shared_ptr<BlockPool> make(std::vector<Part> parts, std::size_t batch_size,
                                                       std::size_t max_free);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // A block that nobody uses, one that waited if there is one. Throws std::bad_alloc.
  [[nodiscard]] std::shared_ptr<Block> take();

  [[nodiscard]] std::size_t num_free() const noexcept;

 private:
  struct Node {
    Block block;
    Node* below;
  };

  BlockPool(std::vector<Part> parts, std::size_t batch_size, std::size_t max_free);

  [[nodiscard]] Node* pop() noexcept;
  void push(Node* first, Node* last) noexcept;
  void give_back(Node* node) noexcept;

  const std::vector<Part> parts_;
  const std::size_t batch_size_;
  const std::size_t max_free_;
  std::atomic<Node*> free_{nullptr};
  std::atomic<std::size_t> num_free_{0};
};

}  // namespace fastreplay
