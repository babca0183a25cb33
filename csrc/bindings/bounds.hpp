// SPDX-License-Identifier: MIT
// What those who store rows need to know beside the core: how many fields there are at most, and where records lie, for
// input that lies there, too, may be overwritten before it was read. Must not know Python.
#pragma once

#include <cstddef>

#include "storage/records.hpp"

namespace fastreplay {

// Fields of a transition at most: an insert keeps a pointer for each on its stack.
inline constexpr std::size_t kMaxFields = 256;

inline const char* records_begin(Records& records) noexcept { return reinterpret_cast<const char*>(records.data()); }
inline const char* records_end(Records& records) noexcept { return records_begin(records) + records.num_bytes(); }

}  // namespace fastreplay
