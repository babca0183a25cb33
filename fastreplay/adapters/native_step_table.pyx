# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Steps of a vector environment in and out of a table of records: from arrays to pointers to one call of the core.

Takes what training loops pass at every step. For anything else a method says False, and has changed
nothing. This module never sees an atomic, and the core never sees a Python object.
"""

from cpython.dict cimport PyDict_Check
from cpython.list cimport PyList_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

cimport numpy as cnp

from fastreplay.adapters.step_calls cimport (
    CoreBlock, CoreTable, FrameSteps, Ring, fits, gather_goals, has_goals, kBlockCapsule, kRecordsCapsule,
    kReleaseReadBytes, kRingCapsule, locate, num_bytes, store, sum_discounted)
from fastreplay.adapters.step_staging cimport StepField, describe_steps, get_item, read_timeouts, stage
from fastreplay.buffer.rows cimport (
    OwnMemory, PyArray_CheckExact, PyArray_ISCARRAY_RO, Records, Rows, kMaxFields, make_rows, own_memory)

from fastreplay._core import AS_STORED as _AS_STORED, Block as NativeBlock, Records as NativeRecords, Ring as NativeRing

cnp.import_array()


cdef extern from "numpy/arrayobject.h":
    bint PyArray_ISCARRAY(cnp.PyArrayObject *array)


cdef enum:
    kNumScalars = 4  # action, reward, done, timeout
cdef str TIMEOUT_KEY = "TimeLimit.truncated"


cdef class NativeStepTable:
    """Base of StepTable: the way of whole steps into packed records, and of minibatches out of them."""

    cdef CoreTable *core
    cdef object owner         # of the records, kept alive
    cdef OwnMemory own
    cdef StepField *fields    # in the order of the core: observation, action, reward, done, timeout, next observation
    cdef Py_ssize_t num_fields
    cdef Py_ssize_t num_observations
    cdef size_t num_envs
    cdef tuple keys           # of a Dict observation's parts; None where the observation is one array
    cdef char *scratch        # converted rows of one step

    def __cinit__(self):
        self.core = NULL
        self.fields = NULL
        self.scratch = NULL

    def __dealloc__(self):
        del self.core
        PyMem_Free(self.fields)
        PyMem_Free(self.scratch)

    def __init__(self, records, fields, size_t num_envs, size_t num_observations, tuple keys):
        """Take records of the core's and the fields of their steps, the shared ones twice."""
        self._refuse_second_init()
        cdef Records *native = <Records *>PyCapsule_GetPointer(NativeRecords.capsule(records), kRecordsCapsule)
        self.take(new CoreTable(native[0], num_envs, num_observations), records, fields, num_envs, num_observations,
                  keys)

    # Makes a core the table's own once all is checked, since the arguments may run Python code; else frees it.
    cdef int take(self, CoreTable *core, owner, fields, size_t num_envs, size_t num_observations,
                  tuple keys) except -1:
        cdef tuple given
        cdef StepField *described = NULL
        cdef char *scratch = NULL
        cdef size_t scratch_bytes = 0
        try:
            given = tuple(fields)
            if len(given) > kMaxFields:
                raise ValueError(f"observation_space: expected at most {kMaxFields // 2 - kNumScalars} parts")
            if keys is not None and <size_t>len(keys) != num_observations:
                raise ValueError(f"expected the names of {num_observations} parts, got {keys}")
            described = describe_steps(core, given, num_envs, &scratch_bytes)
            scratch = <char *>PyMem_Malloc(scratch_bytes)
            if scratch == NULL:
                raise MemoryError()
            self._refuse_second_init()
        except BaseException:
            del core
            PyMem_Free(described)
            PyMem_Free(scratch)
            raise
        self.scratch = scratch
        self.fields = described
        self.num_fields = len(given)
        self.num_observations = <Py_ssize_t>num_observations
        self.num_envs = num_envs
        self.keys = keys
        self.owner = owner
        self.own = own_memory(core.records())
        self.core = core
        return 0

    def _refuse_second_init(self):
        """Refuse to make a table of one that is in use."""
        if self.core != NULL:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before; make another")

    cdef int check_initialized(self) except -1:
        if self.core == NULL:
            raise RuntimeError(f"{type(self).__name__}: __init__ was not called")
        return 0

    def write(self, Py_ssize_t row, obs, next_obs, action, reward, done, infos):
        """Store one step of all environments as a row.

        Args:
            row: In [0, rows).
            obs: (num_envs, *shape); a dict of such for a Dict space.
            next_obs: The same.
            action: (num_envs, ...).
            reward: (num_envs,).
            done: (num_envs,).
            infos: A list of num_envs dicts, in which "TimeLimit.truncated" tells the timeouts; an array of
                timeouts (num_envs,); or None, which leaves the stored timeouts as they are.

        Returns:
            Whether it was stored. False, with nothing changed, for a row out of range, and for values that are
            no plain NumPy arrays of the stored shape and dtype (float64 and bool are taken for float32).
        """
        cdef Rows rows[kMaxFields]
        cdef Py_ssize_t first_scalar = self.num_observations
        cdef tuple parts = None, next_parts = None
        self.check_initialized()
        if row < 0 or <size_t>row >= self.core.num_rows():
            return False
        # Dictionaries may have keys whose comparison runs Python code, which may do anything to the arguments. So
        # they are looked up first, what they hold is kept, and where arrays lie is asked afterwards.
        if self.keys is not None:
            parts, next_parts = self.parts_of(obs), self.parts_of(next_obs)
            if parts is None or next_parts is None:
                return False
        if not (self.stage_timeouts(infos, first_scalar + 3, rows)
                and self.stage_observation(obs, parts, 0, rows)
                and self.stage_observation(next_obs, next_parts, first_scalar + kNumScalars, rows)
                and self.stage(<PyObject *>action, first_scalar, rows)
                and self.stage(<PyObject *>reward, first_scalar + 1, rows)
                and self.stage(<PyObject *>done, first_scalar + 2, rows)):
            return False
        store(self.core[0], <size_t>row, rows, <size_t>self.num_fields)
        return True

    # The parts of a Dict observation, in order; None where it has not all of them.
    cdef tuple parts_of(self, value):
        cdef list parts = []
        if not PyDict_Check(value):
            return None
        for key in self.keys:
            part = get_item(value, key, None)
            if part is None:
                return None
            parts.append(part)
        return tuple(parts)

    cdef bint stage_observation(self, value, tuple parts, Py_ssize_t first, Rows *rows) noexcept:
        cdef Py_ssize_t i
        if parts is None:
            return self.stage(<PyObject *>value, first, rows)
        for i in range(self.num_observations):
            if not self.stage(<PyObject *>parts[i], first + i, rows):
                return False
        return True

    cdef bint stage_timeouts(self, infos, Py_ssize_t i, Rows *rows) except -1:
        cdef float *timeouts = <float *>(self.scratch + self.fields[i].scratch_offset)
        if infos is None:
            rows[i] = make_rows(NULL, 0)
            return True
        if not PyList_CheckExact(infos):
            return self.stage(<PyObject *>infos, i, rows)
        rows[i] = make_rows(timeouts, sizeof(float))
        return read_timeouts(infos, TIMEOUT_KEY, self.num_envs, timeouts)

    cdef inline bint stage(self, PyObject *value, Py_ssize_t i, Rows *rows) noexcept:
        return stage(&self.fields[i], &self.own, value, self.num_envs, self.scratch, &rows[i])

    @property
    def parts(self):
        """What a minibatch is made of, for `_core.Block`: observation, action, next observation, reward, done, slots."""
        cdef size_t i
        cdef list parts = []
        self.check_initialized()
        for i in range(self.core.parts().size()):
            parts.append((
                <int>self.core.parts()[i].source, self.core.parts()[i].row_bytes, self.core.parts()[i].field, _AS_STORED))
        return parts

    def gather_into(self, block, rows, envs):
        """Copy transitions into a minibatch's block.

        Args:
            block: The native block, made of `parts`.
            rows: (B,) int64; negative ones count from the end.
            envs: (B,) int64.

        Returns:
            Whether it was done. False where rows and envs are no such arrays, or one is out of range.
        """
        cdef const CoreBlock *into = self.located(block, <PyObject *>rows, <PyObject *>envs)
        cdef uint64_t *ends
        if into == NULL:
            return False
        ends = <uint64_t *>PyMem_Malloc(into.batch_size() * sizeof(uint64_t))
        if ends == NULL:
            raise MemoryError()
        if num_bytes(into[0]) < kReleaseReadBytes:
            self.core.gather(into[0], ends)
        else:
            with nogil:
                self.core.gather(into[0], ends)
        PyMem_Free(ends)
        return True

    def gather_n_steps_into(self, block, rows, envs, size_t newest_row, cnp.ndarray rewards not None,
                            cnp.ndarray is_counted not None, cnp.ndarray counts not None):
        """Copy n-step transitions into a minibatch's block. The reward there is that of the first step alone.

        Args:
            block: As in `gather_into`; next observation and done are those of the last step.
            rows: (B,) int64, where they start.
            envs: (B,) int64.
            newest_row: No step leads beyond it.
            rewards: (B, n) float32, out: the rewards of the n steps from the start on.
            is_counted: (B, n) bool, out: which of them come before the end.
            counts: (B, 1) float32, out: their number.

        Returns:
            As `gather_into`.
        """
        cdef const CoreBlock *into = self.located(block, <PyObject *>rows, <PyObject *>envs)
        cdef uint64_t *ends
        cdef size_t num_steps
        cdef Py_ssize_t count
        if into == NULL:
            return False
        count = <Py_ssize_t>into.batch_size()
        if not (is_output(rewards, cnp.NPY_FLOAT, 2, count) and is_output(is_counted, cnp.NPY_BOOL, 2, count)
                and is_output(counts, cnp.NPY_FLOAT, 2, count) and cnp.PyArray_DIMS(rewards)[1] > 0
                and cnp.PyArray_DIMS(is_counted)[1] == cnp.PyArray_DIMS(rewards)[1]
                and cnp.PyArray_DIMS(counts)[1] == 1):
            raise ValueError("expected rewards (B, n) float32, is_counted (B, n) bool and counts (B, 1) float32")
        num_steps = <size_t>cnp.PyArray_DIMS(rewards)[1]
        ends = <uint64_t *>PyMem_Malloc(<size_t>count * sizeof(uint64_t))
        if ends == NULL:
            raise MemoryError()
        self.core.gather_n_steps(into[0], ends, num_steps, newest_row, <float *>cnp.PyArray_DATA(rewards),
                                 <uint8_t *>cnp.PyArray_DATA(is_counted), <float *>cnp.PyArray_DATA(counts))
        PyMem_Free(ends)
        return True

    def gather_goals_into(self, block, rows, envs, size_t achieved, size_t desired):
        """Copy what steps achieved over the desired goals of as many of a block's last transitions.

        Args:
            block: The native block, which `gather_into` filled.
            rows, envs: (G,) int64, G at most B; negative rows count from the end.
            achieved: Which part of those steps' next observations is copied.
            desired: Over which part of the transitions' observations and next observations, of rows as long.

        Returns:
            As `gather_into`.
        """
        cdef const CoreBlock *into = self.block_for(block, <PyObject *>rows, <PyObject *>envs)
        cdef size_t count
        if into == NULL:
            return False
        count = <size_t>cnp.PyArray_DIMS(<cnp.ndarray>rows)[0]
        if count > into.batch_size() or not has_goals(self.core[0], achieved, desired, <size_t>self.num_observations):
            raise ValueError("the block has fewer transitions, or no such goals")
        return gather_goals(self.core[0], into[0], <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>rows),
                            <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>envs), count, achieved, desired)

    # The block, with the slots of the rows in it; NULL where the arguments do not fit.
    cdef const CoreBlock *located(self, block, PyObject *rows, PyObject *envs) except? NULL:
        cdef const CoreBlock *into = self.block_for(block, rows, envs)
        if into == NULL:
            return NULL
        if <size_t>cnp.PyArray_DIMS(<cnp.ndarray>rows)[0] != into.batch_size():
            raise ValueError("the block is of another batch size")
        if not locate(self.core[0], <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>rows),
                      <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>envs), into[0]):
            return NULL
        return into

    # The block that is filled from as many rows as environments; NULL where these are no such arrays.
    cdef const CoreBlock *block_for(self, block, PyObject *rows, PyObject *envs) except? NULL:
        cdef const CoreBlock *into
        self.check_initialized()
        into = <const CoreBlock *>PyCapsule_GetPointer(NativeBlock.capsule(block), kBlockCapsule)
        # From here on nothing of Python's runs but to refuse.
        if not is_indices(rows) or not is_indices(envs):
            return NULL
        if cnp.PyArray_DIMS(<cnp.ndarray>envs)[0] != cnp.PyArray_DIMS(<cnp.ndarray>rows)[0]:
            return NULL
        if not fits(self.core[0], into[0]):
            raise ValueError("the block is of another layout")
        return into


cdef class NativeFrameTable(NativeStepTable):
    """Base of FrameTable: the same, of steps that have frames in common and come one after the other."""

    cdef FrameSteps *steps  # the core, where this made it

    def __cinit__(self):
        self.steps = NULL

    def __init__(self, ring, fields, size_t num_envs, size_t num_observations, tuple keys):
        """Take an unused ring of the core's, which has some steps more than rows, and the fields of a step."""
        self._refuse_second_init()
        cdef Ring *native = <Ring *>PyCapsule_GetPointer(NativeRing.capsule(ring), kRingCapsule)
        cdef FrameSteps *steps = new FrameSteps(native[0], num_envs, num_observations)
        self.take(steps, ring, fields, num_envs, num_observations, keys)
        self.steps = steps

    cdef int check_steps(self) except -1:
        self.check_initialized()
        if self.steps == NULL:
            raise RuntimeError(f"{type(self).__name__}: its own __init__ was not called")
        return 0

    @property
    def next_row(self):
        """Where the next step goes; another row begins anew, all others forgotten."""
        self.check_steps()
        return self.steps.next_row()

    @property
    def num_stored(self):
        """How many rows have a step: those before `next_row`."""
        self.check_steps()
        return self.steps.num_stored()

    def go_on(self, size_t next_row):
        """Take over the steps that were laid into the ring, before anything is asked of the table.

        Args:
            next_row: Where the next step goes.

        Raises:
            ValueError: There is no such row.
        """
        self.check_steps()
        if next_row >= self.core.num_rows():
            raise ValueError(f"pos: expected a row in [0, {self.core.num_rows()}), got {next_row}")
        self.steps.go_on(next_row)


cdef inline bint is_indices(PyObject *value) noexcept:
    return (PyArray_CheckExact(value) and PyArray_ISCARRAY_RO(<cnp.PyArrayObject *>value)
            and cnp.PyArray_NDIM(<cnp.ndarray>value) == 1
            and cnp.PyArray_TYPE(<cnp.ndarray>value) == cnp.NPY_INT64)


cdef inline bint is_output(cnp.ndarray array, int type_num, int ndim, Py_ssize_t length) noexcept:
    return (PyArray_ISCARRAY(<cnp.PyArrayObject *>array) and cnp.PyArray_TYPE(array) == type_num
            and cnp.PyArray_NDIM(array) == ndim and cnp.PyArray_DIMS(array)[0] == length)


def discounted_sums(rewards, discounts, is_counted, cnp.ndarray sums not None):
    """Sum discounted rewards, step after step, each product and sum rounded to float32.

    Args:
        rewards: (B, n) float32.
        discounts: (1, n) float32.
        is_counted: (B, n) bool; the others count as 0.
        sums: (B, 1) float32, out.

    Returns:
        Whether it was done and every sum is finite. False, also where the arrays are no such ones.
    """
    cdef Py_ssize_t count, num_steps
    if not (PyArray_CheckExact(<PyObject *>rewards) and PyArray_CheckExact(<PyObject *>discounts)
            and PyArray_CheckExact(<PyObject *>is_counted)):
        return False
    if cnp.PyArray_NDIM(<cnp.ndarray>rewards) != 2:
        return False
    count = cnp.PyArray_DIMS(<cnp.ndarray>rewards)[0]
    num_steps = cnp.PyArray_DIMS(<cnp.ndarray>rewards)[1]
    if not (is_output(<cnp.ndarray>rewards, cnp.NPY_FLOAT, 2, count)
            and is_output(<cnp.ndarray>discounts, cnp.NPY_FLOAT, 2, 1)
            and is_output(<cnp.ndarray>is_counted, cnp.NPY_BOOL, 2, count)
            and is_output(sums, cnp.NPY_FLOAT, 2, count)
            and cnp.PyArray_DIMS(<cnp.ndarray>discounts)[1] == num_steps
            and cnp.PyArray_DIMS(<cnp.ndarray>is_counted)[1] == num_steps and cnp.PyArray_DIMS(sums)[1] == 1):
        return False
    return sum_discounted(<const float *>cnp.PyArray_DATA(<cnp.ndarray>rewards),
                          <const float *>cnp.PyArray_DATA(<cnp.ndarray>discounts),
                          <const uint8_t *>cnp.PyArray_DATA(<cnp.ndarray>is_counted),
                          <float *>cnp.PyArray_DATA(sums), <size_t>count, <size_t>num_steps)
