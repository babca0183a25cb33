# SPDX-License-Identifier: MIT
"""What the tables of steps call of the core. There is no module of this name."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp.vector cimport vector

from fastreplay.buffer.rows cimport Records, Rows


cdef extern from "step_calls.hpp" namespace "fastreplay" nogil:
    cppclass CoreBlock "fastreplay::Block":
        size_t batch_size()
    enum class Source:
        pass
    struct CorePart "fastreplay::Part":
        Source source
        size_t row_bytes
        size_t field
    cppclass CoreTable "fastreplay::StepTable":
        CoreTable(Records &records, size_t num_envs, size_t num_observations) except +
        Records &records()
        size_t num_rows()
        size_t num_fields()
        size_t row_bytes(size_t field)
        const vector[CorePart] &parts()
        void gather(const CoreBlock &block, uint64_t *ends)
        void gather_n_steps(const CoreBlock &block, uint64_t *ends, size_t num_steps, size_t newest_row, float *rewards,
                            uint8_t *is_counted, float *counts)
    cppclass Ring:
        pass
    cppclass FrameSteps(CoreTable):
        FrameSteps(Ring &ring, size_t num_envs, size_t num_observations) except +
        size_t next_row()
        size_t num_stored()
        void go_on(size_t next_row)
    const char *kBlockCapsule
    const char *kRingCapsule
    const char *kRecordsCapsule
    const size_t kReleaseReadBytes
    bint fits(const CoreTable &table, const CoreBlock &block)
    size_t num_bytes(const CoreBlock &block)
    bint gather_goals(const CoreTable &table, const CoreBlock &block, const int64_t *rows, const int64_t *envs,
                      size_t count, size_t achieved, size_t desired) except +
    bint has_goals(const CoreTable &table, size_t achieved, size_t desired, size_t num_observations)
    bint locate(const CoreTable &table, const int64_t *rows, const int64_t *envs, const CoreBlock &block)
    bint sum_discounted "fastreplay::discounted_sums"(const float *rewards, const float *discounts,
                                                      const uint8_t *is_counted, float *sums, size_t count,
                                                      size_t num_steps)
    void store(CoreTable &table, size_t row, const Rows *fields, size_t num_fields)
