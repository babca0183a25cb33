// SPDX-License-Identifier: MIT
// What a minibatch is made of, and where each part of it lies in a block. Knows sizes in bytes; dtypes and shapes are
// the bindings' business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batch/conversion.hpp"
#include "storage/record_layout.hpp"

namespace fastreplay {

// Where the rows of a part come from. A part of another kind is one more case here, and whoever makes its rows.
enum class Source : std::uint8_t {
  kStart,        // a field of the record that the row begins at: copied by gather()
  kEnd,          // a field of the record that it ends at, the last of n steps: copied by gather()
  kTicket,       // which record it begins at, one uint64: written by who chooses it. Every minibatch has this part
  kWeight,       // how much the row counts in a loss, one float32: written by who draws by priority
  kProbability,  // with which the row was drawn, one float32: as the weight
  kMade,         // worked out by who asked for the part, once all is copied
};

// One part of a minibatch: batch_size rows, one after another.
struct Part {
  Source source;
  std::size_t row_bytes;
  std::size_t field = 0;    // of the record; of kStart and kEnd alone
  Conversion conversion{};  // of what is copied out of records

  [[nodiscard]] bool operator==(const Part&) const = default;
};

// A field on its way out of a record.
struct Copied {
  std::size_t field;
  std::size_t row_bytes;  // as it is given
  std::size_t offset;     // of its part in the block
  Conversion conversion{};
};

// Whether a conversion makes so many bytes of a row.
[[nodiscard]] bool makes(const Conversion& conversion, std::size_t given_bytes, const Column& column) noexcept;

// What is drawn from a ring: every field of a transition, then the tickets.
[[nodiscard]] std::vector<Part> transition_parts(const RecordLayout& record);

// What is drawn by priority: the same with the weights and the probabilities before the tickets.
[[nodiscard]] std::vector<Part> weighted_parts(const RecordLayout& record);

// The parts in a block, in order, each at a multiple of kPartAlignment (more than any dtype asks for), so that one
// transfer moves them all. Of a share of a block, each where the larger minibatch has these rows of it.
class BatchLayout {
 public:
  static constexpr std::size_t kPartAlignment = 256;

  // Throws std::invalid_argument on sizes that do not fit, and without tickets.
  BatchLayout(std::vector<Part> parts, std::size_t batch_size);

  // Some rows of a larger minibatch, which has each of these parts at a place among its own: what one of several who
  // fill it sees of it. Throws std::invalid_argument where the rows or the places are not there, or a part is smaller.
  BatchLayout(const BatchLayout& whole, std::vector<Part> parts, std::span<const std::size_t> places,
              std::size_t first_row, std::size_t num_rows);

  // Whether all that is copied of a record is there in such records.
  [[nodiscard]] bool fits(const RecordLayout& record) const noexcept;
  [[nodiscard]] std::size_t batch_size() const noexcept { return batch_size_; }
  [[nodiscard]] const std::vector<Part>& parts() const noexcept { return parts_; }
  [[nodiscard]] const std::vector<std::size_t>& offsets() const noexcept { return offsets_; }
  [[nodiscard]] std::size_t tickets_offset() const noexcept { return tickets_offset_; }
  // Of the part from this source, kNone where there is none.
  static constexpr std::size_t kNone = ~std::size_t{0};
  [[nodiscard]] std::size_t offset_of(Source source) const noexcept;
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }
  // Whether it is some rows of a larger minibatch; of which that is the first, and how many the larger one has.
  [[nodiscard]] bool is_share() const noexcept { return whole_rows_ > 0; }
  [[nodiscard]] std::size_t first_row() const noexcept { return first_row_; }
  [[nodiscard]] std::size_t whole_rows() const noexcept { return whole_rows_; }
  // Whether there is a part that somebody has to work out.
  [[nodiscard]] bool has_made_parts() const noexcept { return has_made_parts_; }
  // What is copied out of records: all of it, of those that rows begin at, of those that they end at.
  [[nodiscard]] std::span<const Copied> copied() const noexcept { return copied_; }
  [[nodiscard]] std::span<const Copied> copied_at_start() const noexcept { return copied().first(num_at_start_); }
  [[nodiscard]] std::span<const Copied> copied_at_end() const noexcept { return copied().subspan(num_at_start_); }

 private:
  void find_copied();
  void add_copied(Source source);

  std::size_t batch_size_;
  std::vector<Part> parts_;
  std::vector<std::size_t> offsets_;  // of each part, bytes from the start of the block
  std::vector<Copied> copied_;        // those at the end last
  std::size_t num_at_start_ = 0;
  std::size_t tickets_offset_ = 0;
  std::size_t num_bytes_ = 0;
  bool has_made_parts_ = false;
  std::size_t first_row_ = 0;
  std::size_t whole_rows_ = 0;
};

}  // namespace fastreplay
