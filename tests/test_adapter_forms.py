# SPDX-License-Identifier: MIT
"""Checkpoints of the buffers that stand for other libraries', loaded into one that was made in another way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dedupe_support import ACTIONS, IMAGES, PARTS
from sb3_support import assert_same
from test_adapter_checkpoints import (
    ENVS,
    SHARED,
    VECTOR,
    attributes,
    change_manifest,
    her,
    quick_disk,
    stream_of,
    use,
)
from test_sb3_her import ACTION, OBSERVATION

import fastreplay.cleanrl as cleanrl
import fastreplay.sb3 as fsb3

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["quick_disk"]

FORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sb3": (fsb3.ReplayBuffer, VECTOR, {}),
    "sb3 that shares": (fsb3.ReplayBuffer, VECTOR, SHARED),
    "sb3 deduped": (fsb3.ReplayBuffer, IMAGES, {"dedupe": 4}),
    "dict": (fsb3.DictReplayBuffer, PARTS, {}),
    "n-step": (fsb3.NStepReplayBuffer, VECTOR, {"n_steps": 3}),
    "her": (fsb3.HerReplayBuffer, OBSERVATION, {"env": None}),
    "prioritized": (fsb3.PrioritizedReplayBuffer, VECTOR, {}),
    "cleanrl": (cleanrl.ReplayBuffer, VECTOR, {}),
    "cleanrl deduped": (cleanrl.ReplayBuffer, IMAGES, {"dedupe": 4}),
}


def formed(kind: str, size: int, envs: int, **more: Any) -> Any:
    cls, space, options = FORMS[kind]
    action = ACTION if kind == "her" else ACTIONS["discrete"]
    return cls(size, space, action, device="cpu", n_envs=envs, **options, **more)


@pytest.mark.parametrize("num_steps", [0, 7, 12, 17, 24])  # of 12 rows
@pytest.mark.parametrize("kind", FORMS)
def test_another_number_of_environments_or_rows_is_refused(kind: str, num_steps: int, tmp_path: Path) -> None:
    """Also where the transitions are as many; and the buffer is as it was."""
    buffer = formed(kind, 24, ENVS)
    draw = stream_of(buffer)
    for _ in range(num_steps):
        buffer.add(*draw())
    buffer.save(tmp_path)
    forms = [(24, envs, f"n_envs: expected {envs}, got 2") for envs in (1, 3, 4)]
    forms += [(size, ENVS, f"buffer_size: expected {size} transitions, got 24") for size in (22, 26, 48)]
    for size, envs, message in forms:
        other = formed(kind, size, envs)
        before = attributes(other)
        with pytest.raises(ValueError, match=f": {message}$"):
            other.load(tmp_path)
        after = attributes(other)
        assert_same(before, after)
    formed(kind, 24, ENVS).load(tmp_path)


@pytest.mark.parametrize("num_steps", [0, 7, 12, 17])
@pytest.mark.parametrize("kind", FORMS)
def test_a_checkpoint_that_does_not_say_how_many_environments(kind: str, num_steps: int, tmp_path: Path) -> None:
    """It is an earlier fastreplay's, and taken over; into others not where its lanes, episodes or cursor tell."""
    buffer, other = formed(kind, 24, ENVS), formed(kind, 24, ENVS)
    draw = stream_of(buffer)
    for _ in range(num_steps):
        buffer.add(*draw())
    buffer.save(tmp_path)
    change_manifest(tmp_path, lambda said: said["buffer"]["adapter"].pop("n_envs"))
    other.load(tmp_path)
    assert_same(attributes(buffer), attributes(other))
    if num_steps in (7, 17) or "deduped" in kind or kind == "her":
        with pytest.raises(ValueError, match="n_envs: expected 4, got 2" if "deduped" in kind else "expected"):
            formed(kind, 24, 4).load(tmp_path)


@pytest.mark.parametrize(("name", "value", "its"), [("capacity", 11, 12), ("capacity", 100, 12), ("n_step", 2, 3)])
@pytest.mark.parametrize("dedupe", [False, True, 4])
def test_rainbows_of_another_form_are_refused(name: str, value: int, its: int, dedupe: Any, tmp_path: Path) -> None:
    """Its rows are tickets modulo the capacity; its steps are of one environment."""
    given: dict[str, Any] = {"capacity": 12, "n_step": 3}
    buffer, other = (
        cleanrl.PrioritizedReplayBuffer(obs_shape=IMAGES.shape, device="cpu", gamma=0.9, dedupe=dedupe, **each)
        for each in (given, given | {name: value})
    )
    frames = np.zeros(IMAGES.shape, np.uint8)
    for step in range(20):
        buffer.add(frames, 0, 1.0, frames, step == 9)
    buffer.save(tmp_path)
    with pytest.raises(ValueError, match=f": {name}: expected {value}, got {its}$"):
        other.load(tmp_path)
    assert (other.size, other.pos, other.max_priority) == (0, 0, 1)


@pytest.mark.parametrize("num_steps", [7, 12, 31])
@pytest.mark.parametrize("kind", ["sb3", "sb3 deduped", "dict", "n-step", "her", "cleanrl"])
def test_native_draws_go_on_from_a_checkpoint_of_numpys(kind: str, num_steps: int, tmp_path: Path) -> None:
    """By a generator that has its own state still; and back again NumPy's are drawn."""
    np.random.seed(3)  # noqa: NPY002 - what buffers seed themselves from
    saved = formed(kind, 24, ENVS)
    native, back = formed(kind, 24, ENVS, rng="native"), formed(kind, 24, ENVS)
    draw = stream_of(saved)
    for _ in range(num_steps):
        saved.add(*draw())
    saved.save(tmp_path)
    own = native._integers.__reduce__()
    native.load(tmp_path)
    assert native._integers.__reduce__() == own
    assert_same(attributes(saved), attributes(native))
    if kind != "her":
        native.sample(5)
        assert native._integers.__reduce__() != own
    native.save(tmp_path)
    back.load(tmp_path)
    assert back._integers is saved._integers
    assert_same(attributes(saved), attributes(back))


NO_SIZES: list[tuple[Any, type[Exception], str]] = [
    (1.5, TypeError, "expected an integer, got float 1.5"),
    (np.float64(8), TypeError, "expected an integer, got float64"),
    ("4", TypeError, "expected an integer, got str '4'"),
    (True, TypeError, "expected an integer, got True"),
    (None, TypeError, "expected an integer, got NoneType"),
    (-1, ValueError, "expected at least 0, got -1"),
    (2**70, MemoryError, "transitions are more than memory can hold"),
]


@pytest.mark.parametrize("kind", ["sb3", "sb3 deduped", "dict", "n-step", "her", "cleanrl"])
def test_what_is_no_batch_size_is_refused_by_native_draws(kind: str) -> None:
    """In our words, before anything is drawn; and what SB3 takes is taken."""
    buffer = her(rng="native") if kind == "her" else formed(kind, 24, ENVS, rng="native")
    use(buffer, stream_of(buffer), 30)
    own = buffer._integers.__reduce__()
    for size, error, message in NO_SIZES:
        with pytest.raises(error, match=f"^batch_size: .*{message}"):
            buffer.sample(size)
    assert buffer._integers.__reduce__() == own
    for size in (0, 1, np.int64(3), np.array(5), np.uint8(200)):
        assert len(buffer.sample(size).rewards) == size
