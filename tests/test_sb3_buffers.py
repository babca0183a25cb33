# SPDX-License-Identifier: MIT
"""fastreplay.sb3's ReplayBuffer and DictReplayBuffer against SB3's own, call by call."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_support import ACTIONS, BOX, BOX64, DICT, IMAGE, OBSERVATIONS, Steps, Twins, assert_same, run_program
from stable_baselines3.common import buffers as sb3_buffers
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import fastreplay.sb3 as fsb3

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no-timeouts": {"handle_timeout_termination": False},
    "shared": {"optimize_memory_usage": True, "handle_timeout_termination": False},
}


@pytest.mark.share(3)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_random_programs(observation: str, action: str, options: str, n_envs: int) -> None:
    spaces_ = OBSERVATIONS[observation], ACTIONS[action]
    twins = Twins("ReplayBuffer", 9 * n_envs, *spaces_, "cpu", n_envs, **OPTIONS[options])
    run_program(twins, Steps(*spaces_, n_envs, seed=n_envs), seed=len(observation) + len(action))


@pytest.mark.share(2)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_random_programs_with_dicts(action: str, n_envs: int, seed: int) -> None:
    twins = Twins("DictReplayBuffer", 9 * n_envs, DICT, ACTIONS[action], "cpu", n_envs, seed=seed)
    run_program(twins, Steps(DICT, ACTIONS[action], n_envs, seed=seed), seed)


@pytest.mark.share(3)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
def test_long_programs(options: str, n_envs: int) -> None:
    twins = Twins("ReplayBuffer", 50, BOX, ACTIONS["box"], "cpu", n_envs, **OPTIONS[options])
    run_program(twins, Steps(BOX, ACTIONS["box"], n_envs), seed=1, num_operations=600)


def filled(name: str = "ReplayBuffer", observation: spaces.Space[Any] = BOX, n_envs: int = 2, **options: Any) -> Twins:
    twins = Twins(name, 20 * n_envs, observation, ACTIONS["box"], "cpu", n_envs, **options)
    steps = Steps(observation, ACTIONS["box"], n_envs)
    for _ in range(25):
        twins.call("add", *steps.draw())
    return twins


class SpacesOnly(gym.Env[Any, Any]):
    render_mode = None
    action_space = ACTIONS["box"]

    def __init__(self, observation: spaces.Space[Any]) -> None:
        self.observation_space = observation


def vec_normalize(observation: spaces.Space[Any], n_envs: int = 2, **options: Any) -> VecNormalize:
    env = VecNormalize(DummyVecEnv([lambda: SpacesOnly(observation) for _ in range(n_envs)]), **options)
    rng = np.random.default_rng(3)
    steps = Steps(observation, ACTIONS["box"], n_envs)
    for _ in range(5):
        obs = steps.draw()[0]
        if isinstance(obs, dict):
            assert isinstance(env.obs_rms, dict)
            for key, rms in env.obs_rms.items():
                rms.update(obs[key])
        elif env.norm_obs:
            env.obs_rms.update(obs)
        env.ret_rms.update(rng.normal(size=7))
    return env


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_vec_normalize(options: str, norm_obs: bool) -> None:
    twins = filled(**OPTIONS[options])
    env = vec_normalize(BOX, norm_obs=norm_obs)
    for _ in range(3):
        samples = twins.do(lambda buffer: buffer.sample(16, env=env))
        assert not torch.equal(samples.rewards, twins.ours.sample(16).rewards)
    before = twins.ours.observations.copy()
    twins.ours.sample(16, env=env).observations.zero_()
    assert_same(before, twins.ours.observations)


def test_vec_normalize_of_dicts() -> None:
    space = spaces.Dict({"vector": BOX, "goal": BOX64})
    twins = filled("DictReplayBuffer", space)
    env = vec_normalize(space)
    samples = twins.do(lambda buffer: buffer.sample(16, env=env))
    assert samples.observations["goal"].dtype == torch.float32


# The traps: what agents and SB3's own tests do from outside.


def test_cursor_set_from_outside_is_the_truth() -> None:
    twins = Twins("ReplayBuffer", 1, BOX, ACTIONS["box"], "cpu")
    twins.do(lambda buffer: setattr(buffer, "full", True))
    twins.call("sample", 64)
    twins = filled()
    for pos in (0, 19, 7):
        twins.do(lambda buffer: setattr(buffer, "pos", pos))  # noqa: B023
        twins.call("add", *Steps(BOX, ACTIONS["box"], 2, seed=pos).draw())
        twins.call("sample", 16)
    twins.do(lambda buffer: setattr(buffer, "full", False))
    twins.do(lambda buffer: setattr(buffer, "pos", 3))
    assert twins.call("sample", 500).rewards.unique().numel() <= 6
    twins.do(lambda buffer: setattr(buffer, "pos", 99))
    assert twins.call("add", *Steps(BOX, ACTIONS["box"], 2).draw())[0] == "raised"
    twins.do(lambda buffer: setattr(buffer, "pos", 0))
    assert twins.call("sample", 4)[0] == "raised"


def test_classes_are_what_isinstance_looks_for() -> None:
    pairs = [("ReplayBuffer", []), ("DictReplayBuffer", ["ReplayBuffer"]), ("NStepReplayBuffer", ["ReplayBuffer"])]
    for name, parents in pairs:
        ours = getattr(fsb3, name)
        assert issubclass(ours, getattr(sb3_buffers, name))
        assert issubclass(ours, sb3_buffers.ReplayBuffer)
        for parent in parents:
            assert issubclass(ours, getattr(fsb3, parent))


def test_a_subclass_that_overrides_get_samples() -> None:
    def subclass(base: Any) -> Any:
        class Newest(base):  # type: ignore[misc]
            def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
                return super()._get_samples(np.full_like(batch_inds, self.pos - 1), env)

        return Newest

    twins = filled()
    for buffer, base in zip(twins.buffers, (sb3_buffers.ReplayBuffer, fsb3.ReplayBuffer), strict=True):
        buffer.__class__ = subclass(base)
    rewards = twins.call("sample", 32).rewards
    assert set(rewards.flatten().tolist()) <= set(twins.ours.rewards[twins.ours.pos - 1].tolist())


def test_a_subclass_that_overrides_to_torch_or_normalization() -> None:
    def subclass(base: Any) -> Any:
        class Doubled(base):  # type: ignore[misc]
            def to_torch(self, array: Any, copy: bool = True) -> Any:
                return super().to_torch(array, copy).double()

            @staticmethod
            def _normalize_reward(reward: Any, env: Any = None) -> Any:
                return reward * 2

        return Doubled

    twins = filled()
    for buffer, base in zip(twins.buffers, (sb3_buffers.ReplayBuffer, fsb3.ReplayBuffer), strict=True):
        buffer.__class__ = subclass(base)
    assert twins.call("sample", 32).rewards.dtype == torch.float64


@pytest.mark.parametrize("n_envs", [1, 2])
def test_native_generator_leaves_numpy_alone_and_repeats(n_envs: int) -> None:
    def draw() -> tuple[Any, Any]:
        np.random.seed(7)
        buffer = fsb3.ReplayBuffer(40, BOX, ACTIONS["box"], "cpu", n_envs, rng="native")
        steps = Steps(BOX, ACTIONS["box"], n_envs)
        for _ in range(10):
            buffer.add(*steps.draw())
        before = np.random.get_state(legacy=False)
        samples = buffer.sample(64)
        after = np.random.get_state(legacy=False)
        assert_same(before, after)
        return samples, buffer

    samples, buffer = draw()
    assert_same(samples, draw()[0])
    drawn = np.concatenate([buffer.sample(1000).rewards.flatten().numpy() for _ in range(20)])
    counts = np.unique(drawn, return_counts=True)[1]
    cells = 10 * n_envs
    assert len(counts) == cells
    assert ((counts - 20_000 / cells) ** 2 / (20_000 / cells)).sum() < 3 * cells + 30  # chi-square
    with pytest.raises(ValueError, match="rng: expected 'numpy' or 'native', got 'torch'"):
        fsb3.ReplayBuffer(40, BOX, ACTIONS["box"], "cpu", rng="torch")  # type: ignore[arg-type]


def test_native_generator_never_draws_the_lost_row() -> None:
    np.random.seed(0)
    buffer = fsb3.ReplayBuffer(
        5, BOX, ACTIONS["box"], "cpu", rng="native", optimize_memory_usage=True, handle_timeout_termination=False
    )
    for i in range(7):
        obs = np.full((1, 5), i, np.float32)
        buffer.add(obs, obs + 1, np.zeros((1, 2), np.float32), np.array([float(i)]), np.array([False]), [{}])
    samples = buffer.sample(500)
    assert np.unique(samples.rewards.numpy()).tolist() == [3, 4, 5, 6]
    assert torch.equal(samples.next_observations, samples.observations + 1)


def test_no_warning_on_import_and_construction() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import stable_baselines3.common.buffers\n"
        "import fastreplay.sb3 as f, numpy as np; from gymnasium import spaces as s\n"
        "b = f.ReplayBuffer(10, s.Box(-1, 1, (3,)), s.Discrete(2)); b.full = True; b.sample(3)"
    )
    subprocess.run([sys.executable, "-W", "default", "-c", code], check=True)


def test_memory_warning_where_psutil_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    available = 2 * 100 * 5 * 4 + 100 * (2 + 1 + 1) * 4
    for missing in (0, 1):
        psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=available - missing))  # noqa: B023
        monkeypatch.setattr(sb3_buffers, "psutil", psutil)
        for module in (sb3_buffers, fsb3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                module.ReplayBuffer(100, BOX, ACTIONS["box"], "cpu")
            assert [warning.category for warning in caught] == [UserWarning] * missing


def test_float64_actions_are_stored_as_float32_and_observations_as_declared() -> None:
    twins = Twins("ReplayBuffer", 10, BOX64, ACTIONS["box64"], "cpu")
    twins.call("add", *Steps(BOX64, ACTIONS["box64"], 1).draw())
    samples = twins.call("sample", 3)
    assert samples.actions.dtype == torch.float32
    assert samples.actions.shape == (3, 4)
    assert samples.observations.dtype == torch.float64


def test_samples_never_alias_the_storage_or_each_other() -> None:
    for env in (None, vec_normalize(BOX, norm_obs=False, norm_reward=False)):
        buffer = filled().ours
        first = buffer.sample(8, env=env)
        kept = [tensor.clone() for tensor in first[:5]]
        for tensor in buffer.sample(8, env=env)[:5]:
            tensor.fill_(9)
        buffer.rewards[...] = -5
        buffer.observations[...] = -5
        assert_same(tuple(kept), tuple(first[:5]))
        assert not (buffer.observations == 9).any()


def test_shared_observations_refuse_timeouts() -> None:
    for module in (sb3_buffers, fsb3):
        with pytest.raises(ValueError, match="optimize_memory_usage"):
            module.ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", optimize_memory_usage=True)
    buffer = filled(**OPTIONS["shared"]).ours
    assert not hasattr(buffer, "next_observations")
    with pytest.raises(AttributeError, match="next_observations"):
        _ = buffer.next_observations


@pytest.mark.parametrize(
    "infos",
    [
        [{}, {}],
        [{"TimeLimit.truncated": True}, {}],
        [{"TimeLimit.truncated": np.bool_(True)}, {"TimeLimit.truncated": 0.5}],
        ({"TimeLimit.truncated": True}, {}),
        [{"TimeLimit.truncated": True}],
        [{"TimeLimit.truncated": "yes"}, {}],
        [{}, {}, {}],
        [None, {}],
        5,
    ],
    ids=str,
)
def test_infos(infos: Any) -> None:
    twins = filled()
    *step, _ = Steps(BOX, ACTIONS["box"], 2, seed=4).draw()
    twins.call("add", *step, infos)
    twins.call("sample", 50)


def test_infos_of_other_mappings() -> None:
    class Info(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return True if key == "TimeLimit.truncated" else default

    twins = filled()
    *step, _ = Steps(BOX, ACTIONS["box"], 2, seed=4).draw()
    twins.call("add", *step, [Info(), {}])
    assert twins.ours.timeouts[5, 0] == 1


# What the fast path does not take goes NumPy's way, errors included.


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        {0: lambda obs: obs.tolist()},
        {0: lambda obs: obs[:, ::-1]},
        {0: lambda obs: np.asfortranarray(np.repeat(obs, 2, axis=1)[:, ::2])},
        {0: lambda obs: obs[0]},
        {0: lambda obs: obs[:, :1]},
        {0: lambda obs: obs[:, :2]},
        {1: torch.from_numpy},
        {1: lambda obs: obs.astype(np.float64) * 1e300},
        {1: lambda obs: (obs * 100).astype(np.int64)},
        {1: lambda obs: obs.astype(">f4")},
        {2: lambda action: action.reshape(-1)},
        {2: lambda action: action.astype(np.float64)},
        {2: lambda action: action[:, :1]},
        {3: lambda reward: 2.5},
        {3: lambda reward: reward[:, None]},
        {3: lambda reward: reward.astype(np.int32)},
        {3: lambda reward: np.full(len(reward), np.inf)},
        {3: lambda reward: np.full(len(reward), np.nan)},
        {3: lambda reward: np.append(reward, 0)},
        {4: lambda done: True},
        {4: lambda done: done.astype(np.int64)},
        {4: lambda done: np.asarray(done).tolist()},
        {4: lambda done: "no"},
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_unusual_values(change: dict[int, Any], n_envs: int) -> None:
    twins = filled(n_envs=n_envs)
    step = list(Steps(BOX, ACTIONS["box"], n_envs, seed=4).draw())
    for place, apply in change.items():
        if place < 3:
            step[place] = np.asarray(step[place], np.float32).reshape(n_envs, -1)
        step[place] = apply(step[place])
    twins.call("add", *step)


def test_overflow_warns_as_numpy_does() -> None:
    for buffer in filled().buffers:
        obs = np.full((2, 5), 1e300)
        with pytest.warns(RuntimeWarning, match="overflow"):
            buffer.add(obs, obs, np.zeros((2, 2)), np.zeros(2), np.zeros(2), [{}, {}])


@pytest.mark.parametrize(
    "rows",
    [
        np.array([], np.int64),
        np.array([3, 3, 3], np.uint8),
        np.array([-1, -20, 19]),
        np.array([20]),
        np.array([-21]),
        np.array([[1, 2], [3, 4]]),
        np.array([1.0, 2.0]),
        np.arange(10)[::2],
        [1, 2, 3],
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer"])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_given_rows(rows: Any, name: str, n_envs: int) -> None:
    twins = filled(name, DICT if name == "DictReplayBuffer" else BOX, n_envs)
    twins.call("_get_samples", rows)


def test_sampling_nothing() -> None:
    twins = Twins("ReplayBuffer", 10, BOX, ACTIONS["box"], "cpu")
    assert twins.call("sample", 4)[:2] == ("raised", "ValueError")
    assert filled().call("sample", 0).rewards.shape == (0, 1)


def test_observation_without_an_axis() -> None:
    space = spaces.Box(-1, 1, (), np.float32)
    twins = Twins("ReplayBuffer", 10, space, ACTIONS["box"], "cpu", 2)
    obs = np.zeros(2, np.float32)
    twins.call("add", obs, obs + 1, np.zeros((2, 2)), np.ones(2), np.zeros(2), [{}, {}])
    assert twins.call("sample", 4)[1] == "IndexError"


def test_buffer_size_changed_from_outside() -> None:
    twins = filled()
    twins.do(lambda buffer: setattr(buffer, "buffer_size", 12))
    for seed in range(20):
        twins.call("add", *Steps(BOX, ACTIONS["box"], 2, seed=seed).draw())
    twins.call("sample", 30)


def test_the_rounded_size() -> None:
    for size, n_envs in ((10, 3), (2, 4)):
        twins = Twins("ReplayBuffer", size, BOX, ACTIONS["box"], "cpu", n_envs)
        twins.call("add", *Steps(BOX, ACTIONS["box"], n_envs).draw())
        twins.call("sample", 5)


# Live views


@pytest.mark.parametrize("name", ["observations", "next_observations", "actions", "rewards", "dones", "timeouts"])
def test_assigning_an_array_copies_it_in_or_is_refused(name: str) -> None:
    buffer = filled().ours
    view = getattr(buffer, name)
    array = np.random.default_rng(0).random(view.shape).astype(view.dtype)
    setattr(buffer, name, array)
    assert_same(array, view)
    assert np.shares_memory(view, getattr(buffer, name))
    array[...] = 0
    assert view.any()
    for wrong in (array[:-1], array.astype(np.float64), 3.0):
        before = view.copy()
        with pytest.raises(ValueError, match=rf"{name}: expected float32 \(20, 2"):
            setattr(buffer, name, wrong)
        assert_same(before, view)


def test_assigning_parts_of_a_dict() -> None:
    buffer = filled("DictReplayBuffer", DICT).ours
    view = buffer.observations["room"]
    buffer.observations["room"] = view + 1
    assert buffer.observations["room"] is view
    buffer.observations = {key: part * 0 for key, part in buffer.observations.items()}
    assert not view.any()
    with pytest.raises(KeyError, match=r"'other': the observation's parts are "):
        buffer.observations["other"] = view
    with pytest.raises(ValueError, match=r"room: expected int64 \(20, 2, 1\), got int64 \(20, 2\)"):
        buffer.observations["room"] = view[:, :, 0]
    for change in ("clear", "popitem"):
        with pytest.raises(TypeError, match="none can be added or removed"):
            getattr(buffer.observations, change)()
    with pytest.raises(TypeError, match="none can be added or removed"):
        del buffer.observations["room"]


def test_a_dict_observation_is_left_as_it_came() -> None:
    buffer = filled("DictReplayBuffer", DICT).ours
    step = Steps(DICT, ACTIONS["box"], 2).draw()
    room = step[0]["room"]
    buffer.add(*step)
    assert step[0]["room"] is room


def test_dict_with_a_missing_part() -> None:
    twins = filled("DictReplayBuffer", DICT)
    obs, *rest = Steps(DICT, ACTIONS["box"], 2).draw()
    del obs["image"]
    for buffer in twins.buffers:
        with pytest.raises(KeyError, match="image"):
            buffer.add(dict(obs), *rest)


def test_device_set_from_outside() -> None:
    twins = filled()
    twins.do(lambda buffer: setattr(buffer, "device", "cpu"))
    twins.call("sample", 4)
    twins.do(lambda buffer: setattr(buffer, "device", torch.device("meta")))
    samples = twins.ours.sample(4)
    assert samples.observations.device.type == "meta"
    assert samples.observations.shape == (4, 5)


def test_refused_spaces() -> None:
    with pytest.raises(TypeError, match="a Dict space needs DictReplayBuffer"):
        fsb3.ReplayBuffer(10, DICT, ACTIONS["box"])
    with pytest.raises(AssertionError, match="expected a Dict"):
        fsb3.DictReplayBuffer(10, BOX, ACTIONS["box"])
    with pytest.raises(AssertionError, match="optimize_memory_usage"):
        fsb3.DictReplayBuffer(10, DICT, ACTIONS["box"], optimize_memory_usage=True)
    with pytest.raises(TypeError, match="inner: expected a space of one array"):
        fsb3.DictReplayBuffer(10, spaces.Dict({"inner": DICT}), ACTIONS["box"])
    for kind in (fsb3.ReplayBuffer, sb3_buffers.ReplayBuffer):
        with pytest.raises(NotImplementedError):
            kind(10, spaces.Text(3), ACTIONS["box"])
    with pytest.raises(ValueError, match="shape: expected positive lengths"):
        fsb3.ReplayBuffer(10, spaces.Box(-1, 1, (0,)), ACTIONS["box"])


def test_large_rows_and_minibatches() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    for options in OPTIONS.values():
        twins = Twins("ReplayBuffer", 12, space, ACTIONS["discrete"], "cpu", 2, **options)
        steps = Steps(space, ACTIONS["discrete"], 2)
        for _ in range(8):
            twins.call("add", *steps.draw())
        twins.call("sample", 40)


def test_names_are_imported_late() -> None:
    code = (
        "import sys, fastreplay, fastreplay.sb3\n"
        "assert 'stable_baselines3' not in sys.modules and 'torch' not in sys.modules\n"
        "assert 'ReplayBuffer' in dir(fastreplay.sb3)\n"
        "from fastreplay.sb3 import ReplayBuffer\n"
        "assert 'stable_baselines3' in sys.modules and fastreplay.sb3.ReplayBuffer is ReplayBuffer"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'RolloutBuffer'"):
        _ = fsb3.RolloutBuffer
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "import fastreplay.sb3\n"
        "try: fastreplay.sb3.ReplayBuffer\n"
        "except ImportError as error: assert 'pip install stable-baselines3' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_keep_their_dtype() -> None:
    assert filled(observation=IMAGE).call("sample", 3).observations.dtype == torch.uint8


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("SB3's own code was used")


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("observation", [*OBSERVATIONS, "dict"])
def test_usual_steps_and_samples_are_native(observation: str, n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "DictReplayBuffer" if observation == "dict" else "ReplayBuffer"
    space = OBSERVATIONS.get(observation, DICT)
    for action in ACTIONS.values():
        buffer = Twins(name, 20, space, action, "cpu", n_envs).ours
        steps = Steps(space, action, n_envs)
        obs, next_obs, taken = steps.rows(space), steps.rows(space), steps.rows(action)
        for method in ("add", "_get_samples"):
            for module_class in (sb3_buffers.ReplayBuffer, sb3_buffers.DictReplayBuffer):
                monkeypatch.setattr(module_class, method, _must_not_be_called)
        infos = [{"TimeLimit.truncated": False}] * n_envs
        for reward, done in ((np.zeros(n_envs), np.zeros(n_envs, bool)), (np.ones(n_envs, "f"), np.ones(n_envs, "f"))):
            buffer.add(obs, next_obs, taken, reward, done, infos)
        buffer.sample(3)
        buffer.sample(3, env=vec_normalize(BOX, n_envs, norm_obs=False))
