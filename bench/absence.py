# SPDX-License-Identifier: MIT
"""Why a contestant has no number. A rival that fails is left out, with its reason; ours must not fail."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# By the names that contestants have here; a suffix ("-2-threads") says how one of them is run.
_RIVALS = ("numpy", "naive", "sb3", "cpprb", "rlox", "torchrl", "cleanrl", "lerp", "foreach", "flat")
_LIMIT_S = 300.0  # far more than filling the largest ring takes anybody


class AbsentError(Exception):
    """Says why a contestant cannot be measured: it is not installed, or cannot hold the workload."""


@contextmanager
def excused(name: str, absent: dict[str, str], limit_s: float = _LIMIT_S) -> Iterator[None]:
    """Leave out contestant `name` where the block fails or does not end: its reason goes into `absent`.

    But for AbsentError, the errors of whoever is no rival pass through.

    Args:
        name: The contestant.
        absent: Reasons, by contestant.
        limit_s: Seconds after which a block that Python can interrupt has failed.
    """
    try:
        with _limited(limit_s):
            yield
    except AbsentError as reason:
        absent[name] = str(reason)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if name.split("-", maxsplit=1)[0] not in _RIVALS:
            raise
        absent[name] = reason_of(error)


def reason_of(error: BaseException) -> str:
    """Return an error in one line."""
    said = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {said}"[:200]


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
