// SPDX-License-Identifier: MIT
// Where records lie, for those who store: input that lies there, too, may be overwritten before it was read. Must not
// know Python.
#pragma once

#include "storage/records.hpp"

namespace fastreplay {

inline const char* records_begin(Records& records) noexcept { return reinterpret_cast<const char*>(records.data()); }
inline const char* records_end(Records& records) noexcept { return records_begin(records) + records.num_bytes(); }

}  // namespace fastreplay
