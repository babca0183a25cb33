// SPDX-License-Identifier: MIT
#include "batch/layout.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace fastreplay {

bool makes(const Conversion& conversion, std::size_t given_bytes, const Column& column) noexcept {
  const std::size_t num_frames = std::max<std::size_t>(column.num_frames, 1);
  const std::size_t frame_bytes = column.row_bytes / num_frames;
  return conversion.suits(frame_bytes) && conversion.given_bytes(frame_bytes) * num_frames == given_bytes;
}

std::vector<Part> transition_parts(const RecordLayout& record) {
  std::vector<Part> parts;
  for (std::size_t field = 0; field < record.num_fields(); ++field) {
    parts.push_back({.source = Source::kStart, .row_bytes = record.columns()[field].row_bytes, .field = field});
  }
  parts.push_back({.source = Source::kTicket, .row_bytes = sizeof(std::uint64_t)});
  return parts;
}

std::vector<Part> weighted_parts(const RecordLayout& record) {
  std::vector<Part> parts = transition_parts(record);
  const auto before_tickets = parts.end() - 1;
  parts.insert(before_tickets, {{.source = Source::kWeight, .row_bytes = sizeof(float)},
                                {.source = Source::kProbability, .row_bytes = sizeof(float)}});
  return parts;
}

BatchLayout::BatchLayout(std::vector<Part> parts, std::size_t batch_size)
    : batch_size_{batch_size}, parts_{std::move(parts)} {
  std::size_t row_bytes = 0;  // of all parts
  for (const Part& part : parts_) {
    has_made_parts_ |= part.source == Source::kMade;
    row_bytes += part.row_bytes;
    if (part.row_bytes > kMaxBytes || row_bytes > kMaxBytes || batch_size > kMaxBytes / row_bytes) {
      throw std::invalid_argument{"the minibatch is too large"};
    }
    offsets_.push_back(num_bytes_);
    num_bytes_ += round_up(part.row_bytes * batch_size, kPartAlignment);
  }
  find_copied();
}

BatchLayout::BatchLayout(const BatchLayout& whole, std::vector<Part> parts, std::span<const std::size_t> places,
                         std::size_t first_row, std::size_t num_rows)
    : batch_size_{num_rows}, parts_{std::move(parts)}, first_row_{first_row}, whole_rows_{whole.batch_size_} {
  if (whole_rows_ == 0 || whole.is_share() || first_row > whole_rows_ || num_rows > whole_rows_ - first_row ||
      places.size() != parts_.size()) {
    throw std::invalid_argument{"the minibatch has no such rows"};
  }
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    if (places[i] >= whole.parts_.size() || whole.parts_[places[i]].row_bytes < parts_[i].row_bytes) {
      throw std::invalid_argument{"the minibatch has no room for a part"};
    }
    has_made_parts_ |= parts_[i].source == Source::kMade;
    offsets_.push_back(whole.offsets_[places[i]] + first_row * whole.parts_[places[i]].row_bytes);
    num_bytes_ += parts_[i].row_bytes * num_rows;
  }
  find_copied();
}

void BatchLayout::find_copied() {
  add_copied(Source::kStart);
  num_at_start_ = copied_.size();
  add_copied(Source::kEnd);
  tickets_offset_ = offset_of(Source::kTicket);
  if (tickets_offset_ == kNone) throw std::invalid_argument{"a minibatch has tickets"};
}

std::size_t BatchLayout::offset_of(Source source) const noexcept {
  const auto part = std::ranges::find(parts_, source, &Part::source);
  return part == parts_.end() ? kNone : offsets_[static_cast<std::size_t>(part - parts_.begin())];
}

void BatchLayout::add_copied(Source source) {
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    const auto& [from, row_bytes, field, conversion] = parts_[i];
    if (from != source) continue;
    copied_.push_back({.field = field, .row_bytes = row_bytes, .offset = offsets_[i], .conversion = conversion});
  }
}

bool BatchLayout::fits(const RecordLayout& record) const noexcept {
  return std::ranges::all_of(copied_, [&columns = record.columns()](const Copied& copied) {
    return copied.field < columns.size() && makes(copied.conversion, copied.row_bytes, columns[copied.field]);
  });
}

}  // namespace fastreplay
