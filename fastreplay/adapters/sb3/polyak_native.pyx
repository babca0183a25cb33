# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""What `polyak_update` does natively: list the parameters of modules, and average tensors.

Nothing is kept from one call to the next but what classes of modules are like. What goes through SB3's own function
instead is decided in fastreplay/adapters/sb3/polyak.py.
"""

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

from cython cimport critical_section

from fastreplay.target.kernels cimport Level, TorchAbi, kReleaseUpdateBytes, level_of, set_function, set_torch


cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(PyObject *mapping, PyObject *key)  # borrowed
    bint PyDict_Next(PyObject *mapping, Py_ssize_t *position, PyObject **key, PyObject **value)
    bint PyDict_CheckExact(PyObject *value)
    bint PyGen_CheckExact(object value)
    object PyObject_GenericGetDict(object value, void *)


cdef extern from "owned.hpp" namespace "fastreplay":
    object get_item(object dict, object key, object missing)


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
    """
    unsigned int version_of(PyObject *type)


# Modules and tensors of one walk through a module; for more, what was seen is not looked through one by one.
cdef enum:
    kMostSeen = 512


# What `torch.nn.Module.parameters` asks of a module, beside its dictionaries: what a class or a module may have of
# its own. The first it asks of every module, the others of the one it starts from.
cdef str MODULES = "_modules"
cdef str PARAMETERS = "_parameters"
cdef str NAMED_MODULES = "named_modules"
cdef str NAMED_MEMBERS = "_named_members"
cdef str NAMED_PARAMETERS = "named_parameters"
cdef tuple ASKED = (NAMED_MODULES, NAMED_MEMBERS, NAMED_PARAMETERS, MODULES, PARAMETERS,
                    "__getattribute__", "__eq__", "__hash__")


cdef inline bint is_sequence(values):
    return type(values) is list or type(values) is tuple


cdef list looked_up(kind):
    return [getattr(kind, name, None) for name in ASKED]


cdef class ParameterLists:
    """Lists of modules' parameters, as `torch.nn.Module.parameters` yields them."""

    cdef object module_type
    cdef object code  # of `parameters`
    cdef int not_started  # where the frame of a generator stands before its first step
    cdef list theirs  # what ASKED is in `module_type`
    cdef dict plain_types  # those that leave the walk to `module_type` -> their versions when that was found

    def __cinit__(self):
        self.theirs, self.plain_types = [], {}

    def __init__(self, module_type):
        """List what subclasses of `module_type`, torch.nn.Module, have; one can be made without arguments."""
        generator = module_type().parameters()
        self.module_type = module_type
        self.code = module_type.parameters.__code__
        self.not_started = generator.gi_frame.f_lasti
        self.theirs = looked_up(module_type)
        self.plain_types = {}

    def of_both(self, some, others):
        """List two iterables that can be gone through ahead of their use, and give None of any others.

        Those are lists, tuples and fresh `module.parameters()`, which are not run, but used up, and their modules
        walked. Others may have an end that comes late or never, fail on the way, share what they take from, or depend
        on what was done with the tensors before.
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
            found = self.parameters_of(arguments["self"]) if arguments["recurse"] else None
            if found is not None:
                values.close()
                return found
        return list(values)

    # None where the module walks in its own way, or is too large.
    cdef list parameters_of(self, module):
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
        cdef unsigned int version = get_item(self.plain_types, kind, 0)
        if version != 0 and version == version_of(<PyObject *>kind):
            return True
        if not issubclass(kind, self.module_type) or not self.is_theirs(looked_up(kind)):
            return False
        self.plain_types[kind] = version_of(<PyObject *>kind)
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
        self.level = level_of(fused)
        self.tensor_type, self.parameter_type = tensor_type, parameter_type

    def update(self, list onlines, list targets, double tau):
        """Set each target to `(1 - tau) * target`, rounded, plus `tau * online`.

        Returns:
            Whether it was done. False, with nothing changed, where there are not as many of one as of the
            other, or some pair has no kernel.
        """
        cdef PolyakPairs pairs
        cdef double keep = 1.0 - tau
        if not self.collect(onlines, targets, pairs):
            return False
        if pairs.num_bytes() < kReleaseUpdateBytes:
            pairs.cut()
            pairs.average(keep, tau, self.level, self.torch)
            return True
        # Aliases keep the memory while other threads run, which may give the tensors other memory.
        onlines, targets = [tensor.detach() for tensor in onlines], [tensor.detach() for tensor in targets]
        pairs.clear()
        if not self.collect(onlines, targets, pairs):
            return False
        pairs.cut()
        with nogil:
            pairs.average(keep, tau, self.level, self.torch)
        return True

    cdef bint collect(self, list onlines, list targets, PolyakPairs &pairs) except -1:
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
