// SPDX-License-Identifier: MIT
#include "fields.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "dlpack.hpp"
#include "minibatch.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

using SharedBlock = std::shared_ptr<Block>;

// What a tensor made of DLPack keeps until its storage is gone: one owner of the block.
struct Export {
  dlpack::DLManagedTensor tensor;
  std::vector<std::int64_t> dims;  // the shape, then the strides
  SharedBlock block;
};

dlpack::DLDataType dlpack_dtype(const py::dtype& dtype) {
  constexpr std::string_view kKinds = "iuf__cb";  // at its DLPack code
  const std::size_t code = kKinds.find(dtype.kind());
  if (code == std::string_view::npos) throw py::type_error{"expected numbers or bools"};
  return {static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(8 * dtype.itemsize()), 1};
}

// The destructor of a capsule, which matters where nobody took the tensor out of it.
void drop_export(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, dlpack::kCapsule)) return;
  auto* tensor = static_cast<dlpack::DLManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::kCapsule));
  tensor->deleter(tensor);
}

// Where the parts of every block of one layout lie, the fields and then the tickets: for each its offset in bytes,
// dtype and (batch_size, ...) shape.
class Fields {
 public:
  using Part = std::tuple<std::size_t, py::dtype, std::vector<py::ssize_t>>;

  explicit Fields(std::vector<Part> parts) : parts_{std::move(parts)} {
    if (parts_.empty()) throw py::value_error{"expected the tickets at least"};
    for (const auto& [offset, dtype, shape] : parts_) dtypes_.push_back(dlpack_dtype(dtype));
  }

  // The fields as arrays, whose base is `block`.
  [[nodiscard]] py::tuple arrays(const py::object& block) const {
    py::tuple arrays{parts_.size() - 1};
    for (std::size_t i = 0; i + 1 < parts_.size(); ++i) arrays[i] = array(block, i);
    return arrays;
  }

  [[nodiscard]] py::array tickets(const py::object& block) const { return array(block, parts_.size() - 1); }

  // The position of the first of the fields' arrays that does not lie where arrays() lets it, -1 where all do.
  [[nodiscard]] py::ssize_t first_moved(const Block& block, const py::tuple& arrays) const {
    for (std::size_t i = 0; i < arrays.size() && i + 1 < parts_.size(); ++i) {
      const py::object value = arrays[i];
      if (!py::isinstance<py::array>(value)) return static_cast<py::ssize_t>(i);
      const void* data = py::reinterpret_borrow<py::array>(value).data();
      if (data != block.data() + std::get<0>(parts_[i])) return static_cast<py::ssize_t>(i);
    }
    return -1;
  }

  // DLPack capsules over the block's memory. Each owns the block by itself, until who took the tensor out of it
  // calls its deleter, which needs no interpreter.
  [[nodiscard]] py::tuple capsules(const SharedBlock& block) const {
    py::tuple capsules{parts_.size()};
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      check_fits(*block, i);
      std::unique_ptr<Export> made = new_export(block, i);
      PyObject* capsule = PyCapsule_New(&made->tensor, dlpack::kCapsule, &drop_export);
      if (capsule == nullptr) throw py::error_already_set{};
      static_cast<void>(made.release());
      capsules[i] = py::reinterpret_steal<py::object>(capsule);
    }
    return capsules;
  }

 private:
  [[nodiscard]] py::array array(const py::object& block, std::size_t i) const {
    const auto& native = block.cast<const Block&>();
    check_fits(native, i);
    const auto& [offset, dtype, shape] = parts_[i];
    return {dtype, shape, native.data() + offset, block};
  }

  void check_fits(const Block& block, std::size_t i) const {
    const auto& [offset, dtype, shape] = parts_[i];
    std::size_t num_bytes = static_cast<std::size_t>(dtype.itemsize());
    for (const py::ssize_t length : shape) num_bytes *= static_cast<std::size_t>(length);
    if (offset > block.layout().num_bytes() || num_bytes > block.layout().num_bytes() - offset) {
      throw py::value_error{"the block is of another layout"};
    }
  }

  [[nodiscard]] std::unique_ptr<Export> new_export(const SharedBlock& block, std::size_t i) const {
    const auto& [offset, dtype, shape] = parts_[i];
    auto made = std::make_unique<Export>();
    const std::size_t ndim = shape.size();
    made->dims.resize(2 * ndim);
    std::int64_t stride = 1;
    for (std::size_t axis = ndim; axis-- > 0;) {
      made->dims[axis] = shape[axis];
      made->dims[ndim + axis] = stride;
      stride *= shape[axis];
    }
    made->block = block;
    made->tensor.dl_tensor = {block->data() + offset,
                              dlpack::kCpu,
                              static_cast<std::int32_t>(ndim),
                              dtypes_[i],
                              made->dims.data(),
                              made->dims.data() + ndim,
                              0};
    made->tensor.manager_ctx = made.get();
    made->tensor.deleter = [](dlpack::DLManagedTensor* tensor) { delete static_cast<Export*>(tensor->manager_ctx); };
    return made;
  }

  std::vector<Part> parts_;
  std::vector<dlpack::DLDataType> dtypes_;
};

}  // namespace

void register_fields(py::module_& m) {
  py::class_<Fields>(m, "Fields")
      .def(py::init<std::vector<Fields::Part>>(), py::arg("parts"))
      .def("arrays", &Fields::arrays, py::arg("block"))
      .def("tickets", &Fields::tickets, py::arg("block"))
      .def("first_moved", &Fields::first_moved, py::arg("block"), py::arg("arrays"))
      .def("capsules", &Fields::capsules, py::arg("block"));
}

}  // namespace fastreplay
