// SPDX-License-Identifier: MIT
// The parts of a minibatch block as arrays and tensors, each of which owns the block.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "batch/block.hpp"
#include "dlpack.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

using SharedBlock = std::shared_ptr<Block>;

// Of arrays that nobody has done anything to.
constexpr int kArrayFlags = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                            py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// What a tensor made of DLPack keeps until its storage is gone: one owner of the block.
struct Export {
  dlpack::DLManagedTensor tensor;
  std::vector<std::int64_t> dims;  // the shape, then the strides
  SharedBlock block;
};

dlpack::DLDataType dlpack_dtype(const py::dtype& dtype) {
  constexpr std::string_view kKinds = "iuf__cb";  // at its DLPack code
  const std::size_t code = kKinds.find(dtype.kind());
  if (is_bfloat16(dtype)) return {dlpack::kBFloat, 16, 1};
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
    const auto& native = block.cast<const Block&>();
    py::tuple arrays{parts_.size() - 1};
    for (std::size_t i = 0; i + 1 < parts_.size(); ++i) {
      PyTuple_SET_ITEM(arrays.ptr(), static_cast<py::ssize_t>(i), array(block, native, i).release().ptr());
    }
    return arrays;
  }

  [[nodiscard]] py::object tickets(const py::object& block) const {
    return array(block, block.cast<const Block&>(), parts_.size() - 1);
  }

  // The position of the first of the fields' arrays, and then of the tickets' if there is one, that is not as arrays()
  // and tickets() make it; -1 where all are.
  [[nodiscard]] py::ssize_t first_changed(const Block& block, const py::tuple& arrays,
                                          const py::object& tickets) const {
    const std::size_t last = parts_.size() - 1;
    for (std::size_t i = 0; i < arrays.size() && i < last; ++i) {
      if (!is_as_made(block, PyTuple_GET_ITEM(arrays.ptr(), i), i)) return static_cast<py::ssize_t>(i);
    }
    return tickets.is_none() || is_as_made(block, tickets, last) ? -1 : static_cast<py::ssize_t>(last);
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
  [[nodiscard]] bool is_as_made(const Block& block, py::handle value, std::size_t i) const {
    if (!py::isinstance<py::array>(value)) return false;
    const auto array = py::reinterpret_borrow<py::array>(value);
    const auto& [offset, dtype, shape] = parts_[i];
    return array.data() == block.data() + offset && (array.flags() & kArrayFlags) == kArrayFlags &&
           std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim()) &&
           (array.dtype().is(dtype) || array.dtype().equal(dtype));
  }

  // NumPy's own function: py::array's constructor takes twice as long.
  [[nodiscard]] py::object array(const py::object& base, const Block& block, std::size_t i) const {
    check_fits(block, i);
    const auto& [offset, dtype, shape] = parts_[i];
    const auto& numpy = py::detail::npy_api::get();
    auto made = py::reinterpret_steal<py::object>(numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, py::object{dtype}.release().ptr(), static_cast<int>(shape.size()), shape.data(), nullptr,
        block.data() + offset, kArrayFlags, nullptr));
    if (!made || numpy.PyArray_SetBaseObject_(made.ptr(), py::object{base}.release().ptr()) != 0) {
      throw py::error_already_set{};
    }
    return made;
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

void bind_fields(py::module_& m) {
  py::class_<Fields>(m, "Fields")
      .def(py::init<std::vector<Fields::Part>>(), py::arg("parts"))
      .def("arrays", &Fields::arrays, py::arg("block"))
      .def("tickets", &Fields::tickets, py::arg("block"))
      .def("first_changed", &Fields::first_changed, py::arg("block"), py::arg("arrays"), py::arg("tickets").none(true))
      .def("capsules", &Fields::capsules, py::arg("block"));
}

}  // namespace fastreplay
