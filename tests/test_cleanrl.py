# SPDX-License-Identifier: MIT
"""fastreplay.cleanrl: CleanRL's buffer, whose results are SB3's, its loops, and Gymnasium's ways to reset."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from sb3_support import ACTIONS, BOX, DICT, OBSERVATIONS, Steps, assert_same
from stable_baselines3.common.buffers import ReplayBuffer as Sb3ReplayBuffer
from torch import nn
from torch.nn import functional

from fastreplay.adapters import autoreset
from fastreplay.cleanrl import ReplayBuffer, ReplayBufferSamples

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastreplay.cleanrl import Autoreset

OPTIONS: dict[str, dict[str, bool]] = {
    "default": {},
    "no-timeouts": {"handle_timeout_termination": False},
    "shared": {"optimize_memory_usage": True, "handle_timeout_termination": False},
}


class Expected:
    """CleanRL's buffer is SB3's of its time: the same storage, draws and arithmetic, and a NamedTuple of five."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.buffer = Sb3ReplayBuffer(*args, **kwargs)

    def add(self, *step: Any) -> None:
        *values, infos = step
        if isinstance(infos, dict):
            infos = [{}] * self.buffer.n_envs
        obs, next_obs, action, reward, done = values
        self.buffer.add(obs, next_obs, action, reward, done, infos)

    def sample(self, batch_size: int) -> ReplayBufferSamples:
        return ReplayBufferSamples(*self.buffer.sample(batch_size)[:5])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.buffer, name)


def both(function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Call a function with CleanRL's class and with ours, from one random state; compare what it returns."""
    results = []
    for buffer_class in (Expected, partial(ReplayBuffer, autoreset="same_step")):
        np.random.seed(11)
        torch.manual_seed(11)
        results.append((function(buffer_class), int(np.random.randint(10**9))))
    assert_same(*results)
    return results[0][0], results[1][0]


@pytest.mark.share(3)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_the_same_steps_give_the_same_minibatches(observation: str, action: str, options: str, n_envs: int) -> None:
    def drive(buffer_class: Any) -> Any:
        space, action_space = OBSERVATIONS[observation], ACTIONS[action]
        buffer = buffer_class(7 * n_envs, space, action_space, "cpu", n_envs, **OPTIONS[options])
        steps = Steps(space, action_space, n_envs, seed=3)
        results: list[Any] = []
        for i in range(30):
            buffer.add(*steps.draw())
            if i % 3 == 0:
                results.append(buffer.sample(9))
            if i == 20:
                buffer.reset()
            results.append((buffer.pos, buffer.full, buffer.size()))
        results += [np.array(getattr(buffer, name)) for name in ("observations", "actions", "rewards", "timeouts")]
        return tuple(results)

    both(drive)


def test_given_rows_and_empty_minibatches() -> None:
    def drive(buffer_class: Any) -> Any:
        buffer = buffer_class(20, BOX, ACTIONS["box"], "cpu", 2)
        steps = Steps(BOX, ACTIONS["box"], 2, seed=3)
        for _ in range(12):
            buffer.add(*steps.draw())
        rows = np.array([0, 9, 4, -1])
        return buffer.sample(0)[:5], buffer._get_samples(rows)[:5], buffer._get_samples(rows.astype(np.int16))[:5]

    both(drive)


def test_signature_and_result() -> None:
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 2, False, True)
    steps = [Steps(BOX, ACTIONS["box"], 2).draw() for _ in range(3)]
    buffer.extend(*zip(*steps, strict=True))
    data = buffer.sample(4)
    assert data._fields == ("observations", "actions", "next_observations", "dones", "rewards")
    assert data.rewards.flatten().shape == data.dones.flatten().shape == (4,)
    assert data.observations.numpy().shape == (4, 5)
    with pytest.raises(TypeError):
        buffer.sample(4, None)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"low >= high|high <= 0"):
        ReplayBuffer(10, BOX, ACTIONS["box"], "cpu").sample(1)


def test_refusals() -> None:
    make: Any = partial(ReplayBuffer, 10, BOX, ACTIONS["box"], "cpu")
    with pytest.raises(ValueError, match="optimize_memory_usage: cannot be had together"):
        make(optimize_memory_usage=True)
    with pytest.raises(ValueError, match="autoreset: expected 'next_step', 'same_step', 'disabled' or None"):
        make(autoreset="never")
    with pytest.raises(ValueError, match="rng: expected 'numpy' or 'native'"):
        make(rng="torch")
    with pytest.raises(NotImplementedError, match="observation_space: expected Box"):
        ReplayBuffer(10, DICT, ACTIONS["box"])
    with pytest.raises(NotImplementedError, match="action_space: expected Box"):
        ReplayBuffer(10, BOX, DICT)


@pytest.mark.parametrize("place", range(6))
def test_a_refused_step_changes_nothing(place: int) -> None:
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 2)
    step = list(Steps(BOX, ACTIONS["box"], 2).draw())
    buffer.add(*step)
    buffer._ended = {}
    before = pickle.dumps(buffer)
    step[place] = [{}] * 3 if place == 5 else np.zeros(7)
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        buffer.add(*step)
    assert pickle.dumps(buffer) == before


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        ({}, [0, 0]),
        ({"TimeLimit.truncated": np.array([True, False])}, [1, 0]),
        ({"TimeLimit.truncated": np.array([True, True]), "_TimeLimit.truncated": np.array([False, True])}, [0, 1]),
        ([{"TimeLimit.truncated": True}, {}], [1, 0]),
        (({}, {"TimeLimit.truncated": np.True_}), [0, 1]),
    ],
    ids=str,
)
def test_infos_of_lists_and_of_vectors(infos: Any, expected: list[int]) -> None:
    step = (*Steps(BOX, ACTIONS["box"], 2).draw()[:5], infos)
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 2)
    buffer.add(*step)
    assert buffer.timeouts[0].tolist() == expected
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 2, handle_timeout_termination=False)
    buffer.add(*step)
    assert not buffer.timeouts.any()


def test_devices() -> None:
    assert ReplayBuffer(10, BOX, ACTIONS["box"]).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "meta")
    buffer.full = True
    assert buffer.sample(3).rewards.device.type == "meta"
    buffer.device = "cpu"
    assert buffer.sample(3).rewards.device.type == "cpu"


def test_needs_no_stable_baselines3() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "from fastreplay.cleanrl import ReplayBuffer; from gymnasium.spaces import Box, Discrete; import numpy as np\n"
        "b = ReplayBuffer(10, Box(-1, 1, (3,)), Discrete(2), 'cpu'); o = np.zeros((1, 3), np.float32)\n"
        "b.add(o, o, np.array([1]), np.zeros(1), np.zeros(1, bool), [{}]); print(b.sample(5).observations.shape)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "torch.Size([5, 3])\n"


@pytest.mark.parametrize("num_steps", [0, 3, 40])
@pytest.mark.parametrize("autoreset", [None, "next_step", "same_step", "disabled"])
def test_pickle_and_deepcopy_go_on(autoreset: Any, num_steps: int) -> None:
    """Attributes that are None among them, of this class and of its subclasses."""

    class Scaled(ReplayBuffer):
        scaler = "of the class"

    box = spaces.Box(-1, 1, (3,), np.float32)
    buffer = Scaled(10, box, box, "cpu", handle_timeout_termination=False, autoreset=autoreset)
    buffer.scaler = None  # type: ignore[assignment]
    one = np.ones((1, 3), np.float32)
    step: Any = (one, one, one, np.zeros(1), np.zeros(1), [{}])
    for _ in range(num_steps):
        buffer.add(*step)
    again = copy.deepcopy(buffer)
    assert vars(again).keys() == vars(buffer).keys()
    assert again.scaler is None
    again.add(*step)
    buffer.add(*step)
    np.random.seed(0)
    expected = buffer.sample(20)
    np.random.seed(0)
    assert_same(expected, again.sample(20))


def test_pickle_and_deepcopy() -> None:
    buffer = counted_run("next_step", AutoresetMode.NEXT_STEP, 40)[0]
    for again in (pickle.loads(pickle.dumps(buffer)), copy.deepcopy(buffer)):
        np.random.seed(0)
        expected = buffer.sample(50)
        np.random.seed(0)
        assert_same(expected, again.sample(50))


# Resets. An environment whose observation is (id, step) tells by itself which step a row is.


class Counter(gym.Env[Any, Any]):
    """Observes (id, episode, step); ends after `length` steps, by termination in every other episode."""

    observation_space = spaces.Box(-1000, 1000, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, env_id: int, length: int) -> None:
        self.env_id, self.length, self.episode, self.step_number = env_id, length, -1, 0

    def _observation(self) -> Any:
        return np.array([self.env_id, self.episode, self.step_number], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.step_number = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        ends = self.step_number == self.length
        is_odd = self.episode % 2 == 1
        return self._observation(), 1.0, ends and is_odd, ends and not is_odd, {}


def counted_run(
    autoreset: Autoreset | None, mode: AutoresetMode, num_steps: int, *, n_envs: int = 2, **options: Any
) -> tuple[ReplayBuffer, Any]:
    """Fill a buffer as CleanRL's loops do."""
    options = {"handle_timeout_termination": False, **options}
    makes = [lambda i=i: RecordEpisodeStatistics(Counter(i, 3 + i)) for i in range(n_envs)]
    envs = SyncVectorEnv(makes, autoreset_mode=mode)
    buffer = ReplayBuffer(
        200 * n_envs,
        envs.single_observation_space,
        envs.single_action_space,
        "cpu",
        n_envs,
        autoreset=autoreset,
        **options,
    )
    obs, _ = envs.reset(seed=0)
    for _ in range(num_steps):
        actions = np.zeros(n_envs, np.int64)
        next_obs, rewards, terminations, _truncations, infos = envs.step(actions)
        real_next_obs = next_obs.copy()
        for i in np.flatnonzero(infos.get("_final_obs", np.zeros(n_envs))):
            real_next_obs[i] = infos["final_obs"][i]
        buffer.add(obs, real_next_obs, actions, rewards, terminations, infos)
        obs = next_obs
    return buffer, envs


def assert_all_are_transitions(data: ReplayBufferSamples) -> None:
    assert torch.equal(data.next_observations[:, 2], data.observations[:, 2] + 1)
    assert torch.equal(data.next_observations[:, :2], data.observations[:, :2])
    assert (data.rewards == 1).all()


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("options", [{}, {"optimize_memory_usage": True}, {"rng": "native"}, {"dedupe": True}], ids=str)
@pytest.mark.parametrize("num_steps", [30, 450])
def test_next_step_resets_are_no_transitions(n_envs: int, options: dict[str, Any], num_steps: int) -> None:
    np.random.seed(0)
    buffer, _ = counted_run("next_step", AutoresetMode.NEXT_STEP, num_steps, n_envs=n_envs, **options)
    data = buffer.sample(20_000)
    assert_all_are_transitions(data)
    # Every transition is there, and the draw is uniform over them.
    is_shared = "optimize_memory_usage" in options
    is_stored = [is_shared or any(k % (4 + i) < 3 + i for i in range(n_envs)) for k in range(num_steps)]
    steps = np.flatnonzero(is_stored)[-200:].tolist()
    if is_shared and len(steps) == 200:
        del steps[0]
    expected = {(i, k // (4 + i), k % (4 + i)) for i in range(n_envs) for k in steps if k % (4 + i) < 3 + i}
    rows, counts = np.unique(data.observations.numpy(), axis=0, return_counts=True)
    assert {tuple(row) for row in rows.astype(int).tolist()} == expected
    mean = 20_000 / len(expected)
    assert ((counts - mean) ** 2 / mean).sum() < len(expected) + 6 * np.sqrt(2 * len(expected))


def test_a_step_in_which_all_reset_takes_no_room() -> None:
    buffer, _ = counted_run("next_step", AutoresetMode.NEXT_STEP, 30, n_envs=1)
    assert buffer.size() == 30 - 30 // 4
    assert np.array_equal(buffer.next_observations[:23, 0, 2] - buffer.observations[:23, 0, 2], np.ones(23))


def test_shared_observations_keep_the_last_one_of_an_episode() -> None:
    """Where CleanRL overwrites it by the first observation of the next episode."""
    buffer, _ = counted_run("next_step", AutoresetMode.NEXT_STEP, 30, n_envs=1, optimize_memory_usage=True)
    data = buffer.sample(500)
    last = data.next_observations[data.observations[:, 2] == 2]
    assert (last[:, 2] == 3).all()
    assert buffer.size() == 30


def test_without_care_the_reset_would_be_sampled() -> None:
    buffer, _ = counted_run("disabled", AutoresetMode.NEXT_STEP, 30)
    assert (buffer.sample(500).rewards == 0).any()


def test_same_step_resets_are_transitions_all() -> None:
    buffer, _ = counted_run("same_step", AutoresetMode.SAME_STEP, 30)
    assert buffer.size() == 30
    assert_all_are_transitions(buffer.sample(500))


def test_the_default_follows_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ReplayBuffer(10, BOX, ACTIONS["box"]).autoreset is None
    monkeypatch.setattr(autoreset, "gymnasium_version", "0.29.1")
    assert ReplayBuffer(10, BOX, ACTIONS["box"]).autoreset == "same_step"


def test_an_environment_that_resets_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="infos: it tells of a reset in the same step; pass autoreset='same_step'"):
        counted_run("next_step", AutoresetMode.SAME_STEP, 30)
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 1, autoreset="next_step")
    obs = np.zeros((1, 5), np.float32)
    rest: Any = np.zeros((1, 2)), np.zeros(1), np.array([True]), {}
    buffer.add(obs, obs + 1, *rest)
    before = pickle.dumps(buffer)
    with pytest.raises(ValueError, match=r"obs: environment 0 ended and does not go on .* pass autoreset='same_step'"):
        buffer.add(obs, obs + 1, *rest)
    assert pickle.dumps(buffer) == before
    buffer.add(obs + 1, obs, *rest)
    assert buffer.size() == 1


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_steps_tell_how_an_environment_resets(mode: AutoresetMode) -> None:
    buffer, _ = counted_run(None, mode, 30)
    assert_all_are_transitions(buffer.sample(500))
    expected = 30 if mode == AutoresetMode.SAME_STEP else 30 - 30 // 20
    assert buffer.size() == expected
    assert (buffer._is_reset is None) == (mode == AutoresetMode.SAME_STEP)


def test_a_caller_that_resets_by_itself_loses_nothing() -> None:
    buffer = ReplayBuffer(100, Counter.observation_space, Counter.action_space, "cpu", handle_timeout_termination=False)
    env = Counter(0, 3)
    obs, _ = env.reset()
    for _ in range(30):
        next_obs, reward, terminated, truncated, infos = env.step(0)
        buffer.add(obs, next_obs, np.array([0]), reward, terminated, [infos], truncations=np.array([truncated]))  # type: ignore[arg-type]
        obs = env.reset()[0] if terminated or truncated else next_obs
    assert buffer.size() == 30
    assert_all_are_transitions(buffer.sample(500))


@pytest.mark.parametrize("told_by", ["done", "truncations", "infos", "vector infos", "episode", "nothing"])
def test_what_tells_an_end(told_by: str) -> None:
    buffer = ReplayBuffer(10, BOX, ACTIONS["box"], "cpu", 1, autoreset="next_step")
    obs = np.zeros((1, 5), np.float32)
    flag = np.array([True])
    infos: Any = {
        "infos": [{"TimeLimit.truncated": True}],
        "vector infos": {"TimeLimit.truncated": flag},
        "episode": [{"episode": {"r": 1}}],
    }.get(told_by, {})
    truncations = flag if told_by == "truncations" else None
    buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), flag & (told_by == "done"), infos, truncations=truncations)
    for expected in (2 if told_by == "nothing" else 1, 3 if told_by == "nothing" else 2):
        buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), np.array([False]), {})
        assert buffer.size() == expected


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("most_draws", [0, 1, 2])
def test_the_few_transitions_among_resets_are_found(
    shared: bool, most_draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where drawing again does not find them they are listed, each as likely as the others."""
    monkeypatch.setattr("fastreplay.adapters.cleanrl._MOST_DRAWS", most_draws)
    buffer = ReplayBuffer(40, BOX, ACTIONS["box"], "cpu", 2, shared, not shared, autoreset="same_step")
    for number in range(25):
        obs = np.full((2, 5), number, np.float32)
        buffer.add(obs, obs + 1, np.zeros((2, 2)), np.array([number, number + 0.5]), np.zeros(2), [{}, {}])
    buffer._is_reset = np.ones((20, 2), bool)
    buffer._is_reset[[2, 7, 19], [0, 1, 0]] = False
    if shared:
        buffer._is_reset[buffer.pos] = False  # the row that is never drawn
    np.random.seed(0)
    rewards = buffer.sample(3000).rewards.numpy()
    values, counts = np.unique(rewards, return_counts=True)
    assert values.tolist() == [7.5, 19, 22]
    assert counts.min() > 850


def test_only_resets_cannot_be_sampled() -> None:
    buffer = ReplayBuffer(1, BOX, ACTIONS["box"], "cpu", 1, True, False, autoreset="next_step")
    obs = np.zeros((1, 5), np.float32)
    for done in (True, False):
        buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), np.array([done]), {})
    buffer.optimize_memory_usage = False
    with pytest.raises(ValueError, match="holds no transition, only resets"):
        buffer.sample(3)


def test_reset_forgets_what_ended() -> None:
    buffer, _ = counted_run("next_step", AutoresetMode.NEXT_STEP, 3)
    buffer.reset()
    step = Steps(BOX, ACTIONS["box"], 2).draw()
    obs = np.full((2, 3), 9, np.float32)
    buffer.add(obs, obs, np.zeros(2, np.int64), *step[3:])
    assert buffer.size() == 1


# Loops in the shapes of CleanRL's scripts: one environment step, one gradient step, every few steps.


class Toy(gym.Env[Any, Any]):
    """A point that is to be moved to the origin."""

    def __init__(self, action_space: spaces.Space[Any], observation_space: spaces.Space[Any]) -> None:
        self.action_space, self.observation_space = action_space, observation_space

    def _observation(self) -> Any:
        space = self.observation_space
        if space.dtype == np.uint8:
            return np.full(space.shape, np.abs(self.state[0] * 50), np.uint8)
        return self.state.astype(space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=3)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        move = np.full(3, action - 1.0) if np.ndim(action) == 0 else np.resize(action, 3)
        self.state = self.state + 0.3 * move + 0.05 * self.np_random.normal(size=3)
        distance = float(np.abs(self.state).sum())
        return self._observation(), -distance, distance < 0.5, False, {}


VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)
PIXELS = spaces.Box(0, 255, (2, 8, 8), np.uint8)
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)


def network(in_size: int, out_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_size, 16), nn.ReLU(), nn.Linear(16, out_size))


def train(buffer_class: Any, observation: spaces.Space[Any], action: spaces.Space[Any], learner: Any, **options: Any):  # type: ignore[no-untyped-def]
    """Collect as CleanRL does with Gymnasium < 1.0: environments that reset in the same step."""
    makes = [lambda: RecordEpisodeStatistics(TimeLimit(Toy(action, observation), 12))] * 1
    envs = SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP)
    learn, act, parameters = learner(int(np.prod(observation.shape or ())), action)
    rb = buffer_class(150, envs.single_observation_space, envs.single_action_space, torch.device("cpu"), **options)
    obs, _ = envs.reset(seed=1)
    envs.single_action_space.seed(2)
    for step in range(300):
        if step < 30:
            actions = np.array([envs.single_action_space.sample() for _ in range(envs.num_envs)])
        else:
            actions = act(torch.as_tensor(obs, dtype=torch.float32))
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        real_next_obs = next_obs.copy()
        for i, truncated in enumerate(truncations):
            if truncated:
                real_next_obs[i] = infos["final_obs"][i]
        rb.add(obs, real_next_obs, actions, rewards, terminations, infos)
        obs = next_obs
        if step >= 30:
            learn(rb.sample(16), step)
    return tuple(parameter.detach().clone() for parameter in parameters)


def dqn(in_size: int, action: Any) -> Any:
    online, target = network(in_size, int(action.n)), network(in_size, int(action.n))
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)

    def learn(data: Any, step: int) -> None:
        with torch.no_grad():
            best, _ = target(data.next_observations.float()).max(dim=1)
            td_target = data.rewards.flatten() + 0.99 * best * (1 - data.dones.flatten())
        value = online(data.observations.float()).gather(1, data.actions).squeeze()
        loss = functional.mse_loss(td_target, value)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 50 == 0:
            target.load_state_dict(online.state_dict())

    return learn, lambda obs: online(obs).argmax(dim=1).numpy(), list(online.parameters())


def actor_critic(in_size: int, action: Any, *, twin: bool, noisy_target: bool, entropy: bool) -> Any:
    size = int(np.prod(action.shape))
    actor, target_actor = network(in_size, size), network(in_size, size)
    critics = [network(in_size + size, 1) for _ in range(1 + twin)]
    targets = copy.deepcopy(critics)
    target_actor.load_state_dict(actor.state_dict())
    critic_optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=1e-3)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)

    def policy(module: nn.Module, obs: torch.Tensor, noisy: bool) -> torch.Tensor:
        mean = module(obs)
        return torch.tanh(mean + 0.2 * torch.randn_like(mean) if noisy or entropy else mean)

    def value(modules: list[nn.Module], obs: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        values = [module(torch.cat([obs.flatten(1), taken], 1)) for module in modules]
        return torch.min(torch.stack(values), dim=0).values

    def learn(data: Any, step: int) -> None:
        obs, next_obs = data.observations.float(), data.next_observations.float()
        with torch.no_grad():
            best = value(targets, next_obs, policy(target_actor, next_obs, noisy_target)).view(-1)
            td_target = data.rewards.flatten() + (1 - data.dones.flatten()) * 0.99 * best
        pairs = torch.cat([obs.flatten(1), data.actions], 1)
        loss = sum(functional.mse_loss(critic(pairs).view(-1), td_target) for critic in critics)
        critic_optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        critic_optimizer.step()
        if step % 2 == 0:
            actor_loss = -value(critics[:1], obs, policy(actor, obs, False)).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()  # type: ignore[no-untyped-call]
            actor_optimizer.step()
            for module, target in zip([actor, *critics], [target_actor, *targets], strict=True):
                for mine, theirs in zip(module.parameters(), target.parameters(), strict=True):
                    theirs.data.copy_(0.005 * mine.data + 0.995 * theirs.data)

    def act(obs: torch.Tensor) -> Any:
        with torch.no_grad():
            return policy(actor, obs, True).numpy()

    return learn, act, [*actor.parameters(), *(p for critic in critics for p in critic.parameters())]


ddpg = partial(actor_critic, twin=False, noisy_target=False, entropy=False)
td3 = partial(actor_critic, twin=True, noisy_target=True, entropy=False)
sac = partial(actor_critic, twin=True, noisy_target=True, entropy=True)
NO_TIMEOUTS = {"handle_timeout_termination": False}
SHARED = {"optimize_memory_usage": True, "handle_timeout_termination": False}


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("observation", "action", "learner", "options"),
    [
        pytest.param(VECTOR, DISCRETE, dqn, NO_TIMEOUTS, id="dqn"),
        pytest.param(PIXELS, DISCRETE, dqn, SHARED, id="dqn_atari"),
        pytest.param(VECTOR, CONTINUOUS, ddpg, NO_TIMEOUTS, id="ddpg_continuous_action"),
        pytest.param(VECTOR, CONTINUOUS, td3, NO_TIMEOUTS, id="td3_continuous_action"),
        pytest.param(VECTOR, CONTINUOUS, sac, NO_TIMEOUTS, id="sac_continuous_action"),
    ],
)
def test_training_ends_in_the_same_parameters(observation: Any, action: Any, learner: Any, options: Any) -> None:
    with np.errstate(all="raise"):
        theirs, _ = both(lambda buffer_class: train(buffer_class, observation, action, learner, **options))
    torch.manual_seed(11)
    untrained = learner(int(np.prod(observation.shape or ())), action)[2]
    assert any(not torch.equal(mine, yours) for mine, yours in zip(theirs, untrained, strict=True))
