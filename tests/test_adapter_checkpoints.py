# SPDX-License-Identifier: MIT
"""Checkpoints of the buffers that stand for other libraries': what was saved is taken over, and goes on as it would."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from dedupe_support import ACTIONS, COLORS, IMAGES, PARTS, Stream
from gymnasium import spaces
from sb3_support import assert_same, generators, the_global
from stable_baselines3.common.vec_env import DummyVecEnv
from test_sb3_her import ACTION, OBSERVATION, GoalEnv, Traffic

import fastreplay as fr
import fastreplay.cleanrl as cleanrl
import fastreplay.sb3 as fsb3
from fastreplay.adapters.kept_infos import infos_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENVS = 2
VECTOR = spaces.Box(-1, 1, (5,), np.float32)


def plain(space: Any, cls: Any = fsb3.ReplayBuffer, rows: int = 20, **options: Any) -> Any:
    return cls(rows * ENVS, space, ACTIONS["discrete"], device="cpu", n_envs=ENVS, **options)


def her(**options: Any) -> Any:
    env: Any = DummyVecEnv([GoalEnv] * ENVS)
    return fsb3.HerReplayBuffer(40 * ENVS, OBSERVATION, ACTION, env, device="cpu", n_envs=ENVS, **options)


SHARED: dict[str, Any] = {"optimize_memory_usage": True, "handle_timeout_termination": False}
KINDS: dict[str, Callable[[], Any]] = {
    "sb3": lambda: plain(VECTOR),
    "sb3 of images": lambda: plain(IMAGES, rng="native"),
    "sb3 that shares": lambda: plain(IMAGES, **SHARED),
    "sb3 deduped": lambda: plain(IMAGES, dedupe=4, rng="native"),
    "sb3 deduped colors": lambda: plain(COLORS, dedupe=4),
    "sb3 pairs": lambda: plain(VECTOR, dedupe=True),
    "dict": lambda: plain(PARTS, fsb3.DictReplayBuffer),
    "dict deduped": lambda: plain(PARTS, fsb3.DictReplayBuffer, dedupe={"image": 4}),
    "n-step": lambda: plain(IMAGES, fsb3.NStepReplayBuffer, n_steps=3),
    "n-step deduped": lambda: plain(IMAGES, fsb3.NStepReplayBuffer, n_steps=3, dedupe=4),
    "prioritized": lambda: plain(VECTOR, fsb3.PrioritizedReplayBuffer),
    "prioritized deduped": lambda: plain(IMAGES, fsb3.PrioritizedReplayBuffer, n_steps=2, dedupe=4),
    "her": her,
    "her deduped": lambda: her(dedupe=True),
    "her with infos": lambda: her(copy_info_dict=True),
    "cleanrl": lambda: plain(VECTOR, cleanrl.ReplayBuffer, autoreset="next_step"),
    "cleanrl that shares": lambda: plain(IMAGES, cleanrl.ReplayBuffer, **SHARED),
    "cleanrl deduped": lambda: plain(IMAGES, cleanrl.ReplayBuffer, autoreset="next_step", dedupe=4),
}


def stream_of(buffer: Any, seed: int = 0) -> Callable[[], tuple[Any, ...]]:
    if isinstance(buffer, fsb3.HerReplayBuffer):
        return Traffic(ENVS, seed).step
    resets = "next_step" if isinstance(buffer, cleanrl.ReplayBuffer) else "same_step"
    frames = 1 if buffer.observation_space is VECTOR else 4
    return Stream(buffer.observation_space, ACTIONS["discrete"], ENVS, frames, resets, seed).draw


def use(buffer: Any, draw: Callable[[], tuple[Any, ...]], num_steps: int) -> list[Any]:
    """Add and sample; return what was sampled."""
    seen: list[Any] = []
    for _ in range(num_steps):
        buffer.add(*draw())
    if not isinstance(buffer, fsb3.HerReplayBuffer) or len(buffer._valid):
        seen += [buffer.sample(16) for _ in range(3)]
    if seen and isinstance(buffer, fsb3.PrioritizedReplayBuffer):
        buffer.update_priorities(seen[0].tickets, np.arange(16))
    return seen


def attributes(buffer: Any) -> dict[str, Any]:
    """Return what a pickle would have, as it can be compared."""
    state = {name: value for name, value in buffer.__getstate__().items() if not name.startswith("_slots")}
    found: dict[str, Any] = {
        name: value for name, value in state.items() if isinstance(value, (int, float, bool, np.ndarray))
    }
    found |= {name: value.tolist() for name, value in found.items() if np.asarray(value).dtype.hasobject}
    held = np.arange(buffer.buffer_size if buffer.full else buffer.pos)
    if buffer.optimize_memory_usage:  # of which the row at the cursor has no transition
        held = held[held != buffer.pos]
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        value = getattr(buffer, name, None)
        for key, column in value.items() if isinstance(value, dict) else [("", value)] if value is not None else ():
            found[f"{name} {key}"] = np.array(column[held])
            found.pop(name, None)
    return found


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for the machine's disk: no power is lost here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("num_steps", [0, 13, 47])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_taken_over(kind: str, num_steps: int, tmp_path: Path) -> None:
    """By a buffer that held something else, and whose next minibatches are then those that would have come."""
    buffer, other = KINDS[kind](), KINDS[kind]()
    draw = stream_of(buffer)
    for _ in range(num_steps):
        buffer.add(*draw())
    use(other, stream_of(other, seed=5), 9)
    buffer.save(tmp_path / "kept")
    fr.verify(tmp_path / "kept")
    other.load(tmp_path / "kept")
    if "shares" in kind:
        assert_same(np.array(buffer.observations[buffer.pos]), np.array(other.observations[buffer.pos]))
    mine, yours = attributes(buffer), attributes(other)
    assert mine.keys() == yours.keys()
    for name, value in mine.items():
        assert_same(value, yours[name])
    later = [draw() for _ in range(25)]
    for one in later[:2], later[2:]:
        seen = []
        for each, generator in zip((buffer, other), generators(7), strict=True):
            with the_global(generator):
                seen.append(use(each, iter(one).__next__, len(one)))
        assert_same(*(tuple(each) for each in seen))
    other.save(tmp_path / "kept")
    buffer.load(tmp_path / "kept")
    for name, value in attributes(other).items():
        assert_same(value, attributes(buffer)[name])


@pytest.mark.parametrize("kind", ["sb3", "dict", "sb3 deduped", "sb3 that shares", "cleanrl deduped"])
def test_the_same_files_are_a_replay_buffers(kind: str, tmp_path: Path) -> None:
    """As whose transitions they can be read, whoever wrote them."""
    buffer = KINDS[kind]()
    draw = stream_of(buffer)
    for _ in range(31):
        buffer.add(*draw())
    buffer.save(tmp_path)
    loaded: Any = fr.ReplayBuffer.load(tmp_path, output="numpy")
    lost = ENVS if "shares" in kind else 0  # of the row at the cursor
    assert len(loaded) == ENVS * buffer.size() - lost
    slots = np.roll(np.arange(buffer.size()), -buffer.pos if buffer.full else 0)[lost // ENVS :]
    for name, field in (("actions", "action"), ("rewards", "reward"), ("observations", "observation")):
        column = getattr(buffer, name)
        parts = column.items() if isinstance(column, dict) else [("", column)]
        for key, part in parts:
            whole = loaded[:][f"{field}/{key}" if key else field]
            expected = np.array(part[:])[slots]
            np.testing.assert_array_equal(whole.reshape(expected.shape), expected)
    loaded.sample(8)
    assert fr.describe(tmp_path).capacity == ENVS * 20


@pytest.mark.parametrize("dedupe", [False, True, 4])
@pytest.mark.parametrize("num_steps", [0, 1, 7, 60])
def test_cleanrls_rainbow_goes_on(dedupe: Any, num_steps: int, tmp_path: Path) -> None:
    buffer, other = (cleanrl.PrioritizedReplayBuffer(25, IMAGES.shape, "cpu", 3, 0.9, dedupe=dedupe) for _ in range(2))
    draw = Stream(IMAGES, ACTIONS["discrete"], 1).draw

    def step() -> tuple[Any, ...]:
        obs, next_obs, action, reward, done, _ = draw()
        return obs, action, reward, next_obs, done

    for _ in range(9):
        other.add(*step())
    for _ in range(num_steps):
        buffer.add(*step())
    for _ in range(3):
        buffer.save(tmp_path)
        other.load(tmp_path)
        for _ in range(5):
            given = step()
            buffer.add(*given)
            other.add(*given)
            assert (buffer.pos, buffer.size, buffer.max_priority) == (other.pos, other.size, other.max_priority)
        if buffer.size:
            mine, yours = buffer.sample(8), other.sample(8)
            assert_same(tuple(mine), tuple(yours))
            for each in (buffer, other):
                each.update_priorities(mine.indices, np.arange(8) + num_steps)
    fr.verify(tmp_path)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """And the buffer is as it was."""
    made = {name: make() for name, make in KINDS.items()}
    for name, buffer in made.items():
        draw = stream_of(buffer)
        for _ in range(12):
            buffer.add(*draw())
        buffer.save(tmp_path / name)
    fits = {
        ("sb3", "prioritized"): "expected the priorities",
        ("prioritized", "sb3"): "parts: expected a buffer without slots",
        ("sb3 that shares", "sb3 of images"): "schema",
        ("sb3 deduped", "sb3 of images"): "schema",
        ("sb3 of images", "sb3 deduped"): "schema",
        ("sb3", "dict"): "schema",
        ("her", "dict"): "buffer_size: expected 40 transitions, got 80",
        ("cleanrl", "sb3"): "attached: expected a buffer without",
    }
    for (kept, name), message in fits.items():
        before = attributes(made[name])
        with pytest.raises(ValueError, match=message):
            made[name].load(tmp_path / kept)
        for key, value in attributes(made[name]).items():
            assert_same(before[key], value)
    fewer = plain(VECTOR, rows=19)
    with pytest.raises(ValueError, match="buffer_size: expected 38 transitions, got 40"):
        fewer.load(tmp_path / "sb3")
    fr.ReplayBuffer(10, {"x": ()}, output="numpy").save(tmp_path / "native")
    with pytest.raises(ValueError, match=r"a buffer of fastreplay\.sb3 or fastreplay\.cleanrl"):
        fewer.load(tmp_path / "native")
    with pytest.raises(FileNotFoundError):
        fewer.load(tmp_path / "nothing")
    with pytest.raises(TypeError, match="path"):
        fewer.save(5)
    with pytest.raises(ValueError, match="copy_info_dict: expected a checkpoint with infos"):
        made["her with infos"].load(tmp_path / "her")
    with pytest.raises(ValueError, match="copy_info_dict: expected a checkpoint without infos, got one with; True"):
        made["her"].load(tmp_path / "her with infos")


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a checkpoint says, under a checksum that fits."""
    file = path / "manifest.json"
    said = json.loads(file.read_bytes())["checkpoint"]
    change(said)
    body = json.dumps(said).encode()
    file.write_bytes(b'{"crc32": "%08x", "checkpoint": ' % zlib.crc32(body) + body + b"}\n")


def say_of_adapter(entries: dict[str, Any], said: dict[str, Any]) -> None:
    said["buffer"]["adapter"] = entries


@pytest.mark.parametrize("kind", ["sb3 of images", "sb3 deduped", "her", "prioritized", "cleanrl"])
def test_a_hostile_adapter_is_refused_or_right(kind: str, tmp_path: Path) -> None:
    """Whatever is said of a cursor under a checksum that fits: nothing is read or drawn from where nothing lies."""
    buffer = KINDS[kind]()
    draw = stream_of(buffer)
    for _ in range(15):
        buffer.add(*draw())
    buffer.save(tmp_path)
    good = json.loads((tmp_path / "manifest.json").read_bytes())["checkpoint"]
    values: list[Any] = [-1, 0, 1, 7, 20, 40, 2**40, 2**63, True, False, None, "x", [], {}, [0, 1, 2], {"key": [1]}]
    num_refused = 0
    adapter = good["buffer"]["adapter"]
    for name in adapter:
        for value in values:
            change_manifest(tmp_path, partial(say_of_adapter, adapter | {name: value}))
            other = KINDS[kind]()
            try:
                other.load(tmp_path)
            except (ValueError, MemoryError):
                num_refused += 1
            else:
                with suppress(
                    ValueError, IndexError, RuntimeError
                ):  # of a cursor that was set elsewhere, or no episode
                    other.sample(4)
                    other.add(*draw())
    assert num_refused > 20


PLAIN: dict[str, Any] = {
    "": None,
    "is_success": True,
    "numbers": [0, -(2**63), 2**64 - 1, 0.1, -0.0, float("inf"), float("-inf"), "\ud800 text"],
    "episode": {"r": np.float32(1.5), "l": 3, "t": (0.5, [], ())},
    "terminal_observation": {"image": np.arange(6, dtype=np.uint8).reshape(2, 3), "flags": np.array([True, False])},
    "dict": {"dict": {}, "float": "nan", "dtype": "<f4"},
    "empty": np.zeros((0, 3), ">i2"),
    "scalar": np.array(2.5 + 1j),
    "strided": np.arange(12)[::3],
}
HELD: list[Any] = []
HELD.append({"again": HELD})
OBJECTS: list[tuple[Any, str]] = [
    (object(), r"infos\[0, 1\]\['key'\]: expected what a checkpoint can hold .*, got object; pickles hold any object"),
    ({1: 2}, r"\['key'\]: .* got dict"),
    ([3, {4}], r"\['key'\]\[1\]: .* got set"),
    (2**64, "got int"),
    (np.array(["x"]), "got ndarray"),
    (np.ma.masked_array([1, 2]), "got MaskedArray"),
    (type("Named", (str,), {})("x"), "got Named"),
    (HELD, "infos: expected dicts and lists that do not hold themselves"),
]


def test_infos_come_back(tmp_path: Path) -> None:
    """Values and types, of each step; what is not a number is one that is not."""
    buffer, other = her(copy_info_dict=True), her(copy_info_dict=True)
    draw = stream_of(buffer)
    for _ in range(55):
        buffer.add(*draw())
    buffer.infos[3, 1] = PLAIN | {"nan": float("nan")}
    buffer.save(tmp_path)
    other.load(tmp_path)
    got = other.infos[3, 1]
    assert np.isnan(got.pop("nan"))
    assert_same(PLAIN, got)
    assert repr(PLAIN) == repr(got)
    assert other.infos[4, 0] == buffer.infos[4, 0] != {}


@pytest.mark.parametrize(("value", "message"), OBJECTS)
def test_infos_that_are_objects_are_refused(value: Any, message: str, tmp_path: Path) -> None:
    buffer = her(copy_info_dict=True)
    buffer.add(*stream_of(buffer)())
    buffer.infos[0, 1] = {"key": value}
    with pytest.raises(ValueError, match=message):
        buffer.save(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


NUMBER: dict[str, Any] = {"dtype": "<f4", "shape": [1], "data": "00000000"}
CHANGES: list[dict[str, Any]] = [
    *({"dtype": name} for name in ("O", "V4", "U1", "M8[s]", "<f3", "f4,f4", 5)),
    *({"shape": shape} for shape in ([2], [-1], [2**70], "x", [1, None], [0, 2**62])),
    *({"data": data} for data in ("0", "zz", "00000000" * 9, 0)),
    {"dtype": "|b1", "data": "02"},
]
VALUES: list[Any] = [{}, {"float": "1"}, {"float": []}, {"dict": {}, "tuple": []}, *(NUMBER | each for each in CHANGES)]
HOSTILE: list[Any] = [
    *(None, [], {}, [[{"dict": {}}]], [[{"dict": {}}, 1]], [[{"dict": []}] * 2], [[{"tuple": {}}] * 2], [[[], []]]),
    *([[{"dict": {"x": value}}] * 2] for value in VALUES),
]


@pytest.mark.parametrize("steps", HOSTILE)
def test_infos_that_nobody_saved_are_refused(steps: Any) -> None:
    data = np.frombuffer(json.dumps({"infos": steps}).encode(), np.uint8)
    with pytest.raises(ValueError, match="attached: infos"):
        infos_of(data, 1, 2)
    deep = np.frombuffer(b'{"infos": ' + b"[" * 900 + b"]" * 900 + b"}", np.uint8)
    with pytest.raises(ValueError, match="attached: infos"):
        infos_of(deep, 1, 2)
