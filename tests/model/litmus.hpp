// SPDX-License-Identifier: MIT
// Programs of a few accesses whose outcomes the C++ memory model settles: what memory.hpp forbids must
// be forbidden, and what it allows must be found. Knows nothing of rings.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "memory.hpp"

namespace model::litmus {

enum class Kind { kLoad, kStore, kUpdate, kExchange, kFence };

struct Access {
  Kind kind;
  Order order;
  std::size_t location = 0;
  unsigned value = 0;
};

using Program = std::vector<std::vector<Access>>;

constexpr std::size_t kX = 0;
constexpr std::size_t kY = 1;

inline Access load(std::size_t location, Order order) { return {Kind::kLoad, order, location, 0}; }
inline Access store(std::size_t location, unsigned value, Order order) {
  return {Kind::kStore, order, location, value};
}
inline Access update(std::size_t location, unsigned value, Order order) {
  return {Kind::kUpdate, order, location, value};
}
// An update of which the value that it read is told.
inline Access exchange(std::size_t location, unsigned value, Order order) {
  return {Kind::kExchange, order, location, value};
}
inline Access fence(Order order) { return {Kind::kFence, order, 0, 0}; }

// All outcomes of a program: the values read, thread by thread, and "/" with the newest x and y.
class Outcomes {
 public:
  explicit Outcomes(const Program& program) : program_{program} {
    Memory memory{2, program.size()};
    for (std::size_t t = 0; t < program.size(); ++t) memory.set_fences(t, fences(program[t]));
    explore(memory, std::vector<std::size_t>(program.size()), std::vector<std::string>(program.size()));
  }
  [[nodiscard]] bool contains(const std::string& outcome) const { return found_.count(outcome) > 0; }

 private:
  static Fences fences(const std::vector<Access>& thread) {
    for (const Access& access : thread) {
      if (access.kind == Kind::kFence && access.order == Order::kAcquire) return Fences::kAcquire;
    }
    return Fences::kRelease;
  }

  void explore(const Memory& memory, const std::vector<std::size_t>& next, const std::vector<std::string>& reads) {
    bool done = true;
    for (std::size_t t = 0; t < program_.size(); ++t) {
      if (next[t] == program_[t].size()) continue;
      done = false;
      step(memory, next, reads, t);
    }
    if (done) note(memory, reads);
  }

  void note(const Memory& memory, const std::vector<std::string>& reads) {
    std::string outcome;
    for (const std::string& of_thread : reads) outcome += of_thread;
    found_.insert(outcome);
    found_.insert(outcome + "/" + std::to_string(memory.newest(kX)) + std::to_string(memory.newest(kY)));
  }

  void step(const Memory& memory, std::vector<std::size_t> next, const std::vector<std::string>& reads, std::size_t t) {
    const Access access = program_[t][next[t]++];
    const std::size_t first = memory.oldest_readable(t, access.location);
    const std::size_t end = memory.num_messages(access.location);
    if (access.kind == Kind::kFence) {
      Memory after = memory;
      acquires(access.order) ? after.fence_acquire(t) : after.fence_release(t);
      return explore(after, next, reads);
    }
    for (std::size_t at = first; at < end; ++at) {
      if (access.kind != Kind::kLoad && !memory.has_room(access.location, at + 1)) continue;
      Memory after = memory;
      std::vector<std::string> more = reads;
      if (access.kind == Kind::kExchange) more[t] += std::to_string(after.value(access.location, at));
      if (access.kind == Kind::kStore) after.store(t, access.location, at + 1, access.value, access.order);
      if (access.kind == Kind::kLoad) more[t] += std::to_string(after.load(t, access.location, at, access.order));
      if (access.kind == Kind::kUpdate || access.kind == Kind::kExchange) {
        after.update(t, access.location, at, access.value, access.order);
      }
      explore(after, next, more);
    }
  }

  Program program_;
  std::set<std::string> found_;
};

struct Litmus {
  const char* name;
  Program program;
  std::string outcome;
  bool allowed;
};

inline std::vector<Litmus> all() {
  constexpr Order kRlx = Order::kRelaxed;
  constexpr Order kAcq = Order::kAcquire;
  constexpr Order kRel = Order::kRelease;
  const std::vector<Access> plain_writer{store(kX, 1, kRlx), store(kY, 1, kRlx)};
  const std::vector<Access> release_writer{store(kX, 1, kRlx), store(kY, 1, kRel)};
  const std::vector<Access> fence_writer{store(kX, 1, kRlx), fence(kRel), store(kY, 1, kRlx)};
  const std::vector<Access> plain_reader{load(kY, kRlx), load(kX, kRlx)};
  const std::vector<Access> acquire_reader{load(kY, kAcq), load(kX, kRlx)};
  const std::vector<Access> fence_reader{load(kY, kRlx), fence(kAcq), load(kX, kRlx)};
  const std::vector<Access> two_loads{load(kX, kRlx), load(kX, kRlx)};
  const std::vector<Access> writes_x{store(kX, 1, kRel)};
  const std::vector<Access> writes_y{store(kY, 1, kRel)};
  return {
      {"message passing, relaxed", {plain_writer, plain_reader}, "10", true},
      {"message passing, relaxed store", {plain_writer, acquire_reader}, "10", true},
      {"message passing, relaxed load", {release_writer, plain_reader}, "10", true},
      {"message passing, release and acquire", {release_writer, acquire_reader}, "10", false},
      {"message passing, release fence", {fence_writer, acquire_reader}, "10", false},
      {"message passing, acquire fence", {release_writer, fence_reader}, "10", false},
      {"message passing, both fences", {fence_writer, fence_reader}, "10", false},
      {"message passing, one fence", {fence_writer, plain_reader}, "10", true},
      {"fence after the store", {{store(kX, 1, kRlx), store(kY, 1, kRlx), fence(kRel)}, fence_reader}, "10", true},
      {"a release store is no fence for the next store",
       {{store(kX, 1, kRel), store(kY, 1, kRlx)}, fence_reader},
       "10",
       true},
      {"store buffering", {{store(kX, 1, kRel), load(kY, kAcq)}, {store(kY, 1, kRel), load(kX, kAcq)}}, "00", true},
      {"what was read by chance is not handed on",
       {fence_writer, {load(kY, kRlx), store(kY, 2, kRel)}, acquire_reader},
       "120",
       true},
      // So do lanes/frames.cpp, a reader of what they store, and a writer that overwrites what they look at.
      {"what was read by chance is handed on behind an acquire fence",
       {fence_writer, {load(kY, kRlx), fence(kAcq), store(kY, 2, kRel)}, acquire_reader},
       "120",
       false},
      {"load buffering", {{load(kX, kRlx), store(kY, 1, kRlx)}, {load(kY, kRlx), store(kX, 1, kRlx)}}, "11", false},
      {"coherence of reads", {{store(kX, 1, kRlx), store(kX, 2, kRlx)}, {load(kX, kRlx), load(kX, kRlx)}}, "21", false},
      {"coherence of a write after a read", {{load(kX, kRlx), store(kX, 1, kRlx)}}, "1", false},
      {"readers agree on the order of writes",
       {{store(kX, 1, kRlx)}, {store(kX, 2, kRlx)}, {load(kX, kRlx), load(kX, kRlx)}, {load(kX, kRlx), load(kX, kRlx)}},
       "1221",
       false},
      {"a later store may be overwritten by an earlier one",
       {{store(kX, 1, kRlx), store(kY, 2, kRlx)}, {store(kY, 1, kRlx), store(kX, 2, kRlx)}},
       "/11",
       true},
      {"independent reads of independent writes",
       {writes_x, writes_y, {load(kX, kAcq), load(kY, kAcq)}, {load(kY, kAcq), load(kX, kAcq)}},
       "1010",
       true},
      {"an update that comes first hands on nothing",
       {{store(kX, 1, kRlx), update(kY, 1, kRel)}, {update(kY, 2, kRlx)}, acquire_reader},
       "20",
       true},
      {"release sequence through an update of its store",
       {release_writer, {load(kY, kRlx), update(kY, 2, kRlx)}, acquire_reader},
       "120",
       false},
      {"no release sequence through a store of the same thread (C++20)",
       {{store(kX, 1, kRlx), store(kY, 1, kRel), store(kY, 2, kRlx)}, acquire_reader},
       "20",
       true},
      {"an update loses no update", {{update(kX, 1, kRlx)}, {update(kX, 2, kRlx), load(kX, kRlx)}}, "0", false},
      {"an update may follow an older store", {plain_writer, {load(kY, kRlx), update(kX, 2, kRlx)}}, "1/11", true},
      {"an update of what was acquired", {release_writer, {load(kY, kAcq), update(kX, 2, kRlx)}}, "1/11", false},
      {"two updates read two messages", {{exchange(kX, 1, kRlx)}, {exchange(kX, 2, kRlx)}}, "00", false},
      {"two updates of one store", {plain_writer, {exchange(kX, 2, kRlx)}, {exchange(kX, 3, kRlx)}}, "11", false},
      {"a store before an update", {{exchange(kX, 1, kRlx)}, {store(kX, 2, kRlx)}, two_loads}, "221", true},
      {"a store after an update", {{exchange(kX, 1, kRlx)}, {store(kX, 2, kRlx)}, two_loads}, "012", true},
      {"no store between an update and what it read",
       {{exchange(kX, 1, kRlx)}, {store(kX, 2, kRlx)}, two_loads},
       "021",
       false},
      {"causality over three threads", {writes_x, {load(kX, kAcq), store(kY, 1, kRel)}, acquire_reader}, "110", false},
      {"coherence of reads of two threads",
       {writes_x, {load(kX, kRlx), store(kY, 1, kRel)}, acquire_reader},
       "110",
       false},
  };
}

}  // namespace model::litmus
