// SPDX-License-Identifier: MIT
// Steps that goals are taken from, against lists of trajectories: only those that the strategy says, each as often.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "check.hpp"
#include "steps/hindsight.hpp"

using fastreplay::GoalOf;
using fastreplay::Hindsight;
using fastreplay::IndexSet;
using fastreplay::Trajectory;
using fastreplay::WordStream;

namespace {

constexpr std::size_t kRows = 40;

// Trajectories of random lengths in each environment, one of them from the last rows on into the first, some not
// complete.
struct Table {
  std::size_t num_envs;
  IndexSet complete;
  std::vector<Trajectory> trajectories;

  Table(std::size_t envs, check::Random& random) : num_envs{envs}, complete{kRows * envs}, trajectories(kRows * envs) {
    for (std::size_t env = 0; env < num_envs; ++env) {
      const std::size_t begin = 1 + random.below(kRows - 1);
      for (std::size_t first = begin, length = 0; first < begin + kRows; first += length) {
        length = 1 + random.below(std::min<std::size_t>(9, begin + kRows - first));
        const bool is_complete = first == begin || random.below(4) != 0;
        for (std::size_t step = first; step < first + length; ++step) {
          const std::size_t index = step % kRows * num_envs + env;
          trajectories[index] = {static_cast<std::int64_t>(first % kRows),
                                 is_complete ? static_cast<std::int64_t>(length) : 0};
          complete.fill(index, 1, 1, is_complete);
        }
      }
    }
  }
};

using Counts =
    std::map<std::pair<std::size_t, std::int64_t>, std::size_t>;  // by transition, and step of its trajectory

void check_goals(const Table& table, GoalOf goal_of, std::size_t index, const Counts& counts) {
  const auto [first_row, num_steps] = table.trajectories[index];
  const auto row = static_cast<std::int64_t>(index / table.num_envs);
  const std::int64_t own = (row - first_row + std::int64_t{kRows}) % std::int64_t{kRows};
  const std::int64_t first = goal_of == GoalOf::kFuture ? own : goal_of == GoalOf::kFinal ? num_steps - 1 : 0;
  std::size_t num_drawn = 0, num_inside = 0;
  for (std::int64_t step = 0; step < std::int64_t{kRows}; ++step) {
    const auto found = counts.find({index, step});
    const std::size_t count = found == counts.end() ? 0 : found->second;
    num_drawn += count;
    if (step >= first && step < num_steps) num_inside += count;
  }
  CHECK(num_drawn > 0);
  CHECK_EQ(num_drawn, num_inside);
  const double expected = static_cast<double>(num_drawn) / static_cast<double>(num_steps - first);
  double chi_square = 0;
  for (std::int64_t step = first; step < num_steps; ++step) {
    const auto found = counts.find({index, step});
    const double off = (found == counts.end() ? 0.0 : static_cast<double>(found->second)) - expected;
    chi_square += off * off / expected;
  }
  CHECK(chi_square <= static_cast<double>(num_steps - first) + 6 * std::sqrt(2.0 * static_cast<double>(num_steps)));
}

void test_strategy(std::size_t num_envs, GoalOf goal_of) {
  constexpr std::size_t kBatch = 512, kBatches = 60;
  check::Random random{num_envs * 10 + static_cast<std::size_t>(goal_of)};
  const Table table{num_envs, random};
  const Hindsight hindsight{table.complete, table.trajectories, num_envs, goal_of};
  Counts counts;
  for (std::size_t batch = 0; batch < kBatches; ++batch) {
    const std::size_t num_goals = batch == 0 ? 0 : batch == 1 ? kBatch : kBatch - batch;
    std::vector<std::int64_t> rows(kBatch), envs(kBatch), goal_rows(num_goals);
    hindsight.draw(WordStream{{3, 4}, batch}, rows, envs, goal_rows);
    for (std::size_t i = 0; i < kBatch; ++i) {
      const std::size_t index = static_cast<std::size_t>(rows[i]) * num_envs + static_cast<std::size_t>(envs[i]);
      CHECK(envs[i] < static_cast<std::int64_t>(num_envs) && table.complete.contains(index));
      if (i < kBatch - num_goals) continue;
      const std::int64_t goal = goal_rows[i + num_goals - kBatch];
      CHECK(goal >= 0 && goal < std::int64_t{kRows});
      ++counts[{index, (goal - table.trajectories[index].first_row + std::int64_t{kRows}) % std::int64_t{kRows}}];
    }
  }
  for (std::size_t index = 0; index < table.trajectories.size(); ++index) {
    if (table.complete.contains(index)) check_goals(table, goal_of, index, counts);
  }
}

}  // namespace

int main() {
  for (const std::size_t num_envs : {1, 3}) {
    for (const GoalOf goal_of : {GoalOf::kFuture, GoalOf::kFinal, GoalOf::kAny}) test_strategy(num_envs, goal_of);
  }
  return check::result();
}
