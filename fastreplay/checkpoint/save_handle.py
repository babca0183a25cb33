# SPDX-License-Identifier: MIT
"""A save that goes on in a thread of its own."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from fastreplay.checkpoint.folder import is_in_turn
from fastreplay.support.checks import checked_number

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from fastreplay.checkpoint.save import SavedRange

__all__ = ["SaveHandle"]


class SaveHandle:
    """A save that goes on in a thread of its own, until it is done.

    Thread safety:
        Any thread may ask and wait.
    """

    def __init__(self, save: Callable[[], SavedRange]) -> None:
        self._save = save
        self._saved: SavedRange | None = None
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        # No join of the thread: before Python 3.13 one that Ctrl-C ends takes the thread for ended, and the interpreter
        # exits without it. The lock is one that a signal's handler may take again.
        self._process, self._is_over, self._ended = os.getpid(), False, threading.Condition()
        threading.Thread(target=self._run, name="fastreplay-save").start()

    def _run(self) -> None:
        try:
            self._saved = self._save()
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            self._error, self._trace = error, error.__traceback__
        self._is_over = True
        with self._ended:
            self._ended.notify_all()

    @property
    def done(self) -> bool:
        """Whether it has ended: `wait` then returns at once."""
        return self._is_over or self._process != os.getpid()

    def wait(self, timeout: float | None = None) -> SavedRange:
        """Wait for the end of the save.

        Args:
            timeout: Seconds to wait at most; None for as long as it takes.

        Returns:
            What `save` returns.

        Raises:
            TimeoutError: It goes on still.
            TypeError: `timeout` is no number.
            OSError, ValueError, RuntimeError: What `save` raises; or this is a child after a fork, and the save goes on
                in its parent; or it goes on and this is a call in the midst of a save of this thread, for whose end it
                may wait; or `timeout` is below 0, or not finite.
        """
        seconds = None if timeout is None else min(checked_number("timeout", timeout, 0), threading.TIMEOUT_MAX)
        if is_in_turn() and not self.done:
            raise RuntimeError("wait: a call in the midst of a save by the same thread does not wait")
        if not self.done:
            with self._ended:
                self._ended.wait_for(lambda: self._is_over, seconds)
        if not self.done:
            raise TimeoutError(f"wait: the save goes on after {timeout} s")
        if self._error is not None:
            raise self._error.with_traceback(self._trace)  # else each call would add to it
        if self._saved is None:
            raise RuntimeError("wait: the save goes on in the parent of this process")
        return self._saved
