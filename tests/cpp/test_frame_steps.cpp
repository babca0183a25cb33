// SPDX-License-Identifier: MIT
// Steps with frames in common, located by rows and gathered, n of them too, against arrays of their own: laps, ends,
// new beginnings.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "lanes/frame_steps.hpp"
#if defined(FASTREPLAY_STOP_POINTS)
#include "yields.hpp"
#endif

using fastreplay::Block;
using fastreplay::FrameSteps;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::StepTable;

namespace {

using Bytes = std::vector<unsigned char>;
constexpr std::size_t kFrameBytes = 5;

const std::byte* bytes(const void* data) { return static_cast<const std::byte*>(data); }

RecordLayout layout_of(std::size_t num_frames) {
  const std::size_t row_bytes = num_frames * kFrameBytes;
  return RecordLayout{{{row_bytes, 1}, {8, 8}, {4, 4}, {4, 4}, {4, 4}, {row_bytes, 1}},
                      {{.fields = {0, 5}, .num_frames = num_frames}}};
}

// A step of all environments.
struct Step {
  Bytes observation, next;
  std::vector<std::uint64_t> action;
  std::vector<float> reward, done, timeout;
};

class Envs {
 public:
  Envs(std::size_t num_envs, std::size_t num_frames, check::Random& random)
      : num_envs_{num_envs}, row_bytes_{num_frames * kFrameBytes}, random_{random}, now_(num_envs * row_bytes_) {}

  Step step() {
    Step step{.observation = now_,
              .next = Bytes(now_.size()),
              .action = std::vector<std::uint64_t>(num_envs_),
              .reward = std::vector<float>(num_envs_),
              .done = std::vector<float>(num_envs_),
              .timeout = std::vector<float>(num_envs_)};
    for (std::size_t env = 0; env < num_envs_; ++env) {
      unsigned char* next = step.next.data() + env * row_bytes_;
      std::memcpy(next, now_.data() + env * row_bytes_ + kFrameBytes, row_bytes_ - kFrameBytes);
      draw(next + row_bytes_ - kFrameBytes, kFrameBytes);
      if (random_.below(5) == 0) draw(next + random_.below(row_bytes_), 1);  // which goes on from nothing
      std::memcpy(now_.data() + env * row_bytes_, next, row_bytes_);
      if (random_.below(4) == 0) draw(now_.data() + env * row_bytes_, row_bytes_);
      step.action[env] = random_.next();
      step.reward[env] = static_cast<float>(random_.below(100));
      step.done[env] = static_cast<float>(random_.below(2));
      step.timeout[env] = static_cast<float>(random_.below(2));
    }
    return step;
  }

 private:
  void draw(unsigned char* to, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<unsigned char>(random_.below(3));
  }

  std::size_t num_envs_, row_bytes_;
  check::Random& random_;
  Bytes now_;
};

void store(FrameSteps& steps, std::size_t row, const Step& step, std::size_t row_bytes) {
  const std::vector<Rows> fields{{bytes(step.observation.data()), row_bytes},
                                 {bytes(step.action.data()), 8},
                                 {bytes(step.reward.data()), 4},
                                 {bytes(step.done.data()), 4},
                                 {bytes(step.timeout.data()), 4},
                                 {bytes(step.next.data()), row_bytes}};
  steps.store(row, fields);
}

// A block for a row of all environments.
Block located(const FrameSteps& steps, std::int64_t row) {
  Block block{steps.parts(), steps.num_envs()};
  const std::vector<std::int64_t> rows(steps.num_envs(), row);
  std::vector<std::int64_t> envs(steps.num_envs());
  std::iota(envs.begin(), envs.end(), std::int64_t{0});
  CHECK(steps.locate(rows, envs.data(), block.tickets().data()));
  return block;
}

void check_row(const FrameSteps& steps, std::int64_t row, const Step& step, std::size_t row_bytes) {
  const std::size_t num_envs = step.action.size();
  const Block block = located(steps, row);
  std::vector<std::uint64_t> ends(num_envs);
  steps.gather(block, ends.data());
  CHECK(std::memcmp(block.part(0), step.observation.data(), num_envs * row_bytes) == 0);
  CHECK(std::memcmp(block.part(1), step.action.data(), num_envs * 8) == 0);
  CHECK(std::memcmp(block.part(2), step.next.data(), num_envs * row_bytes) == 0);
  CHECK(std::memcmp(block.part(3), step.reward.data(), num_envs * 4) == 0);
  for (std::size_t env = 0; env < num_envs; ++env) {
    float done;
    std::memcpy(&done, block.part(4) + env * 4, 4);
    CHECK_EQ(done, step.done[env] * (1 - step.timeout[env]));
  }
}

// From a row on, up to num_steps, against the model's rows: none beyond newest_row, nor into a row without a step.
void check_n_steps(const FrameSteps& steps, const std::vector<Step>& model, std::size_t row, std::size_t num_steps,
                   std::size_t newest_row, std::size_t row_bytes) {
  const std::size_t num_envs = steps.num_envs();
  const Block block = located(steps, static_cast<std::int64_t>(row));
  std::vector<std::uint64_t> ends(num_envs);
  std::vector<float> rewards(num_envs * num_steps, -1), counts(num_envs);
  std::vector<std::uint8_t> is_counted(rewards.size(), 7);
  steps.gather_n_steps(block, ends.data(), num_steps, newest_row, rewards.data(), is_counted.data(), counts.data());
  for (std::size_t env = 0; env < num_envs; ++env) {
    std::size_t at = row, count = 0;
    bool is_over = false, is_there = true, is_cut = false;
    const Step* last = nullptr;
    for (std::size_t k = 0; k < num_steps; ++k, at = (at + 1) % model.size()) {
      CHECK_EQ(rewards[env * num_steps + k], is_there ? model[at].reward[env] : 0.0F);
      CHECK_EQ(is_counted[env * num_steps + k], is_over ? 0 : 1);
      const bool has_none_after = steps.num_stored() < steps.num_rows() && (at + 1) % model.size() == steps.next_row();
      if (!is_over) {
        last = &model[at];
        ++count;
        is_cut = last->timeout[env] != 0 || (at == newest_row && last->done[env] == 0);
        is_over = last->done[env] != 0 || is_cut || has_none_after;
      }
      is_there &= !has_none_after;
    }
    float done;
    std::memcpy(&done, block.part(4) + env * 4, 4);
    CHECK_EQ(counts[env], static_cast<float>(count));
    CHECK_EQ(done, is_cut ? 0.0F : last->done[env]);
    CHECK(std::memcmp(block.part(0) + env * row_bytes, model[row].observation.data() + env * row_bytes, row_bytes) ==
          0);
    CHECK(std::memcmp(block.part(2) + env * row_bytes, last->next.data() + env * row_bytes, row_bytes) == 0);
  }
}

void test_steps(std::size_t num_rows, std::size_t num_envs, std::size_t num_frames) {
  check::Random random{num_rows * 100 + num_envs * 10 + num_frames};
  Ring ring{layout_of(num_frames), (num_rows + num_frames) * num_envs, num_frames * num_envs};
  FrameSteps steps{ring, num_envs, 1};
  FrameSteps taking_over{ring, num_envs, 1};  // what the other has stored
  CHECK_EQ(steps.num_rows(), num_rows);
  const std::size_t row_bytes = num_frames * kFrameBytes;
  Envs envs{num_envs, num_frames, random};
  std::vector<Step> model(num_rows);
  for (const std::size_t first : {std::size_t{0}, num_rows - 1, std::size_t{0}}) {
    const std::size_t before = steps.next_row() == first ? steps.num_stored() : 0;  // elsewhere it begins anew
    for (std::size_t k = 0; k < 3 * num_rows + 2; ++k) {
      const std::size_t row = (first + k) % num_rows;
      model[row] = envs.step();
      store(steps, row, model[row], row_bytes);
      const std::size_t num_stored = std::min(num_rows, before + k + 1);
      CHECK_EQ(steps.num_stored(), num_stored);
      CHECK_EQ(steps.next_row(), (row + 1) % num_rows);
      taking_over.go_on(steps.next_row());
      CHECK_EQ(taking_over.num_stored(), num_stored);
      for (std::size_t back = 0; back < num_rows; ++back) {
        const std::size_t at = (row + num_rows - back) % num_rows;
        const auto index = static_cast<std::int64_t>(at) - (back % 2 == 0 ? 0 : static_cast<std::int64_t>(num_rows));
        if (back < num_stored) {
          check_row(steps, index, model[at], row_bytes);
          check_n_steps(steps, model, at, 1 + k % 4, back % 3 == 2 ? at : row, row_bytes);
          check_n_steps(taking_over, model, at, 1 + k % 4, back % 3 == 2 ? at : row, row_bytes);
        } else {
          std::uint64_t slot = 0;
          const std::int64_t env = 0;
          CHECK(!steps.locate(std::vector{index}, &env, &slot));
        }
      }
    }
  }
}

void test_what_is_out_of_range() {
  Ring ring{layout_of(2), 14, 4};
  FrameSteps steps{ring, 2, 1};
  check::Random random{1};
  Envs envs{2, 2, random};
  for (std::size_t k = 0; k < 5; ++k) store(steps, k, envs.step(), 2 * kFrameBytes);
  std::uint64_t slot = 0;
  for (const std::int64_t row : {-6, 5, 1 << 20}) {
    const std::int64_t env = 0;
    CHECK(!steps.locate(std::vector{row}, &env, &slot));
  }
  for (const std::int64_t env : {-1, 2}) CHECK(!steps.locate(std::vector{std::int64_t{1}}, &env, &slot));
}

void test_refusals() {
  const auto refused = [](Ring& ring, std::size_t num_envs) {
    return check::throws<std::invalid_argument>([&] { const FrameSteps steps{ring, num_envs, 1}; });
  };
  Ring ring{layout_of(2), 14, 4};
  CHECK(refused(ring, 0));
  CHECK(refused(ring, 3));
  CHECK(refused(ring, 10));  // none spare
  CHECK(!refused(ring, 2));
  CHECK(check::throws<std::invalid_argument>([&] { const FrameSteps steps{ring, 2, 2}; }));
  CHECK(check::throws<std::invalid_argument>([&] { const StepTable table{ring.records(), 2, 1}; }));
  Ring without{RecordLayout{{{8, 8}}}, 14, 4};
  CHECK(refused(without, 2));
  ring.start_at(3);
  CHECK(refused(ring, 2));
}

}  // namespace

int main() {
  for (const std::size_t num_rows : {1, 2, 3, 7}) {
    for (const std::size_t num_envs : {1, 2, 5}) {
      for (const std::size_t num_frames : {1, 2, 4}) test_steps(num_rows, num_envs, num_frames);
    }
  }
  test_what_is_out_of_range();
  test_refusals();
  return check::result();
}
