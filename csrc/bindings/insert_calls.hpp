// SPDX-License-Identifier: MIT
// The C++ that fastreplay/buffer/insert.pyx calls: plain functions over pointers. Must not know Python.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "bounds.hpp"
#include "capsule.hpp"
#include "gil.hpp"
#include "priority/priorities.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// Inserts rows [done, num_rows) in chunks and returns how many rows are in: num_rows, or fewer when
// the lap gate stayed shut for patience_ms; call again to go on.
//
// Where the ring has priorities, those of the rows are given, NaN for a row that is not to be drawn yet; or none are,
// for new transitions.
inline std::size_t insert_rows(Ring& ring, Priorities* priorities, const double* given, const Rows* fields,
                               std::size_t num_fields, std::size_t done, std::size_t num_rows,
                               std::int64_t patience_ms) noexcept {
  const std::chrono::milliseconds patience{patience_ms};
  while (done < num_rows) {
    const std::size_t chunk_rows = std::min(num_rows - done, ring.max_rows_per_insert());
    const std::span<const Rows> rows{fields, num_fields};
    const bool is_in = priorities == nullptr ? ring.insert(rows, done, chunk_rows, patience)
                                             : priorities->insert(rows, done, chunk_rows, patience, given);
    if (!is_in) break;
    done += chunk_rows;
  }
  return done;
}

inline std::size_t num_columns(const Ring& ring) noexcept { return ring.records().layout().columns().size(); }

inline std::size_t column_bytes(const Ring& ring, std::size_t column) noexcept {
  return ring.records().layout().columns()[column].row_bytes;
}

}  // namespace fastreplay
