# SPDX-License-Identifier: MIT
"""Contestants in a process of another interpreter: peers whose libraries do not go with the others', or are too large.

The child makes, checks and times them as this process does the others, one round when its turn has come. The pipe is
not timed: a reading is taken where the work is done.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from absence import AbsentError
from experiment import Contestant
from machine import ROOT
from timing import Reading, Round, keep_heap

ENVIRONMENTS = ROOT / "build" / "bench"  # a virtual environment each, made by make


def contestant(environment: str, make: Callable[[], Contestant]) -> Contestant:
    """Return a contestant that lives in another environment.

    Args:
        environment: A folder of ENVIRONMENTS.
        make: What makes it over there; by pickle, so a function of a module of bench/ with plain arguments.

    Raises:
        AbsentError: There is no such environment, or the contestant fails in it.
    """
    if environment not in _CHILDREN:
        _CHILDREN[environment] = _Child(environment)
    child = _CHILDREN[environment]
    number = child.ask("make", make)

    def call() -> Any:
        raise NotImplementedError  # it is timed over there

    def clock(_contestant: Contestant, round_s: float) -> Round:
        child.ask("clock", number, round_s)
        return partial(child.ask, "round", number)

    return Contestant(call, 1, partial(child.ask, "check", number), clock, partial(child.ask, "close", number))


class _Child:
    """A process that serves until its input ends, as it does with this one."""

    def __init__(self, environment: str) -> None:
        python = ENVIRONMENTS / environment / "bin" / "python"
        if not python.exists():
            reason = f"not there: make build/bench/{environment}/.there"
            raise AbsentError(reason)
        self._environment = environment
        self._process = subprocess.Popen([str(python), __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def end(self) -> None:
        self._process.communicate()

    def ask(self, verb: str, *arguments: object) -> Any:
        """Return what the child answers.

        Raises:
            AbsentError: It failed, or is gone.
        """
        to, answers = self._process.stdin, self._process.stdout
        assert to is not None
        assert answers is not None
        if self._process.poll() is not None:
            if verb == "close":
                return None
            reason = f"its process ended with status {self._process.returncode}"
            raise AbsentError(reason)
        try:
            pickle.dump((verb, *arguments), to)
            to.flush()
            failed, answer = pickle.load(answers)
        except BaseException as error:  # no answer, or it comes when nobody waits for it
            self._process.kill()
            self.end()
            _CHILDREN.pop(self._environment, None)
            if isinstance(error, (OSError, EOFError)):
                reason = "its process ended"
                raise AbsentError(reason) from error
            raise
        if failed:
            raise AbsentError(answer)
        return answer


_CHILDREN: dict[str, _Child] = {}


def dismiss() -> None:
    """End the other processes, and wait for it."""
    while _CHILDREN:
        _CHILDREN.popitem()[1].end()


class _Server:
    """The child's side: contestants by number."""

    def __init__(self) -> None:
        self._made: dict[int, Contestant] = {}
        self._rounds: dict[int, Round] = {}

    def make(self, make: Callable[[], Contestant]) -> int:
        number = len(self._made)
        self._made[number] = make()
        gc.collect()
        return number

    def check(self, number: int) -> bool | None:
        return self._made[number].check()

    def clock(self, number: int, round_s: float) -> None:
        contestant = self._made[number]
        self._rounds[number] = contestant.clock(contestant, round_s)

    def round(self, number: int) -> Reading:
        return self._rounds[number]()

    def close(self, number: int) -> None:
        self._made[number].close()
        self._rounds.pop(number, None)
        self._made[number] = Contestant(lambda: None)  # its number stays taken


def _serve() -> None:
    import torch

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed
    keep_heap()
    torch.set_num_threads(1)
    gc.disable()
    server = _Server()
    while True:
        try:
            verb, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = False, getattr(server, verb)(*arguments)
        except AbsentError as reason:
            answer = True, str(reason)
        except BaseException as error:  # noqa: BLE001  said over there
            said = str(error).strip().split("\n", 1)[0]
            answer = True, f"{type(error).__name__}: {said}"[:200]
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
