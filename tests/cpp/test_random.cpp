// SPDX-License-Identifier: MIT
// Philox against published words, the word stream against NumPy's, bounded draws against chance.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "random.hpp"

using fastreplay::Philox;
using fastreplay::WordStream;

namespace {

// The vectors of philox4x64 with 10 rounds in Random123's kat_vectors (Salmon et al. 2011).
void known_answers() {
  struct Known {
    Philox::Counter counter;
    Philox::Key key;
    Philox::Counter words;
  };
  constexpr std::uint64_t kOnes = ~std::uint64_t{0};
  const std::array<Known, 3> vectors{{
      {{0, 0, 0, 0}, {0, 0}, {0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b}},
      {{kOnes, kOnes, kOnes, kOnes},
       {kOnes, kOnes},
       {0x87b092c3013fe90b, 0x438c3c67be8d0224, 0x9cc7d7c69cd777b6, 0xa09caebf594f0ba0}},
      {{0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89},
       {0x452821e638d01377, 0xbe5466cf34e90c6c},
       {0xa528f45403e61d95, 0x38c72dbd566e9788, 0xa5a1610e72fd18b5, 0x57bd43b5e52b7fe6}},
  }};
  for (const Known& known : vectors) CHECK(Philox::words(known.counter, known.key) == known.words);
}

// numpy.random.Philox(key=[1, 2], counter=[0, call, 0, 0]).random_raw(6), NumPy 2.4.
void stream_is_numpys() {
  const auto starts_with = [](std::uint64_t call, const std::array<std::uint64_t, 6>& expected) {
    WordStream words{{1, 2}, call};
    return std::ranges::all_of(expected, [&](std::uint64_t word) { return words.next() == word; });
  };
  CHECK(starts_with(0, {0x4f2f4313b5536b09, 0x5b617be3219ff32a, 0x097293476f9275cb, 0xf63f3bf4962c3942,
                        0x04dcc60473aa0f43, 0x6d905c9b986b0028}));
  CHECK(starts_with(1, {0x57bf6a7a1189e4da, 0xe8a3ffc1f36ae07e, 0xd0a3cbc2a98ae4cb, 0x28d6c889bddcf2b8,
                        0x2e5fe85efd90ec83, 0x9c81bcb040afb148}));
  CHECK(starts_with(12345, {0xd965195692b0f293, 0xd612a9a923cf2df9, 0xe56a7d92bb87207a, 0xc3b8b31ab2a5db18,
                            0x59bcf185b818a4c8, 0x5de041500daab36c}));
}

void bounded_draws() {
  WordStream words{{3, 4}, 5};
  for (int i = 0; i < 1000; ++i) CHECK_EQ(words.below(1), 0U);
  // Of a bound just above 2^63 nearly half of the words are rejected.
  constexpr std::uint64_t kLarge = (std::uint64_t{1} << 63) + 1;
  std::uint64_t largest = 0;
  for (int i = 0; i < 1000; ++i) largest = std::max(largest, words.below(kLarge));
  CHECK(largest < kLarge && largest > kLarge / 100 * 98);
  // The same draws by the letter: words whose low half falls into the incomplete interval are passed over.
  constexpr std::uint64_t kIncomplete = (0 - kLarge) % kLarge;
  WordStream letters{{3, 4}, 7};
  WordStream draws{{3, 4}, 7};
  int num_passed_over = 0;
  for (int i = 0; i < 1000; ++i) {
    std::uint64_t word = letters.next();
    for (; word * kLarge < kIncomplete; ++num_passed_over) word = letters.next();
    CHECK_EQ(draws.below(kLarge), static_cast<std::uint64_t>((fastreplay::Uint128{word} * kLarge) >> 64));
  }
  CHECK(num_passed_over > 800 && num_passed_over < 1200);
  // The i-th draw is the high half of word * bound, and a power of two rejects nothing.
  WordStream plain{{3, 4}, 6};
  WordStream bounded{{3, 4}, 6};
  for (int i = 0; i < 1000; ++i) CHECK_EQ(bounded.below(std::uint64_t{1} << 20), plain.next() >> 44);
}

void uniform() {
  for (const std::uint64_t bound : {2, 3, 7, 10, 1000}) {
    WordStream words{{bound, 0}, 0};
    std::vector<double> counts(bound);
    const double expected = 1000;
    for (std::uint64_t i = 0; i < bound * 1000; ++i) ++counts[words.below(bound)];
    double chi_square = 0;
    for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
    // Six standard deviations of chi-square above its mean.
    CHECK(chi_square < static_cast<double>(bound) + 6 * std::sqrt(2 * static_cast<double>(bound)));
  }
}

}  // namespace

int main() {
  known_answers();
  stream_is_numpys();
  bounded_draws();
  uniform();
  return check::result();
}
