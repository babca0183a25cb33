# SPDX-License-Identifier: MIT
"""Why a contestant has no number. A rival that fails is left out, with its reason; ours must not fail."""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import ModuleType

_LIMIT_S = 300.0  # far more than filling the largest ring takes anybody


class AbsentError(Exception):
    """Says why a contestant cannot be measured: it is not installed, or cannot hold the workload."""


def require(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = f"{module} is not installed"
        raise AbsentError(reason) from error


class Absences(dict[str, str]):
    """The reason of each contestant that is left out.

    Args:
        rivals: Whose errors are reasons. But for AbsentError, the errors of others pass through.
    """

    def __init__(self, rivals: Collection[str]) -> None:
        super().__init__()
        self._rivals = rivals

    @contextmanager
    def excused(self, name: str, limit_s: float = _LIMIT_S) -> Iterator[None]:
        """Leave out contestant `name` where the block fails or does not end.

        Args:
            name: The contestant.
            limit_s: Seconds after which a block that Python can interrupt has failed.
        """
        try:
            with _limited(limit_s):
                yield
        except AbsentError as reason:
            self[name] = str(reason)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if name not in self._rivals:
                raise
            said = str(error).strip().split("\n", 1)[0]
            self[name] = f"{type(error).__name__}: {said}"[:200]


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that signals can interrupt
        yield
        return

    def stop(*_: object) -> None:
        message = f"no end within {seconds:g} s"
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
