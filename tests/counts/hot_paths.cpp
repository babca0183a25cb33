// SPDX-License-Identifier: MIT
// Does what users wait for, each hot path a few times, and tells callgrind when to begin and to write down
// (compare.py). One thread, fixed seeds: every run counts the same.
//
//   hot_paths [name ...]    prints what the counts depend on, then of each path its name, and how many rows there were
//
// Where a path's instructions are: valgrind --tool=callgrind --instr-atstart=no --dump-instr=yes hot_paths NAME, then
// callgrind_annotate callgrind.out.PID.1
#include <valgrind/callgrind.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "batch/read.hpp"
#include "buffers.hpp"
#include "rules.hpp"
#include "steps/step_table.hpp"
#include "target/update.hpp"

namespace counts {

using Call = std::function<void()>;

namespace {

constexpr Philox::Key kKey{11, 22};
constexpr std::size_t kRowsPerInsert = 8;  // into buffers that are sampled

std::shared_ptr<Buffer> buffer_of(const Shape& shape, Beside beside = Beside::kNothing,
                                  std::size_t num_rows = kRowsPerInsert) {
  return std::make_shared<Buffer>(shape, beside, num_rows);
}

Call inserts(const Shape& shape, Beside beside, std::size_t num_rows) {
  return [buffer = buffer_of(shape, beside, num_rows)] { buffer->insert(); };
}

Call samples(std::shared_ptr<Buffer> buffer, std::shared_ptr<Sampler> sampler, std::vector<Part> parts,
             std::size_t batch_size) {
  const auto block = std::make_shared<Block>(std::move(parts), batch_size);
  return [=] { must(sampler->sample(buffer->ring, *block, 0.4) == batch_size); };
}

Call uniform(const Shape& shape, std::size_t batch_size, Beside beside = Beside::kNothing) {
  const auto buffer = buffer_of(shape, beside);
  return samples(buffer, std::make_shared<Sampler>(kKey), transition_parts(buffer->ring.records().layout()),
                 batch_size);
}

// Of records of many numbers, each a field.
Call of_numbers(std::size_t num_fields, std::size_t batch_size) {
  constexpr std::size_t kCapacity = 1024;
  const RecordLayout layout{std::vector<FieldSize>(num_fields, {8, 8})};
  const auto ring = std::make_shared<Ring>(layout, kCapacity);
  const std::vector<std::byte> number(8);
  const std::vector<Rows> fields(num_fields, {number.data(), 0});
  for (std::size_t i = 0; i < kCapacity; ++i) must(ring->insert(fields, 0, 1, std::chrono::seconds{1}));
  const auto block = std::make_shared<Block>(transition_parts(layout), batch_size);
  return [=, sampler = std::make_shared<Sampler>(kKey)] { must(sampler->sample(*ring, *block, 0) == batch_size); };
}

// Given out otherwise than they are stored.
Call converted(const Shape& shape, std::size_t batch_size, const Conversion& conversion) {
  const auto buffer = buffer_of(shape);
  return samples(buffer, std::make_shared<Sampler>(kKey), converted_parts(buffer->ring.records().layout(), conversion),
                 batch_size);
}

Call in_epochs(const Shape& shape, std::size_t batch_size) {
  const auto buffer = buffer_of(shape);
  return samples(buffer, std::make_shared<Sampler>(kKey, EpochOptions{}, EpochState{}),
                 transition_parts(buffer->ring.records().layout()), batch_size);
}

Call by_trajectory(const Shape& shape, std::size_t batch_size) {
  const auto buffer = buffer_of(shape, Beside::kLanes);
  return samples(buffer, std::make_shared<Sampler>(kKey, *buffer->lanes),
                 transition_parts(buffer->ring.records().layout()), batch_size);
}

Call by_priority(const Shape& shape, std::size_t batch_size) {
  const auto buffer = buffer_of(shape, Beside::kPriorities);
  return samples(buffer, std::make_shared<Sampler>(kKey, *buffer->priorities, PriorityOptions{}),
                 weighted_parts(buffer->ring.records().layout()), batch_size);
}

// New priorities of a minibatch, and the next minibatch.
Call updated_by_priority(const Shape& shape, std::size_t batch_size) {
  const auto buffer = buffer_of(shape, Beside::kPriorities);
  const auto sampler = std::make_shared<Sampler>(kKey, *buffer->priorities, PriorityOptions{});
  const auto block = std::make_shared<Block>(weighted_parts(buffer->ring.records().layout()), batch_size);
  std::vector<double> errors(batch_size);
  for (std::size_t i = 0; i < batch_size; ++i) errors[i] = 0.01 * static_cast<double>(1 + 37 * i % 101);
  must(sampler->sample(buffer->ring, *block, 0.4) == batch_size);
  return [=] {
    must(buffer->priorities->update(block->tickets(), errors).applied == batch_size);
    must(sampler->sample(buffer->ring, *block, 0.4) == batch_size);
  };
}

// With what surrounds each row.
template <class FormOf>
Call followed(const Shape& shape, std::size_t batch_size, FormOf form_of) {
  const auto buffer = buffer_of(shape, Beside::kLanes);
  const auto form = std::make_shared<const Form>(form_of(buffer->ring.records().layout()));
  const auto block = std::make_shared<Block>(form->parts, batch_size);
  const auto sampler = std::make_shared<Sampler>(kKey);
  must(fits(form->rule, buffer->ring.records().layout(), block->layout()));
  return [=] {
    const Following following{*buffer->lanes, form->rule};
    must(sampler->sample(buffer->ring, *block, 0, &following) == batch_size);
  };
}

// By their positions, as an index of the buffer asks.
Call read_by_position(const Shape& shape, std::size_t batch_size) {
  const auto buffer = buffer_of(shape);
  const auto block = std::make_shared<Block>(transition_parts(buffer->ring.records().layout()), batch_size);
  std::vector<std::int64_t> positions(batch_size);
  for (std::size_t i = 0; i < batch_size; ++i) positions[i] = static_cast<std::int64_t>(997 * i % shape.capacity);
  return [=] { must(read(buffer->ring, Address::kPosition, positions, *block).status == ReadResult::Status::kWhole); };
}

// A table of steps, as the drop-ins for Stable-Baselines3 have it.
struct Table {
  static constexpr std::size_t kNumRows = 1024;

  explicit Table(const Shape& shape, std::size_t num_envs)
      : records{RecordLayout{{{shape.observation_bytes, 4},
                              {shape.action_bytes, 4},
                              {4, 4},
                              {4, 4},
                              {4, 4},
                              {shape.observation_bytes, 4}}},
                kNumRows * num_envs},
        steps{records, num_envs, 1},
        bytes(num_envs * shape.observation_bytes) {
    for (std::size_t f = 0; f < steps.num_fields(); ++f) fields.push_back({bytes.data(), steps.row_bytes(f)});
  }
  void store() {
    steps.store(row, fields);
    row = (row + 1) % kNumRows;
  }

  Records records;
  StepTable steps;
  std::vector<std::byte> bytes;
  std::vector<Rows> fields;
  std::size_t row = 0;
};

Call steps_stored(const Shape& shape, std::size_t num_envs) {
  return [table = std::make_shared<Table>(shape, num_envs)] { table->store(); };
}

Call steps_gathered(const Shape& shape, std::size_t batch_size) {
  const auto table = std::make_shared<Table>(shape, 1);
  const auto block = std::make_shared<Block>(table->steps.parts(), batch_size);
  for (std::size_t i = 0; i < batch_size; ++i) block->tickets()[i] = 997 * i % Table::kNumRows;
  return [=, ends = std::make_shared<std::vector<std::uint64_t>>(batch_size)] {
    table->steps.gather(*block, ends->data());
  };
}

// A soft update of float32 tensors of so many elements.
Call soft_update(std::vector<std::size_t> sizes) {
  const std::size_t total = std::accumulate(sizes.begin(), sizes.end(), std::size_t{0});
  const auto target = std::make_shared<std::vector<float>>(total);
  const auto online = std::make_shared<std::vector<float>>(total, 1.0F);
  std::vector<Pair> pairs;
  std::size_t done = 0;
  for (const std::size_t size : sizes) {
    const Chunk chunk{target->data() + done, online->data() + done, nullptr, 0,
                      Dtype::kFloat32,       Dtype::kFloat32,       false};
    pairs.push_back({chunk, size});
    done += size;
  }
  return [=, chunks = chunks_of(pairs)] {
    update(chunks, 0.005, best_level());
    must(target->front() <= online->front());
  };
}

struct Path {
  const char* name;
  std::size_t num_rows;  // of a call
  std::size_t num_calls;
  std::function<Call()> make;
};

std::vector<Path> paths() {
  constexpr Beside kNothing = Beside::kNothing, kLanes = Beside::kLanes, kPriorities = Beside::kPriorities;
  const auto three_steps = [](const RecordLayout& record) { return n_steps(record, 3); };
  const auto four_steps = [](const RecordLayout& record) { return sequence(record, 4, 0); };
  const auto recurrent = [](const RecordLayout& record) { return sequence(record, 80, 40); };
  return {
      {"add-pendulum", 1, 512, [] { return inserts(kPendulum, kNothing, 1); }},
      {"add-cheetah", 1, 512, [] { return inserts(kCheetah, kNothing, 1); }},
      {"add-humanoid", 1, 512, [] { return inserts(kHumanoid, kNothing, 1); }},
      {"add-atari", 1, 64, [] { return inserts(kAtari, kNothing, 1); }},
      {"add-cheetah-lanes", 1, 512, [] { return inserts(kCheetah, kLanes, 1); }},
      {"add-cheetah-priorities", 1, 512, [] { return inserts(kCheetah, kPriorities, 1); }},
      {"add-atari-frames", 1, 64, [] { return inserts(kAtariFrames, kLanes, 1); }},
      {"extend-pendulum-16", 16, 128, [] { return inserts(kPendulum, kNothing, 16); }},
      {"extend-cheetah-64", 64, 32, [] { return inserts(kCheetah, kNothing, 64); }},
      {"extend-humanoid-64", 64, 16, [] { return inserts(kHumanoid, kNothing, 64); }},
      {"extend-atari-8", 8, 16, [] { return inserts(kAtari, kNothing, 8); }},
      {"extend-cheetah-64-lanes", 64, 32, [] { return inserts(kCheetah, kLanes, 64); }},
      {"extend-cheetah-64-priorities", 64, 32, [] { return inserts(kCheetah, kPriorities, 64); }},
      {"extend-atari-8-frames", 8, 16, [] { return inserts(kAtariFrames, kLanes, 8); }},
      {"sample-pendulum-64", 64, 32, [] { return uniform(kPendulum, 64); }},
      {"sample-cheetah-256", 256, 16, [] { return uniform(kCheetah, 256); }},
      {"sample-humanoid-256", 256, 8, [] { return uniform(kHumanoid, 256); }},
      {"sample-atari-32", 32, 16, [] { return uniform(kAtari, 32); }},
      {"sample-64-numbers-256", 256, 8, [] { return of_numbers(64, 256); }},
      {"sample-atari-32-divided", 32, 4, [] { return converted(kAtari, 32, kDivided); }},
      {"sample-atari-32-shifted", 32, 4, [] { return converted(kAtari, 32, kShifted); }},
      {"sample-atari-32-frames", 32, 16, [] { return uniform(kAtariFrames, 32, kLanes); }},
      {"sample-cheetah-256-epochs", 256, 16, [] { return in_epochs(kCheetah, 256); }},
      {"sample-cheetah-256-trajectories", 256, 2, [] { return by_trajectory(kCheetah, 256); }},
      {"sample-cheetah-256-priorities", 256, 16, [] { return by_priority(kCheetah, 256); }},
      {"update-sample-cheetah-256-priorities", 256, 16, [] { return updated_by_priority(kCheetah, 256); }},
      {"sample-cheetah-256-3-steps", 256, 16, [=] { return followed(kCheetah, 256, three_steps); }},
      {"sample-cheetah-32-sequences", 32, 8, [=] { return followed(kCheetah, 32, recurrent); }},
      {"sample-cheetah-256-short-sequences", 256, 8, [=] { return followed(kCheetah, 256, four_steps); }},
      {"read-cheetah-256", 256, 16, [] { return read_by_position(kCheetah, 256); }},
      {"store-cheetah-step-1", 1, 512, [] { return steps_stored(kCheetah, 1); }},
      {"gather-cheetah-steps-256", 256, 16, [] { return steps_gathered(kCheetah, 256); }},
      {"lerp-2x64", 1, 32, [] { return soft_update({1088, 64, 4096, 64, 384, 6}); }},
      {"lerp-twin-2x256", 1, 4,
       [] { return soft_update({5888, 256, 65536, 256, 256, 1, 5888, 256, 65536, 256, 256, 1}); }},
  };
}

// Counts of another compiler, other options of it, or other instructions are others.
std::string conditions() {
#if defined(__clang__)
  std::string text = "clang-" + std::to_string(__clang_major__);
#else
  std::string text = "gcc-" + std::to_string(__GNUC__);
#endif
#if defined(__CET__) || defined(__SSP__) || defined(__SSP_STRONG__) || defined(_FORTIFY_SOURCE)
  text += "-hardened";
#endif
#if defined(__x86_64__)
  text += " x86-64";
#else
  text += " another-processor";
#endif
  constexpr std::array<std::string_view, 3> kLevels{"baseline", "avx2", "avx512"};
  return text.append(" ").append(kLevels[static_cast<std::size_t>(best_level())]);
}

int run(std::span<char*> names) {
  std::cout << conditions() << '\n';
  for (const Path& path : paths()) {
    const auto as_view = [](const char* name) { return std::string_view{name}; };
    if (!names.empty() && std::ranges::find(names, path.name, as_view) == names.end()) continue;
    const Call call = path.make();
    call();  // finds out what is found out once
    CALLGRIND_START_INSTRUMENTATION;
    for (std::size_t i = 0; i < path.num_calls; ++i) call();
    CALLGRIND_DUMP_STATS_AT(path.name);
    CALLGRIND_STOP_INSTRUMENTATION;
    std::cout << path.name << ' ' << path.num_rows * path.num_calls << '\n';
  }
  return EXIT_SUCCESS;
}

}  // namespace
}  // namespace counts

int main(int argc, char** argv) { return counts::run(std::span{argv, static_cast<std::size_t>(argc)}.subspan(1)); }
