// SPDX-License-Identifier: MIT
// Steps stored, and gathered by their slots, against arrays of their own: every layout, shared observations, n steps.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "check.hpp"
#include "steps/step_table.hpp"

using fastreplay::Block;
using fastreplay::FieldSize;
using fastreplay::RecordLayout;
using fastreplay::Records;
using fastreplay::Rows;
using fastreplay::StepTable;

namespace {

// What lies where, in plain arrays: one string of bytes for each row and environment.
struct Model {
  std::size_t num_rows, num_envs, observation_bytes;
  bool shares;
  std::vector<std::vector<unsigned char>> observation, next;
  std::vector<float> reward, done, timeout;

  [[nodiscard]] std::size_t after(std::size_t slot) const { return (slot + num_envs) % (num_rows * num_envs); }
};

const std::byte* bytes(const void* data) { return static_cast<const std::byte*>(data); }

RecordLayout layout_of(std::size_t observation_bytes, bool shares) {
  std::vector<FieldSize> fields{{observation_bytes, 1}, {8, 8}, {4, 4}, {4, 4}, {4, 4}};
  if (!shares) fields.push_back({observation_bytes, 1});
  return RecordLayout{fields};
}

void store_step(StepTable& steps, Model& model, std::size_t row, check::Random& random, bool has_timeouts) {
  const std::size_t n = model.num_envs;
  std::vector<unsigned char> obs(n * model.observation_bytes), next(obs.size());
  for (auto& byte : obs) byte = static_cast<unsigned char>(random.next());
  for (auto& byte : next) byte = static_cast<unsigned char>(random.next());
  std::vector<std::uint64_t> action(n);
  std::vector<float> reward(n), done(n), timeout(n);
  for (std::size_t env = 0; env < n; ++env) {
    const std::size_t slot = row * n + env;
    action[env] = slot;
    model.reward[slot] = reward[env] = static_cast<float>(random.next() % 100);
    model.done[slot] = done[env] = random.next() % 4 == 0;
    timeout[env] = random.next() % 4 == 0;
    if (has_timeouts) model.timeout[slot] = timeout[env];
    const auto begin = static_cast<std::ptrdiff_t>(env * model.observation_bytes);
    const auto end = begin + static_cast<std::ptrdiff_t>(model.observation_bytes);
    model.observation[slot].assign(obs.begin() + begin, obs.begin() + end);
    auto& place = model.shares ? model.observation[model.after(slot)] : model.next[slot];
    place.assign(next.begin() + begin, next.begin() + end);
  }
  const std::vector<Rows> fields{{bytes(obs.data()), model.observation_bytes},
                                 {bytes(action.data()), 8},
                                 {bytes(reward.data()), 4},
                                 {bytes(done.data()), 4},
                                 {has_timeouts ? bytes(timeout.data()) : nullptr, 4},
                                 {bytes(next.data()), model.observation_bytes}};
  steps.store(row, fields);
}

// A block with room for slots, and what is in its parts.
struct Batch {
  Block block;

  Batch(const StepTable& steps, const std::vector<std::uint64_t>& slots) : block{steps.parts(), slots.size()} {
    std::ranges::copy(slots, block.tickets().begin());
  }

  [[nodiscard]] const std::byte* row(std::size_t part, std::size_t i) const {
    return block.part(part) + i * block.layout().parts()[part].row_bytes;
  }
  template <class Value>
  [[nodiscard]] Value value(std::size_t part, std::size_t i) const {
    Value value;
    std::memcpy(&value, row(part, i), sizeof value);
    return value;
  }
  [[nodiscard]] const std::byte* observation(std::size_t i) const { return row(0, i); }
  [[nodiscard]] std::uint64_t action(std::size_t i) const { return value<std::uint64_t>(1, i); }
  [[nodiscard]] const std::byte* next(std::size_t i) const { return row(2, i); }
  [[nodiscard]] float reward(std::size_t i) const { return value<float>(3, i); }
  [[nodiscard]] float done(std::size_t i) const { return value<float>(4, i); }
};

void check_gather(const StepTable& steps, const Model& model, const std::vector<std::uint64_t>& slots) {
  const Batch batch{steps, slots};
  std::vector<std::uint64_t> ends(slots.size());
  steps.gather(batch.block, ends.data());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::size_t slot = slots[i];
    const auto& next = model.shares ? model.observation[model.after(slot)] : model.next[slot];
    CHECK(std::memcmp(batch.observation(i), model.observation[slot].data(), model.observation_bytes) == 0);
    CHECK(std::memcmp(batch.next(i), next.data(), model.observation_bytes) == 0);
    CHECK_EQ(batch.action(i), slot);
    CHECK_EQ(batch.reward(i), model.reward[slot]);
    CHECK_EQ(batch.done(i), model.done[slot] * (1 - model.timeout[slot]));
  }
}

void check_n_steps(const StepTable& steps, const Model& model, const std::vector<std::uint64_t>& slots,
                   std::size_t num_steps, std::size_t newest_row) {
  const Batch batch{steps, slots};
  std::vector<std::uint64_t> ends(slots.size());
  std::vector<float> rewards(slots.size() * num_steps), counts(slots.size());
  std::vector<std::uint8_t> is_counted(rewards.size());
  steps.gather_n_steps(batch.block, ends.data(), num_steps, newest_row, rewards.data(), is_counted.data(),
                       counts.data());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    std::size_t slot = slots[i], end = slot, count = 0;
    bool is_over = false;
    for (std::size_t k = 0; k < num_steps; ++k, slot = model.after(slot)) {
      CHECK_EQ(rewards[i * num_steps + k], model.reward[slot]);
      CHECK_EQ(is_counted[i * num_steps + k] != 0, !is_over);
      if (is_over) continue;
      end = slot;
      ++count;
      is_over = model.done[slot] != 0 || model.timeout[slot] != 0 || slot / model.num_envs == newest_row;
    }
    const bool is_cut = model.timeout[end] != 0 || (end / model.num_envs == newest_row && model.done[end] == 0);
    CHECK_EQ(counts[i], static_cast<float>(count));
    CHECK_EQ(ends[i], end);
    CHECK_EQ(batch.done(i), model.done[end] * (is_cut ? 0.0F : 1.0F));
    CHECK_EQ(batch.action(i), slots[i]);
    CHECK(std::memcmp(batch.next(i), model.next[end].data(), model.observation_bytes) == 0);
  }
}

// The last half of the rows get what the next observations of other slots have.
void check_goals(const StepTable& steps, const Model& model, const std::vector<std::uint64_t>& slots) {
  const Batch batch{steps, slots};
  std::vector<std::uint64_t> ends(slots.size());
  const std::size_t num_kept = slots.size() / 2;
  const std::span goals{slots.data(), slots.size() - num_kept};
  steps.gather(batch.block, ends.data());
  steps.gather_goals(batch.block, goals, 0, 0);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const bool is_kept = i < num_kept;
    const auto& wanted = is_kept ? model.observation[slots[i]] : model.next[goals[i - num_kept]];
    const auto& next = is_kept ? model.next[slots[i]] : wanted;
    CHECK(std::memcmp(batch.observation(i), wanted.data(), model.observation_bytes) == 0);
    CHECK(std::memcmp(batch.next(i), next.data(), model.observation_bytes) == 0);
    CHECK_EQ(batch.action(i), slots[i]);
    CHECK_EQ(batch.reward(i), model.reward[slots[i]]);
  }
}

void test_steps(std::size_t num_rows, std::size_t num_envs, std::size_t observation_bytes, bool shares) {
  const std::size_t size = num_rows * num_envs;
  Records records{layout_of(observation_bytes, shares), size};
  StepTable steps{records, num_envs, 1};
  CHECK_EQ(steps.shares_observations(), shares);
  Model model{num_rows, num_envs, observation_bytes, shares, {}, {}, {}, {}, {}};
  model.observation.assign(size, std::vector<unsigned char>(observation_bytes));
  model.next = model.observation;
  model.reward.assign(size, 0);
  model.done = model.timeout = model.reward;
  check::Random random{size * 31 + observation_bytes};
  for (std::size_t step = 0; step < 2 * num_rows + 1; ++step) {
    store_step(steps, model, step % num_rows, random, step % 3 != 0);
  }
  std::vector<std::int64_t> rows(300), envs(rows.size());
  std::vector<std::uint64_t> slots(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = static_cast<std::int64_t>(random.next() % (2 * num_rows)) - static_cast<std::int64_t>(num_rows);
    envs[i] = static_cast<std::int64_t>(random.next() % num_envs);
  }
  CHECK(steps.locate(rows, envs.data(), slots.data()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = static_cast<std::size_t>(rows[i] < 0 ? rows[i] + static_cast<std::int64_t>(num_rows) : rows[i]);
    CHECK_EQ(slots[i], row * num_envs + static_cast<std::size_t>(envs[i]));
  }
  check_gather(steps, model, slots);
  if (shares) return;
  check_goals(steps, model, slots);
  for (const std::size_t num_steps : {std::size_t{1}, std::size_t{3}, std::size_t{100}}) {
    check_n_steps(steps, model, slots, num_steps, random.next() % num_rows);
  }
}

void test_refusals() {
  Records records{layout_of(12, false), 12};
  CHECK(check::throws<std::invalid_argument>([&] { StepTable{records, 5, 1}; }));
  CHECK(check::throws<std::invalid_argument>([&] { StepTable{records, 0, 1}; }));
  CHECK(check::throws<std::invalid_argument>([&] { StepTable{records, 13, 1}; }));
  CHECK(check::throws<std::invalid_argument>([&] { StepTable{records, 4, 0}; }));
  CHECK(check::throws<std::invalid_argument>([&] { StepTable{records, 4, 3}; }));
  const StepTable steps{records, 4, 1};
  std::uint64_t slot = 0;
  for (const auto& [row, env] : std::vector<std::pair<std::int64_t, std::int64_t>>{{3, 0}, {-4, 0}, {0, 4}, {0, -1}}) {
    CHECK(!steps.locate({&row, 1}, &env, &slot));
  }
}

void test_sums() {
  const std::vector<float> rewards{1, 2, 3, -0.0F, -0.0F, -0.0F}, discounts{1, 0.5F, 0.25F};
  const std::vector<std::uint8_t> is_counted{1, 1, 0, 1, 1, 1};
  std::vector<float> sums(2);
  CHECK(fastreplay::discounted_sums(rewards, discounts, is_counted.data(), sums.data()));
  CHECK_EQ(sums[0], 2.0F);
  CHECK(!std::signbit(sums[1]));
  const std::vector<float> infinite{1, 2, std::numeric_limits<float>::infinity(), 0, 0, 0};
  CHECK(!fastreplay::discounted_sums(infinite, discounts, is_counted.data(), sums.data()));
}

}  // namespace

int main() {
  for (const std::size_t observation_bytes : {1, 12, 68, 1392, 5000, 28224}) {
    for (const bool shares : {false, true}) {
      for (const std::size_t num_envs : {1, 3}) {
        for (const std::size_t num_rows : {1, 2, 37}) test_steps(num_rows, num_envs, observation_bytes, shares);
      }
    }
  }
  test_refusals();
  test_sums();
  return check::result();
}
