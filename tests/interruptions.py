# SPDX-License-Identifier: MIT
"""Forks, finalizers inside calls, signal handlers, threads and loaders at once, for some seconds.

Run by test_interruptions.py, in a process of its own: a hang ends it with the stacks of all threads. Every row names
its own number in each field, so that a wrong one is seen wherever it is read. Only how much is done depends on time.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import fastreplay as fr

if TYPE_CHECKING:
    from types import CodeType

HANG_S = 60.0
CAPACITY = 512
FIELDS: dict[str, Any] = {"a": (5,), "n": ((), "int64"), "b": ((3,), "float64"), "c": (2,)}


class Interrupt(BaseException):
    """What the signal handler raises; not for the `except Exception` of which NumPy has some."""


def rows_of(n: Any) -> dict[str, Any]:
    return {
        "a": (n[:, None] % 1000 + np.arange(5)).astype(np.float32),
        "n": n,
        "b": n[:, None] * np.array([1.0, -1.0, 0.5]),
        "c": np.stack([n % 7, n % 11], 1).astype(np.float32),
    }


def rows(first: int, count: int) -> dict[str, Any]:
    return rows_of(np.arange(first, first + count))


def check(batch: Any) -> None:
    """Assert that each row of a minibatch is whole."""
    got = batch.numpy()
    for name, value in rows_of(got.n).items():
        if not np.array_equal(got[name], value):
            raise AssertionError(f"{name}: {got[name]} of the rows {got.n}")


def new_sb3() -> Any:
    from gymnasium import spaces

    from fastreplay.sb3 import ReplayBuffer

    box = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    return ReplayBuffer(64, box, spaces.Box(-1, 1, (2,), np.float32), device="cpu", handle_timeout_termination=False)


def add_to_sb3(buffer: Any, n: int) -> None:
    """Store a row of which every part names n; it fits into float32 exactly."""
    n %= 1 << 20
    one = np.full((1, 3), n, np.float32)
    buffer.add(one, one + 1, np.full((1, 2), n, np.float32), np.array([n], np.float32), np.zeros(1, np.float32), [{}])


def check_sb3(samples: Any) -> None:
    n = samples.rewards
    assert torch.equal(samples.observations, n.expand(-1, 3)), samples
    assert torch.equal(samples.next_observations, (n + 1).expand(-1, 3)), samples
    assert torch.equal(samples.actions, n.expand(-1, 2)), samples


class Target:
    """Networks of one value each, so that every update is seen to be one of all weights by the same share."""

    def __init__(self) -> None:
        self.online, self.target = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
        with torch.no_grad():
            for net, value in ((self.online, 1.0), (self.target, 0.0)):
                for weight in net.parameters():
                    weight.fill_(value)
        self.update = fr.SoftUpdate(self.target, self.online, tau=0.01)

    def step(self) -> None:
        self.update.step()
        fr.soft_update_(self.target, self.online, 0.01)
        values = {float(value) for weight in self.target.parameters() for value in weight.detach().flatten()}
        assert len(values) == 1, values


class Stress:
    """Shared by threads, handlers, finalizers, and, as it was at the fork, by children."""

    def __init__(self) -> None:
        self.buffers: list[fr.ReplayBuffer[Any]] = [
            fr.ReplayBuffer(CAPACITY, FIELDS, seed=0, output="torch"),
            fr.ReplayBuffer(CAPACITY, FIELDS, seed=1, output="numpy"),
        ]
        for buffer in self.buffers:
            buffer.extend(**rows(0, CAPACITY))
        self.loaders = [buffer.loader(16, depth=3) for buffer in self.buffers]
        self.targets = [Target(), Target()]  # of the main thread, of its handlers and finalizers
        for target in self.targets:
            target.step()  # imports what it needs: Python shows a finalizer within an import a module half made
        self.sb3 = [new_sb3(), new_sb3()]
        for each in self.sb3:
            for n in range(64):
                add_to_sb3(each, n)
        self.next = CAPACITY
        self.counts = dict.fromkeys(("calls", "handlers", "raised", "finalizers", "forks"), 0)
        self.stop = False
        self.failures: list[BaseException] = []
        self.random = random.Random(0)

    def act(self, *, is_inside: bool) -> None:
        """Do one of the things that there are; `is_inside` of another call, by a handler or a finalizer."""
        which = self.random.randrange(2)
        buffer, other = self.buffers[which], int(is_inside)
        kind = self.random.randrange(8)
        if kind == 0:
            check(buffer.sample(self.random.choice([1, 7, 64, 300])))
        elif kind == 1:
            check(next(self.loaders[which]))
        elif kind == 2:
            self.next += 40
            buffer.extend(**rows(self.next - 40, self.random.randrange(1, 40)))
        elif kind == 3:
            self.next += 1
            row = {name: value[0] for name, value in rows(self.next - 1, 1).items()}
            buffer.add(**{**row, "b": row["b"].tolist()})
        elif kind == 4:
            self.targets[other].step()
        elif kind == 5:
            if not is_inside:  # for one thread at a time, and so not for a handler within a call
                self.next += 1
                add_to_sb3(self.sb3[0], self.next)
                check_sb3(self.sb3[0].sample(16))
            else:
                check_sb3(self.sb3[1].sample(16))
        elif kind == 6:
            with buffer.loader(4, steps=3) as loader:
                for batch in loader:
                    check(batch)
        else:
            check(buffer.gather([1, 2, 3]))
            repr(buffer), buffer.stats()

    def guarded(self, *, is_inside: bool) -> None:
        try:
            self.act(is_inside=is_inside)
        except Interrupt:
            raise
        except BaseException as error:
            self.failures.append(error)
            raise


class Garbage:
    """A cycle whose finalizer uses everything, wherever the collector happens to run."""

    def __init__(self, stress: Stress) -> None:
        self.me, self.stress = self, stress

    def __del__(self) -> None:
        if self.stress.stop:
            return
        self.stress.counts["finalizers"] += 1
        with suppress(Interrupt):
            self.stress.guarded(is_inside=True)


def is_within(frame: Any, code: CodeType) -> bool:
    """Tell whether a frame is of a call of this code, or of what that calls."""
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def on_signal(stress: Stress) -> Any:
    state = {"depth": 0}

    def handler(_: int, frame: Any) -> None:
        if stress.stop or state["depth"]:
            return
        stress.counts["handlers"] += 1
        state["depth"] += 1
        try:
            Garbage(stress)
            if stress.random.randrange(3) == 0:
                gc.collect(0)
            if stress.random.randrange(2):
                stress.guarded(is_inside=True)
        finally:
            state["depth"] -= 1
        if is_within(frame, Stress.act.__code__) and stress.random.randrange(3) == 0:
            stress.counts["raised"] += 1
            raise Interrupt

    return handler


def in_thread(stress: Stress, which: int) -> None:
    """Write, sample and iterate beside the main thread."""
    buffer, first = stress.buffers[which], (which + 1) << 30
    loader = stress.loaders[which]
    try:
        while not stress.stop:
            buffer.extend(**rows(first, 30))
            first += 30
            check(buffer.sample(32))
            check(next(loader))
            time.sleep(0)
    except BaseException as error:  # noqa: BLE001, told at the end
        stress.failures.append(error)


def in_child(stress: Stress) -> None:
    """Use everything in a child; it has no other thread."""
    stress.stop = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    for buffer, loader in zip(stress.buffers, stress.loaders, strict=True):
        check(buffer[:])
        check(buffer.sample(1 + stress.counts["forks"] % 50))
        check(buffer.sample(64))
        buffer.extend(**rows(1 << 40, 600))
        check(buffer.sample(64))
        try:
            next(loader)
        except RuntimeError as error:
            assert "make another after the fork" in str(error)  # noqa: PT017 - no test, but what one runs
        else:
            raise AssertionError("a loader of another process gave a minibatch")
        loader.close()
        with buffer.loader(8, steps=4) as own:
            batches = list(own)
        assert len(batches) == 4
        for batch in batches:
            check(batch)
    stress.targets[1].update.step()
    check_sb3(stress.sb3[1].sample(8))
    stress.loaders = [buffer.loader(16, depth=3) for buffer in stress.buffers]
    stress.stop = False
    for _ in range(20):
        stress.guarded(is_inside=False)
        Garbage(stress)
    gc.collect(1)
    if stress.failures:
        raise stress.failures[0]


def fork(stress: Stress) -> None:
    stress.counts["forks"] += 1
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            in_child(stress)
            code = 0
        except BaseException:  # noqa: BLE001, told by the exit code
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + HANG_S
    done, status = 0, 0
    while not done:
        done, status = os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # it tells where it is
        time.sleep(1e-3)
    assert os.waitstatus_to_exitcode(status) == 0, f"a child ended with {os.waitstatus_to_exitcode(status)}"


def main(seconds: float) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + 2 * HANG_S, exit=True)
    stress = Stress()
    threads = [threading.Thread(target=in_thread, args=(stress, which)) for which in range(2)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, on_signal(stress))
    end = time.monotonic() + seconds
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    while not stress.failures and (time.monotonic() < end or min(stress.counts.values()) < 3):
        try:
            stress.counts["calls"] += 1
            if stress.counts["calls"] % 400 == 0:
                fork(stress)
            stress.guarded(is_inside=False)
            Garbage(stress)
        except Interrupt:  # noqa: PERF203
            continue
    stress.stop = True
    signal.setitimer(signal.ITIMER_REAL, 0)
    for thread in threads:
        thread.join()
    for loader in stress.loaders:
        loader.close()
    gc.collect(1)  # a whole collection takes a tenth of a second with torch
    if stress.failures:
        raise stress.failures[0]
    print(stress.counts)
    print("done")


if __name__ == "__main__":
    main(float(sys.argv[1]))
