# SPDX-License-Identifier: MIT
"""A folder whose files are whole or not there: what a crash or a loss of power leaves of it is old or new.

A file is written under a name that nobody else knows, and waited for until the disk has it; so is the folder, before
anything refers to the file. What is replaced is replaced by one rename. After a failed fsync nothing is tried again:
the system may have dropped what it could not write, and taken it for written (Rebello et al. 2020, "Can Applications
Recover from fsync Failures?").
"""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fastreplay.checkpoint.past_cache import write_past_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Buffer, Self

__all__ = ["Folder", "is_in_turn"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
# Nor does it wait for who writes into a pipe that somebody has laid there.
_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC
_LOCK = "lock"
_MODE = 0o666  # less the umask, as of every file
# Parts of a file that are written in one call, as every system lets one. Each call gives away the GIL, which beside a
# thread that runs Python without pause takes 5 ms to come back.
_MOST_PARTS = 16

_locks: set[int] = set()  # that are open in this process


class _Turn:
    """One that a thread has, or waits for, as long as there is this."""


class _Turns(threading.local):
    """Those of each thread by itself."""

    def __init__(self) -> None:
        self.own: weakref.WeakSet[_Turn] = weakref.WeakSet()


_turns = _Turns()


def is_in_turn() -> bool:
    """Tell whether this thread is in the midst of a turn."""
    return len(_turns.own) > 0


class Folder:
    """A folder, held open: what it is called may change meanwhile.

    Args:
        path: Where it is.

    Raises:
        OSError: There is none, or it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def made(cls, path: str) -> Self:
        """Open a folder that is made where there is none, and stays after a loss of power.

        Raises:
            OSError: It cannot be made.
        """
        absolute = Path(path).absolute()
        missing = [each for each in (absolute, *absolute.parents) if not each.is_dir()]
        there = missing[-1].parent if missing else absolute
        if not any(there.iterdir()):  # whoever made it may have been killed before the disk had its name
            with suppress(PermissionError), cls(str(there.parent)) as parent:
                parent.sync()
        for each in reversed(missing):
            with suppress(FileExistsError):
                each.mkdir()
            with cls(str(each.parent)) as parent:
                parent.sync()
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a folder, through which nothing was written, it has nothing to say
            os.close(self._fd)

    def file(self, name: str) -> str:
        """Return what a message calls a file."""
        return str(Path(self.path) / name)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors of the system say which file they are of, by its whole path."""
        try:
            yield
        except OSError as error:
            if error.errno is not None and not (isinstance(error.filename, str) and os.path.isabs(error.filename)):  # noqa: PTH117
                error.filename = self.file(error.filename) if isinstance(error.filename, str) else self.path
            raise

    def names(self) -> list[str]:
        """Return the names of all that lies in it."""
        return sorted(os.listdir(self._fd))  # noqa: PTH208 - of what is open, whatever it is called now

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until nobody else writes here, whichever process, and keep others waiting.

        The folder itself is locked, whose place nothing can take while it is open; and for machines that have the same
        disk, among which only locks of files are seen, a file in it.

        What a thread runs in the midst of a turn (signal handlers, finalizers, traces) does not wait for another: so
        nobody waits for a thread that waits, and no circle can close.

        Raises:
            RuntimeError: It would have to.
            OSError: It cannot be locked.
        """
        import fcntl

        operation = fcntl.LOCK_EX | (fcntl.LOCK_NB if is_in_turn() else 0)
        turn = _Turn()
        try:
            _turns.own.add(turn)
            with (
                self._locked(".", os.O_RDONLY | os.O_DIRECTORY, operation),
                self._locked(_LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), operation),
            ):
                yield
        finally:
            _turns.own.discard(turn)

    @contextmanager
    def _locked(self, name: str, flags: int, operation: int) -> Iterator[None]:
        import fcntl

        fd = os.open(name, flags | os.O_CLOEXEC, _MODE, dir_fd=self._fd)
        _locks.add(fd)
        try:
            try:
                fcntl.flock(fd, operation)
            except BlockingIOError:
                raise RuntimeError(
                    f"save: {self.path} is being saved into, and a call in the midst of another save by the same "
                    "thread (of a signal handler, or a finalizer) does not wait"
                ) from None
            yield
        finally:
            _locks.discard(fd)
            with suppress(OSError):  # said, not left to close(): what was started meanwhile may have it open, too
                fcntl.flock(fd, fcntl.LOCK_UN)
            with suppress(OSError):
                os.close(fd)

    def write(self, name: str, parts: Iterable[Buffer], *, past_cache: bool = False) -> int:
        """Write a new file, and return it open: the disk has it after `finish`.

        Args:
            name: Of the file.
            parts: Its bytes.
            past_cache: Whether the first of them, which begins at a multiple of a page, goes straight to the disk.

        Raises:
            OSError: It cannot be written; then it is not there.
        """
        fd = os.open(name, _NEW, _MODE, dir_fd=self._fd)
        try:
            left = deque(memoryview(part).cast("B") for part in parts)
            if past_cache:
                left[0] = left[0][write_past_cache(fd, left[0]) :]
            while left:
                written = os.writev(fd, [*islice(left, _MOST_PARTS)])
                while left and written >= len(left[0]):
                    written -= len(left.popleft())
                if written:
                    left[0] = left[0][written:]
        except BaseException:
            os.close(fd)
            self.remove(name)
            raise
        return fd

    def finish(self, fd: int) -> None:
        """Wait until the disk has a file that was written, and close it.

        Raises:
            OSError: The disk has it not.
        """
        try:
            os.fsync(fd)
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)

    def sync(self) -> None:
        """Wait until the disk has the names of all files."""
        os.fsync(self._fd)

    def replace(self, name: str, data: bytes) -> None:
        """Put a file in the place of another: the old one is there or the new one, at every moment.

        Raises:
            OSError: It cannot be; the old one stands, unless it was the last wait for the disk that failed.
        """
        new = f"{name}.{secrets.token_hex(8)}.tmp"
        try:
            self.finish(self.write(new, [data]))
            os.rename(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            self.remove(new)
            raise
        self.sync()

    def open(self, name: str) -> int:
        """Open a file that is to be read.

        Raises:
            OSError: There is none.
        """
        try:
            return os.open(name, _READ, dir_fd=self._fd)
        except OSError as error:
            error.filename = self.file(name)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there and can be."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._fd)


def _close_locks() -> None:
    """In the child after a fork, let go of the parent's turns: they would last as long as the child, were it killed."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)
