# SPDX-License-Identifier: MIT
"""What is refused has changed nothing: every public name, by a walk, so that a new one cannot be forgotten."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from refusals import Case, difference, documented, num_native_bytes, num_threads, public_names, snapshot, world
from refusals_adapters import ADAPTERS
from refusals_adapters_prioritized import PRIORITIZED
from refusals_adapters_single import SINGLE
from refusals_buffer import BUFFERS
from refusals_checkpoints import CHECKPOINTS
from refusals_datasets import DATASETS
from refusals_dedupe import DEDUPED
from refusals_harmless import HARMLESS
from refusals_kept import KEPT_CASES
from refusals_lanes import LANES
from refusals_mixtures import MIXTURES
from refusals_priorities import PRIORITIES
from refusals_reading import READING
from refusals_ring_files import RING_FILES
from refusals_samplers import SAMPLERS
from refusals_scenes import leave
from refusals_target import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

CATALOGUE: list[Case] = [
    *BUFFERS,
    *READING,
    *PRIORITIES,
    *LANES,
    *CHECKPOINTS,
    *DATASETS,
    *RING_FILES,
    *MIXTURES,
    *SAMPLERS,
    *TARGETS,
    *ADAPTERS,
    *SINGLE,
    *PRIORITIZED,
    *KEPT_CASES,
    *DEDUPED,
]
NAMES = public_names()
_REPEATS = 100
_TRIALS = 50

pytestmark = pytest.mark.filterwarnings("ignore:This system does not seem to have enough memory")


def refuse(case: Case, call: Callable[[], Any]) -> None:
    """Make the call, which has to be refused by exactly this kind of exception."""
    with pytest.raises(case.raises) as caught:
        call()
    assert type(caught.value) is case.raises or not case.is_theirs


def look(case: Case, seen: list[Any]) -> tuple[Any, dict[str, Any]]:
    """Take down everything but what may change."""
    things, around = snapshot(seen), world()
    for name in case.ignored:
        things[1][0].pop(name, None)
        around.pop(name, None)
    return things, around


def test_the_walk_meets_every_kind_of_name() -> None:
    expected = "fr.ReplayBuffer.add fr.ReplayBuffer.__init__ fr.ReplayBuffer.rng_state fr.ReplayBuffer.from_env"
    expected += " fr.Loader.__next__ fr.soft_update_ sb3.HerReplayBuffer.ep_length sb3.ReplayBuffer.rewards"
    expected += " sb3.ReplayBuffer.reset cleanrl.ReplayBuffer.add sb3.Acceleration.undo sb3.Columns.__setitem__"
    assert set(expected.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_in_the_catalogue(name: str) -> None:
    """Either it refuses something, or it is said why it cannot."""
    raised = [case.raises for case in CATALOGUE if case.name == name and not case.is_theirs]
    listed = documented(NAMES[name])
    if name in HARMLESS:
        assert not listed, f"{name}: the docstring says that it raises {listed}"
        return
    assert raised or any(case.name == name for case in CATALOGUE), f"{name}: no refused call in the catalogue"
    for error in listed:
        assert any(issubclass(each, error) for each in raised), f"{name}: no case raises {error.__name__}"
    for error in raised:
        assert not listed or issubclass(error, tuple(listed)), f"{name}: {error.__name__} is not documented"


def test_the_catalogue_names_nothing_else() -> None:
    assert {case.name for case in CATALOGUE} | set(HARMLESS) <= set(NAMES)
    assert not {case.name for case in CATALOGUE} & set(HARMLESS)
    assert [label for label, count in Counter(map(str, CATALOGUE)).items() if count > 1] == []


@pytest.mark.share(4)
@pytest.mark.parametrize("case", CATALOGUE, ids=str)
def test_what_is_refused_has_changed_nothing(case: Case, request: pytest.FixtureRequest) -> None:
    if case.is_on_device:
        request.getfixturevalue("cuda")
    np.random.seed(7)
    scene, twin = case.make(), case.make()
    request.addfinalizer(partial(leave, scene, twin))
    case.refused(twin)
    call = case.refused(scene)
    seen = [scene, call.args, call.keywords]
    assert difference(snapshot(twin, with_places=False), snapshot(scene, with_places=False)) == "", "they are no twins"
    before = look(case, seen)
    threads = num_threads()
    refuse(case, call)
    for _ in range(100):  # a thread that was waited for is still counted for a moment
        if num_threads() <= threads:
            break
        time.sleep(0.01)
    assert num_threads() <= threads
    assert difference(before, look(case, seen)) == ""
    if case.is_repeatable:
        refuse(case, call)
        assert difference(before, look(case, seen)) == ""
    state = np.random.get_state()
    expected = snapshot(list(case.go_on(twin)), with_places=False)
    np.random.set_state(state)
    assert difference(expected, snapshot(list(case.go_on(scene)), with_places=False)) == ""


@pytest.mark.share(8)
@pytest.mark.parametrize("case", [case for case in CATALOGUE if case.is_repeatable], ids=str)
def test_what_is_refused_keeps_no_memory(case: Case, request: pytest.FixtureRequest) -> None:
    cuda = request.getfixturevalue("cuda") if case.is_on_device else None
    scene = case.make()
    request.addfinalizer(partial(leave, scene))
    call = case.refused(scene)

    def held_after(count: int) -> tuple[int, int]:
        for _ in range(count):
            with suppress(case.raises):
                call()
        if cuda is not None:  # which remembers every event
            return cuda.num_blocks, 0
        return sys.getallocatedblocks(), num_native_bytes()

    gc.collect(1)
    gc.disable()  # whatever only the collector frees is kept
    request.addfinalizer(gc.enable)
    held_after(5)
    for _ in range(_TRIALS):  # what is kept is kept each time; the interpreter's lists of freed tuples are full once
        before, after = held_after(5), held_after(_REPEATS)
        if after[0] - before[0] < _REPEATS // 2 and after[1] - before[1] < 16 * _REPEATS:
            return
    pytest.fail(f"Python blocks or native bytes are kept: {before} became {after} in {_REPEATS} calls")
