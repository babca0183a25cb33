// SPDX-License-Identifier: MIT
// Pages of memory that can be closed: to see that nothing beside a row is touched, and to stop a copy
// half-way without a hook in the code that copies. Knows nothing of rings. POSIX only.
#pragma once

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <span>
#include <utility>

namespace pages {

inline std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

inline void protect(void* page, std::size_t num_bytes, int protection) {
  if (mprotect(page, num_bytes, protection) != 0) std::abort();
}

// Whole pages between two closed ones: an access beside them ends the program.
class Guarded {
 public:
  explicit Guarded(std::size_t num_bytes)
      : num_bytes_{(num_bytes + page_bytes() - 1) / page_bytes() * page_bytes()},
        mapping_{mmap(nullptr, num_bytes_ + 2 * page_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)} {
    if (mapping_ == MAP_FAILED) std::abort();
    protect(bytes().data(), num_bytes_, PROT_READ | PROT_WRITE);
  }
  ~Guarded() { munmap(mapping_, num_bytes_ + 2 * page_bytes()); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(mapping_) + page_bytes(), num_bytes_};
  }

 private:
  std::size_t num_bytes_;
  void* mapping_;
};

// Sits on the first whole page of some bytes. While it is closed, the first access to the page opens it
// and runs `on_touch` on the accessing thread, in the middle of the access, which then goes on.
// `on_touch` should not allocate. Traps are made and destroyed while no thread runs into one.
class Trap {
 public:
  Trap(std::span<std::byte> bytes, std::function<void()> on_touch) : on_touch_{std::move(on_touch)} {
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
    const std::size_t skipped = (page_bytes() - begin % page_bytes()) % page_bytes();
    if (skipped + page_bytes() > bytes.size()) std::abort();
    page_ = bytes.data() + skipped;
    const auto place = std::find(traps().begin(), traps().end(), nullptr);
    if (place == traps().end()) std::abort();
    *place = this;
    install_handler();
  }
  ~Trap() {
    open();
    std::replace(traps().begin(), traps().end(), this, static_cast<Trap*>(nullptr));
  }
  Trap(const Trap&) = delete;
  Trap& operator=(const Trap&) = delete;

  void close() { protect(page_, page_bytes(), PROT_NONE); }
  [[nodiscard]] int num_touches() const {
    // relaxed: asked after the touching thread was joined, or by itself.
    return num_touches_.load(std::memory_order_relaxed);
  }

 private:
  static std::array<Trap*, 4>& traps() {
    static std::array<Trap*, 4> all{};
    return all;
  }

  static void install_handler() {
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;  // on_touch may run into another trap
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);  // macOS
  }

#if defined(__x86_64__)
  [[gnu::force_align_arg_pointer]]  // qemu-user 7 calls handlers with a stack that is not aligned
#endif
  static void handle(int signal_number, siginfo_t* info, void* /*context*/) {
    const auto* address = static_cast<const std::byte*>(info->si_addr);
    for (Trap* trap : traps()) {
      if (trap == nullptr || address < trap->page_ || address >= trap->page_ + page_bytes()) continue;
      trap->open();
      // relaxed: a count that orders nothing.
      trap->num_touches_.fetch_add(1, std::memory_order_relaxed);
      trap->on_touch_();
      return;
    }
    signal(signal_number, SIG_DFL);  // a fault of another kind: it comes again and ends the program
  }

  void open() { protect(page_, page_bytes(), PROT_READ | PROT_WRITE); }

  std::byte* page_ = nullptr;
  std::function<void()> on_touch_;
  std::atomic<int> num_touches_{0};
};

}  // namespace pages
