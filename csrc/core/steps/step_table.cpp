// SPDX-License-Identifier: MIT
#include "steps/step_table.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

constexpr std::size_t kStoreAheadBytes = 8192;
constexpr std::size_t kChunkBytes = 262144;  // a share of the second cache level

constexpr std::size_t kScalars = 4;  // action, reward, done, timeout

}  // namespace

StepTable::StepTable(Records& records, std::size_t num_envs, std::size_t num_observations)
    : StepTable{records, num_envs, num_observations, num_envs == 0 ? 0 : records.capacity() / num_envs} {
  if (num_rows_ * num_envs != records.capacity()) throw std::invalid_argument{"the records do not consist of steps"};
  if (!records.layout().frames().empty()) throw std::invalid_argument{"the records have frames in common"};
}

StepTable::StepTable(Records& records, std::size_t num_envs, std::size_t num_observations, std::size_t num_rows)
    : records_{records},
      num_envs_{num_envs},
      num_slots_{records.capacity()},
      num_rows_{num_rows},
      jump_from_{num_slots_},
      stop_{num_slots_},
      num_observations_{num_observations},
      shares_{records.layout().num_fields() == num_observations + kScalars} {
  const std::span columns{records.layout().columns().data(), records.layout().num_fields()};
  if (num_rows_ == 0 || num_observations == 0 || (!shares_ && columns.size() != 2 * num_observations + kScalars)) {
    throw std::invalid_argument{"the records do not consist of steps"};
  }
  columns_.assign(columns.begin(), columns.end());
  if (shares_)
    columns_.insert(columns_.end(), columns.begin(), columns.begin() + static_cast<std::ptrdiff_t>(num_observations));
  const auto* scalar = columns_.data() + num_observations;
  reward_ = scalar[1];
  done_ = scalar[2];
  timeout_ = scalar[3];
  const auto add = [&](Source source, std::size_t field) {
    parts_.push_back({.source = source, .row_bytes = columns[field].row_bytes, .field = field});
  };
  const std::size_t first_next = shares_ ? 0 : num_observations + kScalars;
  for (std::size_t f = 0; f <= num_observations; ++f) add(Source::kStart, f);
  for (std::size_t f = 0; f < num_observations; ++f) add(Source::kEnd, first_next + f);
  add(Source::kStart, num_observations + 1);  // the reward
  parts_.push_back({.source = Source::kMade, .row_bytes = sizeof(float)});
  parts_.push_back({.source = Source::kTicket, .row_bytes = sizeof(std::uint64_t)});
}

void StepTable::store(std::size_t row, std::span<const Rows> fields) noexcept {
  const std::size_t stride = records_.layout().stride();
  const std::size_t slot = row * num_envs_;
  prefetch_store(slot);
  for (std::size_t f = 0; f < fields.size(); ++f) {
    if (fields[f].data == nullptr) continue;
    const bool is_next = shares_ && f >= num_observations_ + kScalars;
    std::byte* record = records_.at(is_next ? after(slot) : slot) + columns_[f].offset;
    if (num_envs_ == 1) {
      store_row(record, fields[f].data, columns_[f].row_bytes);
    } else {
      store_rows(record, stride, fields[f].data, fields[f].stride_bytes, columns_[f].row_bytes, num_envs_);
    }
  }
}

// For the stores to come. Inlined by force: see Extent::prefetch.
[[gnu::always_inline]] inline void StepTable::prefetch_store(std::size_t slot) const noexcept {
  const std::size_t stride = records_.layout().stride();
  const std::size_t ahead = slot + kStoreAheadBytes / stride;
  if (stride > kStoreAheadBytes || ahead + num_envs_ > records_.capacity()) return;
  const std::byte* begin = records_.at(ahead);
  for (std::size_t i = 0; i < num_envs_ * stride; i += kCacheLine) __builtin_prefetch(begin + i, 1, 2);
}

bool StepTable::locate(std::span<const std::int64_t> rows, const std::int64_t* envs,
                       std::uint64_t* slots) const noexcept {
  const auto num_rows = static_cast<std::int64_t>(num_rows_);
  const auto num_envs = static_cast<std::int64_t>(num_envs_);
  bool is_inside = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t row = rows[i] < 0 ? rows[i] + num_rows : rows[i];
    is_inside &= row >= 0 && row < num_rows && envs[i] >= 0 && envs[i] < num_envs;
    slots[i] = static_cast<std::uint64_t>(row) * num_envs_ + static_cast<std::uint64_t>(envs[i]);
  }
  return is_inside;
}

void StepTable::gather(const Block& block, std::uint64_t* ends) const noexcept {
  const Slots slots = block.tickets();
  if (shares_) {
    std::ranges::transform(slots, ends, [this](std::uint64_t slot) { return after(slot); });
    copy<Distance::kFar>(block.layout().copied_at_start(), block, 0, slots);
    copy<Distance::kFar>(block.layout().copied_at_end(), block, 0, {ends, slots.size()});
  } else {
    copy<Distance::kFar>(block.layout().copied(), block, 0, slots);
  }
  float* to = dones(block);
  for (std::size_t i = 0; i < slots.size(); ++i) to[i] = load(done_, slots[i]) * (1.0F - load(timeout_, slots[i]));
}

void StepTable::gather_goals(const Block& block, Slots slots, std::size_t achieved,
                             std::size_t desired) const noexcept {
  const std::size_t next = num_observations_ + 1;  // the first part of the next observation
  const Part& from = parts_[next + achieved];
  const auto over = [&](std::size_t part) {
    return Copied{.field = from.field, .row_bytes = from.row_bytes, .offset = block.layout().offsets()[part]};
  };
  copy<Distance::kFar>(std::array{over(desired), over(next + desired)}, block, block.batch_size() - slots.size(),
                       slots);
}

// In chunks whose records stay in the second cache level from when they are followed to when they are copied.
void StepTable::gather_n_steps(const Block& block, std::uint64_t* ends, std::size_t num_steps, std::size_t newest_row,
                               float* rewards, std::uint8_t* is_counted, float* counts) const noexcept {
  const Slots slots = block.tickets();
  const std::uint64_t newest = first_slot(newest_row);
  const std::size_t chunk_rows = std::max<std::size_t>(1, kChunkBytes / (num_steps * records_.layout().stride()));
  for (std::size_t row = 0; row < slots.size(); row += chunk_rows) {
    const Slots starts = slots.subspan(row, std::min(chunk_rows, slots.size() - row));
    follow(starts, ends + row, num_steps, newest, rewards + row * num_steps, is_counted + row * num_steps,
           counts + row);
    copy<Distance::kNear>(block.layout().copied_at_start(), block, row, starts);
    copy<Distance::kNear>(block.layout().copied_at_end(), block, row, {ends + row, starts.size()});
    for (std::size_t i = row; i < row + starts.size(); ++i) {
      dones(block)[i] = load(done_, ends[i]) * (1.0F - timeout_at(ends[i], newest));
    }
  }
}

bool discounted_sums(std::span<const float> rewards, std::span<const float> discounts, const std::uint8_t* is_counted,
                     float* sums) noexcept {
  bool is_finite = true;
  const std::size_t num_steps = discounts.size();
  for (std::size_t i = 0; i * num_steps < rewards.size(); ++i) {
    float sum = 0.0F;  // NumPy starts here, too: a sum of -0.0 alone is 0.0
    for (std::size_t k = 0; k < num_steps; ++k) {
      const std::size_t at = i * num_steps + k;
      sum += rewards[at] * discounts[k] * static_cast<float>(is_counted[at]);
    }
    sums[i] = sum;
    is_finite &= std::isfinite(sum);
  }
  return is_finite;
}

// num_slots_ for a row without a step, as one that was chosen from outside.
std::uint64_t StepTable::first_slot(std::size_t row) const noexcept {
  const auto number = static_cast<std::int64_t>(row);
  const std::int64_t env = 0;
  std::uint64_t slot = 0;
  return locate({&number, 1}, &env, &slot) ? slot : num_slots_;
}

float StepTable::load(const Column& column, std::uint64_t slot) const noexcept {
  float value;
  std::memcpy(&value, records_.at(slot) + column.offset, sizeof value);
  return value;
}

float StepTable::timeout_at(std::uint64_t slot, std::uint64_t newest) const noexcept {
  const float timeout = load(timeout_, slot);
  if (!is_in_row(slot, newest)) return timeout;
  return timeout != 0 || load(done_, slot) == 0 ? 1.0F : 0.0F;
}

float* StepTable::dones(const Block& block) const noexcept {
  return reinterpret_cast<float*>(block.part(parts_.size() - 2));
}

template <Distance kDistance>
void StepTable::copy(std::span<const Copied> fields, const Block& block, std::size_t first_row,
                     Slots slots) const noexcept {
  fastreplay::gather<kDistance>(records_, fields, block, first_row, slots.size(),
                                [next = slots.data()]() mutable { return *next++; });
}

// Returns how many steps belong. Inlined by force: a call a row costs a tenth of a gather.
[[gnu::always_inline]] inline std::size_t StepTable::follow_one(std::uint64_t slot, std::uint64_t& end,
                                                                std::size_t num_steps, std::uint64_t newest,
                                                                float* rewards,
                                                                std::uint8_t* is_counted) const noexcept {
  std::size_t count = 0;  // of the steps, once the last is known
  for (std::size_t k = 0;; slot = after(slot)) {
    rewards[k] = load(reward_, slot);
    is_counted[k] = count == 0;
    ++k;
    if (count == 0) {
      end = slot;
      if (load(done_, slot) != 0 || timeout_at(slot, newest) != 0) count = k;
    }
    if (k == num_steps) return count != 0 ? count : num_steps;
    if (!is_in_row(slot, stop_)) continue;
    std::fill(rewards + k, rewards + num_steps, 0.0F);  // as where nothing was stored
    std::fill(is_counted + k, is_counted + num_steps, std::uint8_t{0});
    return count != 0 ? count : k;
  }
}

// All records of a row are asked for well before its steps are followed.
void StepTable::follow(Slots starts, std::uint64_t* ends, std::size_t num_steps, std::uint64_t newest, float* rewards,
                       std::uint8_t* is_counted, float* counts) const noexcept {
  Extent outcome;
  for (const Column& column : {reward_, done_, timeout_}) outcome.add(column);
  Extent at_start = outcome;
  Extent at_end = outcome;
  for (const Part& part : parts_) {
    if (part.source == Source::kStart) at_start.add(records_.layout().columns()[part.field]);
    if (part.source == Source::kEnd) at_end.add(records_.layout().columns()[part.field]);
  }
  const std::size_t ahead_rows = std::max<std::size_t>(1, Reach::kMaxAheadRows / num_steps);
  std::size_t fetched = 0;
  for (std::size_t i = 0; i < starts.size(); ++i) {
    for (const std::size_t stop = std::min(starts.size(), i + ahead_rows); fetched < stop; ++fetched) {
      std::uint64_t slot = starts[fetched];
      at_start.prefetch(records_.at(slot));
      for (std::size_t k = 1; k < num_steps; ++k) {
        slot = after(slot);
        (k + 1 == num_steps ? at_end : outcome).prefetch(records_.at(slot));  // most end at the last
      }
    }
    counts[i] = static_cast<float>(
        follow_one(starts[i], ends[i], num_steps, newest, rewards + i * num_steps, is_counted + i * num_steps));
  }
}

}  // namespace fastreplay
