# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The per-step insert path: from Python arguments to pointers to one call of the core.

Everything that can fail (names, shapes, dtypes, conversion) happens before the core is called, so
that a refused insert leaves the ring as it was. This module never sees an atomic, and the core
never sees a Python object.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

cimport numpy as cnp

from sys import intern
from time import monotonic

from fastreplay.buffer.convert import as_rows, bind_by_name, has_fields, wrong_shape
from fastreplay._core import Ring as CoreRing

cnp.import_array()


cdef extern from "Python.h":
    ctypedef void *PyCFunction
    ctypedef struct PyMethodDef:
        const char *ml_name
        PyCFunction ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL
    int METH_KEYWORDS
    object PyDescr_NewMethod(PyTypeObject *cls, PyMethodDef *method)
    bint PyFloat_Check(PyObject *value)
    double PyFloat_AS_DOUBLE(PyObject *value)
    PyObject *PyDict_GetItemWithError(PyObject *mapping, object key) except? NULL  # borrowed
    bint PyBool_Check(PyObject *value)
    bint PyLong_CheckExact(PyObject *value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    PyObject *Py_True
    PyTypeObject *Py_TYPE(PyObject *value)
    PyObject *PyTuple_GET_ITEM(PyObject *values, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *values)


cdef extern from "numpy/arrayobject.h":
    bint PyArray_CheckExact(PyObject *value)
    bint PyArray_ISCARRAY_RO(cnp.PyArrayObject *array)
    void PyArray_ScalarAsCtype(object scalar, void *out)


cdef extern from "insert_calls.hpp" namespace "fastreplay" nogil:
    cppclass Records:
        pass
    cppclass Ring:
        Records &records()
    struct Rows:
        const char *data
        size_t stride_bytes
    const char *kRingCapsule
    const size_t kReleaseInsertBytes
    size_t insert_rows(Ring &ring, const Rows *fields, size_t num_fields, size_t done, size_t num_rows,
                       int64_t patience_ms)
    size_t num_columns(const Ring &ring)
    size_t column_bytes(const Ring &ring, size_t column)
    const char *records_begin(Records &records)
    const char *records_end(Records &records)
    void convert_to_float[Value](const void *source, float *target, size_t count)

# A copy of Rows whose pointer this module may build from `const char*`.
cdef extern from *:
    """
    static inline fastreplay::Rows make_rows(const void *data, std::size_t stride_bytes) noexcept {
      return {static_cast<const std::byte *>(data), stride_bytes};
    }
    static inline const void *row_at(const fastreplay::Rows &rows, std::size_t row) noexcept {
      return rows.data + row * rows.stride_bytes;
    }
    """
    Rows make_rows(const void *data, size_t stride_bytes) nogil
    const void *row_at(const Rows &rows, size_t row) nogil


cdef enum:
    kMaxFields = 256
    kMaxDimensions = 32
    kScratchBytes = 8192  # 512 long doubles
    kNearPlaces = 8  # beyond these a dictionary is faster

# How long a gated insert waits in the core before it looks for signals, in milliseconds.
cdef int64_t kSignalPeriodMs = 50

MAX_FIELDS = kMaxFields


cdef struct Field:
    int type_num
    int ndim
    cnp.npy_intp dims[kMaxDimensions]
    size_t num_items
    size_t row_bytes
    PyTypeObject *scalar_type  # the NumPy scalar type of the dtype


# Memory for converted rows of one call.
cdef struct Room:
    Py_ssize_t count
    void *blocks[kMaxFields]


# Room for converted scalars and small arrays of one call, so that they need no Python object.
cdef struct Scratch:
    size_t used
    long double bytes[512]


cdef inline void *take(Scratch *scratch, size_t num_bytes) noexcept nogil:
    cdef size_t start = (scratch.used + 15) & ~(<size_t>15)
    if start + num_bytes > kScratchBytes:
        return NULL
    scratch.used = start + num_bytes
    return <char *>scratch.bytes + start


cdef class Inserter:
    """Base of ReplayBuffer: the ring's insert path for one schema."""

    cdef Ring *ring
    cdef object ring_object   # keeps *ring alive
    cdef Field *fields
    cdef Py_ssize_t num_fields
    cdef size_t record_bytes
    cdef const char *begin    # of the ring's records
    cdef const char *end
    cdef object schema_object
    cdef bint is_nested     # whether a positional argument may be for several fields
    cdef double timeout_s  # infinite for none
    # Of the fields, in order. Interned, as those that calls are compiled with: nearly always their identity tells.
    cdef tuple names
    cdef dict places  # by name

    def __cinit__(self):
        self.ring = NULL
        self.fields = NULL
        self.num_fields = 0

    def __dealloc__(self):
        PyMem_Free(self.fields)

    def __init__(self, ring, schema, double timeout_s):
        self._refuse_second_init()
        cdef tuple names = tuple([intern(str.__str__(name)) for name in schema])
        cdef bint is_nested = any([not part.is_field for part in schema.parts.values()])
        cdef Ring *core = <Ring *>PyCapsule_GetPointer(CoreRing.capsule(ring), kRingCapsule)
        cdef Py_ssize_t i, num_fields = len(names)
        if <size_t>num_fields != num_columns(core[0]) or num_fields != len(schema) or num_fields > kMaxFields:
            raise ValueError(f"schema: expected the ring's {num_columns(core[0])} fields, got {num_fields}")
        cdef Field *fields = <Field *>PyMem_Malloc(num_fields * sizeof(Field))
        if fields == NULL:
            raise MemoryError()
        try:
            for i in range(num_fields):
                describe(&fields[i], schema[names[i]], column_bytes(core[0], i))
            self._refuse_second_init()  # the schema's own code may have called this
        except BaseException:
            PyMem_Free(fields)
            raise
        self.record_bytes = 0
        for i in range(num_fields):
            self.record_bytes += fields[i].row_bytes
        self.fields = fields
        self.num_fields = num_fields
        self.schema_object = schema
        self.is_nested = is_nested
        self.names = names
        self.places = {names[i]: i for i in range(num_fields)}
        self.timeout_s = timeout_s
        self.ring_object = ring
        self.begin = records_begin(core.records())
        self.end = records_end(core.records())
        self.ring = core

    def _refuse_second_init(self):
        """Refuse to make a buffer of one that is in use: other threads may be inside it."""
        if self.ring != NULL:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before; make another buffer")

    # Puts the arguments of a call into schema order; 1 where they need a closer look. Keeps nothing from one call
    # to the next: threads that insert share no memory but the ring.
    cdef int bind(self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                  PyObject **values) except -1:
        cdef Py_ssize_t i
        cdef Py_ssize_t num_named = 0 if names == NULL else PyTuple_GET_SIZE(names)
        if self.ring == NULL:
            raise RuntimeError("the buffer was not initialized: call super().__init__() first")
        if self.is_nested:
            for i in range(num_positional):
                if not is_one_field(args[i]):
                    return 1
        if num_positional + num_named != self.num_fields:
            return 1
        if num_positional == 1 and num_named == 0 and not is_one_field(args[0]) and has_fields(<object>args[0]):
            return 1
        for i in range(num_named):
            if PyTuple_GET_ITEM(names, i) != PyTuple_GET_ITEM(<PyObject *>self.names, num_positional + i):
                return self.bind_out_of_order(args, num_positional, names, values)
        for i in range(self.num_fields):
            values[i] = args[i]
        return 0

    # As bind(), where the names are not in schema order.
    cdef int bind_out_of_order(self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                               PyObject **values) except -1:
        cdef Py_ssize_t i
        cdef Py_ssize_t place = num_positional
        for i in range(self.num_fields):
            values[i] = args[i] if i < num_positional else NULL
        for i in range(self.num_fields - num_positional):
            place = self.place_of(PyTuple_GET_ITEM(names, i), place)
            if place < 0 or values[place] != NULL:  # no field, or given before
                return 1
            values[place] = args[num_positional + i]
            place += 1
        return 0

    # The field of this name, -1 where there is none. Looks from `start` on, and then at the first ones: names that
    # are not in order often lie near where they would.
    cdef Py_ssize_t place_of(self, PyObject *name, Py_ssize_t start) except -2:
        cdef Py_ssize_t i
        cdef Py_ssize_t place = start
        cdef PyObject *found
        for i in range(kNearPlaces):
            if place >= self.num_fields:
                place = 0
            if PyTuple_GET_ITEM(<PyObject *>self.names, place) == name:
                return place
            place += 1
        found = PyDict_GetItemWithError(<PyObject *>self.places, <object>name)
        return -1 if found == NULL else <Py_ssize_t><object>found

    # As bind(), for arguments that need a closer look: nested values, a mapping of all, or an error to be named.
    cdef tuple bind_slowly(self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                           PyObject **values):
        cdef Py_ssize_t i
        cdef tuple given = () if names == NULL else <tuple>names
        cdef list positional = [<object>args[i] for i in range(num_positional)]
        cdef dict named = {given[i]: <object>args[num_positional + i] for i in range(len(given))}
        cdef tuple bound = bind_by_name(self.schema_object, positional, named)
        if len(bound) != self.num_fields:
            raise ValueError("schema: its fields have changed")
        for i in range(self.num_fields):
            values[i] = <PyObject *>bound[i]
        return bound

    # Whether bytes are the ring's own: input that an insert might overwrite before it has read it.
    cdef inline bint is_own(self, const void *data, size_t num_bytes) noexcept:
        return <const char *>data < self.end and <const char *>data + num_bytes > self.begin

    # Stages one row: from the value's own memory where it fits as it is, from scratch where a small conversion
    # is needed. False where it takes the general way. Runs nothing of Python's.
    cdef inline bint stage_row(self, Py_ssize_t i, PyObject *value, Rows *rows, Scratch *scratch) except -1:
        cdef Field *field = &self.fields[i]
        cdef cnp.PyArrayObject *array
        cdef void *converted
        if PyArray_CheckExact(value):
            array = <cnp.PyArrayObject *>value
            if (cnp.PyArray_NDIM(<cnp.ndarray>array) == field.ndim and PyArray_ISCARRAY_RO(array)
                    and same_dims(cnp.PyArray_DIMS(<cnp.ndarray>array), field.dims, field.ndim)):
                if cnp.PyArray_TYPE(<cnp.ndarray>array) == field.type_num:
                    converted = cnp.PyArray_DATA(<cnp.ndarray>array)
                    if self.is_own(converted, field.row_bytes):
                        converted = take(scratch, field.row_bytes)
                        if converted == NULL:
                            return False
                        memcpy(converted, cnp.PyArray_DATA(<cnp.ndarray>array), field.row_bytes)
                    rows[0] = make_rows(converted, 0)
                    return True
                if is_quick_cast(cnp.PyArray_TYPE(<cnp.ndarray>array), field.type_num):
                    converted = take(scratch, field.row_bytes)
                    if converted != NULL:
                        quick_cast(<cnp.ndarray>array, <float *>converted)
                        rows[0] = make_rows(converted, 0)
                        return True
        elif field.ndim == 0:
            converted = take(scratch, field.row_bytes)
            if converted != NULL and stage_scalar(field, value, converted):
                rows[0] = make_rows(converted, 0)
                return True
        return False

    # Stages all rows of an add of which one takes the general way. That may run code of anybody's, which may
    # resize, free or replace the memory of any argument. So it comes first, for all that need it, its results are
    # copies that nobody else has, and what is taken as it lies is looked at afterwards.
    cdef list stage_row_slowly(self, PyObject **values, Rows *rows, Scratch *scratch):
        cdef list converted = [None] * self.num_fields
        cdef Py_ssize_t i
        scratch.used = 0
        for i in range(self.num_fields):
            if not self.stage_row(i, values[i], &rows[i], scratch):
                converted[i] = self.converted(i, <object>values[i], None)
        scratch.used = 0
        for i in range(self.num_fields):
            if converted[i] is not None:
                rows[i] = make_rows(cnp.PyArray_DATA(<cnp.ndarray>converted[i]), 0)
            elif not self.stage_row(i, values[i], &rows[i], scratch):
                raise self.changed(i)
        return converted

    # Whether stage_rows() takes a value.
    cdef inline bint takes_rows(self, Py_ssize_t i, PyObject *value) noexcept:
        cdef Field *field = &self.fields[i]
        return (PyArray_CheckExact(value) and cnp.PyArray_NDIM(<cnp.ndarray>value) == field.ndim + 1
                and PyArray_ISCARRAY_RO(<cnp.PyArrayObject *>value)
                and same_dims(cnp.PyArray_DIMS(<cnp.ndarray>value) + 1, field.dims, field.ndim)
                and (cnp.PyArray_TYPE(<cnp.ndarray>value) == field.type_num
                     or is_quick_cast(cnp.PyArray_TYPE(<cnp.ndarray>value), field.type_num)))

    # Stages the rows of a batch that takes_rows() accepts, as stage_row() does.
    cdef inline int stage_rows(self, Py_ssize_t i, PyObject *value, Rows *rows, Room *room) except -1:
        cdef Field *field = &self.fields[i]
        cdef cnp.ndarray array = <cnp.ndarray>value
        cdef void *data = cnp.PyArray_DATA(array)
        cdef size_t num_bytes = <size_t>cnp.PyArray_DIMS(array)[0] * field.row_bytes
        if cnp.PyArray_TYPE(array) != field.type_num:
            data = hold(room, num_bytes)
            quick_cast(array, <float *>data)
        elif self.is_own(data, num_bytes):
            data = hold(room, num_bytes)
            memcpy(data, cnp.PyArray_DATA(array), num_bytes)
        rows[0] = make_rows(data, field.row_bytes)
        return 0

    # As stage_row_slowly(), for the rows of a batch.
    cdef list stage_rows_slowly(self, PyObject **values, Rows *rows, Py_ssize_t *num_rows, Room *room):
        cdef list converted = [None] * self.num_fields
        cdef Py_ssize_t i
        num_rows[0] = -1
        for i in range(self.num_fields):
            if self.takes_rows(i, values[i]):
                self.count_rows(i, <cnp.ndarray>values[i], num_rows)
            else:
                converted[i] = self.converted(i, <object>values[i], num_rows[0])
                self.count_rows(i, <cnp.ndarray>converted[i], num_rows)
        for i in range(self.num_fields):
            if converted[i] is not None:
                rows[i] = make_rows(cnp.PyArray_DATA(<cnp.ndarray>converted[i]), self.fields[i].row_bytes)
            elif (self.takes_rows(i, values[i])
                    and cnp.PyArray_DIMS(<cnp.ndarray>values[i])[0] == num_rows[0]):
                self.stage_rows(i, values[i], &rows[i], room)
            else:
                raise self.changed(i)
        return converted

    # The first field tells how many rows there are; num_rows < 0 before.
    cdef inline int count_rows(self, Py_ssize_t i, cnp.ndarray array, Py_ssize_t *num_rows) except -1:
        if num_rows[0] < 0:
            num_rows[0] = cnp.PyArray_DIMS(array)[0]
        elif cnp.PyArray_DIMS(array)[0] != num_rows[0]:
            raise wrong_shape(self.schema_object, i, (<object>array).shape, num_rows[0])
        return 0

    # A copy of a value as the field has it; num_rows is None for one row. What the Python code made is not
    # trusted to be that.
    cdef cnp.ndarray converted(self, Py_ssize_t i, object value, object num_rows):
        cdef Field *field = &self.fields[i]
        cdef cnp.ndarray array = as_rows(self.schema_object, i, value, num_rows)
        cdef int axes_before = 0 if num_rows is None else 1
        if not (PyArray_CheckExact(<PyObject *>array) and PyArray_ISCARRAY_RO(<cnp.PyArrayObject *>array)
                and cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), field.type_num)
                and cnp.PyArray_NDIM(array) == field.ndim + axes_before
                and same_dims(cnp.PyArray_DIMS(array) + axes_before, field.dims, field.ndim)):
            raise ValueError(f"{self.names[i]}: the schema says another shape or dtype than when the buffer was made")
        return array

    cdef object changed(self, Py_ssize_t i):
        return ValueError(f"{self.names[i]}: the array changed while another value of the insert was converted")

    cdef int insert(self, const Rows *rows, size_t num_rows) except -1:
        cdef size_t num_fields = <size_t>self.num_fields
        cdef size_t done
        if num_rows * self.record_bytes < kReleaseInsertBytes:
            done = insert_rows(self.ring[0], rows, num_fields, 0, num_rows, 0)
        else:
            with nogil:
                done = insert_rows(self.ring[0], rows, num_fields, 0, num_rows, 0)
        if done < num_rows:
            self.insert_patiently(rows, done, num_rows)
        return 0

    # Goes on from row `done`, where an insert had to wait. Signal handlers run meanwhile, which may do to the
    # arguments what they like: the rows are copied first.
    cdef int insert_patiently(self, const Rows *rows, size_t done, size_t num_rows) except -1:
        cdef Rows copies[kMaxFields]
        cdef Room room
        cdef Py_ssize_t i
        cdef size_t num_bytes
        cdef void *data
        room.count = 0
        try:
            for i in range(self.num_fields):
                num_bytes = (num_rows - done) * self.fields[i].row_bytes
                data = hold(&room, num_bytes)
                memcpy(data, row_at(rows[i], done), num_bytes)
                copies[i] = make_rows(data, self.fields[i].row_bytes)
            self.wait_and_insert(copies, num_rows - done, done)
        finally:
            release(&room)
        return 0

    # Without the GIL, so that the writer that is waited for can finish; looks for signals meanwhile.
    cdef int wait_and_insert(self, const Rows *rows, size_t num_rows, size_t num_before) except -1:
        cdef size_t num_fields = <size_t>self.num_fields
        cdef size_t done = 0
        cdef size_t before
        cdef double shut_since = monotonic()
        cdef int64_t patience_ms = kSignalPeriodMs
        if self.timeout_s * 1000 < patience_ms:
            patience_ms = <int64_t>(self.timeout_s * 1000)
        while True:
            before = done
            with nogil:
                done = insert_rows(self.ring[0], rows, num_fields, done, num_rows, patience_ms)
            if done == num_rows:
                return 0
            PyErr_CheckSignals()
            if done > before:
                shut_since = monotonic()
            if monotonic() - shut_since >= self.timeout_s:
                raise TimeoutError(
                    f"insert: transition {self.ring_object.oldest_unfinished}, a whole lap behind, was still being "
                    f"written after {self.timeout_s:g} s; {num_before + done} of {num_before + num_rows} rows were "
                    "inserted")


# Memory for `num_bytes` until release(); no Python object, so that no garbage is collected on its account.
cdef inline void *hold(Room *room, size_t num_bytes) except NULL:
    cdef void *memory = PyMem_Malloc(num_bytes)
    if memory == NULL:
        raise MemoryError()
    room.blocks[room.count] = memory
    room.count += 1
    return memory


cdef inline void release(Room *room) noexcept:
    while room.count > 0:
        room.count -= 1
        PyMem_Free(room.blocks[room.count])


# Copies what a field of the schema says; refuses what the ring's own field does not hold.
cdef int describe(Field *field, object spec, size_t row_bytes) except -1:
    cdef tuple shape = tuple(spec.shape)
    cdef cnp.dtype dtype = spec.dtype
    cdef cnp.npy_intp length
    if len(shape) > kMaxDimensions or dtype.kind not in b"biufc":
        raise ValueError(f"schema: expected a number of at most {kMaxDimensions} dimensions, got {spec!r}")
    field.type_num = dtype.type_num
    field.scalar_type = <PyTypeObject *>dtype.typeobj
    field.ndim = 0
    field.num_items = 1
    for length in shape:
        if length <= 0 or <size_t>length > row_bytes // field.num_items:
            raise ValueError(f"schema: expected a field of {row_bytes} bytes, got {spec!r}")
        field.dims[field.ndim] = length
        field.num_items *= <size_t>length
        field.ndim += 1
    field.row_bytes = field.num_items * <size_t>dtype.itemsize
    if field.row_bytes != row_bytes:
        raise ValueError(f"schema: expected a field of {row_bytes} bytes, got {spec!r}")
    return 0


# Whether a positional argument is for one field, and sure to be no dict, tuple or list of several.
cdef inline bint is_one_field(PyObject *value) except -1:
    return (PyArray_CheckExact(value) or PyFloat_Check(value) or PyBool_Check(value) or PyLong_CheckExact(value)
            or cnp.PyArray_IsAnyScalar(<object>value))


# The casts that loops meet at every step: float64 observations and bool flags in float32 fields.
cdef inline bint is_quick_cast(int given, int expected) noexcept nogil:
    return expected == cnp.NPY_FLOAT and (given == cnp.NPY_DOUBLE or given == cnp.NPY_BOOL)


cdef inline void quick_cast(cnp.ndarray array, float *out) noexcept:
    cdef size_t count = <size_t>cnp.PyArray_SIZE(array)
    if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE:
        convert_to_float[double](cnp.PyArray_DATA(array), out, count)
    else:
        convert_to_float[uint8_t](cnp.PyArray_DATA(array), out, count)


cdef inline bint same_dims(const cnp.npy_intp *given, const cnp.npy_intp *expected, int ndim) noexcept nogil:
    cdef int axis
    for axis in range(ndim):
        if given[axis] != expected[axis]:
            return False
    return True


# Converts the usual scalars; False where the value needs the general way.
cdef inline bint stage_scalar(const Field *field, PyObject *value, void *out) except -1:
    cdef long long integer
    cdef int overflow = 0
    if PyBool_Check(value):
        if field.type_num == cnp.NPY_BOOL:
            (<uint8_t *>out)[0] = value == Py_True
            return True
        if field.type_num == cnp.NPY_FLOAT:
            (<float *>out)[0] = value == Py_True
            return True
        return False
    if Py_TYPE(value) == field.scalar_type:
        PyArray_ScalarAsCtype(<object>value, out)
        return True
    if PyFloat_Check(value):
        if field.type_num == cnp.NPY_FLOAT:
            (<float *>out)[0] = <float>PyFloat_AS_DOUBLE(value)
            return True
        if field.type_num == cnp.NPY_DOUBLE:
            (<double *>out)[0] = PyFloat_AS_DOUBLE(value)
            return True
        return False
    if PyLong_CheckExact(value):
        integer = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
        return overflow == 0 and stage_integer(field.type_num, integer, out)
    return False


cdef inline bint stage_integer(int type_num, long long value, void *out) noexcept nogil:
    if type_num == cnp.NPY_INT64:
        (<int64_t *>out)[0] = value
        return True
    if type_num == cnp.NPY_FLOAT:
        (<float *>out)[0] = <float>value
        return True
    if type_num == cnp.NPY_INT32 and -2147483648 <= value <= 2147483647:
        (<int32_t *>out)[0] = <int32_t>value
        return True
    if type_num == cnp.NPY_UINT8 and 0 <= value <= 255:
        (<uint8_t *>out)[0] = <uint8_t>value
        return True
    return False


cdef object add_vectorcall(object self_object, PyObject *const *args, Py_ssize_t num_positional,
                           PyObject *names):
    cdef Inserter self = <Inserter>self_object
    cdef PyObject *values[kMaxFields]
    cdef Rows rows[kMaxFields]
    cdef Scratch scratch
    cdef list converted = None
    cdef tuple bound
    cdef Py_ssize_t i
    scratch.used = 0
    if self.bind(args, num_positional, names, values):
        bound = self.bind_slowly(args, num_positional, names, values)
    for i in range(self.num_fields):
        if not self.stage_row(i, values[i], &rows[i], &scratch):
            converted = self.stage_row_slowly(values, rows, &scratch)
            break
    self.insert(rows, 1)
    return None


cdef object extend_vectorcall(object self_object, PyObject *const *args, Py_ssize_t num_positional,
                              PyObject *names):
    cdef Inserter self = <Inserter>self_object
    cdef PyObject *values[kMaxFields]
    cdef Rows rows[kMaxFields]
    cdef Room room
    cdef list converted = None
    cdef tuple bound
    cdef Py_ssize_t i
    cdef Py_ssize_t num_rows = -1
    room.count = 0
    if self.bind(args, num_positional, names, values):
        bound = self.bind_slowly(args, num_positional, names, values)
    try:
        for i in range(self.num_fields):
            if not self.takes_rows(i, values[i]):
                release(&room)
                converted = self.stage_rows_slowly(values, rows, &num_rows, &room)
                break
            self.count_rows(i, <cnp.ndarray>values[i], &num_rows)
            self.stage_rows(i, values[i], &rows[i], &room)
        if num_rows > 0:
            self.insert(rows, <size_t>num_rows)
    finally:
        release(&room)
    return None


# Cython's own methods build a tuple and a dict for *values, **fields: three times the cost of the
# insert itself. These descriptors hand the caller's argument vector straight through.
cdef PyMethodDef add_method = PyMethodDef(
    b"add", <PyCFunction>add_vectorcall, METH_FASTCALL | METH_KEYWORDS,
    b"""add($self, /, *values, **fields)
--

Insert one transition, given by field name or in schema order.

Overwrites the oldest transition when the buffer is full. Everything is checked and converted
before a slot is taken: an insert that raises leaves the buffer as it was.

Args:
    *values: The fields in schema order, each of the field's shape. Arrays, NumPy scalars,
        Python numbers and bools, nested lists, and torch CPU tensors. Or one mapping of all
        fields by name, as `buffer[i]` gives.
    **fields: The same by name. A dict or tuple may stand for nested names.

Raises:
    TypeError: A field is unknown, missing or surplus, or a cast would lose its kind.
    ValueError: A shape differs from the field's, an integer does not fit, or an entry is masked.
    TimeoutError: Another thread's insert, a whole lap behind, was unfinished for the buffer's
        `timeout`. Nothing was inserted.

Thread safety:
    May be called from any thread. Lock-free, but for one wait: for an unfinished insert whose slot
    comes up again a whole lap later. Ctrl-C ends that wait.
""")

cdef PyMethodDef extend_method = PyMethodDef(
    b"extend", <PyCFunction>extend_vectorcall, METH_FASTCALL | METH_KEYWORDS,
    b"""extend($self, /, *values, **fields)
--

Insert n transitions, whose number is the leading axis of every field.

Any n will do; of more than `capacity` the last `capacity` remain. Rows are inserted in order.

Args:
    *values: The fields in schema order, each (n, *shape). Or one mapping of all fields by name:
        a minibatch, another buffer's `[:]`, a dict. They may lie in this buffer's own memory.
    **fields: The same by name. A dict or tuple may stand for nested names.

Raises:
    TypeError: A field is unknown, missing or surplus, or a cast would lose its kind.
    ValueError: A shape differs, the leading axes differ, an integer does not fit, or an entry is masked.
    TimeoutError: As in `add`; the message says how many rows had been inserted by then.

Thread safety:
    May be called from any thread, as `add`. Rows are atomic, batches are not: another thread may sample the
    first rows of a batch before the last are in.
""")

ADD = PyDescr_NewMethod(<PyTypeObject *>Inserter, &add_method)
EXTEND = PyDescr_NewMethod(<PyTypeObject *>Inserter, &extend_method)
