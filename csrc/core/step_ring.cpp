// SPDX-License-Identifier: MIT
#include "step_ring.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "storage/copy.hpp"

namespace fastreplay {

namespace {

// As in minibatch.cpp: rows are prefetched this far ahead, into the second cache level, and copied in groups.
constexpr std::size_t kAheadBytes = 16384;
constexpr std::size_t kGroupBytes = 4096;
constexpr std::size_t kMaxAheadRows = 64;
constexpr std::size_t kMaxGroupRows = 16;
constexpr std::size_t kStoreAheadBytes = 8192;
constexpr std::size_t kChunkBytes = 262144;  // a share of the second cache level

constexpr std::size_t kScalars = 4;  // action, reward, done, timeout

// The part of a record that some columns span.
struct Extent {
  std::size_t begin = ~std::size_t{0};
  std::size_t end = 0;

  void add(const Column& column) noexcept {
    begin = std::min(begin, column.offset);
    end = std::max(end, column.offset + column.row_bytes);
  }

  [[nodiscard]] std::size_t num_bytes() const noexcept { return end > begin ? end - begin : 0; }

  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops its calls.
  [[gnu::always_inline]] void prefetch(const std::byte* record) const noexcept {
    const std::size_t last = std::min(end, begin + kAheadBytes) - 1;
    for (std::size_t i = begin; i < last; i += kCacheLine) __builtin_prefetch(record + i, 0, 2);
    __builtin_prefetch(record + last, 0, 2);
  }
};

using Fetched = std::array<const std::byte*, 2 * kMaxAheadRows>;  // those fetched and not yet copied

}  // namespace

StepRing::StepRing(Ring& ring, std::size_t num_envs, std::size_t num_observations)
    : ring_{ring},
      num_envs_{num_envs},
      num_rows_{num_envs == 0 ? 0 : ring.capacity() / num_envs},
      num_observations_{num_observations},
      shares_{ring.records().layout().columns().size() == num_observations + kScalars} {
  const std::vector<Column>& columns = ring.records().layout().columns();
  if (num_rows_ == 0 || num_rows_ * num_envs != ring.capacity() || num_observations == 0 ||
      (!shares_ && columns.size() != 2 * num_observations + kScalars)) {
    throw std::invalid_argument{"the ring does not consist of steps"};
  }
  columns_ = columns;
  if (shares_) columns_.insert(columns_.end(), columns.begin(), columns.begin() + num_observations);
  const auto* scalar = columns_.data() + num_observations;
  reward_ = scalar[1];
  done_ = scalar[2];
  timeout_ = scalar[3];
  for (std::size_t f = 0; f <= num_observations; ++f) taken_.push_back({columns_[f], false});
  taken_n_steps_ = taken_;
  for (std::size_t f = num_observations + kScalars; f < columns_.size(); ++f) {
    taken_.push_back({columns_[f], shares_});
    taken_n_steps_.push_back({columns_[f], true});
  }
  taken_.push_back({reward_, false});
}

void StepRing::store(std::size_t row, std::span<const Rows> fields) noexcept {
  const std::size_t stride = ring_.records().layout().stride();
  const std::size_t slot = row * num_envs_;
  // For the stores to come.
  if (const std::size_t ahead = slot + kStoreAheadBytes / stride;
      stride <= kStoreAheadBytes && ahead + num_envs_ <= ring_.capacity()) {
    const std::byte* begin = ring_.records().at(ahead);
    for (std::size_t i = 0; i < num_envs_ * stride; i += kCacheLine) __builtin_prefetch(begin + i, 1, 2);
  }
  for (std::size_t f = 0; f < fields.size(); ++f) {
    if (fields[f].data == nullptr) continue;
    const bool is_next = shares_ && f >= num_observations_ + kScalars;
    std::byte* record = ring_.records().at(is_next ? after(slot) : slot) + columns_[f].offset;
    if (num_envs_ == 1) {
      store_row(record, fields[f].data, columns_[f].row_bytes);
    } else {
      store_rows(record, stride, fields[f].data, fields[f].stride_bytes, columns_[f].row_bytes, num_envs_);
    }
  }
}

bool StepRing::locate(std::span<const std::int64_t> rows, const std::int64_t* envs, Slot* slots) const noexcept {
  const auto num_rows = static_cast<std::int64_t>(num_rows_);
  const auto num_envs = static_cast<std::int64_t>(num_envs_);
  bool is_inside = true;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::int64_t row = rows[i] < 0 ? rows[i] + num_rows : rows[i];
    is_inside &= row >= 0 && row < num_rows && envs[i] >= 0 && envs[i] < num_envs;
    slots[i] = static_cast<Slot>(row) * num_envs_ + static_cast<Slot>(envs[i]);
  }
  return is_inside;
}

void StepRing::gather(std::span<const Slot> slots, std::span<std::byte* const> outputs, Slot* ends) const noexcept {
  if (shares_) std::transform(slots.begin(), slots.end(), ends, [this](Slot slot) { return after(slot); });
  copy(taken_, outputs, 0, slots, ends);
  auto* dones = reinterpret_cast<float*>(outputs[taken_.size()]);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    dones[i] = load(done_, slots[i]) * (1.0F - load(timeout_, slots[i]));
  }
}

// In chunks whose records stay in the second cache level from when they are followed to when they are copied.
void StepRing::gather_n_steps(std::span<const Slot> slots, std::span<std::byte* const> outputs, Slot* ends,
                              std::size_t num_steps, std::size_t newest_row, float* rewards, std::uint8_t* is_counted,
                              float* counts) const noexcept {
  const std::size_t chunk_rows =
      std::max<std::size_t>(1, kChunkBytes / (num_steps * ring_.records().layout().stride()));
  auto* dones = reinterpret_cast<float*>(outputs[taken_.size()]);
  for (std::size_t row = 0; row < slots.size(); row += chunk_rows) {
    const std::span<const Slot> chunk = slots.subspan(row, std::min(chunk_rows, slots.size() - row));
    resolve(chunk, ends + row, num_steps, newest_row, rewards + row * num_steps, is_counted + row * num_steps,
            counts + row);
    copy(taken_n_steps_, outputs, row, chunk, ends + row);
    for (std::size_t i = row; i < row + chunk.size(); ++i) {
      dones[i] = load(done_, ends[i]) * (1.0F - timeout_at(ends[i], newest_row));
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

float StepRing::load(const Column& column, Slot slot) const noexcept {
  float value;
  std::memcpy(&value, ring_.records().at(slot) + column.offset, sizeof value);
  return value;
}

float StepRing::timeout_at(Slot slot, std::size_t newest_row) const noexcept {
  const float timeout = load(timeout_, slot);
  if (slot / num_envs_ != newest_row) return timeout;
  return timeout != 0 || load(done_, slot) == 0 ? 1.0F : 0.0F;
}

void StepRing::resolve(std::span<const Slot> slots, Slot* ends, std::size_t num_steps, std::size_t newest_row,
                       float* rewards, std::uint8_t* is_counted, float* counts) const noexcept {
  Extent outcome;
  for (const Column& column : {reward_, done_, timeout_}) outcome.add(column);
  Extent at_start = outcome;
  Extent at_end = outcome;
  for (const Taken& each : taken_n_steps_) (each.at_end ? at_end : at_start).add(each.column);
  const std::size_t ahead_rows = std::max<std::size_t>(1, kMaxAheadRows / num_steps);
  std::size_t fetched = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    for (const std::size_t stop = std::min(slots.size(), i + ahead_rows); fetched < stop; ++fetched) {
      Slot slot = slots[fetched];
      at_start.prefetch(ring_.records().at(slot));
      for (std::size_t k = 1; k < num_steps; ++k) {
        slot = after(slot);
        (k + 1 == num_steps ? at_end : outcome).prefetch(ring_.records().at(slot));  // most end at the last
      }
    }
    Slot slot = slots[i];
    std::size_t count = 0;  // of the steps, once the last is known
    for (std::size_t k = 0; k < num_steps; ++k, slot = after(slot)) {
      rewards[i * num_steps + k] = load(reward_, slot);
      is_counted[i * num_steps + k] = count == 0;
      if (count != 0) continue;
      ends[i] = slot;
      if (load(done_, slot) != 0 || timeout_at(slot, newest_row) != 0) count = k + 1;
    }
    counts[i] = static_cast<float>(count != 0 ? count : num_steps);
  }
}

// Every source of a row is asked for well before it is copied; columns are copied in groups of rows.
void StepRing::copy(std::span<const Taken> taken, std::span<std::byte* const> outputs, std::size_t first_row,
                    std::span<const Slot> starts, const Slot* ends) const noexcept {
  Extent at_start;
  Extent at_end;
  for (const Taken& each : taken) (each.at_end ? at_end : at_start).add(each.column);
  const std::size_t row_bytes = at_start.num_bytes() + at_end.num_bytes();
  const std::size_t ahead_rows = std::clamp<std::size_t>(kAheadBytes / row_bytes, 1, kMaxAheadRows);
  const std::size_t group_rows = std::clamp<std::size_t>(std::bit_floor(kGroupBytes / row_bytes), 1, kMaxGroupRows);
  Fetched start_records;
  Fetched end_records;
  std::size_t fetched = 0;
  for (std::size_t row = 0; row < starts.size(); row += group_rows) {
    for (const std::size_t stop = std::min(starts.size(), row + group_rows + ahead_rows); fetched < stop; ++fetched) {
      start_records[fetched % start_records.size()] = ring_.records().at(starts[fetched]);
      at_start.prefetch(ring_.records().at(starts[fetched]));
      if (at_end.num_bytes() == 0) continue;
      end_records[fetched % end_records.size()] = ring_.records().at(ends[fetched]);
      at_end.prefetch(ring_.records().at(ends[fetched]));
    }
    const std::size_t count = std::min(group_rows, starts.size() - row);
    for (std::size_t k = 0; k < taken.size(); ++k) {
      const auto [offset, num_bytes] = taken[k].column;
      const Fetched& records = taken[k].at_end ? end_records : start_records;
      load_rows(outputs[k] + (first_row + row) * num_bytes, {records.data() + row % records.size(), count}, offset,
                num_bytes);
    }
  }
}

}  // namespace fastreplay
