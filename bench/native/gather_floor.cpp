// SPDX-License-Identifier: MIT
// Times gathers without anything around them: no draw, no check, no Python, no tensor. Each round
// gathers rows that no round before it has touched.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <thread>
#include <vector>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "batch/read.hpp"
#include "batch/sample.hpp"
#include "ring/ring.hpp"

namespace py = pybind11;
namespace fr = fastreplay;

namespace {

using Slots = py::array_t<std::int64_t, py::array::c_style>;

// How the bytes of a row are put where they go.
struct Plain {
  static void row(std::byte* to, const std::byte* from, std::size_t num_bytes) { std::memcpy(to, from, num_bytes); }
  static void done() {}
};

#ifdef __SSE2__
// Past the caches: a line that is written whole is not read first, and drives out nothing.
struct Streamed {
  static void row(std::byte* to, const std::byte* from, std::size_t num_bytes) {
    constexpr std::size_t kWord = sizeof(__m128i);
    const std::size_t head = std::min(num_bytes, -reinterpret_cast<std::uintptr_t>(to) % kWord);
    std::memcpy(to, from, head);
    std::size_t at = head;
    for (; at + kWord <= num_bytes; at += kWord) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
    }
    std::memcpy(to + at, from + at, num_bytes - at);
  }
  static void done() { _mm_sfence(); }
};
#endif

// The gather that a careful programmer would write, of some rows of a block: record by record, field by field, records
// of together about 48 lines prefetched ahead.
template <class Store>
void bare_gather(const fr::Ring& ring, const fr::Block& block, std::size_t first, std::size_t last) {
  constexpr std::size_t kLinesAhead = 48;
  const fr::RecordLayout& layout = ring.records().layout();
  const std::size_t num_lines = (layout.used_bytes() + fr::kCacheLine - 1) / fr::kCacheLine;
  const std::size_t ahead = std::clamp<std::size_t>(kLinesAhead / num_lines, 1, 16);
  const auto tickets = block.tickets();
  for (std::size_t turn = first; turn < last + ahead; ++turn) {
    if (turn < last) {
      // Written out here: GCC drops calls of a function that does nothing but prefetch.
      const std::byte* coming = ring.record(tickets[turn]);
      for (std::size_t i = 0; i < layout.used_bytes(); i += fr::kCacheLine) __builtin_prefetch(coming + i);
    }
    if (turn < first + ahead) continue;
    const std::size_t row = turn - ahead;
    const std::byte* record = ring.record(tickets[row]);
    for (std::size_t f = 0; f < layout.columns().size(); ++f) {
      const auto [offset, row_bytes, num_frames] = layout.columns()[f];
      Store::row(block.data() + block.layout().offsets()[f] + row * row_bytes, record + offset, row_bytes);
    }
  }
  Store::done();
}

// A second thread that waits for its half of each gather, spinning: what two cores can do, without what waking costs.
template <class Store>
class Halved {
 public:
  Halved() : helper_{[this] { help(); }} {}
  Halved(const Halved&) = delete;
  Halved& operator=(const Halved&) = delete;
  ~Halved() {
    is_over_ = true;
    helper_.join();
  }

  void operator()(const fr::Ring& ring, const fr::Block& block) {
    ring_ = &ring;
    block_.store(&block, std::memory_order_release);
    const std::size_t num_rows = block.tickets().size();
    bare_gather<Store>(ring, block, 0, num_rows / 2);
    wait([&] { return block_.load(std::memory_order_acquire) == nullptr; });
  }

 private:
  void help() {
    while (true) {
      wait([&] { return is_over_ || block_.load(std::memory_order_acquire) != nullptr; });
      const fr::Block* block = block_.load(std::memory_order_acquire);
      if (block == nullptr) return;
      const std::size_t num_rows = block->tickets().size();
      bare_gather<Store>(*ring_, *block, num_rows / 2, num_rows);
      block_.store(nullptr, std::memory_order_release);
    }
  }

  // Spins for some microseconds, then lets whoever has no core have this one.
  template <class Condition>
  static void wait(Condition condition) {
    for (int turns = 0; !condition(); ++turns) {
      if (turns > 4096) std::this_thread::yield();
    }
  }

  const fr::Ring* ring_ = nullptr;
  std::atomic<const fr::Block*> block_ = nullptr;
  std::atomic<bool> is_over_ = false;
  std::thread helper_;
};

// The cache lines that pieces of a row's records lie in, copied as they lie, many of them asked for ahead: what has to
// be read, and no more. A piece is so many slots after the row's, and has a first byte and a number of bytes.
class Lines {
 public:
  using Pieces = std::vector<std::array<std::size_t, 3>>;

  Lines(const fr::Ring& ring, const Pieces& pieces) : first_{ring.records().at(0)} {
    const std::size_t stride = ring.records().layout().stride();
    for (const auto& [num_slots, first, num_bytes] : pieces) {
      for (std::size_t at = first / fr::kCacheLine * fr::kCacheLine; at < first + num_bytes; at += fr::kCacheLine) {
        offsets_.push_back(num_slots * stride + at);
      }
    }
    std::ranges::sort(offsets_);
    offsets_.erase(std::unique(offsets_.begin(), offsets_.end()), offsets_.end());
    if (offsets_.empty() || stride % fr::kCacheLine != 0) throw py::value_error{"expected records of whole lines"};
  }

  [[nodiscard]] std::size_t of_rows(std::size_t num_rows) const { return num_rows * offsets_.size(); }

  void copy(const fr::Ring& ring, std::span<const fr::Ticket> slots, std::byte* to) const {
    constexpr std::size_t kAhead = 64;
    const std::size_t num_lines = of_rows(slots.size());
    const std::size_t stride = ring.records().layout().stride();
    Place coming;
    Place now;
    for (std::size_t i = 0; i < num_lines + kAhead; ++i) {
      if (i < num_lines) __builtin_prefetch(at(slots, stride, coming), 0, 2);
      if (i < kAhead) continue;
      std::memcpy(to, at(slots, stride, now), fr::kCacheLine);
      to += fr::kCacheLine;
    }
  }

 private:
  struct Place {
    std::size_t row = 0;
    std::size_t line = 0;
  };

  [[gnu::always_inline]] const std::byte* at(std::span<const fr::Ticket> slots, std::size_t stride,
                                             Place& place) const {
    const std::byte* found = first_ + slots[place.row] * stride + offsets_[place.line];
    if (++place.line == offsets_.size()) {
      place.line = 0;
      ++place.row;
    }
    return found;
  }

  const std::byte* first_;
  std::vector<std::size_t> offsets_;  // from the row's record
};

// Nanoseconds of one gather of a row of `slots`, (rounds, batch_size): the mean, as that of calls under one reading of
// the clock, with which it is compared. The first round, which touches the block's pages, does not count.
template <class Gather>
double mean_ns(const fr::Ring& ring, const Slots& slots, Gather&& gather) {
  using Clock = std::chrono::steady_clock;
  const auto rounds = static_cast<std::size_t>(slots.shape(0));
  const auto batch_size = static_cast<std::size_t>(slots.shape(1));
  const fr::Block block{transition_parts(ring.records().layout()), batch_size};
  Clock::duration taken{};
  for (std::size_t round = 0; round < rounds; ++round) {
    const std::int64_t* row = slots.data(static_cast<py::ssize_t>(round), 0);
    std::copy(row, row + batch_size, block.tickets().begin());  // in a ring's first lap a slot is a ticket
    const auto start = Clock::now();
    gather(ring, block);
    if (round > 0) taken += Clock::now() - start;
  }
  return std::chrono::duration<double, std::nano>(taken).count() / static_cast<double>(rounds - 1);
}

// What Python's own part of a call takes, whatever its arguments are.
PyObject* nothing(PyObject* /*module*/, PyObject* const* /*arguments*/, Py_ssize_t /*count*/, PyObject* /*names*/) {
  Py_RETURN_NONE;
}

PyMethodDef nothing_method{"nothing", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&nothing)),
                           METH_FASTCALL | METH_KEYWORDS, "Do nothing with any arguments."};

// `<name>_gather_ns` on one thread, `<name>_halves_ns` on two.
template <class Store>
void def_bare(py::module_& m, const std::string& name) {
  m.def((name + "_gather_ns").c_str(), [](const fr::Ring& ring, const Slots& slots) {
    return mean_ns(ring, slots,
                   [](const fr::Ring& r, const fr::Block& b) { bare_gather<Store>(r, b, 0, b.tickets().size()); });
  });
  m.def((name + "_halves_ns").c_str(), [](const fr::Ring& ring, const Slots& slots) {
    Halved<Store> halved;
    return mean_ns(ring, slots, [&](const fr::Ring& r, const fr::Block& b) { halved(r, b); });
  });
}

}  // namespace

PYBIND11_MODULE(_gather_floor, m) {
  py::module_::import("fastreplay");
  m.attr("nothing") = py::reinterpret_steal<py::object>(PyCFunction_New(&nothing_method, nullptr));
  m.def("gather_ns", [](const fr::Ring& ring, const Slots& slots) {
    return mean_ns(ring, slots, [](const fr::Ring& r, const fr::Block& b) { (void)fr::read_tickets(r, b); });
  });
  m.def("copy_lines_ns", [](const fr::Ring& ring, const Slots& slots, const Lines::Pieces& pieces) {
    const Lines lines{ring, pieces};
    std::vector<std::byte> target(lines.of_rows(static_cast<std::size_t>(slots.shape(1))) * fr::kCacheLine);
    return mean_ns(ring, slots,
                   [&](const fr::Ring& r, const fr::Block& b) { lines.copy(r, b.tickets(), target.data()); });
  });
  def_bare<Plain>(m, "plain");
#ifdef __SSE2__
  def_bare<Streamed>(m, "streamed");
#endif
}
