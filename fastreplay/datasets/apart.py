# SPDX-License-Identifier: MIT
"""A table that is read in a thread of its own, and threads that unpack what it reads. Must not know kinds of files."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from fastreplay.datasets.table import Table

    Array = NDArray[Any]

__all__ = ["ApartTable", "Helpers", "done_apart"]

ResultT = TypeVar("ResultT")
_MOST_WAITING_BYTES = 4 << 20
_MOST_SPARE, _MOST_SPARE_BYTES = 64, 1 << 17


class ApartTable:
    """A table that another thread opens, reads and closes, while the caller waits, or does something else.

    Python runs handlers of signals in the main thread, wherever that is. Where it is inside a finalizer of a library,
    what the handler raises is printed and forgotten: Ctrl-C would do nothing. Waiting for the other thread, the caller
    is where it can be raised.

    Args:
        open_table: Opens it.

    Raises:
        Exception: What opening raises.
    """

    def __init__(self, open_table: Callable[[], Table]) -> None:
        self._thread = ThreadPoolExecutor(1, "fastreplay-table")
        try:
            self._table = self._do(open_table)
        except BaseException:
            self._thread.shutdown()
            raise
        self.path = self._table.path

    def _do(self, call: Callable[..., ResultT], *args: Any) -> ResultT:
        return self._thread.submit(call, *args).result()

    def ask(self, question: Callable[[Table], ResultT]) -> ResultT:
        """Do as `OpenTable.ask`: one question takes a quarter of a millisecond, so that they are asked together."""
        return self._do(question, self._table)

    def start(self, out: Mapping[str, Array], begins: Array) -> Callable[[], object]:
        """Do as `OpenTable.start`; meanwhile the caller is free."""
        return self._thread.submit(self._table.read, out, begins).result

    def close(self) -> None:
        """Do as `Table.close`, once the thread is done with what it was told to read."""
        with self._thread:
            self._do(self._table.close)


def done_apart(work: Callable[[Callable[[], None]], ResultT]) -> ResultT:
    """Return what a call returns that another thread makes, while the caller waits: `ApartTable` says why.

    Args:
        work: It; it is given a function that raises where the caller does not wait any more, to be called in between.

    Raises:
        Exception: What it raises; or what interrupts the wait, once the thread is done.
    """
    is_given_up = threading.Event()

    def go_on() -> None:
        if is_given_up.is_set():
            raise InterruptedError("nobody waits any more")

    with ThreadPoolExecutor(1, "fastreplay-apart") as thread:
        try:
            return thread.submit(work, go_on).result()
        finally:
            is_given_up.set()


class Helpers:
    """Threads that one thread hands work to, a little ahead of them, so that what waits for them takes little memory.

    Args:
        count: How many threads.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, "fastreplay-unpack")
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._num_bytes = 0
        self._spare: deque[Array] = deque(maxlen=_MOST_SPARE)

    def memory(self, num_bytes: int) -> Array:
        """Return so many bytes or more: old ones, as the system takes longer to give new ones than to fill them."""
        if self._spare and len(self._spare[-1]) >= num_bytes:
            return self._spare.pop()
        return np.empty(num_bytes, np.uint8)

    def use_again(self, memory: Array) -> None:
        """Take memory back, by any thread."""
        if len(memory) <= _MOST_SPARE_BYTES:
            self._spare.append(memory)

    def hand(self, num_bytes: int, call: Callable[..., None], *args: Any) -> None:
        """Let a thread call something that takes so many bytes, and wait while there is enough to do.

        Raises:
            Exception: What a call before raised.
        """
        while self._waiting and self._num_bytes + num_bytes > _MOST_WAITING_BYTES:
            self._wait_for_one()
        self._waiting.append((num_bytes, self._threads.submit(call, *args)))
        self._num_bytes += num_bytes

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: What a call raised.
        """
        while self._waiting:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        num_bytes, future = self._waiting.popleft()
        self._num_bytes -= num_bytes
        future.result()

    def close(self) -> None:
        """End the threads; what waits is not done."""
        self._threads.shutdown(cancel_futures=True)
