# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""One target update over tensors that were paired before: see whether they are where they were, move them.

A table holds addresses, and references to every tensor, storage and dictionary behind them, so that no
address can dangle or come to mean something else. What can change all the same it looks at on every
step: each tensor's data pointer and element count, and the dictionaries of the modules, some at a time.
Pairing, and what is done when something changed, is fastreplay/target.py.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libcpp.vector cimport vector


cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *mapping, PyObject *key)  # borrowed
    bint PyDict_Next(PyObject *mapping, Py_ssize_t *position, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_GET_SIZE(PyObject *mapping)


cdef extern from "capsule.hpp" namespace "fastreplay" nogil:
    const size_t kReleaseUpdateBytes


cdef extern from "target_table.hpp" namespace "fastreplay" nogil:
    enum class Dtype:
        kFloat32
        kFloat64
        kFloat16
        kBFloat16
        kComplex64
        kComplex128
        kBytes
    enum class Level:
        kBaseline
        kAvx2
        kAvx512
    struct Chunk:
        void *target
        const void *online
        float *master
        uint32_t num_elements
        Dtype target_dtype
        Dtype online_dtype
        bint is_copied
    struct Pair:
        Chunk chunk
        size_t num_elements
    struct TorchAbi:
        int (*get_data_ptr)(void *, void **)
        int (*get_numel)(void *, int64_t *)
        void (*bump_version)(const void *)
        int (*parallel_for)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void *), void *)
        size_t handle_offset
    ctypedef int (*CudaLaunch)(int, void *, const void *, int64_t, double, const void *, int)
    cppclass TargetTable:
        void watch(void *, const void *, int64_t) except +
        void add(void *, const Pair &) except +
        void cut() except +
        const vector[Chunk] &chunks()
        size_t num_bytes()
        bint is_current(const TorchAbi &)
        void update(double, Level, const TorchAbi &)
        void bump_versions(const TorchAbi &)
    Level best_level()


# Function pointers arrive as numbers, from ctypes.
cdef extern from *:
    """
    template <class Function>
    static void set_function(Function& function, std::uintptr_t address) {
      function = reinterpret_cast<Function>(address);
    }
    """
    void set_function[Function](Function &function, uintptr_t address)


# Dictionaries that are looked through at each step, in rotation: 12 ns each with entries, 2 ns without.
cdef enum:
    kFullPerStep = 4
    kEmptyPerStep = 2

cdef dict DTYPES = {
    "float32": <int>Dtype.kFloat32,
    "float64": <int>Dtype.kFloat64,
    "float16": <int>Dtype.kFloat16,
    "bfloat16": <int>Dtype.kBFloat16,
    "complex64": <int>Dtype.kComplex64,
    "complex128": <int>Dtype.kComplex128,
    "bytes": <int>Dtype.kBytes,
}


def cpu_level():
    """Name the instructions that the CPU kernel uses here."""
    return {<int>Level.kBaseline: "baseline", <int>Level.kAvx2: "AVX2",
            <int>Level.kAvx512: "AVX-512"}[<int>best_level()]


cdef str MODULES = "_modules"


cdef struct SeenDict:
    PyObject *owner  # the dictionary that holds this one as its "_modules"; null for others
    PyObject *mapping
    Py_ssize_t size
    size_t first  # of its entries


cdef struct SeenEntry:
    PyObject *key
    PyObject *value


cdef class Dicts:
    """Dictionaries within dictionaries, and what they held at first."""

    cdef list kept
    cdef vector[SeenDict] dicts
    cdef vector[SeenEntry] entries
    cdef size_t next

    def __init__(self, list places):
        """Look at the dictionaries that others hold: (the other, the name) each."""
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *holder
        cdef Py_ssize_t position
        self.kept = [places]
        for owner, name in places:
            mapping = owner[name]
            self.kept.append((mapping, *mapping.keys(), *mapping.values()))
            # Deleting from a container of torch's puts another dictionary in the place of `_modules`.
            holder = NULL
            if name == MODULES:
                holder = <PyObject *>owner
            self.dicts.push_back(SeenDict(holder, <PyObject *>mapping, len(mapping), self.entries.size()))
            position = 0
            while PyDict_Next(<PyObject *>mapping, &position, &key, &value):
                self.entries.push_back(SeenEntry(key, value))

    # Looks through up to `count` of them, and goes on from there the next time.
    cdef inline bint are_same(self, size_t count) noexcept:
        cdef size_t i, at
        if count > self.dicts.size():
            count = self.dicts.size()
        for i in range(count):
            at = self.next
            self.next = at + 1 if at + 1 < self.dicts.size() else 0
            if not self.is_same(at):
                return False
        return True

    cdef inline bint is_same(self, size_t at) noexcept:
        cdef SeenDict *seen = &self.dicts[at]
        cdef SeenEntry *entry = self.entries.data() + seen.first
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t position = 0
        if seen.owner != NULL and PyDict_GetItemWithError(seen.owner, <PyObject *>MODULES) != seen.mapping:
            return False
        if PyDict_GET_SIZE(seen.mapping) != seen.size:
            return False
        if seen.size == 0:
            return True
        while PyDict_Next(seen.mapping, &position, &key, &value):
            if key != entry.key or value != entry.value:
                return False
            entry += 1
        return True


cdef class Table:
    """Tensors that are moved together, on one device."""

    cdef TargetTable table
    cdef TorchAbi torch
    cdef bint has_torch
    cdef Level level
    cdef Dicts full
    cdef Dicts empty
    cdef list kept  # tensors, their storages, masters, the table on the device
    cdef list watched  # (tensor, data pointer, element count)
    cdef list targets
    cdef object increment_version
    cdef CudaLaunch launch
    cdef int device
    cdef const void *device_chunks

    def __init__(self, list places, torch_abi, bint fused, increment_version):
        """Make an empty table.

        Args:
            places: Where the modules' dictionaries are, (the module's own, the name) each.
            torch_abi: Addresses of torch's functions, or None to ask Python instead.
            fused: Whether torch multiplies and adds in one instruction here.
            increment_version: What counts up tensors' versions without `torch_abi`.
        """
        self.full = Dicts([(owner, name) for owner, name in places if owner[name]])
        self.empty = Dicts([(owner, name) for owner, name in places if not owner[name]])
        self.level = best_level() if fused else Level.kBaseline
        self.increment_version = increment_version
        self.kept, self.watched, self.targets = [], [], []
        self.has_torch = torch_abi is not None
        if self.has_torch:
            set_function(self.torch.get_data_ptr, torch_abi.get_data_ptr)
            set_function(self.torch.get_numel, torch_abi.get_numel)
            set_function(self.torch.bump_version, torch_abi.bump_version)
            set_function(self.torch.parallel_for, torch_abi.parallel_for)
            self.torch.handle_offset = torch_abi.handle_offset

    def watch(self, tensor, alias):
        """Remember where a tensor's elements are; `alias` keeps its storage."""
        cdef uintptr_t data = tensor.data_ptr()
        cdef int64_t numel = tensor.numel()
        self.kept.append((tensor, alias))
        if self.has_torch:
            self.table.watch(<PyObject *>tensor, <const void *>data, numel)
        else:
            self.watched.append((tensor, data, numel))

    def add(self, target, online, master, str target_dtype, str online_dtype, size_t num_elements, bint is_copied):
        """Add two tensors of equally many elements in equal order, to be moved by `step`."""
        cdef Pair pair
        cdef uintptr_t to = target.data_ptr(), source = online.data_ptr()
        cdef uintptr_t middle = 0 if master is None else master.data_ptr()
        self.kept.append(master)
        self.targets.append(target)
        pair.num_elements = num_elements
        pair.chunk.target = <void *>to
        pair.chunk.online = <const void *>source
        pair.chunk.master = <float *>middle
        pair.chunk.num_elements = 0
        pair.chunk.target_dtype = <Dtype><int>DTYPES[target_dtype]
        pair.chunk.online_dtype = <Dtype><int>DTYPES[online_dtype]
        pair.chunk.is_copied = is_copied
        self.table.add(<PyObject *>target, pair)

    def finish(self):
        """Cut what was added into chunks; to be called once, before the first step."""
        self.table.cut()

    def chunk_bytes(self):
        """Give the table of chunks, for `set_device`."""
        return PyBytes_FromStringAndSize(
            <const char *>self.table.chunks().data(), self.table.chunks().size() * sizeof(Chunk))

    def set_device(self, uintptr_t launch, int device, chunks):
        """Move by a launch on a CUDA device from now on; `chunks` holds `chunk_bytes()` there."""
        set_function(self.launch, launch)
        self.device = device
        self.device_chunks = <const void *><uintptr_t>chunks.data_ptr()
        self.kept.append(chunks)

    @property
    def num_tensors(self):
        return len(self.targets)

    cdef bint is_current(self):
        if not (self.full.are_same(kFullPerStep) and self.empty.are_same(kEmptyPerStep)):
            return False
        if self.has_torch:
            return self.table.is_current(self.torch)
        for tensor, data, numel in self.watched:
            if tensor.data_ptr() != data or tensor.numel() != numel:
                return False
        return True

    def modules_are_same(self):
        """Tell whether every dictionary holds what it held."""
        return self.full.are_same(self.full.dicts.size()) and self.empty.are_same(self.empty.dicts.size())

    def is_same(self):
        """Tell whether every tensor and every dictionary is what it was."""
        return self.modules_are_same() and self.is_current()

    def step(self, double tau):
        """Move the tensors of a CPU table.

        Returns:
            Whether it was done. Otherwise something changed, nothing was moved, and a new table is needed.
        """
        if not self.is_current():
            return False
        if self.table.num_bytes() >= kReleaseUpdateBytes:
            with nogil:
                self.table.update(tau, self.level, self.torch)
        else:
            self.table.update(tau, self.level, self.torch)
        self.bump_versions()
        return True

    def step_on_device(self, double tau, uintptr_t stream, uintptr_t tau_on_device, bint tau_is_double):
        """As `step`, with one launch on a stream; tau is read from the device where an address is given."""
        cdef int error
        if not self.is_current():
            return False
        error = self.launch(self.device, <void *>stream, self.device_chunks,
                            <int64_t>self.table.chunks().size(), tau, <const void *>tau_on_device, tau_is_double)
        if error != 0:
            raise RuntimeError(f"target update: CUDA error {error} at the launch on device {self.device}")
        self.bump_versions()
        return True

    cdef int bump_versions(self) except -1:
        if self.has_torch:
            self.table.bump_versions(self.torch)
        else:
            self.increment_version(self.targets)
        return 0
