# SPDX-License-Identifier: MIT
"""Numbers as NumPy and torch have them: taken as what they are, kept as what files can say, or refused by name."""

from __future__ import annotations

import copy
import pickle
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import buffers as sb3_buffers
from support import FIELDS, NativeBuffer, transitions

import fastreplay as fr
import fastreplay.cleanrl
import fastreplay.sb3 as fsb3

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Native: Any = fr  # untyped: what is refused here is what its types refuse
SPACES: Any = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
NUMBERS = {"alpha": 0.5, "beta": 0.25, "eps": 0.125, "initial": 2, "uniform_mix": 0.5, "floor": 1}
KINDS: list[Any] = [np.float32, np.array, torch.tensor, Fraction]
NO_NUMBERS = [torch.tensor([0.5, 0.6]), torch.tensor(1j), torch.empty((), device="meta"), np.array([0.5, 0.6])]


@pytest.mark.parametrize("kind", KINDS)
def test_rules_are_of_plain_numbers(kind: Any, tmp_path: Path) -> None:
    rule = fr.Priorities(**{name: kind(value) for name, value in NUMBERS.items()})
    assert rule == fr.Priorities(**NUMBERS)  # type: ignore[arg-type]
    assert {type(getattr(rule, name)) for name in NUMBERS} == {float}
    buffer = NativeBuffer(10, FIELDS, seed=0, output="numpy", priorities=rule)
    buffer.extend(**transitions(0, 7))
    buffer.save(tmp_path / "kept")
    loaded: Any = fr.ReplayBuffer.load(tmp_path / "kept", priorities=rule)
    assert (loaded.sample(5).weight == buffer.sample(5).weight).all()


def of_sb3(cls: Any, kind: Any = int) -> Any:
    buffer = cls(kind(21), *SPACES, "cpu", n_envs=kind(2))
    for step in range(4):
        rows = np.full((2, 3), step, np.float32)
        buffer.add(rows, rows, np.ones((2, 1), np.int64), np.ones(2), np.zeros(2), [{}, {}])
    return buffer


@pytest.mark.parametrize(
    "cls",
    [fsb3.ReplayBuffer, fsb3.NStepReplayBuffer, fsb3.PrioritizedReplayBuffer, fastreplay.cleanrl.ReplayBuffer],
)
@pytest.mark.parametrize("save", [lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy])
def test_sizes_of_numpy_outlive_a_pickle(cls: Any, save: Any, tmp_path: Path) -> None:
    buffer = of_sb3(cls, np.int64)
    assert (buffer.buffer_size, buffer.n_envs) == (10, 2)
    assert save(buffer).rewards[:4].tolist() == [[1, 1]] * 4
    buffer.save(tmp_path / "kept")
    again = of_sb3(cls)
    again.load(tmp_path / "kept")
    assert again.pos == 4


def test_sizes_of_numpy_come_from_sb3s() -> None:
    theirs = of_sb3(sb3_buffers.ReplayBuffer, np.int64)
    theirs.optimize_memory_usage = np.bool_(False)
    ours = fsb3.ReplayBuffer.from_sb3(theirs)
    assert (type(ours.buffer_size), type(ours.n_envs), ours.optimize_memory_usage) == (int, int, False)
    assert pickle.loads(pickle.dumps(ours)).pos == 4


@pytest.mark.parametrize("cls", [fsb3.ReplayBuffer, fastreplay.cleanrl.ReplayBuffer])
@pytest.mark.parametrize(("n_envs", "kind"), [(0, ValueError), ("2", TypeError), (2.0, TypeError)])
def test_environments_are_a_number_of_them(cls: Any, n_envs: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^n_envs: expected"):
        cls(20, *SPACES, "cpu", n_envs=n_envs)


@pytest.mark.parametrize("number", NO_NUMBERS)
def test_what_is_no_number_is_told_by_name(number: Any) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "gamma": lambda: Native.NStep(3, number),
        "alpha": lambda: Native.Priorities(alpha=number),
        "initial": lambda: Native.Priorities(initial=number),
        "divide": lambda: Native.Field((), "uint8", out="float32", divide=number),
        "timeout": lambda: NativeBuffer(3, FIELDS, timeout=number),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: expected"):
            call()
    with pytest.raises(TypeError, match=r"^n: expected an integer"):
        Native.NStep(torch.empty((), dtype=torch.int64, device="meta"), 0.9)


@pytest.mark.parametrize(
    ("kind", "message", "beside"),
    [
        (TypeError, "lanes: expected integers, got [[0], [1, 1]]", {"lanes": [[0], [1, 1]]}),
        (ValueError, "lanes: expected lanes in [0, 2)", {"lanes": [0, 2**64]}),
        (ValueError, "lanes: expected lanes in [0, 2)", {"lanes": np.array([0, 2**63], np.uint64)}),
        (TypeError, "mask: expected (n,) bools", {"mask": [[True], [True, False]]}),
        (TypeError, "mask: expected (n,) bools", {"mask": torch.empty(2, dtype=torch.bool, device="meta")}),
        (ValueError, "mask: expected every entry", {"mask": np.ma.masked_array([True, True], [False, True])}),
    ],
)
def test_what_lies_beside_rows_is_told_by_name(kind: type[Exception], message: str, beside: Any) -> None:
    buffer: Any = NativeBuffer(10, FIELDS, lanes=2, output="numpy")
    with pytest.raises(kind, match=re.escape(message)):
        buffer.extend(**transitions(0, 2), **beside)
    assert len(buffer) == 0
    with pytest.raises(ValueError, match=r"^lane: expected an integer, got \[\[0\], \[1, 1\]\]"):
        buffer.add(**{name: value[0] for name, value in transitions(0, 1).items()}, lane=[[0], [1, 1]])
    with pytest.raises(ValueError, match=r"lanes: expected lanes in \[0, 2\)"):
        buffer.extend(NativeBuffer(10, FIELDS, lanes=2), lanes=[0, 2**64])
    buffer.extend(**{name: value[:0] for name, value in transitions(0, 2).items()}, lanes=[], mask=[])


def test_an_axis_too_many_is_told_by_name() -> None:
    buffer: Any = NativeBuffer(10, {"x": ((1,) * 30, "bool")}, lanes=1, ends=(), output="numpy")
    with pytest.raises(ValueError, match=r"^x: shape: expected at most 30 dimensions, got 31, with that of steps"):
        buffer.sample(2, follow=fr.Sequence(2))


def test_words_of_a_rule_are_words() -> None:
    for name in ("draws", "normalize"):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            Native.Priorities(**{name: np.array(["batch", "x"])})
