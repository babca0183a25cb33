# SPDX-License-Identifier: MIT
"""Rivals that fail in every way are left out, with the reason; ours must not fail."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import elsewhere
import many_fields
import pytest
import works
from absence import Absences, AbsentError
from crowds import Forks
from experiment import Contestant, Experiment, Result, measure
from experiments import buffers, sb3, threads
from peers import PEERS, Fastreplay, NumpyRing, Peer, StableBaselines3, TorchRL
from peers.ours import FastreplayOut
from render import to_json, to_markdown
from timing import Call, take_turns
from workloads import WORKLOADS, Columns, Transition
from works import Work


class PanicError(BaseException):
    """What Rust's panics are in Python: no Exception."""


def _fail(*_: object) -> None:
    message = "unfit\nfor this"
    raise PanicError(message)


fail: Any = _fail


class FailsToBuild(NumpyRing):
    _build = fail


class FailsToFill(NumpyRing):
    fill = fail


class FailsToAdd(NumpyRing):
    add = extend = fail


class FailsToSample(NumpyRing):
    sample = fail


class FailsLate(NumpyRing):
    """When it is timed: each check calls at most eight times."""

    def _late(self, call: Call) -> Call:
        calls = itertools.count()
        return lambda: fail() if next(calls) >= 10 else call()

    def adder(self, rows: Sequence[Transition]) -> Call:
        return self._late(super().adder(rows))

    def extender(self, blocks: Sequence[Columns]) -> Call:
        return self._late(super().extender(blocks))

    def sampler(self, batch_size: int) -> Call:
        return self._late(super().sampler(batch_size))


class ForgetsRows(NumpyRing):
    """Gives rows that were never stored."""

    def sample(self, batch_size: int) -> Any:
        return (super().sample(batch_size)[0] * 0, *super().sample(batch_size)[1:])


MACHINE = {"floor", "floor-halves", "kernel", "copy", "empty-call"}
FAILING = (FailsToBuild, FailsToFill, FailsToAdd, FailsToSample, FailsLate, ForgetsRows)


def measured(key: str, monkeypatch: pytest.MonkeyPatch, peers: dict[str, type[Peer]]) -> Result:
    monkeypatch.setattr(works, "PEERS", peers)
    experiment = next(experiment for experiment in buffers.at_scale(50, 8) if experiment.key == key)
    return measure(experiment, rounds=3, round_s=5e-4)


@pytest.mark.parametrize("peer", FAILING)
@pytest.mark.parametrize("key", ["add-pendulum", "extend-cheetah-64", "sample-pendulum-256"])
def test_a_rival_that_fails_is_left_out_with_its_reason(
    key: str, peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = measured(key, monkeypatch, {"fastreplay": Fastreplay, "numpy": NumpyRing, "sb3": peer})
    assert result.readings.keys() - MACHINE == {"fastreplay", "numpy"}
    expected = "AssertionError: " if peer is ForgetsRows else "PanicError: unfit"
    assert result.absent["sb3"].startswith(expected)
    text = to_markdown(buffers.QUESTION, [result], {})
    assert f"SB3: {result.absent['sb3']}" in text
    assert to_json([result], {})["experiments"][0]["absent"] == result.absent


@pytest.mark.parametrize("peer", FAILING)
def test_ours_must_not_fail(peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours(peer):  # type: ignore[valid-type, misc]
        is_rival = False

    with pytest.raises((PanicError, AssertionError)):
        measured("add-pendulum", monkeypatch, {"fastreplay": Ours, "numpy": NumpyRing})


@pytest.mark.parametrize("peer", FAILING[:4])
def test_a_rival_that_fails_in_a_thread_is_left_out(peer: type[NumpyRing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PEERS", {**PEERS, "sb3": peer})
    monkeypatch.setattr(threads, "_PEERS", ("fastreplay", "numpy", "sb3"))
    result = measure(threads._together(1000), rounds=2, round_s=0.05)
    assert result.readings.keys() == {"fastreplay", "numpy"}
    assert result.absent == {"sb3": "PanicError: unfit"}
    assert "SB3: PanicError: unfit" in to_markdown(threads.QUESTION, [result], {})


def test_ours_is_left_out_where_there_is_nothing_to_compare_it_with() -> None:
    def theirs() -> Any:
        raise ValueError

    experiment = sb3.at_scale(100)[2]
    contestants = sb3._samplers(theirs, lambda buffer: buffer, 8)
    absent = Absences(experiment.rivals)
    for name, make in contestants.items():
        with absent.excused(name):
            make()
    assert absent == {"sb3": "ValueError: ", "fastreplay": "SB3 fails: ValueError: "}


def test_a_rival_that_does_not_end_is_left_out() -> None:
    absent = Absences(["rlox"])

    def hang() -> None:
        while True:
            time.sleep(60)

    with absent.excused("rlox", limit_s=0.05):
        hang()
    assert absent == {"rlox": "TimeoutError: no end within 0.05 s"}
    with pytest.raises(TimeoutError), absent.excused("fastreplay-out", limit_s=0.05):
        hang()


def test_what_is_excused() -> None:
    absent = Absences(["sb3"])
    with absent.excused("fastreplay"):
        raise AbsentError("it has no such thing")
    with absent.excused("sb3"):
        raise ValueError
    assert absent == {"fastreplay": "it has no such thing", "sb3": "ValueError: "}
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), absent.excused("sb3"):
            raise error
    with pytest.raises(ValueError, match="ours"), absent.excused("kernel"):
        raise ValueError("ours")


def test_every_experiment_says_who_may_fail() -> None:
    ours = {"fastreplay", "fastreplay-positional", "fastreplay-out", "fastreplay-2-threads", "native"}
    machine = {*MACHINE, "ceiling"}
    for experiment in (*buffers.at_scale(50, 8), *sb3.at_scale(50)):
        assert set(experiment.contestants()) - ours - machine == set(experiment.rivals)


def test_turns_go_on_without_who_failed() -> None:
    absent = Absences(["sb3"])
    readings = take_turns({"sb3": fail, "numpy": lambda: {"s": 1.0}}, 3, absent)
    assert readings == {"numpy": [{"s": 1.0}] * 3}
    assert absent == {"sb3": "PanicError: unfit"}


def test_torchrl_takes_flags_as_it_stores_them() -> None:
    """A vector environment's flags are bool, its storage has the dtypes of the first insert."""
    pytest.importorskip("torchrl", reason="TorchRL comes with make .venv/.bench")
    work = Work("extend", WORKLOADS["cheetah"], 64, 1000)
    works.contestant(works.filled(TorchRL, work), work).call()


def test_a_contestant_lives_in_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "own" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(elsewhere, "ENVIRONMENTS", tmp_path)

    def measured_there(**makers: Any) -> Result:
        there = {name: partial(elsewhere.contestant, "own", make) for name, make in makers.items()}
        return measure(Experiment("key", "title", lambda: there, rivals=there), rounds=3, round_s=1e-4)

    work = Work("sample", WORKLOADS["pendulum"], 64, 1000)
    wrong = partial(_wrong, work)
    result = measured_there(
        numpy=partial(works.ready, "numpy", work), rlox=partial(_complain, "float32 only"), sb3=wrong
    )
    assert [len(taken) for taken in result.readings.values()] == [3]
    assert 1e-7 < (result.median("numpy") or 0) < 1
    assert result.absent["sb3"].startswith("AssertionError: NumPy ring: ")
    assert result.absent["rlox"] == "ValueError: float32 only"
    result = measured_there(numpy=partial(works.ready, "numpy", work), sb3=partial(os._exit, 3))
    assert result.absent == {"numpy": "its process ended with status 3", "sb3": "its process ended"}
    with pytest.raises(AbsentError, match="not there: make build/bench/else"):
        elsewhere.contestant("else", partial(works.ready, "numpy", work))
    elsewhere.dismiss()


def _wrong(work: Work) -> Contestant:
    ring = ForgetsRows(work.workload, work.capacity)
    ring.fill()
    return works.contestant(ring, work)


def _complain(reason: str) -> Any:
    raise ValueError(reason + "\nand more")


def test_rings_are_kept_while_they_are_as_they_were_filled() -> None:
    sample = Work("sample", WORKLOADS["pendulum"], 64, 1024)
    ring = works.RINGS.of(Fastreplay, sample)
    assert works.RINGS.of(Fastreplay, replace(sample, num_rows=32)) is ring
    out = works.RINGS.of(FastreplayOut, sample)
    assert isinstance(out, FastreplayOut)
    assert out.buffer is ring.buffer  # type: ignore[attr-defined]
    assert works.RINGS.of(NumpyRing, sample) is not ring
    assert works.RINGS.of(Fastreplay, replace(sample, kind="add", num_rows=1)) is ring
    assert works.RINGS.of(Fastreplay, sample) is not ring  # which may have been written to since
    extended = works.RINGS.of(StableBaselines3, replace(sample, kind="extend", num_rows=16))
    assert extended.num_envs == 16
    assert works.RINGS.of(Fastreplay, replace(sample, capacity=512)).capacity == 512
    works.RINGS.clear()


def test_forked_processes_count_and_say_what_fails() -> None:
    forks = Forks(partial(time.sleep, 0.001), 2)
    counts = forks(0.05)
    assert len(counts) == 2
    assert all(1 <= count <= 50 for count in counts)
    forks.close()
    forks = Forks(partial(_complain, "no"), 1)
    with pytest.raises(RuntimeError, match="ValueError: no"):
        forks(0.01)
    forks.close()


def test_rings_of_many_fields_hold_what_was_put_in() -> None:
    makers = many_fields.contestants(4, 300, 16)
    for name in ("numpy", "fastreplay"):
        made = makers[name]()
        made.check()
        drawn = made.call()
        drawn["field_1"][3] += 1
        with pytest.raises(AssertionError, match="field_1: wrong content"):
            many_fields._check(partial(dict, drawn), 4, 16)
