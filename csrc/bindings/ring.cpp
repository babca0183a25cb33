// SPDX-License-Identifier: MIT
// The ring: what is in it, and reads of transitions that Python names.
#include "ring/ring.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch/pool.hpp"
#include "batch/read.hpp"
#include "capsule.hpp"
#include "gil.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

std::span<const std::int64_t> rows_of(const Integers& addresses, const Block& block) {
  if (static_cast<std::size_t>(addresses.size()) != block.batch_size()) {
    throw py::value_error{"one address for each row of the block"};
  }
  return {addresses.data(), block.batch_size()};
}

// Whoever read while it was closed would have less than there was.
void throw_if_closed(const Ring& ring) {
  if (ring.is_closed()) throw std::runtime_error{"the buffer was closed meanwhile"};
}

void throw_unless_whole(const ReadResult& result, const Ring& ring, bool by_slot, const Integers& addresses) {
  switch (result.status) {
    case ReadResult::Status::kWhole:
      return;
    case ReadResult::Status::kOutOfRange:
      throw_if_closed(ring);
      throw py::index_error{
          (by_slot ? "slot " : "index ") + std::to_string(addresses.data()[result.row]) +
          " holds no transition: the buffer has " + std::to_string(result.published) + " of at most " +
          std::to_string(ring.window_capacity()) +
          (by_slot && ring.num_spare() > 0 ? ", in " + std::to_string(ring.capacity()) + " slots" : "")};
    case ReadResult::Status::kOverwritten:
      throw std::runtime_error{"the transitions were overwritten at each try to read them together"};
  }
}

void read_into(Ring& ring, bool by_slot, const Integers& addresses, const Block& block) {
  const std::span<const std::int64_t> rows = rows_of(addresses, block);
  check_fits(block, ring);
  const Address address = by_slot ? Address::kSlot : Address::kPosition;
  const ReadResult result = without_gil(block.layout().num_bytes(), [&] { return read(ring, address, rows, block); });
  throw_unless_whole(result, ring, by_slot, addresses);
}

// The transitions in these slots instead of those that `held` has, read into a block of the pool first.
void replace_in(Ring& ring, BlockPool& pool, const Integers& slots, const Block& held) {
  const std::span<const std::int64_t> rows = rows_of(slots, held);
  const std::shared_ptr<Block> unseen = pool.take();
  check_fits(held, ring);
  check_fits(*unseen, ring);
  if (unseen->batch_size() != held.batch_size()) throw py::value_error{"the pool's blocks are of another batch size"};
  const ReadResult result =
      without_gil(held.layout().num_bytes(), [&] { return replace(ring, Address::kSlot, rows, held, *unseen); });
  throw_unless_whole(result, ring, /*by_slot=*/true, slots);
}

// The slots that a block's transitions lie in, as Python's integers.
py::list slots_for_python(const Ring& ring, const Block& block) {
  const std::span<const Ticket> tickets = block.tickets();
  py::list slots(tickets.size());
  for (std::size_t i = 0; i < tickets.size(); ++i) slots[i] = py::int_(ring.slot(tickets[i]));
  return slots;
}

Ticket read_run_into(const Ring& ring, Ticket first, const Block& block) {
  check_fits(block, ring);
  const Ticket oldest = without_gil(block.layout().num_bytes(), [&] { return read_run(ring, first, block); });
  throw_if_closed(ring);
  return oldest;
}

// Lays records behind the last of a ring that nobody else uses: rows of some of its columns, without gaps.
void put_rows(Ring& ring, const std::vector<std::size_t>& numbers, const std::vector<Bytes>& rows) {
  const std::vector<Column>& columns = ring.records().layout().columns();
  std::vector<Rows> fields(columns.size(), Rows{.data = nullptr, .stride_bytes = 0});
  std::size_t num_bytes = 0;
  std::optional<std::size_t> num_rows;
  if (numbers.size() != rows.size()) throw py::value_error{"as many columns as numbers"};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (numbers[i] >= columns.size()) throw py::value_error{"the record has no such column"};
    const Column& column = columns[numbers[i]];
    const auto size = static_cast<std::size_t>(rows[i].size());
    if (column.num_frames > 0) throw py::value_error{"a field whose rows do not lie in the records"};
    if (size % column.row_bytes != 0 || num_rows.value_or(size / column.row_bytes) != size / column.row_bytes) {
      throw py::value_error{"expected as many rows of each column"};
    }
    num_rows = size / column.row_bytes;
    num_bytes += size;
    fields[numbers[i]] = {.data = reinterpret_cast<const std::byte*>(rows[i].data()), .stride_bytes = column.row_bytes};
  }
  if (num_rows.value_or(0) > ring.capacity()) throw py::value_error{"more rows than slots"};
  without_gil(num_bytes, [&]() noexcept {
    ring.write(fields, 0, ring.slot(ring.num_reserved()), num_rows.value_or(0));
    return true;
  });
}

void restore_rows(Ring& ring, std::size_t num_rows) {
  if (num_rows > ring.capacity()) throw py::value_error{"more rows than slots"};
  ring.restore(num_rows);
}

// Whole records, first, first + 1, ..., as many as the memory holds; returns the oldest ticket whose copy is whole.
Ticket read_records_into(const Ring& ring, Ticket first, Bytes memory) {
  const std::span<std::byte> records = span_of(memory);
  const Ticket oldest = without_gil(records.size(), [&] { return read_records(ring, first, records); });
  throw_if_closed(ring);
  return oldest;
}

// What an insert waits for.
std::string describe_gate(Ring& ring) {
  const auto [ticket, is_held] = ring.gate();
  return "transition " + std::to_string(ticket) + ", a whole lap behind, was still being " +
         (is_held ? "saved" : "written");
}

// For an insert that waits, of which so many rows are done.
void check_open(const Ring& ring, std::size_t num_inserted, std::size_t num_rows) {
  if (!ring.is_closed()) return;
  throw std::runtime_error{"insert: the buffer was closed meanwhile; " + std::to_string(num_inserted) + " of " +
                           std::to_string(num_rows) + " rows were inserted"};
}

}  // namespace

void bind_ring(py::module_& m) {
  py::class_<Ring, std::shared_ptr<Ring>>(m, "Ring")
      .def(py::init([](const Sizes& fields, std::size_t capacity, const Groups& groups, std::size_t num_spare,
                       MappedFile* file, bool has_links) {
             return std::make_shared<Ring>(record_layout(fields, groups, has_links), capacity, num_spare,
                                           memory_of(file));
           }),
           py::arg("fields"), py::arg("capacity"), py::arg("groups") = Groups{}, py::arg("num_spare") = 0,
           py::arg("file").none(true) = py::none(), py::arg("has_links") = false)
      .def_property_readonly("records", [](Ring& ring) -> Records& { return ring.records(); })
      .def_property_readonly("capacity", &Ring::capacity)
      .def_property_readonly("num_spare", &Ring::num_spare)
      .def_property_readonly("num_bytes", &Ring::num_bytes)
      .def_property_readonly("num_inserted", &Ring::num_inserted)
      .def_property_readonly("num_overwritten", &Ring::num_overwritten)
      .def("__len__", [](Ring& ring) { return ring.window().published(); })
      .def("window",
           [](Ring& ring) {
             const Window window = ring.window();
             throw_if_closed(ring);
             return std::pair{window.first, std::max(window.first, window.committed)};
           })
      .def_property_readonly("num_reserved", &Ring::num_reserved)
      .def("describe_gate", &describe_gate)
      .def_property_readonly("is_closed", &Ring::is_closed)
      .def("check_open", &check_open, py::arg("num_inserted"), py::arg("num_rows"))
      .def("clear", &Ring::clear)
      .def("try_hold", &Ring::try_hold, py::arg("first"))
      .def("hold_on_from", &Ring::hold_on_from, py::arg("first"))
      .def("let_go", &Ring::let_go)
      .def("start_at", &Ring::start_at, py::arg("ticket"))
      .def("put", &put_rows, py::arg("numbers"), py::arg("rows").noconvert())
      .def("restore", &restore_rows, py::arg("num_rows"))
      .def("begin_here", &Ring::begin_here)
      .def("count", &Ring::count, py::arg("num_inserted"), py::arg("num_overwritten"))
      .def("slots", &slots_for_python, py::arg("block"))
      .def("read", &read_into, py::arg("by_slot"), py::arg("addresses"), py::arg("block"))
      .def("replace", &replace_in, py::arg("pool"), py::arg("slots"), py::arg("block"))
      .def("read_run", &read_run_into, py::arg("first"), py::arg("block"))
      .def("read_records", &read_records_into, py::arg("first"), py::arg("memory").noconvert())
      .def("capsule", [](Ring& ring) { return py::capsule{&ring, kRingCapsule}; });
}

}  // namespace fastreplay
