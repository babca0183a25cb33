// SPDX-License-Identifier: MIT
// Rows of a file that is larger than memory: which of their pages the disk is asked for before the first is copied, so
// that it works at all of them together. Where everything is in memory lately, nobody asks. Only speed depends on it.
#pragma once

#include <atomic>
#include <cstddef>

namespace fastreplay {

class Paging {
 public:
  // While rows are copied by this thread: notes whether it had to wait for the disk.
  class Copy {
   public:
    explicit Copy(Paging* paging) noexcept;  // null where nothing lies on a disk
    ~Copy();
    Copy(const Copy&) = delete;
    Copy& operator=(const Copy&) = delete;

    // Whether rows are to be asked for, each of them, before the first is copied.
    [[nodiscard]] bool asks() const noexcept { return asks_; }
    void ask(const std::byte* row, std::size_t num_bytes) noexcept;

   private:
    Paging* paging_;
    bool asks_;
    bool has_asked_ = false;
    long faults_before_ = 0;
  };

  // Asks for bytes that are about to be written, where they are not there.
  static void ask(const std::byte* begin, std::size_t num_bytes) noexcept;

 private:
  // Copies that are still asked for. Written and read by any; a hint that orders nothing.
  std::atomic<int> copies_left_{0};
};

}  // namespace fastreplay
