# SPDX-License-Identifier: MIT
"""Threads that wait for the disk while others work.

They know no lock that somebody may hold who is interrupted: a signal handler or a finalizer that saves comes in the
midst of anything, and would wait for who waits for it. `threading` and `concurrent.futures` have such locks, which a
new thread takes, too. queue.SimpleQueue is made for that, and `_thread` has none.
"""

from __future__ import annotations

import _thread
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["DiskThreads", "Pending"]


class Pending:
    """Work that was given to a thread."""

    def __init__(self, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self._work = work
        self._arguments = arguments
        self._errors: SimpleQueue[BaseException | None] = SimpleQueue()

    def do(self) -> None:
        """Do it, in the thread."""
        error = None
        try:
            self._work(*self._arguments)
        except BaseException as raised:  # noqa: BLE001 - whoever asks gets it
            error = raised
        self._errors.put(error)

    def result(self) -> None:
        """Wait until it is done; to be called once.

        Raises:
            BaseException: What it raised.
        """
        error = self._errors.get()
        if error is not None:
            raise error


class DiskThreads:
    """Threads that do one piece of work after another, as long as this is entered; they begin with the first.

    Args:
        most: How many.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._num_there = 0
        self._work: SimpleQueue[Pending | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(self._num_there):
            self._work.put(None)
        for _ in range(self._num_there):
            self._ended.get()

    def submit(self, work: Callable[..., object], *arguments: Any) -> Pending:
        """Have something done: at once where there can be no thread, be it that the interpreter is about to exit."""
        pending = Pending(work, arguments)
        if self._num_there < self._most:
            with suppress(RuntimeError):
                _thread.start_new_thread(self._run, ())
                self._num_there += 1
        if self._num_there:
            self._work.put(pending)
        else:
            pending.do()
        return pending

    def _run(self) -> None:
        while (pending := self._work.get()) is not None:
            pending.do()
        self._ended.put(None)
