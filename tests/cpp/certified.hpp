// SPDX-License-Identifier: MIT
// Transitions that certify themselves: field 0 is an id, every other word a mix of that id, its field
// and its place, so that a row made of two transitions shows itself. For tests that move many rows:
// words, where rows.hpp has bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "batch/sample.hpp"
#include "ring/ring.hpp"

namespace certified {

inline constexpr std::array<std::size_t, 3> kWords{1, 4, 2};  // 8-byte words of each field

inline std::uint64_t mix(std::uint64_t id, std::size_t field, std::size_t place) {
  std::uint64_t z = id + 0x9E3779B97F4A7C15 * (field * 16 + place + 1);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  return z ^ (z >> 27);
}

inline fastreplay::RecordLayout layout() {
  std::vector<fastreplay::FieldSize> fields;
  for (const std::size_t words : kWords) fields.push_back({.row_bytes = 8 * words, .alignment = 8});
  return fastreplay::RecordLayout{fields};
}

// Memory for the transitions of one insert.
class Batch {
 public:
  explicit Batch(std::size_t num_rows) {
    for (std::size_t f = 0; f < kWords.size(); ++f) {
      words_[f].resize(kWords[f] * num_rows);
      rows_[f] = {.data = reinterpret_cast<const std::byte*>(words_[f].data()), .stride_bytes = 8 * kWords[f]};
    }
  }

  void set(std::size_t row, std::uint64_t id) {
    words_[0][row] = id;
    for (std::size_t f = 1; f < kWords.size(); ++f) {
      for (std::size_t w = 0; w < kWords[f]; ++w) words_[f][row * kWords[f] + w] = mix(id, f, w);
    }
  }
  [[nodiscard]] std::span<const fastreplay::Rows> rows() const { return rows_; }

 private:
  std::array<std::vector<std::uint64_t>, kWords.size()> words_;
  std::array<fastreplay::Rows, kWords.size()> rows_{};
};

inline std::uint64_t word_at(const std::byte* row, std::size_t place) {
  std::uint64_t word = 0;
  std::memcpy(&word, row + 8 * place, sizeof word);
  return word;
}

// The id of the transition whose row of field f lies at row_of(f), if all its words belong to one.
template <class RowOf>
std::optional<std::uint64_t> id_of(RowOf row_of) {
  const std::uint64_t id = word_at(row_of(0), 0);
  bool whole = true;
  for (std::size_t f = 1; f < kWords.size(); ++f) {
    for (std::size_t w = 0; w < kWords[f]; ++w) whole &= word_at(row_of(f), w) == mix(id, f, w);
  }
  return whole ? std::optional{id} : std::nullopt;
}

inline std::optional<std::uint64_t> id_in(const fastreplay::Block& block, std::size_t row) {
  return id_of([&](std::size_t f) { return block.data() + block.layout().offsets()[f] + 8 * kWords[f] * row; });
}

// For a ring at rest.
inline std::optional<std::uint64_t> id_in(const fastreplay::Ring& ring, fastreplay::Ticket ticket) {
  return id_of([&](std::size_t f) { return ring.record(ticket) + ring.records().layout().columns()[f].offset; });
}

}  // namespace certified
