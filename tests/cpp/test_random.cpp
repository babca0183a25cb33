// SPDX-License-Identifier: MIT
// Philox against published words, the word stream against NumPy's, bounded draws against chance.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "batch/random.hpp"
#include "check.hpp"

using fastreplay::Philox;
using fastreplay::Uint128;
using fastreplay::WordStream;

namespace {

constexpr std::uint64_t kOnes = ~std::uint64_t{0};

// The vectors of philox4x64 with 10 rounds in Random123's kat_vectors (Salmon et al. 2011); NumPy 2.4's
// Philox gives the same words (it increments the counter first: counter - 1, then random_raw(4)).
void known_answers() {
  struct Known {
    Philox::Counter counter;
    Philox::Key key;
    Philox::Counter words;
  };
  constexpr std::array<Known, 3> kVectors{{
      {{0, 0, 0, 0}, {0, 0}, {0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b}},
      {{kOnes, kOnes, kOnes, kOnes},
       {kOnes, kOnes},
       {0x87b092c3013fe90b, 0x438c3c67be8d0224, 0x9cc7d7c69cd777b6, 0xa09caebf594f0ba0}},
      {{0x243f6a8885a308d3, 0x13198a2e03707344, 0xa4093822299f31d0, 0x082efa98ec4e6c89},
       {0x452821e638d01377, 0xbe5466cf34e90c6c},
       {0xa528f45403e61d95, 0x38c72dbd566e9788, 0xa5a1610e72fd18b5, 0x57bd43b5e52b7fe6}},
  }};
  for (const Known& known : kVectors) CHECK(Philox::words(known.counter, known.key) == known.words);
}

// numpy.random.Philox(key=key, counter=[0, call, 0, 0]).random_raw(9), NumPy 2.4.
void stream_is_numpys() {
  const auto starts_with = [](Philox::Key key, std::uint64_t call, const std::array<std::uint64_t, 9>& expected) {
    WordStream words{key, call};
    return std::ranges::all_of(expected, [&](std::uint64_t word) { return words.next() == word; });
  };
  CHECK(starts_with({1, 2}, 0,
                    {0x4f2f4313b5536b09, 0x5b617be3219ff32a, 0x097293476f9275cb, 0xf63f3bf4962c3942, 0x04dcc60473aa0f43,
                     0x6d905c9b986b0028, 0x559a6c953d16fe9d, 0xbd24fd1da9945eea, 0xa3484ceef3376fef}));
  CHECK(starts_with({1, 2}, 1,
                    {0x57bf6a7a1189e4da, 0xe8a3ffc1f36ae07e, 0xd0a3cbc2a98ae4cb, 0x28d6c889bddcf2b8, 0x2e5fe85efd90ec83,
                     0x9c81bcb040afb148, 0x38c66562922a4c7c, 0x437605e84f07b337, 0x6b5e4eeca3a0bd59}));
  CHECK(starts_with({1, 2}, 12345,
                    {0xd965195692b0f293, 0xd612a9a923cf2df9, 0xe56a7d92bb87207a, 0xc3b8b31ab2a5db18, 0x59bcf185b818a4c8,
                     0x5de041500daab36c, 0xd85c84be27d07596, 0xb14bcaf745a32b63, 0xf28b4ded546aafb3}));
  CHECK(starts_with({0x0123456789abcdef, 0xfedcba9876543210}, kOnes,
                    {0xff0a93af619e0543, 0x516c81f4ef7a4421, 0x98180365170c1bd6, 0xe6c7c7bfb02e4b72, 0xfb9413fc45d15195,
                     0xd370cdecd37d4807, 0xeef55ed34ad638e8, 0x5dbf1bc359f2f98c, 0x741f35ca7a017b04}));
}

// Lemire's draw by the letter: words whose low half falls into the incomplete interval are passed over.
std::uint64_t letter_below(WordStream& words, std::uint64_t bound, int& num_passed_over) {
  const std::uint64_t incomplete = (0 - bound) % bound;
  for (;; ++num_passed_over) {
    const Uint128 product = Uint128{words.next()} * bound;
    if (static_cast<std::uint64_t>(product) >= incomplete) return static_cast<std::uint64_t>(product >> 64);
  }
}

void bounded_draws() {
  const std::uint64_t half = std::uint64_t{1} << 63;
  for (const std::uint64_t bound : {std::uint64_t{1}, std::uint64_t{2}, std::uint64_t{3}, std::uint64_t{1000003},
                                    half - 1, half, half + 1, half + half / 2, kOnes - 1, kOnes}) {
    WordStream letters{{3, 4}, bound};
    WordStream draws{{3, 4}, bound};
    int num_passed_over = 0;
    std::uint64_t largest = 0;
    for (int i = 0; i < 1000; ++i) {
      const std::uint64_t draw = draws.below(bound);
      CHECK_EQ(draw, letter_below(letters, bound, num_passed_over));
      largest = std::max(largest, draw);
    }
    CHECK_EQ(draws.next(), letters.next());  // as many words were used
    CHECK(largest < bound && largest >= bound / 100 * 98);
    // Nearly half of the words are passed over just above 2^63, none of a power of two.
    if (bound == half + 1) CHECK(num_passed_over > 800 && num_passed_over < 1200);
    if (bound == half) CHECK_EQ(num_passed_over, 0);
  }
}

void powers_of_two_take_the_top_bits() {
  for (unsigned bits = 1; bits < 64; ++bits) {
    WordStream plain{{3, 4}, bits};
    WordStream bounded{{3, 4}, bits};
    for (int i = 0; i < 50; ++i) CHECK_EQ(bounded.below(std::uint64_t{1} << bits), plain.next() >> (64 - bits));
  }
}

void uniform() {
  for (const std::uint64_t bound : {2, 3, 5, 6, 7, 10, 100, 1000}) {
    WordStream words{{bound, 0}, 0};
    std::vector<double> counts(bound);
    const double expected = 2000;
    for (std::uint64_t i = 0; i < bound * 2000; ++i) ++counts.at(words.below(bound));
    double chi_square = 0;
    for (const double count : counts) chi_square += (count - expected) * (count - expected) / expected;
    // Six standard deviations of chi-square above its mean.
    const auto freedom = static_cast<double>(bound - 1);
    CHECK(chi_square < freedom + 6 * std::sqrt(2 * freedom));
  }
}

}  // namespace

int main() {
  known_answers();
  stream_is_numpys();
  bounded_draws();
  powers_of_two_take_the_top_bits();
  uniform();
  return check::result();
}
