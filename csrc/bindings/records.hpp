// SPDX-License-Identifier: MIT
// Where a ring's records lie, for those who insert: input that lies there, too, may be overwritten before it was
// read. Must not know Python.
#pragma once

#include "ring/ring.hpp"

namespace fastreplay {

inline const char* records_begin(Ring& ring) noexcept { return reinterpret_cast<const char*>(ring.records().data()); }
inline const char* records_end(Ring& ring) noexcept {
  return records_begin(ring) + ring.capacity() * ring.records().layout().stride();
}

}  // namespace fastreplay
