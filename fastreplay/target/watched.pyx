# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Tables of tensors that were paired before: see whether all are where they were, move them.

A table holds addresses, and references to every tensor, storage and container behind them, so that no
address can dangle or come to mean something else. What can change all the same it looks at on every
step: each tensor's data pointer and element count, and the containers of the tensors, some at a time.
Pairing is fastreplay/target/pairing.py; what is done when something changed, fastreplay/target/soft_update.py.

Without the GIL a critical section does for one object what the GIL does for all: one thread at a time is inside,
and it is given up while the thread waits or moves much. With the GIL it is nothing.
"""

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uintptr_t
from libcpp.vector cimport vector

from cython cimport critical_section

from fastreplay.target.kernels cimport (
    Level, TorchAbi, best_level, kReleaseUpdateBytes, level_of, set_function, set_torch)

from collections import OrderedDict


cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *mapping, PyObject *key)  # borrowed
    bint PyDict_Next(PyObject *mapping, Py_ssize_t *position, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_GET_SIZE(PyObject *mapping)
    Py_ssize_t PyList_GET_SIZE(PyObject *values)
    PyObject *PyList_GET_ITEM(PyObject *values, Py_ssize_t i)  # borrowed


cdef extern from "target_table.hpp" namespace "fastreplay" nogil:
    enum class Dtype:
        kFloat32
        kFloat64
        kFloat16
        kBFloat16
        kComplex64
        kComplex128
        kBytes
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
    ctypedef int (*CudaLaunch)(int, void *, const void *, int64_t, double, const void *, int)
    cppclass TargetTable:
        void watch(void *, const void *, int64_t) except +
        void add(void *, const Pair &) except +
        void cut() except +
        const vector[Pair] &pairs()
        size_t num_bytes()
        bint is_current(const TorchAbi &)
        void update(double, Level, const TorchAbi &)
        void bump_versions(const TorchAbi &)



# Dictionaries and lists that are looked through at each step, in rotation: 12 ns each with entries, 2 ns without.
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


cdef struct SeenContainer:
    PyObject *owner  # the dictionary that holds this one as its "_modules"; null for others
    PyObject *container
    bint is_list
    Py_ssize_t size
    size_t first  # of its entries


cdef struct SeenEntry:
    PyObject *key  # null in a list
    PyObject *value


cdef class WatchedContainers:
    """Dictionaries and lists, and what they held at first."""

    cdef list kept
    cdef vector[SeenContainer] containers
    cdef vector[SeenEntry] entries
    cdef size_t next

    def __cinit__(self):
        self.kept = []

    def __init__(self, list containers):
        """Remember what they hold: (the dictionary whose "_modules" it is or None, one that `is_builtin`) each."""
        if self.kept:
            raise RuntimeError("WatchedContainers: __init__ was called before; make another")
        self.kept = [containers]
        for owner, container in containers:
            self.see(owner, container)

    cdef int see(self, owner, container) except -1:
        # Deleting from a container of torch's puts another dictionary in the place of `_modules`.
        cdef PyObject *holder = NULL
        cdef bint is_list = type(container) is list
        # In one step, and in a dictionary's own order, which is not that of an OrderedDict.
        cdef list held = list(container) if is_list else list(dict.items(container))
        if owner is not None:
            holder = <PyObject *>owner
        self.kept.append(held)
        self.containers.push_back(
            SeenContainer(holder, <PyObject *>container, is_list, len(held), self.entries.size()))
        if is_list:
            for value in held:
                self.entries.push_back(SeenEntry(NULL, <PyObject *>value))
        else:
            for key, value in held:
                self.entries.push_back(SeenEntry(<PyObject *>key, <PyObject *>value))
        return 0

    # Looks through up to `count` of them, and goes on from there the next time.
    cdef inline bint are_same(self, size_t count) noexcept:
        cdef size_t i, at
        if count > self.containers.size():
            count = self.containers.size()
        for i in range(count):
            at = self.next
            self.next = at + 1 if at + 1 < self.containers.size() else 0
            if not self.is_same(at):
                return False
        return True

    cdef inline bint is_same(self, size_t at) noexcept:
        cdef SeenContainer *seen = &self.containers[at]
        if seen.owner != NULL and PyDict_GetItemWithError(seen.owner, <PyObject *>MODULES) != seen.container:
            return False
        with critical_section(<object>seen.container):
            return self.holds_the_same(seen, self.entries.data() + seen.first)

    cdef inline bint holds_the_same(self, SeenContainer *seen, SeenEntry *entry) noexcept:
        cdef PyObject *key
        cdef PyObject *value
        cdef Py_ssize_t position = 0
        if seen.is_list:
            return self.is_same_list(seen, entry)
        if PyDict_GET_SIZE(seen.container) != seen.size:
            return False
        if seen.size == 0:
            return True
        while PyDict_Next(seen.container, &position, &key, &value):
            if key != entry.key or value != entry.value:
                return False
            entry += 1
        return True

    cdef bint is_same_list(self, SeenContainer *seen, SeenEntry *entry) noexcept:
        cdef Py_ssize_t i
        if PyList_GET_SIZE(seen.container) != seen.size:
            return False
        for i in range(seen.size):
            if PyList_GET_ITEM(seen.container, i) != entry[i].value:
                return False
        return True


def is_builtin(container):
    """Tell whether a container is one of those that can be looked through without running any Python."""
    return type(container) in (dict, OrderedDict, list)


cdef list contents(container):
    """List the entries of any other mapping or iterable."""
    return list(container.items()) if hasattr(container, "items") else [(None, value) for value in container]


cdef bint have_same(list some, list others) except -1:
    if len(some) != len(others):
        return False
    for (a, x), (b, y) in zip(some, others):
        if x is not y or not (a is b or a == b):
            return False
    return True


cdef class Table:
    """Tensors that are moved together, on one device."""

    cdef bint is_made
    cdef TargetTable table
    cdef TorchAbi torch
    cdef bint has_torch
    cdef Level level
    cdef WatchedContainers full
    cdef WatchedContainers empty
    cdef list foreign  # (container, what it held) of those that are not `is_builtin`
    cdef list kept  # tensors, their storages, masters
    cdef list watched  # (tensor, data pointer, element count)
    cdef list targets
    cdef object increment_version
    cdef CudaLaunch launch
    cdef int device
    cdef object describe

    def __cinit__(self):
        self.full, self.empty = WatchedContainers([]), WatchedContainers([])
        self.foreign, self.kept, self.watched, self.targets = [], [], [], []

    def __init__(self, list containers, torch_abi, bint fused, increment_version):
        """Make an empty table.

        Args:
            containers: What holds the tensors, (the dictionary whose "_modules" it is or None, the container) each.
            torch_abi: Addresses of torch's functions, or None to ask Python instead.
            fused: Whether torch multiplies and adds in one instruction here.
            increment_version: What counts up tensors' versions without `torch_abi`.
        """
        if self.is_made:
            raise RuntimeError("Table: __init__ was called before, and addresses are kept; make another")
        self.is_made = True
        builtin = [entry for entry in containers if is_builtin(entry[1])]
        self.full = WatchedContainers([entry for entry in builtin if entry[1]])
        self.empty = WatchedContainers([entry for entry in builtin if not entry[1]])
        self.foreign = []
        for _, container in containers:
            # One that makes its tensors when it is asked has none that could be replaced; nor can a tuple's be.
            if not is_builtin(container) and type(container) is not tuple:
                held = contents(container)
                if have_same(held, contents(container)):
                    self.foreign.append((container, held))
        self.level = level_of(fused)
        self.increment_version = increment_version
        self.kept, self.watched, self.targets = [], [], []
        self.has_torch = torch_abi is not None
        if self.has_torch:
            set_torch(self.torch, torch_abi)

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
        """Cut what was added into chunks, and launches; to be called once, before the first step."""
        self.table.cut()

    def set_device(self, uintptr_t launch, int device, describe):
        """Move by launches on a CUDA device from now on; `describe` says in words what an error means."""
        set_function(self.launch, launch)
        self.device = device
        self.describe = describe

    @property
    def num_tensors(self):
        return len(self.targets)

    cdef bint is_current(self):
        if not (self.full.are_same(kFullPerStep) and self.empty.are_same(kEmptyPerStep)):
            return False
        if self.foreign and not self.foreign_are_same():
            return False
        if self.has_torch:
            return self.table.is_current(self.torch)
        for tensor, data, numel in self.watched:
            if tensor.data_ptr() != data or tensor.numel() != numel:
                return False
        return True

    cdef bint foreign_are_same(self) except -1:
        for container, held in self.foreign:
            if not have_same(contents(container), held):
                return False
        return True

    cdef bint all_containers_are_same(self) except -1:
        return (self.full.are_same(self.full.containers.size())
                and self.empty.are_same(self.empty.containers.size())
                and self.foreign_are_same())

    def containers_are_same(self):
        """Tell whether every container holds what it held."""
        with critical_section(self):
            return self.all_containers_are_same()

    def is_unchanged(self):
        """Tell whether every tensor and every container is what it was."""
        with critical_section(self):
            return self.all_containers_are_same() and self.is_current()

    def step(self, double tau):
        """Move the tensors of a CPU table.

        Returns:
            Whether it was done. Otherwise something changed, nothing was moved, and a new table is needed.
        """
        with critical_section(self):
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
        """As `step`, by launches on a stream; tau is read from the device where an address is given."""
        cdef int error
        if self.launch == NULL:
            raise RuntimeError("target update: this table has no device")
        with critical_section(self):
            if not self.is_current():
                return False
            error = self.launch(self.device, <void *>stream, self.table.pairs().data(),
                                <int64_t>self.table.pairs().size(), tau, <const void *>tau_on_device, tau_is_double)
            if error != 0:
                raise RuntimeError(f"target update: the launch on cuda:{self.device} failed: {self.describe(error)}")
            self.bump_versions()
            return True

    cdef int bump_versions(self) except -1:
        if self.has_torch:
            self.table.bump_versions(self.torch)
        else:
            self.increment_version(self.targets)
        return 0
