// SPDX-License-Identifier: MIT
// Which transitions a hindsight minibatch is made of, and which steps the goals of some are taken from (Andrychowicz et
// al. 2017, "Hindsight experience replay", https://arxiv.org/abs/1707.01495). Knows nothing of what lies in the table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/index_set.hpp"
#include "batch/random.hpp"

namespace fastreplay {

// What a goal is what was achieved by: a step from the transition's own on, the last, any of its trajectory.
enum class GoalOf : std::uint8_t { kFuture, kFinal, kAny };

// What is known of a transition: the row its trajectory begins in, and how many steps that has. After the last row
// comes row 0.
struct Trajectory {
  std::int64_t first_row;
  std::int64_t num_steps;
};

struct Hindsight {
  const IndexSet& complete;                  // those transitions that are drawn, at least one
  std::span<const Trajectory> trajectories;  // of environment e in row r at r * num_envs + e
  std::size_t num_envs;
  GoalOf goal_of;

  // Chooses transitions, with replacement and each as likely as every other, and the rows of those steps that the last
  // of them get their goals from. There are as many envs as rows, and at most as many goals.
  void draw(WordStream words, std::span<std::int64_t> rows, std::span<std::int64_t> envs,
            std::span<std::int64_t> goal_rows) const noexcept {
    const std::size_t num_real = rows.size() - goal_rows.size();
    complete.draw(words, rows);
    for (const std::int64_t index : rows.subspan(num_real)) {
      __builtin_prefetch(&trajectories[static_cast<std::size_t>(index)]);
    }
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto index = static_cast<std::size_t>(rows[i]);
      const std::size_t row = index / num_envs;
      rows[i] = static_cast<std::int64_t>(row);
      envs[i] = static_cast<std::int64_t>(index - row * num_envs);
      if (i >= num_real) goal_rows[i - num_real] = row_of_goal(row, trajectories[index], words);
    }
  }

 private:
  // In no row of the table only where no trajectory is like that. (Unsigned, since those who keep them may say
  // anything.)
  [[nodiscard]] std::int64_t row_of_goal(std::size_t row, const Trajectory& trajectory,
                                         WordStream& words) const noexcept {
    const std::size_t num_rows = trajectories.size() / num_envs;
    const auto first_row = static_cast<std::uint64_t>(trajectory.first_row);
    const auto num_steps = static_cast<std::uint64_t>(trajectory.num_steps);
    std::uint64_t step = num_steps - 1;
    if (goal_of == GoalOf::kAny) step = words.below(num_steps);
    if (goal_of == GoalOf::kFuture) {
      const std::uint64_t own = row - first_row + (row < first_row ? num_rows : 0);
      step = own + words.below(num_steps - own);
    }
    const std::uint64_t goal = first_row + step;
    return static_cast<std::int64_t>(goal < num_rows ? goal : goal - num_rows);
  }
};

}  // namespace fastreplay
