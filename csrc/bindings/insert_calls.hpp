// SPDX-License-Identifier: MIT
// The C++ that fastreplay/buffer/insert.pyx calls: plain functions over pointers. Must not know Python.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "bounds.hpp"
#include "capsule.hpp"
#include "gil.hpp"
#include "lanes/lanes.hpp"
#include "priority/priorities.hpp"
#include "ring/insert.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// What lies beside the ring, of the rows of one insert; null for nothing.
struct BesideRing {
  Priorities* priorities;
  const double* given;  // priorities of the rows, NaN for one that is not to be drawn yet; null for new transitions
  Lanes* lanes;
  const std::int64_t* lane_of;  // of each row, all of them the caller's
};

inline bool insert_chunk(Ring& ring, const BesideRing& beside, std::span<const Rows> rows, std::size_t done,
                         std::size_t num_rows, std::chrono::milliseconds patience) noexcept {
  if (beside.priorities == nullptr && beside.lanes == nullptr) return ring.insert(rows, done, num_rows, patience);
  if (beside.lanes == nullptr) return beside.priorities->insert(rows, done, num_rows, patience, beside.given);
  Lanes::NewRows links{*beside.lanes, beside.lane_of, rows};
  std::array<Rows, 2 * kMaxFields> columns;
  if (const Frames* frames = beside.lanes->frames()) rows = frames->stored_as_given(rows, columns);
  if (beside.priorities == nullptr) return insert_beside(ring, rows, done, num_rows, patience, links);
  Priorities::NewRows masses{*beside.priorities, beside.given};
  return insert_beside(ring, rows, done, num_rows, patience, masses, links);
}

// Inserts rows [done, num_rows) in chunks and returns how many rows are in: num_rows, or fewer when
// the lap gate stayed shut for patience_ms; call again to go on.
inline std::size_t insert_rows(Ring& ring, const BesideRing& beside, const Rows* fields, std::size_t num_fields,
                               std::size_t done, std::size_t num_rows, std::int64_t patience_ms) noexcept {
  const std::chrono::milliseconds patience{patience_ms};
  while (done < num_rows) {
    const std::size_t chunk_rows = std::min(num_rows - done, ring.max_rows_per_insert());
    if (!insert_chunk(ring, beside, {fields, num_fields}, done, chunk_rows, patience)) break;
    done += chunk_rows;
  }
  return done;
}

// The same of a first row that nothing lies beside; false where it would have to wait.
inline bool insert_row(Ring& ring, const Rows* fields, std::size_t num_fields) noexcept {
  return ring.insert({fields, num_fields}, 0, 1, std::chrono::nanoseconds{0});
}

// Makes a call the owner of the rows' lanes; returns -1, or the row whose lane has another owner, with nothing taken.
inline std::ptrdiff_t enter_lanes(Lanes& lanes, const std::int64_t* lane_of, std::size_t num_rows,
                                  const void* call) noexcept {
  const std::size_t busy = lanes.enter({lane_of, num_rows}, reinterpret_cast<Lanes::Owner>(call));
  return busy == Lanes::kNone ? -1 : static_cast<std::ptrdiff_t>(busy);
}

inline void leave_lanes(Lanes& lanes, const std::int64_t* lane_of, std::size_t num_rows, const void* call) noexcept {
  lanes.leave({lane_of, num_rows}, reinterpret_cast<Lanes::Owner>(call));
}

inline std::size_t num_lanes(const Lanes& lanes) noexcept { return lanes.num_lanes(); }

// 0, 1, 2, ...: of a step of all lanes.
inline const std::int64_t* lanes_in_order(const Lanes& lanes) noexcept { return lanes.in_order().data(); }

inline bool skips_resets(const Lanes& lanes) noexcept { return lanes.skips_resets(); }

inline bool has_ended(const Lanes& lanes, std::int64_t lane) noexcept {
  return lanes.has_ended(static_cast<std::size_t>(lane));
}

inline void leave_out(Lanes& lanes, std::int64_t lane, const Rows* fields, std::size_t num_fields,
                      std::size_t row) noexcept {
  lanes.leave_out(static_cast<std::size_t>(lane), {fields, num_fields}, row);
}

inline std::size_t num_columns(const Ring& ring) noexcept { return ring.records().layout().num_fields(); }

inline std::size_t column_bytes(const Ring& ring, std::size_t column) noexcept {
  return ring.records().layout().columns()[column].row_bytes;
}

}  // namespace fastreplay
