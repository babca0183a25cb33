# SPDX-License-Identifier: MIT
"""What the native modules of target updates share: the kernels' levels, and torch's functions.

Addresses of functions arrive from fastreplay/support/torch_abi.py as numbers.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uintptr_t


cdef extern from "gil.hpp" namespace "fastreplay" nogil:
    const size_t kReleaseUpdateBytes


cdef extern from "torch_abi.hpp" namespace "fastreplay" nogil:
    enum class Level:
        kBaseline
        kAvx2
        kAvx512
    Level best_level()
    struct TorchAbi:
        int (*get_data_ptr)(void *, void **)
        int (*get_numel)(void *, int64_t *)
        void (*bump_version)(const void *)
        int (*parallel_for)(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void *), void *)
        size_t handle_offset


cdef extern from *:
    """
    template <class Function>
    static void set_function(Function& function, std::uintptr_t address) {
      function = reinterpret_cast<Function>(address);
    }
    """
    void set_function[Function](Function &function, uintptr_t address)


cdef inline int set_torch(TorchAbi &torch, abi) except -1:
    set_function(torch.get_data_ptr, abi.get_data_ptr)
    set_function(torch.get_numel, abi.get_numel)
    set_function(torch.bump_version, abi.bump_version)
    set_function(torch.parallel_for, abi.parallel_for)
    torch.handle_offset = abi.handle_offset
    return 0


# Where torch does not multiply and add in one instruction, its bits are the baseline's.
cdef inline Level level_of(bint fused):
    return best_level() if fused else Level.kBaseline
