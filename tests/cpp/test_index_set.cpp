// SPDX-License-Identifier: MIT
// The ordered set against a vector of flags.
#include <cmath>
#include <cstdint>
#include <vector>

#include "batch/index_set.hpp"
#include "check.hpp"

using fastreplay::IndexSet;
using fastreplay::WordStream;

namespace {

void expect_same(const IndexSet& set, const std::vector<bool>& flags) {
  std::vector<std::int64_t> ranks, members;
  for (std::size_t i = 0; i < flags.size(); ++i) {
    CHECK_EQ(set.contains(i), flags[i]);
    if (!flags[i]) continue;
    ranks.push_back(static_cast<std::int64_t>(members.size()));
    members.push_back(static_cast<std::int64_t>(i));
  }
  CHECK_EQ(set.size(), members.size());
  set.select(ranks);
  CHECK(ranks == members);
}

void follows_random_fills() {
  check::Random random{5};
  for (const std::size_t bound : {1, 2, 63, 64, 65, 127, 128, 129, 1000, 4096, 10'000}) {
    IndexSet set{bound};
    std::vector<bool> flags(bound);
    for (int round = 0; round < 50; ++round) {
      const std::size_t stride = 1 + random.below(100), first = random.below(bound);
      const std::size_t count = random.below((bound - 1 - first) / stride + 2);
      const bool is_member = random.below(3) != 0;
      set.fill(first, count, stride, is_member);
      for (std::size_t i = 0; i < count; ++i) flags[first + i * stride] = is_member;
      expect_same(set, flags);
    }
    set.fill(0, bound, 1, true);
    expect_same(set, std::vector<bool>(bound, true));
    set.fill(0, bound, 1, false);
    expect_same(set, std::vector<bool>(bound, false));
  }
}

// Where most integers are members, and where few are: neither another integer, nor one of them more often.
void draws_each_as_often() {
  for (const std::size_t num_members : {1, 30, 499, 500, 700, 1000}) {
    constexpr std::size_t kBound = 1000, kDraws = 1000;
    IndexSet set{kBound};
    check::Random random{num_members};
    while (set.size() < num_members) set.fill(random.below(kBound), 1, 1, true);
    std::vector<std::size_t> counts(kBound);
    std::vector<std::int64_t> drawn(num_members * kDraws);
    WordStream words{{1, 2}, num_members};
    set.draw(words, drawn);
    for (const std::int64_t index : drawn) ++counts[static_cast<std::size_t>(index)];
    double chi_square = 0;
    for (std::size_t i = 0; i < kBound; ++i) {
      const double off = static_cast<double>(counts[i]) - (set.contains(i) ? kDraws : 0);
      if (!set.contains(i)) CHECK_EQ(counts[i], 0U);
      chi_square += off * off / kDraws;
    }
    const auto freedom = static_cast<double>(num_members - 1);
    CHECK(chi_square <= freedom + 4 * std::sqrt(2 * freedom));
  }
}

}  // namespace

int main() {
  follows_random_fills();
  draws_each_as_often();
  return check::result();
}
