# SPDX-License-Identifier: MIT
"""Calls made at once, by threads or by forked processes, for some time: how often was each made?"""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

from timing import Call


def locked(calls: Sequence[Call], lock: AbstractContextManager[Any]) -> Call:
    """Return a call that makes the next of `calls` under the lock."""
    turn = 0

    def run() -> None:
        nonlocal turn
        turn = (turn + 1) % len(calls)
        with lock:
            calls[turn]()

    return run


def by_threads(calls: Sequence[Call], seconds: float) -> list[int]:
    """Return how often each call was made by a thread of its own; raises what one of them raises."""
    counts, stop = [0] * len(calls), threading.Event()
    errors: list[BaseException] = []

    def repeat(which: int, call: Call) -> None:
        count = 0
        try:
            while True:
                call()
                count += 1
                if stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001  raised below, in the main thread
            errors.append(error)
        counts[which] = count

    # Daemons: one that hangs is left behind.
    threads = [threading.Thread(target=repeat, args=args, daemon=True) for args in enumerate(calls)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return counts


class Forks:
    """Forked processes that make a call, each over what this one had in memory.

    Args:
        call: What is made.
        count: Processes.
    """

    def __init__(self, call: Call, count: int) -> None:
        forking = multiprocessing.get_context("fork")
        pipes = [forking.Pipe() for _ in range(count)]
        self._ends = [mine for mine, _ in pipes]
        self._processes = [forking.Process(target=_serve, args=(call, theirs), daemon=True) for _, theirs in pipes]
        for process in self._processes:
            process.start()

    def __call__(self, seconds: float) -> list[int]:
        """Return how often each process made the call.

        Raises:
            RuntimeError: In one of them the call failed.
        """
        for end in self._ends:
            end.send(seconds)
        answers = [end.recv() for end in self._ends]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return answers

    def close(self) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()
            end.close()


def _serve(call: Callable[[], object], end: Connection) -> None:
    gc.disable()
    while (seconds := end.recv()) is not None:
        end.send(_counted(call, seconds))


def _counted(call: Callable[[], object], seconds: float) -> int | str:
    count, stop = 0, time.perf_counter() + seconds
    try:
        while time.perf_counter() < stop:
            call()
            count += 1
    except BaseException as error:  # noqa: BLE001  said in the parent
        return f"{type(error).__name__}: {error}"
    return count
