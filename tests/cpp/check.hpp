// SPDX-License-Identifier: MIT
// What a test needs: checks that count, print what went wrong, and make the program fail.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string_view>

namespace check {

// For one thread at a time: threads of a test report through values that main() checks.
inline std::uint64_t num_passed = 0;
inline std::uint64_t num_failed = 0;

inline void report(bool passed, std::string_view file, int line, std::string_view expression) {
  if (passed) {
    ++num_passed;
  } else if (++num_failed <= 20) {
    std::cerr << file << ':' << line << ": failed: " << expression << '\n';
  }
}

template <class A, class B>
void equal(const A& a, const B& b, std::string_view file, int line, std::string_view expression) {
  const bool same = a == b;
  report(same, file, line, expression);
  if (!same && num_failed <= 20) std::cerr << "  got " << a << " and " << b << '\n';
}

template <class Error>
bool throws(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  } catch (...) {
  }
  return false;
}

// To be returned from main().
inline int result() {
  std::cout << num_passed << " checks passed, " << num_failed << " failed\n";
  return num_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

// A deterministic generator for test data (SplitMix64; Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_{seed} {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }

 private:
  std::uint64_t state_;
};

}  // namespace check

#define CHECK(expression) check::report(static_cast<bool>(expression), __FILE__, __LINE__, #expression)
#define CHECK_EQ(a, b) check::equal(a, b, __FILE__, __LINE__, #a " == " #b)
