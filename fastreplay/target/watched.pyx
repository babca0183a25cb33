# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""One target update over tensors that were paired before: see whether they are where they were, move them.

A table holds addresses, and references to every tensor, storage and container behind them, so that no
address can dangle or come to mean something else. What can change all the same it looks at on every
step: each tensor's data pointer and element count, and the containers of the tensors, some at a time.
Pairing, and what is done when something changed, is fastreplay/target/soft_update.py.

Without the GIL a critical section does for one object what the GIL does for all: one thread at a time is inside,
and it is given up while the thread waits or moves much. With the GIL it is nothing.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libcpp.vector cimport vector

from cython cimport critical_section

from collections import OrderedDict


cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *mapping, PyObject *key)  # borrowed
    bint PyDict_Next(PyObject *mapping, Py_ssize_t *position, PyObject **key, PyObject **value)
    Py_ssize_t PyDict_GET_SIZE(PyObject *mapping)
    bint PyDict_CheckExact(PyObject *value)
    Py_ssize_t PyList_GET_SIZE(PyObject *values)
    PyObject *PyList_GET_ITEM(PyObject *values, Py_ssize_t i)  # borrowed
    bint PyGen_CheckExact(object value)
    object PyObject_GenericGetDict(object value, void *)


cdef extern from "owned.hpp" namespace "fastreplay":
    object get_item(object dict, object key, object missing)


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


cdef extern from "polyak_pairs.hpp" namespace "fastreplay" nogil:
    struct FormAbi:
        int (*get_dtype)(void *, int32_t *)
        int (*get_dim)(void *, int64_t *)
        int (*get_sizes)(void *, int64_t **)
        int (*get_strides)(void *, int64_t **)
        int32_t float32
        int32_t float64
        size_t keys_offset
        uint64_t keys
        uint64_t inference_keys
    cppclass PolyakPairs:
        void clear()
        bint add(void *, void *, const TorchAbi &, const FormAbi &) except +
        bint are_disjoint()
        size_t num_bytes()
        void cut() except +
        void average(double, double, Level, const TorchAbi &)


# Function pointers arrive as numbers, from ctypes.
cdef extern from *:
    """
    // What a type looks up by name is what it was as long as this number is; 0 where nobody knows. It changes with the
    // types that it derives from, too.
    static unsigned int version_of(PyObject* type) {
      const auto* const of = reinterpret_cast<PyTypeObject*>(type);
    #if PY_VERSION_HEX < 0x030C0000
      if ((of->tp_flags & Py_TPFLAGS_VALID_VERSION_TAG) == 0) return 0;
    #endif
      return of->tp_version_tag;
    }

    template <class Function>
    static void set_function(Function& function, std::uintptr_t address) {
      function = reinterpret_cast<Function>(address);
    }
    """
    unsigned int version_of(PyObject *type)
    void set_function[Function](Function &function, uintptr_t address)


cdef int set_torch(TorchAbi &torch, abi) except -1:
    set_function(torch.get_data_ptr, abi.get_data_ptr)
    set_function(torch.get_numel, abi.get_numel)
    set_function(torch.bump_version, abi.bump_version)
    set_function(torch.parallel_for, abi.parallel_for)
    torch.handle_offset = abi.handle_offset
    return 0


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
cdef str PARAMETERS = "_parameters"


cdef struct SeenContainer:
    PyObject *owner  # the dictionary that holds this one as its "_modules"; null for others
    PyObject *container
    bint is_list
    Py_ssize_t size
    size_t first  # of its entries


cdef struct SeenEntry:
    PyObject *key  # null in a list
    PyObject *value


cdef class Containers:
    """Dictionaries and lists, and what they held at first."""

    cdef list kept
    cdef vector[SeenContainer] containers
    cdef vector[SeenEntry] entries
    cdef size_t next

    def __cinit__(self):
        self.kept = []

    def __init__(self, list places):
        """Look at what `is_native`: (the dictionary whose "_modules" it is or None, the container) each."""
        if self.kept:
            raise RuntimeError("Containers: __init__ was called before; make another")
        self.kept = [places]
        for owner, container in places:
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


def is_native(container):
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
    cdef Containers full
    cdef Containers empty
    cdef list others  # (container, what it held) of those that are not native
    cdef list kept  # tensors, their storages, masters, the table on the device
    cdef list watched  # (tensor, data pointer, element count)
    cdef list targets
    cdef object increment_version
    cdef CudaLaunch launch
    cdef int device
    cdef const void *device_chunks

    def __cinit__(self):
        self.full, self.empty = Containers([]), Containers([])
        self.others, self.kept, self.watched, self.targets = [], [], [], []

    def __init__(self, list places, torch_abi, bint fused, increment_version):
        """Make an empty table.

        Args:
            places: What holds the tensors, (the dictionary whose "_modules" it is or None, the container) each.
            torch_abi: Addresses of torch's functions, or None to ask Python instead.
            fused: Whether torch multiplies and adds in one instruction here.
            increment_version: What counts up tensors' versions without `torch_abi`.
        """
        if self.is_made:
            raise RuntimeError("Table: __init__ was called before, and addresses are kept; make another")
        self.is_made = True
        native = [place for place in places if is_native(place[1])]
        self.full = Containers([place for place in native if place[1]])
        self.empty = Containers([place for place in native if not place[1]])
        self.others = []
        for _, container in places:
            # One that makes its tensors when it is asked has none that could be replaced; nor can a tuple's be.
            if not is_native(container) and type(container) is not tuple:
                held = contents(container)
                if have_same(held, contents(container)):
                    self.others.append((container, held))
        self.level = best_level() if fused else Level.kBaseline
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
        if self.others and not self.others_are_same():
            return False
        if self.has_torch:
            return self.table.is_current(self.torch)
        for tensor, data, numel in self.watched:
            if tensor.data_ptr() != data or tensor.numel() != numel:
                return False
        return True

    cdef bint others_are_same(self) except -1:
        for container, held in self.others:
            if not have_same(contents(container), held):
                return False
        return True

    cdef bint all_are_same(self) except -1:
        return (self.full.are_same(self.full.containers.size())
                and self.empty.are_same(self.empty.containers.size())
                and self.others_are_same())

    def modules_are_same(self):
        """Tell whether every container holds what it held."""
        with critical_section(self):
            return self.all_are_same()

    def is_same(self):
        """Tell whether every tensor and every container is what it was."""
        with critical_section(self):
            return self.all_are_same() and self.is_current()

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
        """As `step`, with one launch on a stream; tau is read from the device where an address is given."""
        cdef int error
        if self.launch == NULL:
            raise RuntimeError("target update: this table has no device")
        with critical_section(self):
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


# Modules and tensors of one walk through a module; for more, what was seen is not looked through one by one.
cdef enum:
    kMostSeen = 512


# What `torch.nn.Module.parameters` asks of a module, beside its dictionaries: what a class or a module may have of
# its own. The first it asks of every module, the others of the one it starts from.
cdef str NAMED_MODULES = "named_modules"
cdef str NAMED_MEMBERS = "_named_members"
cdef str NAMED_PARAMETERS = "named_parameters"
cdef tuple ASKED = (NAMED_MODULES, NAMED_MEMBERS, NAMED_PARAMETERS, MODULES, PARAMETERS,
                    "__getattribute__", "__eq__", "__hash__")


cdef inline bint is_sequence(values):
    return type(values) is list or type(values) is tuple


cdef list looked_up(kind):
    return [getattr(kind, name, None) for name in ASKED]


cdef class Walk:
    """The parameters of modules, as `torch.nn.Module.parameters` yields them."""

    cdef object module_type
    cdef object code  # of `parameters`
    cdef int not_started  # where the frame of a generator stands before its first step
    cdef list theirs  # what ASKED is in `module_type`
    cdef dict known  # module types that leave the walk to `torch.nn.Module` -> their versions when that was found

    def __cinit__(self):
        self.theirs, self.known = [], {}

    def __init__(self, module_type):
        """Walk subclasses of `module_type`, torch.nn.Module, of which one can be made without arguments."""
        generator = module_type().parameters()
        self.module_type = module_type
        self.code = module_type.parameters.__code__
        self.not_started = generator.gi_frame.f_lasti
        self.theirs = looked_up(module_type)
        self.known = {}

    def both_listed(self, some, others):
        """List two iterables that can be gone through ahead of their use, and give None of any others.

        Those are lists, tuples and fresh `module.parameters()`. Others may have an end that comes late or never, fail
        on the way, share what they take from, or depend on what was done with the tensors before.
        """
        cdef object frame = None
        cdef object other_frame = None
        if not is_sequence(some):
            frame = self.fresh_frame(some)
            if frame is None:
                return None
        if not is_sequence(others):
            other_frame = self.fresh_frame(others)
            if other_frame is None:
                return None
        return self.list_of(some, frame), self.list_of(others, other_frame)

    def listed(self, values):
        """List an iterable; a fresh `module.parameters()` is not run, but used up, and its module walked."""
        return self.list_of(values, self.fresh_frame(values))

    # None for all but a generator of `parameters` before its first step.
    cdef object fresh_frame(self, values):
        if PyGen_CheckExact(values) and values.gi_code is self.code:
            frame = values.gi_frame
            if frame is not None and frame.f_lasti == self.not_started:
                return frame
        return None

    cdef list list_of(self, values, frame):
        if frame is not None:
            arguments = frame.f_locals
            found = self.parameters(arguments["self"]) if arguments["recurse"] else None
            if found is not None:
                values.close()
                return found
        return list(values)

    def parameters(self, module):
        """List a module's parameters, or return None where the module walks in its own way, or is too large."""
        cdef list found = []
        cdef vector[PyObject *] modules, tensors
        members = PyObject_GenericGetDict(module, NULL)
        if NAMED_PARAMETERS in <dict>members or NAMED_MEMBERS in <dict>members:
            return None
        return found if self.visit(module, found, modules, tensors) else None

    cdef bint visit(self, module, list found, vector[PyObject *] &modules, vector[PyObject *] &tensors) except -1:
        cdef PyObject *key
        cdef PyObject *value
        cdef PyObject *parameters
        cdef PyObject *children
        cdef Py_ssize_t position = 0
        if is_seen(<PyObject *>module, modules):
            return True
        if not self.is_plain(type(module)) or modules.size() > kMostSeen or tensors.size() > kMostSeen:
            return False
        members = PyObject_GenericGetDict(module, NULL)
        if NAMED_MODULES in <dict>members:
            return False
        parameters = PyDict_GetItemWithError(<PyObject *>members, <PyObject *>PARAMETERS)
        children = PyDict_GetItemWithError(<PyObject *>members, <PyObject *>MODULES)
        if parameters == NULL or children == NULL:
            return False
        # Of a class of their own, they might be gone through in another order.
        if not PyDict_CheckExact(parameters) or not PyDict_CheckExact(children):
            return False
        with critical_section(<object>parameters):
            while PyDict_Next(parameters, &position, &key, &value):
                if <object>value is not None and not is_seen(value, tensors):
                    found.append(<object>value)
        position = 0
        with critical_section(<object>children):
            while PyDict_Next(children, &position, &key, &value):
                if <object>value is not None and not self.visit(<object>value, found, modules, tensors):
                    return False
        return True

    cdef bint is_plain(self, kind) except -1:
        cdef unsigned int version = get_item(self.known, kind, 0)
        if version != 0 and version == version_of(<PyObject *>kind):
            return True
        if not issubclass(kind, self.module_type) or not self.is_theirs(looked_up(kind)):
            return False
        self.known[kind] = version_of(<PyObject *>kind)
        return True

    cdef bint is_theirs(self, list found):
        cdef Py_ssize_t i
        for i in range(len(found)):
            if found[i] is not self.theirs[i]:
                return False
        return True


cdef inline bint is_seen(PyObject *value, vector[PyObject *] &seen) except -1:
    cdef PyObject *other
    for other in seen:
        if other == value:
            return True
    seen.push_back(value)
    return False


cdef class PolyakUpdate:
    """Averages of tensors that are looked at anew at every call, with nothing kept from one to the next."""

    cdef TorchAbi torch
    cdef FormAbi form
    cdef Level level
    cdef object tensor_type
    cdef object parameter_type

    def __init__(self, torch_abi, form_abi, bint fused, tensor_type, parameter_type):
        """Take torch's functions.

        Args:
            torch_abi: Addresses of functions.
            form_abi: Addresses of more functions.
            fused: Whether torch multiplies and adds in one instruction here.
            tensor_type: torch.Tensor.
            parameter_type: torch.nn.Parameter.
        """
        set_torch(self.torch, torch_abi)
        set_function(self.form.get_dtype, form_abi.get_dtype)
        set_function(self.form.get_dim, form_abi.get_dim)
        set_function(self.form.get_sizes, form_abi.get_sizes)
        set_function(self.form.get_strides, form_abi.get_strides)
        self.form.float32, self.form.float64 = form_abi.float32, form_abi.float64
        self.form.keys_offset = form_abi.keys_offset
        self.form.keys, self.form.inference_keys = form_abi.keys, form_abi.inference_keys
        self.level = best_level() if fused else Level.kBaseline
        self.tensor_type, self.parameter_type = tensor_type, parameter_type

    def update(self, list onlines, list targets, double tau):
        """Set each target to `(1 - tau) * target`, rounded, plus `tau * online`.

        Returns:
            Whether it was done. False, with nothing changed, where there are not as many of one as of the
            other, or some pair has no kernel.
        """
        cdef PolyakPairs pairs
        cdef double keep = 1.0 - tau
        if not self.take(onlines, targets, pairs):
            return False
        if pairs.num_bytes() < kReleaseUpdateBytes:
            pairs.cut()
            pairs.average(keep, tau, self.level, self.torch)
            return True
        # Aliases keep the memory while other threads run, which may give the tensors other memory.
        onlines, targets = [tensor.detach() for tensor in onlines], [tensor.detach() for tensor in targets]
        pairs.clear()
        if not self.take(onlines, targets, pairs):
            return False
        pairs.cut()
        with nogil:
            pairs.average(keep, tau, self.level, self.torch)
        return True

    cdef bint take(self, list onlines, list targets, PolyakPairs &pairs) except -1:
        cdef Py_ssize_t i
        if len(onlines) != len(targets):
            return False
        for i in range(len(targets)):
            if not (self.is_plain(onlines[i]) and self.is_plain(targets[i])):
                return False
            if not pairs.add(<PyObject *>targets[i], <PyObject *>onlines[i], self.torch, self.form):
                return False
        return pairs.are_disjoint()

    cdef inline bint is_plain(self, tensor):
        return type(tensor) is self.parameter_type or type(tensor) is self.tensor_type
