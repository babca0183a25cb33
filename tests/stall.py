# SPDX-License-Identifier: MIT
"""Stalls a thread in the middle of an insert, with no hook in the library: by userfaultfd.

The rows to be inserted lie in memory whose pages are missing and watched. The thread that copies
them into the ring stops at the first missing page until the test provides it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import struct
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

_SYSCALLS = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_API, _REGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03  # ioctl requests of linux/userfaultfd.h
_API_VERSION = 0xAA
_MISSING = 1
_MESSAGE_BYTES = 32

# From here on an insert copies without the GIL (kReleaseInsertBytes); one that stalls with it would stall all.
RELEASE_BYTES = 32 << 10


def _userfaultfd() -> int:
    number = _SYSCALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        pytest.skip(f"stalls need userfaultfd of Linux on x86-64 or aarch64, not {sys.platform} {platform.machine()}")
    fd = int(ctypes.CDLL(None, use_errno=True).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
    if fd < 0:
        number = ctypes.get_errno()
        pytest.skip(f"userfaultfd is not permitted here: {errno.errorcode.get(number, number)}")
    try:
        fcntl.ioctl(fd, _API, bytearray(struct.pack("QQQ", _API_VERSION, 0, 0)))
    except OSError as error:
        os.close(fd)
        pytest.skip(f"userfaultfd is not usable here: {error}")
    return fd


class Stall:
    """`content` in watched memory: reading `rows[first_missing:]` stalls until `release()`."""

    def __init__(self, content: Array, first_missing: int = 0) -> None:
        content = np.ascontiguousarray(content)
        self._fd = _userfaultfd()
        self._num_bytes = -(-content.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._source = np.frombuffer(mmap.mmap(-1, self._num_bytes), dtype=np.uint8)
        self._source.setflags(write=True)
        self._source[: content.nbytes] = content.reshape(-1).view(np.uint8)
        memory = np.frombuffer(mmap.mmap(-1, self._num_bytes), dtype=np.uint8)
        self._address = memory.ctypes.data
        self._provided = 0
        fcntl.ioctl(self._fd, _REGISTER, bytearray(struct.pack("QQQQ", self._address, self._num_bytes, _MISSING, 0)))
        self.rows = memory[: content.nbytes].view(content.dtype).reshape(content.shape)
        row_bytes = content.nbytes // len(content)
        self._provide(first_missing * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE)

    def _provide(self, end: int) -> None:
        start = self._provided
        if end > start:
            source = self._source.ctypes.data
            request = struct.pack("QQQQq", self._address + start, source + start, end - start, 0, 0)
            fcntl.ioctl(self._fd, _COPY, bytearray(request))
            self._provided = end

    def wait(self, timeout_s: float = 20) -> None:
        """Return once a thread has stalled."""
        ready, _, _ = select.select([self._fd], [], [], timeout_s)
        assert ready, "no thread came to the missing page"
        assert len(os.read(self._fd, _MESSAGE_BYTES)) == _MESSAGE_BYTES

    def release(self) -> None:
        """Provide the missing pages; the thread goes on."""
        self._provide(self._num_bytes)

    def close(self) -> None:
        self.release()
        os.close(self._fd)


class Thread(threading.Thread):
    """A thread whose exception is raised again by `join`, and which is not waited for at exit."""

    def __init__(self, target: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._call = (target, args, kwargs)
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        target, args, kwargs = self._call
        del self._call
        try:
            self.result = target(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001, raised again where it is looked for
            self.error = error
        self.ended_at = time.monotonic()

    def finish(self, timeout_s: float = 60) -> Any:
        """Join the thread; give what its target gave, or raise what it raised."""
        self.join(timeout_s)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


class StalledInsert:
    """A thread that is stalled in `buffer.extend(**rows, **how)`, at row `at` of the field `name`."""

    def __init__(self, buffer: Any, rows: dict[str, Array], name: str, at: int, **how: Any) -> None:
        num_bytes = sum(value.nbytes for value in rows.values())
        assert num_bytes >= RELEASE_BYTES, f"{num_bytes} bytes are inserted with the GIL"
        self._stall = Stall(rows[name], at)
        self.thread = Thread(buffer.extend, **{**rows, **how, name: self._stall.rows})
        del buffer
        try:
            self._stall.wait()
        except BaseException:
            self._stall.close()
            raise

    def release(self) -> None:
        """Let the insert go on, and wait for its end."""
        self._stall.release()
        self.thread.finish()

    def close(self) -> None:
        self._stall.close()
        self.thread.join(60)


@contextmanager
def stalled_insert(
    buffer: Any, rows: dict[str, Array], name: str, *, at: int = 0, **how: Any
) -> Iterator[StalledInsert]:
    """Have another thread stall in an insert of these rows; it goes on at the end at the latest."""
    insert = StalledInsert(buffer, rows, name, at, **how)
    del buffer
    try:
        yield insert
    finally:
        insert.close()
