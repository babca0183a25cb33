// SPDX-License-Identifier: MIT
// Threads that help with large minibatches: a job is cut into parts, which its caller and the helpers take one after
// another. Must not know what a part is.
//
// A helper that is late costs nothing: the others take its parts, down to the caller alone. So a job asks for no
// thread and waits for none, but for those that are within a part. One job at a time has helpers; who comes meanwhile
// does its own alone.
//
// The helpers are made when they are first needed, sleep without work, and end with the process. A child after a fork
// makes its own.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

namespace fastreplay {

// Parts below this are not worth a thread's waking: a core copies as much in the time that it takes.
inline constexpr std::size_t kPartBytes = std::size_t{256} << 10;

// How many threads do one job, the caller's among them; 1 until it was set.
[[nodiscard]] unsigned num_threads() noexcept;
void set_num_threads(unsigned count) noexcept;

// A function of a part's number, which outlives the job.
struct PartFunction {
  void (*call)(const void* function, std::size_t part) noexcept;
  const void* function;
};

// Calls the function for each of [0, num_parts), on this thread and up to num_threads - 1 others. What they did is
// visible here afterwards.
void do_parts(std::size_t num_parts, unsigned num_threads, PartFunction function) noexcept;

template <class Function>
void do_parts(std::size_t num_parts, unsigned num_threads, const Function& function) noexcept {
  static_assert(std::is_nothrow_invocable_v<const Function&, std::size_t>);
  do_parts(
      num_parts, num_threads,
      PartFunction{.call = [](const void* f, std::size_t part) noexcept { (*static_cast<const Function*>(f))(part); },
                   .function = std::addressof(function)});
}

}  // namespace fastreplay
