// SPDX-License-Identifier: MIT
// What Python says of rows: sizes, dtypes, addresses; each checked before the core takes it for granted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "batch/block.hpp"
#include "batch/sample.hpp"
#include "lanes/frames.hpp"
#include "lanes/lanes.hpp"
#include "ring/ring.hpp"
#include "storage/mapped_file.hpp"
#include "storage/record_layout.hpp"

namespace fastreplay {

using Sizes = std::vector<std::pair<std::size_t, std::size_t>>;                // (row bytes, alignment) of each field
using Groups = std::vector<std::pair<std::vector<std::size_t>, std::size_t>>;  // (fields, frames of a row) of each
using Integers = pybind11::array_t<std::int64_t, pybind11::array::c_style>;
using Bytes = pybind11::array_t<std::uint8_t, pybind11::array::c_style>;

inline RecordLayout record_layout(const Sizes& fields, const Groups& groups = {}, bool has_links = false) {
  std::vector<FieldSize> sizes;
  sizes.reserve(fields.size());
  for (const auto& [row_bytes, alignment] : fields) sizes.push_back({row_bytes, alignment});
  std::vector<FrameGroup> frames;
  for (const auto& [members, num_frames] : groups) {
    if (num_frames > Frames::kMostFrames) throw pybind11::value_error{"a stack of too many frames"};
    frames.push_back({.fields = members, .num_frames = num_frames});
  }
  RecordLayout layout{sizes, frames};
  const std::size_t margin_bytes = has_links ? Lanes::margin_bytes(layout) : 0;
  return margin_bytes == 0 ? layout : RecordLayout{sizes, std::move(frames), margin_bytes};
}

// Whether it is the one dtype of ml_dtypes that fields have (fastreplay/support/bfloat16.py).
inline bool is_bfloat16(const pybind11::dtype& dtype) {
  return dtype.kind() == 'V' && dtype.itemsize() == 2 && dtype.attr("name").cast<std::string>() == "bfloat16";
}

// Bytes taken for Python objects would be taken for addresses.
inline void check_is_number(const pybind11::dtype& dtype) {
  if (std::string_view{"biufc"}.find(dtype.kind()) == std::string_view::npos && !is_bfloat16(dtype)) {
    throw pybind11::type_error{"expected a dtype of numbers"};
  }
}

// Refuses to fill a block with rows of records of another layout: their sizes are all that the core looks at.
inline void check_fits(const Block& block, const Ring& ring) {
  if (!block.layout().fits(ring.records().layout())) {
    throw pybind11::value_error{"the block is for records of another layout"};
  }
}

// A sampler by priority writes weights, too.
inline bool has_room_for_weights(const Block& block, const Sampler& sampler) {
  const BatchLayout& layout = block.layout();
  return !sampler.draws_by_priority() || (layout.offset_of(Source::kWeight) != BatchLayout::kNone &&
                                          layout.offset_of(Source::kProbability) != BatchLayout::kNone);
}

// One over trajectories knows those of one ring.
inline void check_draws(const Block& block, const Sampler& sampler, const Ring& ring) {
  if (!sampler.draws_from(ring)) throw pybind11::value_error{"the sampler's trajectories are another ring's"};
  if (!has_room_for_weights(block, sampler)) throw pybind11::value_error{"the block has no weights"};
}

// Who draws transitions by themselves makes no parts.
inline void check_makes_no_parts(const Block& block) {
  if (block.layout().has_made_parts()) throw pybind11::value_error{"the block is for what surrounds its rows"};
}

// All of it, for transitions by themselves.
inline bool can_draw_alone(const Block& block, const Sampler& sampler, const Ring& ring) {
  return block.layout().fits(ring.records().layout()) && sampler.draws_from(ring) &&
         has_room_for_weights(block, sampler) && !block.layout().has_made_parts();
}

using EpochNumbers = std::array<std::uint64_t, 4>;  // (epoch, first ticket, size, position)

inline EpochNumbers numbers_of(const EpochState& state) noexcept {
  return {state.epoch, state.first, state.size, state.position};
}

// What lies in a file, if there is one.
inline Memory& memory_of(MappedFile* file) { return file == nullptr ? Memory::own() : *file; }

inline std::span<std::byte> span_of(Bytes& memory) {
  return {reinterpret_cast<std::byte*>(memory.mutable_data()), static_cast<std::size_t>(memory.size())};
}

}  // namespace fastreplay
