# SPDX-License-Identifier: MIT
"""Writes to a disk without a copy in the system's cache of files, which takes longer than the disk.

Where a file system has it otherwise, nothing is done here: the caller goes on as with any file.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["aligned", "write_past_cache"]

_PAGE = 4096  # of which a disk takes whole ones, at their multiples: in memory, and in the file
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux's


def aligned(num_bytes: int) -> Array:
    """Return memory (num_bytes,) that begins at a multiple of a page."""
    memory: Array = np.empty(num_bytes + _PAGE, np.uint8)
    start = -memory.ctypes.data % _PAGE
    return memory[start : start + num_bytes]


def write_past_cache(fd: int, data: memoryview) -> int:
    """Write the whole pages of a new file's data, which are in memory as `aligned` gives it; return how many bytes.

    Raises:
        OSError: They cannot be written.
    """
    data, done = data[: len(data) - len(data) % _PAGE], 0
    if not _DIRECT or not data:
        return 0
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, _DIRECT)
        while done < len(data):
            done += os.writev(fd, [data[done:]])
    except OSError as error:
        if error.errno != errno.EINVAL:  # so it says that it has it otherwise
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    return done
