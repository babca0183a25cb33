// SPDX-License-Identifier: MIT
// The memory of minibatches, and the pools that it comes from.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "batch/block.hpp"
#include "batch/layout.hpp"
#include "batch/pool.hpp"
#include "capsule.hpp"
#include "module.hpp"
#include "rows.hpp"
#include "shares.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// What becomes of a field: from what, and then what, by which factor; and of shifts how far at most, the bytes of a
// number, the height and the width of an image.
using Converting =
    std::tuple<std::uint8_t, std::uint8_t, float, std::uint16_t, std::uint16_t, std::uint32_t, std::uint32_t>;

// The parts of a minibatch: (source, row bytes, field of the record, what becomes of it) each.
using Parts = std::vector<std::tuple<std::uint8_t, std::size_t, std::size_t, Converting>>;

Conversion native(const Converting& converting) {
  const auto& [from, then, factor, most, number_bytes, height, width] = converting;
  if (from > static_cast<std::uint8_t>(Numbers::kBFloat16) || then > static_cast<std::uint8_t>(Then::kMultiply)) {
    throw py::value_error{"a part has no such conversion"};
  }
  return {.from = static_cast<Numbers>(from),
          .then = static_cast<Then>(then),
          .factor = factor,
          .shift = {.most = most, .number_bytes = number_bytes, .height = height, .width = width}};
}

Converting for_python(const Conversion& conversion) {
  const auto& [from, then, factor, shift] = conversion;
  return {static_cast<std::uint8_t>(from),
          static_cast<std::uint8_t>(then),
          factor,
          shift.most,
          shift.number_bytes,
          shift.height,
          shift.width};
}

std::vector<Part> native(const Parts& parts) {
  std::vector<Part> made;
  for (const auto& [source, row_bytes, field, converting] : parts) {
    if (source > static_cast<std::uint8_t>(Source::kMade)) throw py::value_error{"a part has no such source"};
    if (row_bytes == 0) throw py::value_error{"a row has at least one byte"};
    made.push_back({.source = static_cast<Source>(source),
                    .row_bytes = row_bytes,
                    .field = field,
                    .conversion = native(converting)});
  }
  return made;
}

Parts for_python(const std::vector<Part>& native_parts) {
  Parts parts;
  for (const auto& [source, row_bytes, field, conversion] : native_parts) {
    parts.emplace_back(static_cast<std::uint8_t>(source), row_bytes, field, for_python(conversion));
  }
  return parts;
}

// In memory of its own, or in a (n,) uint8 array of somebody else's.
std::shared_ptr<Block> new_block(const Parts& parts, std::size_t batch_size, std::optional<Bytes> memory) {
  if (!memory) return std::make_shared<Block>(native(parts), batch_size);
  return std::make_shared<Block>(native(parts), batch_size, span_of(*memory));
}

// The block's bytes as one (num_bytes,) uint8 array; `self` keeps the block alive.
py::array flat(const py::object& self) {
  const auto& block = self.cast<const Block&>();
  return py::array{py::dtype::of<std::uint8_t>(), {block.layout().num_bytes()}, {std::size_t{1}}, block.data(), self};
}

void bind_pools_and_shares(py::module_& m) {
  py::class_<BlockPool, std::shared_ptr<BlockPool>>(m, "BlockPool")
      .def(py::init([](const Parts& parts, std::size_t batch_size, std::size_t max_free) {
             return BlockPool::make(native(parts), batch_size, max_free);
           }),
           py::arg("parts"), py::arg("batch_size"), py::arg("max_free"))
      .def("take", &BlockPool::take)
      .def_property_readonly("num_free", &BlockPool::num_free);

  // The parts of what one of several fills of a block, and their places among the block's.
  py::class_<BlockShare>(m, "BlockShare")
      .def(py::init([](const Parts& parts, std::vector<std::size_t> places) {
             return std::make_unique<BlockShare>(native(parts), std::move(places));
           }),
           py::arg("parts"), py::arg("places"))
      .def(
          "of",
          [](const BlockShare& share, const Block& block, std::size_t first_row, std::size_t num_rows) {
            return std::shared_ptr<Block>{new Block{share.of(block, first_row, num_rows)}};
          },
          py::arg("block"), py::arg("first_row"), py::arg("num_rows"), py::keep_alive<0, 2>());
}

void bind_parts(py::module_& m) {
  using namespace py::literals;
  m.attr("PART_OF_START") = static_cast<int>(Source::kStart);
  m.attr("PART_OF_END") = static_cast<int>(Source::kEnd);
  m.attr("PART_MADE") = static_cast<int>(Source::kMade);
  m.attr("AS_STORED") = for_python(Conversion{});
  m.attr("CONVERTED_FROM") =
      py::dict{"bool"_a = static_cast<int>(Numbers::kBool),        "uint8"_a = static_cast<int>(Numbers::kUInt8),
               "int8"_a = static_cast<int>(Numbers::kInt8),        "uint16"_a = static_cast<int>(Numbers::kUInt16),
               "int16"_a = static_cast<int>(Numbers::kInt16),      "float16"_a = static_cast<int>(Numbers::kFloat16),
               "bfloat16"_a = static_cast<int>(Numbers::kBFloat16)};
  m.attr("THEN_DIVIDED") = static_cast<int>(Then::kDivide);
  m.attr("THEN_MULTIPLIED") = static_cast<int>(Then::kMultiply);
  m.def(
      "transition_parts", [](const Sizes& fields) { return for_python(transition_parts(record_layout(fields))); },
      py::arg("fields"));
  m.def(
      "weighted_parts", [](const Sizes& fields) { return for_python(weighted_parts(record_layout(fields))); },
      py::arg("fields"));
}

}  // namespace

void bind_blocks(py::module_& m) {
  bind_parts(m);

  // Offsets of the parts, and the bytes of all, without a block.
  m.def(
      "block_layout",
      [](const Parts& parts, std::size_t batch_size) {
        const BatchLayout layout{native(parts), batch_size};
        return std::pair{layout.offsets(), layout.num_bytes()};
      },
      py::arg("parts"), py::arg("batch_size"));

  py::class_<Block, std::shared_ptr<Block>>(m, "Block")
      .def(py::init([](const Ring& ring, std::size_t batch_size) {
             return std::make_shared<Block>(transition_parts(ring.records().layout()), batch_size);
           }),
           py::arg("ring"), py::arg("batch_size"))
      .def(py::init(&new_block), py::arg("parts"), py::arg("batch_size"), py::arg("memory").noconvert() = py::none(),
           py::keep_alive<1, 4>())
      .def_property_readonly("flat", &flat)
      .def_property_readonly("batch_size", &Block::batch_size)
      .def_property_readonly("num_bytes", [](const Block& block) { return block.layout().num_bytes(); })
      .def_property_readonly("offsets", [](const Block& block) { return block.layout().offsets(); })
      .def("capsule", [](const Block& block) { return py::capsule{&block, kBlockCapsule}; });

  bind_pools_and_shares(m);
}

}  // namespace fastreplay
