# SPDX-License-Identifier: MIT
"""To a disk and from it without a copy in the system's cache of files, which takes longer than the disk.

Where a file system has it otherwise, nothing is done here: the caller goes on as with any file.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["aligned", "read_past_cache", "write_past_cache"]

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
    return _pass(fd, data, os.writev)


def read_past_cache(fd: int, data: memoryview) -> int:
    """Read the whole pages of a file that only the disk has, as `write_past_cache`; of others nothing.

    Raises:
        OSError: They cannot be read.
    """
    return 0 if _is_cached(fd, len(data) // 2) else _pass(fd, data, os.readv)


def _is_cached(fd: int, at: int) -> bool:
    """Return whether the system's cache has a byte of a file, as who cannot tell says, too."""
    try:
        os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):  # a system, or a file system, that has no such reads
        return True
    return True


def _pass(fd: int, data: memoryview, call: Callable[[int, list[memoryview]], int]) -> int:
    """Let a call have whole pages until there are no more of them, or of the file; return how many bytes it took."""
    data, done = data[: len(data) - len(data) % _PAGE], 0
    if not _DIRECT or not data:
        return 0
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, _DIRECT)
        while done < len(data) and (moved := call(fd, [data[done:]])):
            done += moved
    except OSError as error:
        if error.errno != errno.EINVAL:  # so it says that it has it otherwise
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    return done
