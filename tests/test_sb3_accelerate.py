# SPDX-License-Identifier: MIT
"""accelerate(): what SB3's algorithms use while it holds, and that nothing of it is left afterwards."""

from __future__ import annotations

import sys
import threading
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import stable_baselines3 as sb3
from gymnasium import spaces
from stable_baselines3.common import buffers as theirs
from stable_baselines3.common import utils
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from test_sb3_her import GoalEnv

import fastreplay.sb3 as fr

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULES = ("common.utils", "dqn.dqn", "sac.sac", "td3.td3")


def updates() -> set[Any]:
    return {sys.modules[f"stable_baselines3.{name}"].polyak_update for name in MODULES}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    original = utils.polyak_update
    yield
    assert updates() == {original}
    assert "replay_buffer_class" not in vars(OffPolicyAlgorithm)


def model(kind: Any = sb3.DQN, env: Any = "CartPole-v1", policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    return kind(policy, env, buffer_size=50, device="cpu", **kwargs)


def test_every_choice_of_class() -> None:
    mine = type("Mine", (theirs.ReplayBuffer,), {})
    cases: list[tuple[Any, Any]] = [
        ({}, fr.ReplayBuffer),
        ({"kind": sb3.SAC, "env": "Pendulum-v1"}, fr.ReplayBuffer),
        ({"kind": sb3.TD3, "env": "Pendulum-v1"}, fr.ReplayBuffer),
        ({"kind": sb3.DDPG, "env": "Pendulum-v1"}, fr.ReplayBuffer),
        ({"n_steps": 3}, fr.NStepReplayBuffer),
        ({"replay_buffer_class": theirs.ReplayBuffer}, fr.ReplayBuffer),
        ({"replay_buffer_class": theirs.NStepReplayBuffer}, fr.NStepReplayBuffer),
        ({"replay_buffer_class": fr.ReplayBuffer}, fr.ReplayBuffer),
        ({"replay_buffer_class": mine}, mine),
        ({"kind": sb3.SAC, "env": GoalEnv(), "policy": "MultiInputPolicy"}, fr.DictReplayBuffer),
        (
            {
                "kind": sb3.SAC,
                "env": GoalEnv(),
                "policy": "MultiInputPolicy",
                "replay_buffer_class": sb3.HerReplayBuffer,
            },
            fr.HerReplayBuffer,
        ),
    ]
    with warnings.catch_warnings(), fr.accelerate():
        warnings.simplefilter("error")
        for arguments, expected in cases:
            made = model(**arguments)
            assert type(made.replay_buffer) is expected
            assert made.replay_buffer_class is expected
    assert type(model().replay_buffer) is theirs.ReplayBuffer


def test_only_sb3s_warnings() -> None:
    """One that tells of n_steps and a class, with the same words."""
    messages = []
    for is_accelerated in (False, True):
        acceleration = fr.accelerate() if is_accelerated else None
        with pytest.warns(UserWarning, match="n_steps=3") as caught:
            model(n_steps=3, replay_buffer_class=theirs.ReplayBuffer)
        messages.append([str(warning.message) for warning in caught])
        if acceleration is not None:
            acceleration.undo()
    assert messages[0] == messages[1]


def test_what_exists_is_left_alone() -> None:
    before = model()
    with fr.accelerate():
        assert type(before.replay_buffer) is theirs.ReplayBuffer
        inside = model()
    assert inside.replay_buffer_class is theirs.ReplayBuffer
    assert type(inside.replay_buffer) is fr.ReplayBuffer


def test_updates_and_undoing() -> None:
    original = utils.polyak_update
    first = fr.accelerate()
    assert updates() == {fr.polyak_update}
    assert repr(first) == "<active acceleration of stable_baselines3>"
    with fr.accelerate() as second:
        first.undo()
        first.undo()
        assert updates() == {fr.polyak_update}
        assert type(model().replay_buffer) is fr.ReplayBuffer
    second.undo()
    assert repr(second) == "<undone acceleration of stable_baselines3>"
    assert updates() == {original}
    with fr.accelerate():
        assert updates() == {fr.polyak_update}


def test_made_a_second_time_it_is_undone_once() -> None:
    original = utils.polyak_update
    acceleration: Any = fr.accelerate()
    acceleration.__init__()
    acceleration.undo()
    assert updates() == {original}
    acceleration.__init__()
    assert updates() == {fr.polyak_update}
    acceleration.undo()
    assert updates() == {original}


@pytest.mark.parametrize("position", ["stable_baselines3.aaa", "stable_baselines3.zzz"])
def test_refused_by_one_module_it_changes_none(position: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that one is changed before or after the others."""
    original = utils.polyak_update

    class Frozen(ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    frozen = Frozen(position)
    vars(frozen)["polyak_update"] = original
    everything = dict(sys.modules)
    first = position.endswith("aaa")
    monkeypatch.setattr(sys, "modules", {position: frozen, **everything} if first else {**everything, position: frozen})
    with pytest.raises(AttributeError, match="polyak_update"):
        fr.accelerate()
    assert updates() == {original}
    assert type(model().replay_buffer) is theirs.ReplayBuffer
    monkeypatch.undo()
    with fr.accelerate():
        assert updates() == {fr.polyak_update}
    assert updates() == {original}


def test_a_finalizer_may_undo_another_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastreplay.adapters.sb3 import accelerate as accelerating

    original, outer = utils.polyak_update, fr.accelerate()
    outer.undo()
    real = accelerating._install

    def install() -> None:
        real()
        outer.undo()
        fr.accelerate().undo()

    finished = threading.Thread(target=lambda: fr.accelerate().undo(), daemon=True)
    monkeypatch.setattr(accelerating, "_install", once(install, real))
    finished.start()
    finished.join(60)
    assert not finished.is_alive()
    assert updates() == {original}


def once(first: Any, then: Any) -> Any:
    """Call one function the first time, and the other from then on."""
    functions = [first]
    return lambda: functions.pop()() if functions else then()


def test_an_exception_undoes_it() -> None:
    with pytest.raises(KeyError), fr.accelerate():
        raise KeyError


def test_other_patches_stay() -> None:
    module = sys.modules["stable_baselines3.sac.sac"]
    original = module.polyak_update

    def mine(*_: Any) -> None:
        pass

    module.polyak_update = mine  # type: ignore[attr-defined]
    try:
        with fr.accelerate():
            assert module.polyak_update is mine
        assert module.polyak_update is mine
    finally:
        module.polyak_update = original  # type: ignore[attr-defined]


def test_saved_models_name_sb3s_class(tmp_path: Path) -> None:
    with fr.accelerate():
        made = model()
        made.save(tmp_path / "model")
        assert type(sb3.DQN.load(tmp_path / "model", env=made.env).replay_buffer) is fr.ReplayBuffer
        made.save_replay_buffer(tmp_path / "buffer")
        made.load_replay_buffer(tmp_path / "buffer")
        # And SB3's own pickles still load.
        theirs_made = theirs.ReplayBuffer(50, spaces.Box(-1, 1, (4,)), spaces.Discrete(2), device="cpu")
        utils_save = sys.modules["stable_baselines3.common.save_util"]
        utils_save.save_to_pkl(tmp_path / "theirs", theirs_made)
        made.load_replay_buffer(tmp_path / "theirs.pkl")
    assert type(sb3.DQN.load(tmp_path / "model", env=made.env).replay_buffer) is theirs.ReplayBuffer


def test_many_threads() -> None:
    errors = []

    def work() -> None:
        try:
            for _ in range(100):
                with fr.accelerate():
                    assert updates() == {fr.polyak_update}
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
