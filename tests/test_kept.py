# SPDX-License-Identifier: MIT
"""Checkpoints that an earlier fastreplay wrote: kept here, and loaded by this one."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sb3_support import assert_same

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT = Path(__file__).parent / "kept"


def maker() -> Any:
    """Return the script that made them."""
    spec = importlib.util.spec_from_file_location("kept_make", KEPT / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = maker()
FIRST: dict[str, Callable[[], Any]] = MAKE.FIRST


def everything(buffer: Any) -> dict[str, Any]:
    """Return what a buffer holds and does next."""
    whole, state = buffer[:], buffer.__reduce__()[2]
    found = {name: whole[name] for name in buffer.schema} | {"ticket": whole.ticket}
    found |= {"repr": repr(buffer), "rng": buffer.rng_state, "stats": dict(buffer.stats(), sampled=0)}
    found |= {"masses": state["masses"]["values"], "largest": buffer.max_priority} if "masses" in state else {}
    follow: Any = None if buffer._lanes is None else fr.Sequence(4)
    for size in (3, 16):
        batch = buffer.sample(size, follow=follow)
        found |= {f"{size} {name}": batch[name] for name in batch.keys()}  # noqa: SIM118 - no mapping
    return found | {"spawned": buffer.spawn(1)[0].rng_state}


@pytest.mark.parametrize("name", FIRST)
def test_what_was_kept_is_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copytree(KEPT / "first" / name, path)
    fr.verify(path)
    loaded: Any = fr.ReplayBuffer.load(path)
    made = FIRST[name]()
    expected, found = everything(made), everything(loaded)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    loaded.save(path)  # what is there stays, of which it is a part
    again = everything(fr.ReplayBuffer.load(path))
    np.testing.assert_array_equal(again["ticket"], expected["ticket"])


def test_counters_and_what_was_attached_are_loaded() -> None:
    loaded: Any = fr.ReplayBuffer.load(KEPT / "second" / "counted")
    assert loaded.attached == MAKE.ATTACHED
    assert loaded.stats() == MAKE.counted().stats()


@pytest.mark.parametrize("name", ["deduped", "hindsight", "rainbow"])
def test_drop_ins_that_were_kept_are_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copytree(KEPT / "second" / name, path)
    fr.verify(path)
    make = MAKE.SECOND[name]
    made, loaded = make(), make(is_filled=False)
    loaded.load(path)
    if name == "rainbow":
        found, expected = (vars(each) | {"rows": each.sample(16)} for each in (loaded, made))
        assert_same(found["rows"], expected["rows"])
        assert_same(*(tuple(tuple(step) for step in each["_steps"]) for each in (found, expected)))
        return
    assert (loaded.pos, loaded.full) == (made.pos, made.full)
    for column in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        mine, its = getattr(made, column), getattr(loaded, column)
        for part in mine if isinstance(mine, dict) else [...]:
            np.testing.assert_array_equal(mine[part], its[part])
    if name == "hindsight":
        np.testing.assert_array_equal(loaded.ep_start, made.ep_start)
        np.testing.assert_array_equal(loaded.ep_length, made.ep_length)
    else:
        assert_same(loaded.sample(16), made.sample(16))


def test_little_is_kept() -> None:
    kept = [each for each in KEPT.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
    assert 10_000 < sum(each.stat().st_size for each in kept) < 100_000
