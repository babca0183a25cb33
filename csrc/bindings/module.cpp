// SPDX-License-Identifier: MIT
// The module fastreplay._core: construction, sampling, prefetching, reading and statistics for Python. Each
// function validates, borrows pointers, releases the GIL where copies are long, and calls the core.
// The per-step insert path is fastreplay/buffer/insert.pyx.
#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "block_pool.hpp"
#include "capsule.hpp"
#include "fields.hpp"
#include "index_set.hpp"
#include "minibatch.hpp"
#include "ring/ring.hpp"

namespace py = pybind11;
namespace fr = fastreplay;

namespace {

// Calls a noexcept function, without the GIL for copies of at least kReleaseReadBytes. Not by a guard: at the
// interpreter's exit the GIL is not given back, the thread is unwound instead, which a destructor would turn into an
// abort.
template <class Call>
auto without_gil(std::size_t num_bytes, Call call) {
  if (num_bytes < fr::kReleaseReadBytes) return call();
  PyThreadState* state = PyEval_SaveThread();
  auto result = call();
  PyEval_RestoreThread(state);
  return result;
}

using Sizes = std::vector<std::pair<std::size_t, std::size_t>>;  // (row bytes, alignment) of each field

fr::RecordLayout record_layout(const Sizes& fields) {
  std::vector<fr::FieldSize> sizes;
  sizes.reserve(fields.size());
  for (const auto& [row_bytes, alignment] : fields) sizes.push_back({row_bytes, alignment});
  return fr::RecordLayout{sizes};
}

// Bytes taken for Python objects would be taken for addresses.
void check_is_number(const py::dtype& dtype) {
  if (std::string_view{"biufc"}.find(dtype.kind()) == std::string_view::npos) {
    throw py::type_error{"expected a dtype of numbers"};
  }
}

// A live (capacity, *shape) view of one field; `self` keeps the ring alive.
py::array column(const py::object& self, std::size_t field, const py::dtype& dtype,
                 const std::vector<py::ssize_t>& shape) {
  auto& ring = self.cast<fr::Ring&>();
  const fr::Column& place = ring.records().layout().columns().at(field);
  check_is_number(dtype);
  std::vector<py::ssize_t> dims{static_cast<py::ssize_t>(ring.capacity())};
  dims.insert(dims.end(), shape.begin(), shape.end());
  std::vector<py::ssize_t> strides(dims.size(), static_cast<py::ssize_t>(ring.records().layout().stride()));
  py::ssize_t step = dtype.itemsize();
  for (std::size_t axis = dims.size() - 1; axis > 0; --axis) {
    strides[axis] = step;
    if (dims[axis] <= 0 || dims[axis] > static_cast<py::ssize_t>(place.row_bytes) / step) {
      throw py::value_error{"dtype and shape do not fit the field"};
    }
    step *= dims[axis];
  }
  if (step != static_cast<py::ssize_t>(place.row_bytes)) throw py::value_error{"dtype and shape do not fit the field"};
  return py::array{dtype, dims, strides, ring.records().data() + place.offset, self};
}

// The block's bytes as one (num_bytes,) uint8 array; `self` keeps the block alive.
py::array flat(const py::object& self) {
  const auto& block = self.cast<const fr::Block&>();
  return py::array{py::dtype::of<std::uint8_t>(), {block.layout().num_bytes()}, {std::size_t{1}}, block.data(), self};
}

bool sample(fr::Sampler& sampler, fr::Ring& ring, const fr::Block& block) {
  fr::check_fits(block, ring);
  return without_gil(block.layout().num_bytes(), [&] { return sampler.sample(ring, block); });
}

using Addresses = py::array_t<std::int64_t, py::array::c_style>;

std::span<const std::int64_t> rows_of(const Addresses& addresses, const fr::Block& block) {
  if (static_cast<std::size_t>(addresses.size()) != block.batch_size()) {
    throw py::value_error{"one address for each row of the block"};
  }
  return {addresses.data(), block.batch_size()};
}

void throw_unless_whole(const fr::ReadResult& result, const fr::Ring& ring, bool by_slot, const Addresses& addresses) {
  switch (result.status) {
    case fr::ReadResult::Status::kWhole:
      return;
    case fr::ReadResult::Status::kOutOfRange:
      throw py::index_error{(by_slot ? "slot " : "index ") + std::to_string(addresses.data()[result.row]) +
                            " holds no transition: the buffer has " + std::to_string(result.published) +
                            " of at most " + std::to_string(ring.capacity())};
    case fr::ReadResult::Status::kOverwritten:
      throw std::runtime_error{"the transitions were overwritten at each try to read them together"};
  }
}

void read_rows(fr::Ring& ring, bool by_slot, const Addresses& addresses, const fr::Block& block) {
  const std::span<const std::int64_t> rows = rows_of(addresses, block);
  fr::check_fits(block, ring);
  const fr::Address address = by_slot ? fr::Address::kSlot : fr::Address::kPosition;
  const fr::ReadResult result =
      without_gil(block.layout().num_bytes(), [&] { return fr::read(ring, address, rows, block); });
  throw_unless_whole(result, ring, by_slot, addresses);
}

// The transitions in these slots instead of those that `held` has.
void replace_rows(fr::BlockPool& pool, fr::Ring& ring, const Addresses& slots, const fr::Block& held) {
  const std::span<const std::int64_t> rows = rows_of(slots, held);
  const std::shared_ptr<fr::Block> unseen = pool.take();
  fr::check_fits(held, ring);
  fr::check_fits(*unseen, ring);
  if (unseen->batch_size() != held.batch_size()) throw py::value_error{"the pool's blocks are of another batch size"};
  const fr::ReadResult result = without_gil(held.layout().num_bytes(),
                                            [&] { return fr::replace(ring, fr::Address::kSlot, rows, held, *unseen); });
  throw_unless_whole(result, ring, /*by_slot=*/true, slots);
}

// A number that any thread adds to. Without a lock, which a fork would copy locked and a signal handler meet.
class Counter {
 public:
  explicit Counter(std::uint64_t value) noexcept : value_{value} {}

  // Returns the value before.
  std::uint64_t add(std::uint64_t count) noexcept {
    // relaxed: only that no two calls get the same numbers.
    return value_.fetch_add(count, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t value() const noexcept {
    // relaxed: a count that orders nothing.
    return value_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<std::uint64_t> value_;
};

// Uniform integers; call k uses the words that sample call k of a Sampler of this key would.
class Draws {
 public:
  Draws(fr::Philox::Key key, std::uint64_t calls) noexcept : key_{key}, calls_{calls} {}

  py::array_t<std::int64_t> below(std::uint64_t bound, std::size_t count) {
    if (bound == 0) throw py::value_error{"nothing to draw from"};
    py::array_t<std::int64_t> drawn(static_cast<py::ssize_t>(count));
    fr::WordStream words{key_, calls_.add(1)};
    std::int64_t* values = drawn.mutable_data();
    for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<std::int64_t>(words.below(bound));
    return drawn;
  }

  [[nodiscard]] fr::Philox::Key key() const noexcept { return key_; }
  [[nodiscard]] std::uint64_t calls() const noexcept { return calls_.value(); }

 private:
  fr::Philox::Key key_;
  Counter calls_;
};

// An index set is for one thread at a time: the lock of its object, which there is only without the GIL, sees to that.
std::size_t set_size(const py::object& self) {
  const py::scoped_critical_section lock{self};
  return self.cast<const fr::IndexSet&>().size();
}

// Makes first, first + stride, ... members of a set, or no members.
void fill_set(const py::object& self, std::size_t first, std::size_t count, std::size_t stride, bool is_member) {
  const py::scoped_critical_section lock{self};
  auto& set = self.cast<fr::IndexSet&>();
  if (count == 0) return;
  if (stride == 0 || first >= set.bound() || (count - 1) > (set.bound() - 1 - first) / stride) {
    throw py::index_error{"expected indices below " + std::to_string(set.bound())};
  }
  set.fill(first, count, stride, is_member);
}

py::array_t<std::int64_t> select_members(const py::object& self,
                                         const py::array_t<std::int64_t, py::array::c_style>& ranks) {
  py::array_t<std::int64_t> members(ranks.size());
  const py::scoped_critical_section lock{self};
  const auto& set = self.cast<const fr::IndexSet&>();
  const std::int64_t* from = ranks.data();
  std::int64_t* to = members.mutable_data();
  for (py::ssize_t i = 0; i < ranks.size(); ++i) {
    to[i] = from[i];
    if (static_cast<std::uint64_t>(to[i]) >= set.size()) {
      throw py::index_error{"expected ranks below " + std::to_string(set.size())};
    }
  }
  set.select({to, static_cast<std::size_t>(ranks.size())});
  return members;
}

// table[indices] along the first axis. Rows lie anywhere in memory, so that each is asked for well before its copy.
py::array take_rows(const py::array& table, const py::array_t<std::int64_t, py::array::c_style>& indices) {
  if (table.ndim() == 0) throw py::type_error{"expected an array of at least one dimension"};
  check_is_number(table.dtype());
  std::vector<py::ssize_t> shape(table.shape(), table.shape() + table.ndim());
  py::ssize_t row_bytes = table.itemsize();
  for (py::ssize_t axis = table.ndim() - 1; axis > 0; --axis) {
    // NumPy gives an axis of length 1 any stride.
    if (table.shape(axis) > 1 && table.strides(axis) != row_bytes) throw py::value_error{"expected rows without gaps"};
    row_bytes *= table.shape(axis);
  }
  shape[0] = indices.size();
  py::array taken{table.dtype(), shape};
  const std::int64_t* index = indices.data();
  const auto* first = static_cast<const std::byte*>(table.data());
  auto* to = static_cast<std::byte*>(taken.mutable_data());
  constexpr py::ssize_t kAhead = 32;
  for (py::ssize_t i = 0; i < indices.size() + kAhead; ++i) {
    if (i < indices.size()) {
      if (index[i] < 0 || index[i] >= table.shape(0)) throw py::index_error{"expected indices below the length"};
      const std::byte* row = first + index[i] * table.strides(0);
      __builtin_prefetch(row);
      __builtin_prefetch(row + row_bytes - 1);
    }
    if (const py::ssize_t row = i - kAhead; row >= 0) {
      std::memcpy(to + row * row_bytes, first + index[row] * table.strides(0), static_cast<std::size_t>(row_bytes));
    }
  }
  return taken;
}

fr::Ticket read_run_into(const fr::Ring& ring, fr::Ticket first, const fr::Block& block) {
  fr::check_fits(block, ring);
  return without_gil(block.layout().num_bytes(), [&] { return fr::read_run(ring, first, block); });
}

// Whole records, first, first + 1, ..., as many as the memory holds; returns the oldest ticket whose copy is whole.
fr::Ticket read_records_into(const fr::Ring& ring, fr::Ticket first,
                             py::array_t<std::uint8_t, py::array::c_style> memory) {
  const std::span<std::byte> records{reinterpret_cast<std::byte*>(memory.mutable_data()),
                                     static_cast<std::size_t>(memory.size())};
  return without_gil(records.size(), [&] { return fr::read_records(ring, first, records); });
}

std::vector<std::size_t> record_offsets(const fr::Ring& ring) {
  std::vector<std::size_t> offsets;
  for (const fr::Column& column : ring.records().layout().columns()) offsets.push_back(column.offset);
  return offsets;
}

// A block in memory of its own, or in a (n,) uint8 array of somebody else's.
std::shared_ptr<fr::Block> new_block(const fr::Ring& ring, std::size_t batch_size,
                                     std::optional<py::array_t<std::uint8_t, py::array::c_style>> memory) {
  if (!memory) return std::make_shared<fr::Block>(ring.records().layout(), batch_size);
  auto* bytes = reinterpret_cast<std::byte*>(memory->mutable_data());
  const std::span<std::byte> span{bytes, static_cast<std::size_t>(memory->size())};
  return std::make_shared<fr::Block>(ring.records().layout(), batch_size, span);
}

// Refuses, for a module's classes, whatever makes an object without its constructor: pickles and copies (Python's own
// way of older protocols ends the process here), and `__new__`, whose objects pybind11 takes for whole. It goes into
// the class's dictionary alone: calls of the class use its slot, which stays.
void refuse_bare_objects(const py::module_& m) {
  for (const auto& [name, value] : m.attr("__dict__").cast<py::dict>()) {
    if (PyType_Check(value.ptr()) == 0) continue;
    const auto refuse = [](const py::handle& self, const py::args&) -> py::object {
      throw py::type_error{"cannot pickle " + py::cast<std::string>(py::type::handle_of(self).attr("__name__"))};
    };
    for (const char* method : {"__reduce__", "__reduce_ex__"}) {
      py::setattr(value, method, py::cpp_function{refuse, py::name(method), py::is_method(value)});
    }
    auto* type = reinterpret_cast<PyTypeObject*>(value.ptr());
    const auto refuse_new = [type](const py::args& args, const py::kwargs&) -> py::object {
      if (args.empty() || args[0].ptr() == reinterpret_cast<PyObject*>(type) || PyType_Check(args[0].ptr()) == 0) {
        throw py::type_error{"expected a call of the class, which initializes what it makes"};
      }
      auto* derived = reinterpret_cast<PyTypeObject*>(args[0].ptr());  // a class made in Python, which calls this
      if (PyType_IsSubtype(derived, type) == 0) throw py::type_error{"expected a class that is derived from this one"};
      return py::reinterpret_steal<py::object>(type->tp_new(derived, py::tuple{}.ptr(), nullptr));
    };
    if (PyDict_SetItemString(type->tp_dict, "__new__", py::staticmethod{py::cpp_function{refuse_new}}.ptr()) != 0) {
      throw py::error_already_set{};
    }
    PyType_Modified(type);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Native core of fastreplay: the ring, the sampler, minibatch blocks.";
  m.def("record_bytes", [](const Sizes& fields) { return record_layout(fields).stride(); }, py::arg("fields"));

  py::class_<fr::Block, std::shared_ptr<fr::Block>>(m, "Block")
      .def(py::init(&new_block), py::arg("ring"), py::arg("batch_size"), py::arg("memory").noconvert() = py::none(),
           py::keep_alive<1, 4>())
      .def(py::init([](const Sizes& fields, std::size_t batch_size) {
             return std::make_shared<fr::Block>(record_layout(fields), batch_size);
           }),
           py::arg("fields"), py::arg("batch_size"))
      .def_property_readonly("flat", &flat)
      .def_property_readonly("batch_size", &fr::Block::batch_size)
      .def_property_readonly("num_bytes", [](const fr::Block& block) { return block.layout().num_bytes(); })
      .def_property_readonly("offsets", [](const fr::Block& block) { return block.layout().offsets(); })
      .def_property_readonly("tickets_offset", [](const fr::Block& block) { return block.layout().tickets_offset(); });

  py::class_<fr::Ring, std::shared_ptr<fr::Ring>>(m, "Ring")
      .def(py::init([](const Sizes& fields, std::size_t capacity) {
             return std::make_shared<fr::Ring>(record_layout(fields), capacity);
           }),
           py::arg("fields"), py::arg("capacity"))
      .def_property_readonly("capacity", &fr::Ring::capacity)
      .def_property_readonly("num_bytes", &fr::Ring::num_bytes)
      .def_property_readonly("num_inserted", &fr::Ring::num_inserted)
      .def_property_readonly("num_overwritten", &fr::Ring::num_overwritten)
      .def("__len__", [](fr::Ring& ring) { return ring.window().published(); })
      .def("window",
           [](fr::Ring& ring) {
             const fr::Window window = ring.window();
             return std::pair{window.first, std::max(window.first, window.committed)};
           })
      .def(
          "block_bytes",
          [](const fr::Ring& ring, std::size_t batch_size) {
            return fr::BlockLayout{ring.records().layout(), batch_size}.num_bytes();
          },
          py::arg("batch_size"))
      .def_property_readonly("oldest_unfinished", [](fr::Ring& ring) { return ring.window().committed; })
      .def("clear", &fr::Ring::clear)
      .def("discard_unfinished", &fr::Ring::discard_unfinished)
      .def("start_at", &fr::Ring::start_at, py::arg("ticket"))
      .def("column", &column, py::arg("field"), py::arg("dtype"), py::arg("shape"))
      .def("read", &read_rows, py::arg("by_slot"), py::arg("addresses"), py::arg("block"))
      .def("read_run", &read_run_into, py::arg("first"), py::arg("block"))
      .def("read_records", &read_records_into, py::arg("first"), py::arg("memory").noconvert())
      .def_property_readonly("record_offsets", &record_offsets)
      .def_property_readonly("record_bytes", [](const fr::Ring& ring) { return ring.records().layout().stride(); })
      .def("capsule", [](fr::Ring& ring) { return py::capsule{&ring, fr::kRingCapsule}; });

  py::class_<fr::BlockPool, std::shared_ptr<fr::BlockPool>>(m, "BlockPool")
      .def(py::init([](const Sizes& fields, std::size_t batch_size, std::size_t max_free) {
             return fr::BlockPool::make(record_layout(fields), batch_size, max_free);
           }),
           py::arg("fields"), py::arg("batch_size"), py::arg("max_free"))
      .def("take", &fr::BlockPool::take)
      .def("replace", &replace_rows, py::arg("ring"), py::arg("slots"), py::arg("block"))
      .def_property_readonly("num_free", &fr::BlockPool::num_free);

  fr::register_fields(m);

  py::class_<Counter>(m, "Counter")
      .def(py::init<std::uint64_t>(), py::arg("value") = 0)
      .def("add", &Counter::add, py::arg("count"))
      .def_property_readonly("value", &Counter::value);

  py::class_<Draws>(m, "Draws")
      .def(py::init<fr::Philox::Key, std::uint64_t>(), py::arg("key"), py::arg("calls") = 0)
      .def("below", &Draws::below, py::arg("bound"), py::arg("count"))
      .def_property_readonly("key", &Draws::key)
      .def_property_readonly("calls", &Draws::calls);

  m.def("take_rows", &take_rows, py::arg("table"), py::arg("indices"));

  py::class_<fr::IndexSet>(m, "IndexSet")
      .def(py::init<std::size_t>(), py::arg("bound"))
      .def("__len__", &set_size)
      .def("fill", &fill_set, py::arg("first"), py::arg("count"), py::arg("stride"), py::arg("is_member"))
      .def("select", &select_members, py::arg("ranks"));

  py::class_<fr::Sampler>(m, "Sampler")
      .def(py::init([](fr::Philox::Key key, std::uint64_t calls, std::uint64_t num_sampled, std::uint64_t num_redraws) {
             return std::make_unique<fr::Sampler>(key, calls, num_sampled, num_redraws);
           }),
           py::arg("key"), py::arg("calls") = 0, py::arg("num_sampled") = 0, py::arg("num_redraws") = 0)
      .def("sample", &sample, py::arg("ring"), py::arg("block"))
      .def_property_readonly("key", &fr::Sampler::key)
      .def_property_readonly("calls", &fr::Sampler::calls)
      .def_property_readonly("num_sampled", &fr::Sampler::num_sampled)
      .def_property_readonly("num_redraws", &fr::Sampler::num_redraws);

  fr::bind_prefetcher(m);
  fr::bind_turn(m);
  refuse_bare_objects(m);
}
