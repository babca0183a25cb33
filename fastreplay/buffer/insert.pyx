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
from libc.stddef cimport size_t
from libc.stdint cimport int64_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastreplay.buffer.arguments cimport (
    METH_FASTCALL, METH_KEYWORDS, FieldNames, PyCFunction, PyDescr_NewMethod, PyLong_CheckExact, PyMethodDef,
    are_in_order, argument, before_lane, bind, named, without)
from fastreplay.buffer.insert_calls cimport (
    BesideRing, Lanes, Priorities, Ring, column_bytes, enter_lanes, has_ended, insert_row, insert_rows, kAddDoc, kExtendDoc,
    kLanesCapsule, kPrioritiesCapsule, kReleaseInsertBytes, kRingCapsule, lanes_in_order, leave_lanes, leave_out,
    num_columns, num_lanes, pointer_in, skips_resets)
from fastreplay.buffer.rows cimport (
    Field, OwnMemory, Records, Rows, describe, holds_rows, kMaxFields, make_rows, own_memory, row_at)
from fastreplay.buffer.staging cimport Copies, Scratch, hold, release, stage_row, stage_rows, takes_rows

from sys import intern
from time import monotonic
from fastreplay.buffer.given import Given, one_each
from fastreplay.buffer.convert import as_rows, bind_by_name, wrong_shape
from fastreplay.buffer.lanes import somebodys
from fastreplay._core import Lanes as CoreLanes, Priorities as CorePriorities, Ring as CoreRing

cnp.import_array()


cdef class Inserter:
    """Base of ReplayBuffer: the ring's insert path for one schema."""

    cdef Ring *ring  # NULL before __init__
    cdef Priorities *priorities  # NULL where there are none, as
    cdef Lanes *lanes
    cdef object ring_object, priorities_object, lanes_object  # keep all alive
    cdef tuple beside_names  # of what an insert takes beside fields
    cdef OwnMemory own
    cdef Field *fields
    cdef Py_ssize_t num_fields
    cdef size_t record_bytes
    cdef bint is_plain  # a row is short, and nothing lies beside it
    cdef object schema_object
    cdef double timeout_s  # infinite for none
    cdef FieldNames field_names
    cdef tuple names  # of the fields, in order; what field_names refers to
    cdef dict places  # the same by name

    def __dealloc__(self):
        PyMem_Free(self.fields)

    def __init__(self, ring, schema, double timeout_s, priorities=None, lanes=None):
        self._refuse_second_init()
        cdef tuple names = tuple([intern(str.__str__(name)) for name in schema])
        cdef bint is_nested = any([not node.is_field for node in schema.parts.values()])
        cdef Ring *core = <Ring *>pointer_in(CoreRing, ring, kRingCapsule)
        cdef void *weighed = pointer_in(CorePriorities, priorities, kPrioritiesCapsule)
        cdef void *streams = pointer_in(CoreLanes, lanes, kLanesCapsule)
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
        self.record_bytes = sum([fields[i].row_bytes for i in range(num_fields)])
        self.fields = fields
        self.num_fields = num_fields
        self.schema_object = schema
        self.names = names
        self.places = {names[i]: i for i in range(num_fields)}
        self.field_names = FieldNames(<PyObject *>self.names, <PyObject *>self.places, num_fields, is_nested)
        self.timeout_s = timeout_s
        self.ring_object = ring
        self.priorities_object = priorities
        self.priorities = <Priorities *>weighed
        self.lanes_object = lanes
        self.lanes = <Lanes *>streams
        self.beside_names = Given.names(priorities is not None, lanes is not None)
        self.is_plain = weighed == NULL and streams == NULL and self.record_bytes < kReleaseInsertBytes
        self.own = own_memory(core.records())
        self.ring = core

    def _refuse_second_init(self):
        """Refuse to make a buffer of one that is in use: other threads may be inside it."""
        if self.ring != NULL:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before; make another buffer")

    # Puts the arguments of a call into schema order. Returns what keeps the values alive, where they were unfolded.
    cdef tuple bind(self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names, PyObject **values):
        if self.ring == NULL:
            raise RuntimeError("the buffer was not initialized: call super().__init__() first")
        if bind(&self.field_names, args, num_positional, names, values):
            return None
        return self.bind_slowly(args, num_positional, names, values)

    # As bind(), for arguments that need a closer look: nested values, a mapping of all, or an error to be named.
    cdef tuple bind_slowly(self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                           PyObject **values):
        cdef Py_ssize_t i
        cdef list positional = [<object>args[i] for i in range(num_positional)]
        cdef tuple bound = bind_by_name(self.schema_object, positional, named(args, num_positional, names))
        if len(bound) != self.num_fields:
            raise ValueError("schema: its fields have changed")
        for i in range(self.num_fields):
            values[i] = <PyObject *>bound[i]
        return bound

    # Stages all rows of an add of which one takes the general way. That may run code of anybody's, which may
    # resize, free or replace the memory of any argument. So it comes first, for all that need it, its results are
    # copies that nobody else has, and what is taken as it lies is looked at afterwards.
    cdef list stage_row_slowly(self, PyObject *const *values, Rows *rows, Scratch *scratch):
        cdef list converted = [None] * self.num_fields
        cdef Py_ssize_t i
        scratch.used = 0
        for i in range(self.num_fields):
            if not stage_row(&self.fields[i], &self.own, values[i], &rows[i], scratch):
                converted[i] = self.converted(i, <object>values[i], None)
        scratch.used = 0
        for i in range(self.num_fields):
            if converted[i] is not None:
                rows[i] = make_rows(cnp.PyArray_DATA(<cnp.ndarray>converted[i]), 0)
            elif not stage_row(&self.fields[i], &self.own, values[i], &rows[i], scratch):
                raise self.changed(i)
        return converted

    # As stage_row_slowly(), for the rows of a batch.
    cdef list stage_rows_slowly(self, PyObject *const *values, Rows *rows, Py_ssize_t *num_rows, Copies *copies):
        cdef list converted = [None] * self.num_fields
        cdef Py_ssize_t i
        num_rows[0] = -1
        for i in range(self.num_fields):
            if takes_rows(&self.fields[i], values[i]):
                self.count_rows(i, <cnp.ndarray>values[i], num_rows)
            else:
                converted[i] = self.converted(i, <object>values[i], num_rows[0])
                self.count_rows(i, <cnp.ndarray>converted[i], num_rows)
        for i in range(self.num_fields):
            if converted[i] is not None:
                rows[i] = make_rows(cnp.PyArray_DATA(<cnp.ndarray>converted[i]), self.fields[i].row_bytes)
            elif (takes_rows(&self.fields[i], values[i])
                    and cnp.PyArray_DIMS(<cnp.ndarray>values[i])[0] == num_rows[0]):
                stage_rows(&self.fields[i], &self.own, values[i], &rows[i], copies)
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
        cdef cnp.ndarray array = as_rows(self.schema_object, i, value, num_rows)
        if not holds_rows(&self.fields[i], array, 0 if num_rows is None else 1):
            raise ValueError(f"{self.names[i]}: the schema says another shape or dtype than when the buffer was made")
        return array

    cdef object changed(self, Py_ssize_t i):
        return ValueError(f"{self.names[i]}: the array changed while another value of the insert was converted")

    # `beside` is what was given with the rows' fields, Given; an int for a lane alone, None for nothing.
    cdef int insert(self, object beside, const Rows *rows, size_t num_rows) except -1:
        cdef BesideRing around
        cdef object given = None if beside is None or PyLong_CheckExact(<PyObject *>beside) else beside.priority
        if num_rows == 0:
            return 0
        around = BesideRing(self.priorities, NULL, NULL, NULL)
        if given is not None:
            given = one_each("priority", given, num_rows)
            around.given = <const double *>cnp.PyArray_DATA(<cnp.ndarray>given)
        if self.lanes != NULL:
            return self.insert_in_lanes(beside, &around, rows, num_rows)
        return self.insert_rows(&around, rows, 0, num_rows)

    # As insert(): makes the call the owner of the rows' lanes meanwhile, but where the caller is, before a ticket is taken.
    cdef int insert_in_lanes(self, object beside, BesideRing *around, const Rows *rows, size_t num_rows) except -1:
        cdef bint is_lane = PyLong_CheckExact(<PyObject *>beside)
        cdef bint is_given = beside is not None and not is_lane
        cdef object lanes, mask = beside.mask_of_rows(num_rows) if is_given else None
        cdef const void *owner = <const void *><size_t>beside.owner if is_given and beside.owner else around
        around.lanes = self.lanes
        if is_lane:
            around.lane_of = lanes_in_order(self.lanes[0]) + <size_t>beside
        elif num_rows == num_lanes(self.lanes[0]) and (beside is None or beside.lanes is None):
            around.lane_of = lanes_in_order(self.lanes[0])
        else:
            lanes = Given.lanes_of_rows(beside, self.lanes_object, num_rows)
            around.lane_of = <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>lanes)
        cdef Py_ssize_t busy = enter_lanes(self.lanes[0], around.lane_of, num_rows, owner)
        if busy >= 0:
            raise somebodys(around.lane_of[busy])
        try:
            if mask is None and not skips_resets(self.lanes[0]):
                self.insert_rows(around, rows, 0, num_rows)
            else:
                self.insert_kept(around, rows, num_rows, mask)
        finally:
            if owner == <const void *>around:
                leave_lanes(self.lanes[0], around.lane_of, num_rows, around)
        return 0

    # The rows that a mask does not leave out, and that do not only reset an environment, which those before them tell.
    cdef int insert_kept(self, const BesideRing *around, const Rows *rows, size_t num_rows, object mask) except -1:
        cdef bint skips = skips_resets(self.lanes[0])
        cdef bint may_repeat = around.lane_of != lanes_in_order(self.lanes[0])
        cdef size_t i, begin = 0
        for i in range(num_rows):
            if skips and may_repeat and i > begin:
                self.insert_rows(around, rows, begin, i)
                begin = i
            if (mask is not None and not mask[i]) or (skips and has_ended(self.lanes[0], around.lane_of[i])):
                if i > begin:
                    self.insert_rows(around, rows, begin, i)
                leave_out(self.lanes[0], around.lane_of[i], rows, self.num_fields, i)
                begin = i + 1
        if begin < num_rows:
            self.insert_rows(around, rows, begin, num_rows)
        return 0

    # Rows [first, end).
    cdef int insert_rows(self, const BesideRing *beside, const Rows *rows, size_t first, size_t end) except -1:
        cdef size_t done, num_fields = <size_t>self.num_fields
        if (end - first) * self.record_bytes < kReleaseInsertBytes:
            done = insert_rows(self.ring[0], beside[0], rows, num_fields, first, end, 0)
        else:
            with nogil:
                done = insert_rows(self.ring[0], beside[0], rows, num_fields, first, end, 0)
        if done < end:
            self.insert_patiently(beside, rows, done, end)
        return 0

    # Goes on from row `done`, where an insert had to wait. Signal handlers run meanwhile, which may do to the
    # arguments what they like: the rows are copied first.
    cdef int insert_patiently(self, const BesideRing *beside, const Rows *rows, size_t done,
                              size_t num_rows) except -1:
        cdef Rows copied[kMaxFields]
        cdef BesideRing rest = beside[0]
        cdef Copies copies
        cdef Py_ssize_t i
        cdef size_t num_bytes
        cdef void *data
        copies.count = 0
        try:
            for i in range(self.num_fields):
                num_bytes = (num_rows - done) * self.fields[i].row_bytes
                data = hold(&copies, num_bytes)
                memcpy(data, row_at(rows[i], done), num_bytes)
                copied[i] = make_rows(data, self.fields[i].row_bytes)
            if rest.given != NULL:
                rest.given += done
            if rest.lane_of != NULL:
                rest.lane_of += done
            self.wait_and_insert(&rest, copied, num_rows - done, done)
        finally:
            release(&copies)
        return 0

    # Without the GIL, so that the writer that is waited for can finish; looks for signals meanwhile.
    cdef int wait_and_insert(self, const BesideRing *beside, const Rows *rows, size_t num_rows,
                             size_t num_before) except -1:
        cdef size_t num_fields = <size_t>self.num_fields
        cdef size_t done = 0
        cdef size_t before
        cdef double shut_since = monotonic()
        cdef int64_t patience_ms = 50  # in the core, before it looks for signals
        if self.timeout_s * 1000 < patience_ms:
            patience_ms = <int64_t>(self.timeout_s * 1000)
        while True:
            before = done
            with nogil:
                done = insert_rows(self.ring[0], beside[0], rows, num_fields, done, num_rows, patience_ms)
            if done == num_rows:
                return 0
            PyErr_CheckSignals()
            self.ring_object.check_open(num_before + done, num_before + num_rows)
            if done > before:
                shut_since = monotonic()
            if monotonic() - shut_since >= self.timeout_s:
                raise TimeoutError(
                    f"insert: {self.ring_object.describe_gate()} after {self.timeout_s:g} s; "
                    f"{num_before + done} of {num_before + num_rows} rows were inserted")


cdef inline int add(Inserter self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                    object beside) except -1:
    cdef PyObject *room[kMaxFields]
    cdef Rows rows[kMaxFields]
    cdef Scratch scratch
    cdef object bound = None, converted = None
    cdef Py_ssize_t i
    cdef PyObject *const *values = args
    if self.ring == NULL or not are_in_order(&self.field_names, num_positional, names):
        bound = self.bind(args, num_positional, names, room)
        values = room
    scratch.used = 0
    for i in range(self.num_fields):
        if not stage_row(&self.fields[i], &self.own, values[i], &rows[i], &scratch):
            converted = self.stage_row_slowly(values, rows, &scratch)
            break
    if not (beside is None and self.is_plain and insert_row(self.ring[0], rows, <size_t>self.num_fields)):
        self.insert(beside, rows, 1)
    return 0


cdef inline int extend(Inserter self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                       object beside) except -1:
    cdef PyObject *room[kMaxFields]
    cdef Rows rows[kMaxFields]
    cdef Copies copies
    cdef object bound = None, converted = None
    cdef Py_ssize_t i, num_rows = -1
    cdef PyObject *const *values = args
    if self.ring == NULL or not are_in_order(&self.field_names, num_positional, names):
        bound = self.bind(args, num_positional, names, room)
        values = room
    copies.count = 0
    try:
        for i in range(self.num_fields):
            if not takes_rows(&self.fields[i], values[i]):
                release(&copies)
                converted = self.stage_rows_slowly(values, rows, &num_rows, &copies)
                break
            self.count_rows(i, <cnp.ndarray>values[i], &num_rows)
            stage_rows(&self.fields[i], &self.own, values[i], &rows[i], &copies)
        self.insert(beside, rows, <size_t>num_rows)
    finally:
        release(&copies)
    return 0


cdef object add_vectorcall(object self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names):
    cdef Inserter own = <Inserter>self
    cdef tuple rest = None
    if own.lanes != NULL and names != NULL:
        rest = before_lane(&own.field_names, num_lanes(own.lanes[0]), args, num_positional, names)
    if rest is not None:
        add(own, args, num_positional, <PyObject *>rest, <object>args[num_positional + len(rest)])
    elif own.beside_names is not None and names != NULL:
        insert_beside(add, own, args, num_positional, names, True)
    else:
        add(own, args, num_positional, names, None)


cdef object extend_vectorcall(object self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names):
    if num_positional == 1 and isinstance(<object>args[0], Inserter):
        self._extend_by(<object>args[0], named(args, 1, names))
    elif (<Inserter>self).beside_names is not None and names != NULL:
        insert_beside(extend, <Inserter>self, args, num_positional, names, False)
    else:
        extend(<Inserter>self, args, num_positional, names, None)


# Takes what is no field out of the arguments. What its conversion runs of others' code runs before a field is looked at.
cdef int insert_beside(int (*insert)(Inserter, PyObject *const *, Py_ssize_t, PyObject *, object) except -1,
                       Inserter self, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                       bint is_one) except -1:
    cdef PyObject *rest[kMaxFields]
    cdef tuple given = tuple([name for name in <tuple>names if name in self.beside_names])
    cdef object beside
    cdef tuple rest_names
    if not given:
        return insert(self, args, num_positional, names, None)
    beside = Given({name: argument(name, args, num_positional, names) for name in given}, self.lanes_object, is_one)
    rest_names = without(given, args, num_positional, names, rest)
    return insert(self, rest, num_positional, <PyObject *>rest_names, beside)


# Cython's own methods build a tuple and a dict for *values, **fields: three times the cost of the
# insert itself. These descriptors hand the caller's argument vector straight through.
cdef PyMethodDef add_method = PyMethodDef(
    b"add", <PyCFunction>add_vectorcall, METH_FASTCALL | METH_KEYWORDS, kAddDoc)
cdef PyMethodDef extend_method = PyMethodDef(
    b"extend", <PyCFunction>extend_vectorcall, METH_FASTCALL | METH_KEYWORDS, kExtendDoc)

ADD = PyDescr_NewMethod(<PyTypeObject *>Inserter, &add_method)
EXTEND = PyDescr_NewMethod(<PyTypeObject *>Inserter, &extend_method)
