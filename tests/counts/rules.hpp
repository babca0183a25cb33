// SPDX-License-Identifier: MIT
// What minibatches are made of, as fastreplay/buffer makes it of NStep, of Sequence, and of fields that are given out
// otherwise than they are stored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

#include "batch/windows.hpp"
#include "buffers.hpp"

namespace counts {

// Parts of a minibatch, and what surrounds its rows.
struct Form {
  std::vector<Part> parts;
  WindowRule rule;
};

// Puts a part before the tickets, and returns which it is.
inline std::size_t add_made(std::vector<Part>& parts, std::size_t row_bytes) {
  parts.insert(std::prev(parts.end()), {.source = Source::kMade, .row_bytes = row_bytes});
  return parts.size() - 2;
}

// NStep(n, 0.99): the reward is summed, what ends and the next observation are those of the last step.
inline Form n_steps(const RecordLayout& record, std::size_t n) {
  constexpr std::size_t kKept = 8;
  Form form{transition_parts(record), {}};
  for (const std::size_t field : {Shape::kTerminated, Shape::kNext}) form.parts[field].source = Source::kEnd;
  form.parts[Shape::kReward] = {.source = Source::kMade, .row_bytes = 4};
  const std::size_t discount = add_made(form.parts, sizeof(float));
  form.rule.most_after = static_cast<std::uint32_t>(n - 1);
  form.rule.sums = SumRule{.gamma = 0.99,
                           .sums = {{.of = {record.columns()[Shape::kReward], false}, .part = Shape::kReward}},
                           .stored_discount = {},
                           .discount_part = discount,
                           .is_discount_double = false};
  form.rule.ways_part = form.parts.size();
  form.parts.push_back({.source = Source::kMade, .row_bytes = Ways::row_bytes(kKept)});
  return form;
}

// Sequence(length, burn_in).
inline Form sequence(const RecordLayout& record, std::size_t length, std::size_t burn_in) {
  const Steps steps{-static_cast<std::int64_t>(burn_in), burn_in + length};
  Form form{transition_parts(record), {}};
  WindowRule::Taken taken{steps, false, false, {}, {}};
  for (std::size_t field = 0; field < record.num_fields(); ++field) {
    form.parts[field] = {.source = Source::kMade, .row_bytes = form.parts[field].row_bytes * steps.count};
    taken.fields.push_back(field);
    taken.parts.push_back(field);
  }
  form.rule.taken.push_back(std::move(taken));
  for (const Saying what : {Saying::kReal, Saying::kTrained, Saying::kFirst}) {
    form.rule.said.push_back({steps, what, add_made(form.parts, steps.count)});
  }
  form.rule.most_before = static_cast<std::uint32_t>(burn_in);
  form.rule.most_after = static_cast<std::uint32_t>(length - 1);
  form.rule.ways_part = form.parts.size();
  form.parts.push_back({.source = Source::kMade, .row_bytes = Ways::row_bytes(steps.count)});
  return form;
}

// Pixels as float32, divided by 255; images of pixels, shifted.
inline constexpr Conversion kDivided{.from = Numbers::kUInt8, .then = Then::kDivide, .factor = 255};
inline constexpr Conversion kShifted{.shift = {.most = 4, .number_bytes = 1, .height = 84, .width = 84}};

// Observations that are converted.
inline std::vector<Part> converted_parts(const RecordLayout& record, const Conversion& conversion) {
  std::vector<Part> parts = transition_parts(record);
  for (const std::size_t field : {Shape::kObservation, Shape::kNext}) {
    parts[field].conversion = conversion;
    parts[field].row_bytes = conversion.given_bytes(parts[field].row_bytes);
  }
  return parts;
}

}  // namespace counts
