// SPDX-License-Identifier: MIT
// The ordered set against a vector of flags.
#include <cstdint>
#include <vector>

#include "batch/index_set.hpp"
#include "check.hpp"

using fastreplay::IndexSet;

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

}  // namespace

int main() {
  follows_random_fills();
  return check::result();
}
