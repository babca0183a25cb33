# SPDX-License-Identifier: MIT
"""What the insert path calls of C++. There is no module of this name."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport size_t
from libc.stdint cimport int64_t

from fastreplay.buffer.rows cimport Records, Rows


cdef extern from "insert_calls.hpp" namespace "fastreplay" nogil:
    cppclass Ring:
        Records &records()
    cppclass Priorities:
        pass
    cppclass Lanes:
        pass
    struct BesideRing:
        Priorities *priorities
        const double *given
        Lanes *lanes
        const int64_t *lane_of
    const char *kRingCapsule
    const char *kPrioritiesCapsule
    const char *kLanesCapsule
    const size_t kReleaseInsertBytes
    bint insert_row(Ring &ring, const Rows *fields, size_t num_fields)
    size_t insert_rows(Ring &ring, const BesideRing &beside, const Rows *fields, size_t num_fields, size_t done,
                       size_t num_rows, int64_t patience_ms)
    Py_ssize_t enter_lanes(Lanes &lanes, const int64_t *lane_of, size_t num_rows, const void *call)
    void leave_lanes(Lanes &lanes, const int64_t *lane_of, size_t num_rows, const void *call)
    size_t num_lanes(const Lanes &lanes)
    const int64_t *lanes_in_order(const Lanes &lanes)
    bint skips_resets(const Lanes &lanes)
    bint has_ended(const Lanes &lanes, int64_t lane)
    void leave_out(Lanes &lanes, int64_t lane, const Rows *fields, size_t num_fields, size_t row)
    size_t num_columns(const Ring &ring)
    size_t column_bytes(const Ring &ring, size_t column)


cdef extern from "insert_docs.hpp" namespace "fastreplay" nogil:
    const char *kAddDoc
    const char *kExtendDoc


# What lies in an owner's capsule; NULL of None.
cdef inline void *pointer_in(object kind, object owner, const char *name) except? NULL:
    return NULL if owner is None else PyCapsule_GetPointer(kind.capsule(owner), name)
