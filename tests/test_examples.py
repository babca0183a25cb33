# SPDX-License-Identifier: MIT
"""The example loops: what they store, sample and learn from, how they stop, go on, and refuse."""

from __future__ import annotations

import copy
import csv
import functools
import io
import itertools
import json
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from shares import by_turns
from support import run_as_script
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution
from torch.nn import functional

import fastreplay as fr

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path.append(str(EXAMPLES))

import ddpg  # noqa: E402
import dqn  # noqa: E402
import environments  # noqa: E402
import harness  # noqa: E402
import progress  # noqa: E402
import recurrent_dqn  # noqa: E402
import resuming  # noqa: E402
import sac  # noqa: E402
import td3  # noqa: E402

if TYPE_CHECKING:
    from types import ModuleType

    from gymnasium.envs.registration import EnvCreator

LOOPS: dict[str, tuple[ModuleType, list[str]]] = {
    "dqn-soft": (dqn, []),
    "dqn-hard": (dqn, ["--target", "hard", "--every", "7"]),
    "ddpg": (ddpg, []),
    "td3": (td3, []),
    "sac": (sac, []),
    "recurrent": (recurrent_dqn, ["--num-envs", "1", "--length", "4", "--burn-in", "3"]),
}
CONTINUOUS = ("ddpg", "td3", "sac")
OF_STEPS = [name for name in LOOPS if name != "recurrent"]  # which learns from sequences: tests/test_recurrent.py
DISCRETE = (dqn, recurrent_dqn)
STEPS, WARMUP, VALIDATE_EVERY, BATCH_SIZE = 120, 30, 40, 8  # of a run too short to learn anything
SHORT = [
    *("--steps", str(STEPS), "--warmup", str(WARMUP), "--validate-every", str(VALIDATE_EVERY)),
    *("--batch-size", str(BATCH_SIZE), "--hidden", "16"),
]
VALIDATED = range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY)


class Counting(gym.Env[Any, Any]):
    """Rows that say where they belong: the observation is (episode, time), the reward their sum.

    Episodes end after 7, 12 or 17 steps, by turns: in a terminal state where the length is 12, else at the
    time limit. `log` holds every transition, as `step` made it.
    """

    observation_space = gym.spaces.Box(0, np.inf, (2,), np.float32)

    def __init__(self, *, discrete: bool) -> None:
        low, high = np.array([-1, -2], np.float32), np.array([3, 2], np.float32)
        self.action_space = gym.spaces.Discrete(3) if discrete else gym.spaces.Box(low, high)
        self.episode, self.time, self.first = -1, 0, 0
        self.log: list[tuple[Any, ...]] = []

    def observation(self) -> Any:
        return np.array([self.episode, self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.episode, self.first = (self.episode + 1, self.first) if seed is None else (0, seed)
        self.time = 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        before, reward = self.observation(), float(self.episode + self.time)
        self.time += 1
        length = 7 + 5 * ((self.episode + self.first) % 3)
        terminated, truncated = self.time == length == 12, self.time == length != 12
        self.log.append((before, action, reward, self.observation(), terminated, truncated))
        return self.observation(), reward, terminated, truncated, {}


class Forgetful(Counting):
    """Pickled, as MuJoCo's environments are, without its state."""

    def __reduce__(self) -> Any:
        return functools.partial(Forgetful, discrete=False), ()


class Unpicklable(Counting):
    """Holds, as Box2D's environments do, what no pickle can hold."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle")


for made in (Counting, Forgetful, Unpicklable):
    new = cast("EnvCreator", made)  # a class that is called by keyword
    gym.register(f"{made.__name__}-v0", entry_point=new, kwargs={"discrete": False}, disable_env_checker=True)
new = cast("EnvCreator", Counting)
gym.register("CountingDiscrete-v0", entry_point=new, kwargs={"discrete": True}, disable_env_checker=True)


NEW_BOARD, DRAW = harness.new_board, progress.Progress.draw


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "new_board", lambda *_: None)
    monkeypatch.setattr(progress.Progress, "draw", lambda *_: None)  # costs more than the run
    monkeypatch.setattr(harness, "VALIDATION_SEEDS", range(100, 102))
    monkeypatch.setattr(harness, "EVALUATION_SEEDS", range(200, 202))


class Saved(NamedTuple):
    """What a run left."""

    agent: Any
    envs: Any
    progress: Any
    rng: Any


def train(name: str, folder: Path, *arguments: str, status: int = 0) -> Saved:
    module, flags = LOOPS[name]
    env = "CountingDiscrete-v0" if module in DISCRETE else "Counting-v0"
    assert module.main([*SHORT, "--env", env, *flags, *arguments, "--save", str(folder)]) == status
    buffer: Any = fr.ReplayBuffer.load(folder / "resume")
    run = pickle.loads(buffer.attached["run"])
    state = resuming.Unpickler(io.BytesIO(buffer.attached["rest"]), buffer).load()
    return Saved(state["agent"], state["envs"] and pickle.loads(state["envs"]), run["progress"], state["torch"])


def new_agent(name: str, *arguments: str) -> Any:
    module, flags = LOOPS[name]
    args = module.parse_args([*SHORT, *flags, *arguments])
    torch.manual_seed(0)
    env = "CountingDiscrete-v0" if module in DISCRETE else "Counting-v0"
    agents = {dqn: "DQN", ddpg: "DDPG", td3: "TD3", sac: "SAC", recurrent_dqn: "RecurrentDQN"}
    return getattr(module, agents[module])(environments.make_envs(env, args.num_envs, 0), args)


def online(agent: Any) -> Any:
    return agent.online if hasattr(agent, "online") else agent.critic


def target(agent: Any) -> Any:
    return agent.target if hasattr(agent, "online") else agent.target_critic


def parameters(*networks: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for network in networks for tensor in network.parameters()]


def all_equal(mine: list[torch.Tensor], its: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


def minibatch(name: str, *, terminated: bool = False, truncated: bool = False, twice: bool = False) -> Any:
    """Return four transitions, of which the last two end."""
    rng = np.random.default_rng(1)
    env = gym.make("CountingDiscrete-v0" if name.startswith("dqn") else "Counting-v0")
    buffer = fr.ReplayBuffer.from_env(env, 10, dtype="float32", seed=0)
    env.action_space.seed(0)
    for row in range(4):
        ends = row >= 2
        observation, next_observation = rng.standard_normal((2, 2), np.float32)
        buffer.add(observation, env.action_space.sample(), row, next_observation, ends & terminated, ends & truncated)
    return buffer.gather([0, 1, 2, 3, 0, 1, 2, 3] if twice else [0, 1, 2, 3])


def learn(agent: Any, batch: Any) -> float:
    """Let an agent learn from this minibatch, and return its critic's loss."""

    def sample(_: int, *, beta: float | None = None, follow: fr.NStep | None = None) -> Any:
        if follow is None:
            return batch
        assert (beta, follow.n) == (None, 1)
        return SimpleNamespace(**dict(batch.items()), discount=torch.full((len(batch),), follow.gamma))

    agent.buffer = SimpleNamespace(sample=sample)
    return float(agent.learn(progress.Clock())["critic"].item())


def critic_loss(name: str, batch: Any) -> float:
    """Return the critic's loss of a new agent, always the same one."""
    agent = new_agent(name)
    torch.manual_seed(3)
    return learn(agent, batch)


# What is stored and sampled


def in_order(columns: Any) -> Any:
    """Return the transitions as rows of float32, (n, numbers of a transition), by order of their numbers."""
    rows = np.concatenate([np.asarray(x, np.float32).reshape(len(x), -1) for x in columns], axis=1)
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ["dqn-soft", "ddpg", "recurrent"])  # in the same loop; these act differently
def test_every_transition_is_stored_once_and_no_reset_row(name: str, num_envs: int, tmp_path: Path) -> None:
    saved = train(name, tmp_path, "--num-envs", str(num_envs), "--warmup", "90")  # few updates: they store nothing
    logs = [env.unwrapped.log for env in saved.envs.envs]
    resets = sum(env.unwrapped.episode for env in saved.envs.envs)
    assert resets >= 6  # two of each length
    assert len(saved.agent.buffer) == sum(map(len, logs)) == STEPS - resets
    made = [np.array(column) for column in zip(*itertools.chain(*logs), strict=True)]
    columns = tuple(saved.agent.buffer[:].numpy())[: len(made)]  # all but a memory
    assert np.array_equal(in_order(columns), in_order(made))


@pytest.mark.parametrize("name", LOOPS)
def test_one_minibatch_and_update_a_step_once_warm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = fr.ReplayBuffer.sample

    def sample(buffer: Any, batch_size: int, **how: Any) -> Any:
        sizes.append(batch_size)
        return real(buffer, batch_size, **how)

    monkeypatch.setattr(fr.ReplayBuffer, "sample", sample)
    saved = train(name, tmp_path, "--updates", "2", "--steps", str(WARMUP + 20))
    assert sizes == [BATCH_SIZE] * 2 * 20
    adam = saved.agent.critic_adam if name in CONTINUOUS else saved.agent.adam
    assert {int(state["step"]) for state in adam.state.values()} == {len(sizes)}


# What is learned


@pytest.mark.parametrize("name", OF_STEPS)
def test_the_target_bootstraps_through_truncation_and_not_through_termination(name: str) -> None:
    on, truncated, terminated = (
        critic_loss(name, minibatch(name, **flags)) for flags in ({}, {"truncated": True}, {"terminated": True})
    )
    assert on == truncated
    assert on != terminated


@pytest.mark.parametrize("name", OF_STEPS)
def test_the_loss_is_the_mean_over_the_minibatch_of_the_error_to_the_target(name: str) -> None:
    agent, batch = new_agent(name, "--gamma", "0"), minibatch(name)
    with torch.no_grad():
        if name.startswith("dqn"):
            value = agent.online(batch.observation)[torch.arange(4), batch.action]
            expected = functional.mse_loss(value, batch.reward)
        else:
            values = agent.critic(batch.observation, batch.action)
            values = [values] if name == "ddpg" else values
            expected = torch.stack([functional.mse_loss(value, batch.reward) for value in values]).sum()
    assert learn(agent, batch) == pytest.approx(float(expected))
    again = learn(new_agent(name, "--gamma", "0"), minibatch(name, twice=True))
    assert again == pytest.approx(float(expected))


@pytest.mark.parametrize("name", OF_STEPS)
def test_the_bootstrap_is_the_discounted_value_of_the_target_networks(name: str) -> None:
    """Give the target network a constant value, apart from the online one; the error must be known then."""
    agent, batch = new_agent(name, "--gamma", "0.5"), minibatch(name, terminated=True)
    with torch.no_grad():
        for parameter in itertools.chain(online(agent).parameters(), target(agent).parameters()):
            parameter.zero_()
        for module in target(agent).modules():
            if isinstance(module, torch.nn.Linear):
                module.bias.fill_(7.0)
        if name in {"td3", "sac"}:  # the lower of two is believed
            agent.target_critic.second[-1].bias.fill_(5.0)
        if name == "sac":
            agent.log_temperature.fill_(-torch.inf)
    bootstrap = 2.5 if name in {"td3", "sac"} else 3.5
    goal = batch.reward + torch.tensor([bootstrap, bootstrap, 0, 0])
    expected = goal.square().mean() * (2 if name in {"td3", "sac"} else 1)
    assert learn(agent, batch) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["dqn-soft", "ddpg", "sac"])
def test_the_soft_target_moves_by_tau_at_every_update(name: str) -> None:
    agent, batch = new_agent(name, "--tau", "0.25"), minibatch(name)
    for _ in range(3):
        online_before, before = parameters(online(agent)), parameters(target(agent))
        learn(agent, batch)
        assert not all_equal(online_before, parameters(online(agent)))
        expected = [a.lerp(b, 0.25) for a, b in zip(before, parameters(online(agent)), strict=True)]
        assert all_equal(expected, parameters(target(agent)))
    if name == "ddpg":
        before = parameters(agent.target_actor)
        learn(agent, batch)
        expected = [a.lerp(b, 0.25) for a, b in zip(before, parameters(agent.actor), strict=True)]
        assert all_equal(expected, parameters(agent.target_actor))


def test_the_hard_target_stands_still_between_copies() -> None:
    agent, batch = new_agent("dqn-hard"), minibatch("dqn-hard")
    for update in range(1, 22):
        before = parameters(agent.target)
        learn(agent, batch)
        if update % 7:
            assert all_equal(before, parameters(agent.target))
        else:
            assert all_equal(parameters(agent.online), parameters(agent.target))
            assert not all_equal(before, parameters(agent.target))


def test_td3_moves_policy_and_targets_at_every_second_update() -> None:
    agent, batch = new_agent("td3", "--tau", "0.25"), minibatch("td3")
    for update in range(1, 7):
        before = {
            network: parameters(getattr(agent, network)) for network in ("actor", "target_actor", "target_critic")
        }
        learn(agent, batch)
        for network, was in before.items():
            assert all_equal(was, parameters(getattr(agent, network))) == bool(update % 2), (network, update)
        if update % 2 == 0:
            expected = [a.lerp(b, 0.25) for a, b in zip(before["target_actor"], parameters(agent.actor), strict=True)]
            assert all_equal(expected, parameters(agent.target_actor))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_actors_step_leaves_the_critic_alone_and_climbs_its_value(name: str) -> None:
    agent, batch = new_agent(name, "--learning-rate", "0.01"), minibatch(name)
    agent.critic_adam = torch.optim.SGD(agent.critic.parameters(), lr=0.0)
    if name == "sac":
        agent.log_temperature.data.fill_(-torch.inf)
    critic = parameters(agent.critic)

    def value() -> float:
        with torch.no_grad():
            rows = batch.observation
            action = torch.as_tensor(agent.act(rows.numpy()))
            values = agent.critic(rows, action)
            match name:
                case "td3":
                    values = values[0]
                case "sac":
                    values = torch.minimum(*values)
            return float(values.mean())

    before = value()
    for _ in range(20):
        learn(agent, batch)
    assert all_equal(critic, parameters(agent.critic))
    assert value() > before


def test_td3_smooths_the_targets_action_within_its_bounds() -> None:
    agent, rows = new_agent("td3"), torch.randn(4000, 2)
    low, high = torch.tensor([-1.0, -2.0]), torch.tensor([3.0, 2.0])
    with torch.no_grad():
        plain, noisy = agent.target_actor(rows), agent.smoothed_target_action(rows)
    noise = (noisy - plain) / 2  # over the half range, which is 2 for both actions
    assert noise.abs().max() <= 0.5 + 1e-6
    assert float(noise.std()) == pytest.approx(0.2, rel=0.1)
    assert ((low <= noisy) & (noisy <= high)).all()
    agent.target_actor.net[-1].bias.data.fill_(10.0)  # now at the upper bound
    assert torch.equal(agent.smoothed_target_action(rows).amax(0), high)


def test_sac_draws_from_the_density_that_it_states() -> None:
    agent, rows = new_agent("sac"), torch.randn(50, 2)
    mean, log_deviation = agent.actor.net(rows).chunk(2, dim=-1)
    squashed: Any = TransformedDistribution(
        Normal(mean, log_deviation.exp()), [TanhTransform(), AffineTransform(0.0, 2.0)]
    )
    torch.manual_seed(5)
    action, log_density = agent.actor(rows)
    # The agent's density is that of the action in [-1, 1], which the half range of 2 stretches.
    stated = squashed.log_prob(action - agent.actor.middle).sum(-1) + 2 * np.log(2)
    assert torch.allclose(stated, log_density, atol=1e-3)


def test_sac_values_randomness_in_the_future_and_seeks_it() -> None:
    """Where every action is worth nothing, what remains of target and policy is the entropy, at temperature 1."""
    agent, batch = new_agent("sac", "--gamma", "0.5", "--learning-rate", "0.01"), minibatch("sac")
    agent.critic_adam = torch.optim.SGD(agent.critic.parameters(), lr=0.0)
    agent.temperature_adam = torch.optim.SGD([agent.log_temperature], lr=0.0)
    with torch.no_grad():
        for parameter in itertools.chain(agent.critic.parameters(), agent.target_critic.parameters()):
            parameter.zero_()

        def log_density() -> torch.Tensor:
            torch.manual_seed(5)
            density: torch.Tensor = agent.actor(batch.next_observation)[1]
            return density

        before, goal = log_density(), batch.reward - 0.5 * log_density()
        torch.manual_seed(5)
    assert learn(agent, batch) == pytest.approx(2 * float(goal.square().mean()))
    for _ in range(20):
        learn(agent, batch)
    with torch.no_grad():
        assert log_density().mean() < before.mean()


@pytest.mark.parametrize(("entropy", "rises"), [(50.0, True), (-50.0, False)])
def test_sacs_temperature_rises_while_the_policy_is_not_random_enough(entropy: float, rises: bool) -> None:
    agent = new_agent("sac")
    agent.target_entropy = entropy
    learn(agent, minibatch("sac"))
    assert (float(agent.log_temperature.detach()) > 0) == rises


@pytest.mark.parametrize("name", CONTINUOUS)
def test_actions_fill_their_bounds_and_stay_within(name: str) -> None:
    agent, rows = new_agent(name), 100 * np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32)
    for actions in (agent.act(rows), agent.explore(rows, 0)):
        assert actions.dtype == np.float32
        assert (actions >= [-1, -2]).all()
        assert (actions <= [3, 2]).all()
        assert np.ptp(actions, axis=0).max() > 3
    assert not np.array_equal(agent.explore(rows, 0), agent.act(rows))


def test_dqn_sums_the_rewards_of_n_steps() -> None:
    agent, rows = new_agent("dqn-soft", "--n-step", "3"), minibatch("dqn-soft", terminated=True)
    agent.buffer.extend(*rows.numpy().values())
    batch = copy.deepcopy(agent.buffer).sample(BATCH_SIZE, follow=fr.NStep(3, agent.args.gamma))
    gamma = agent.args.gamma  # row 2 ends what rows 0 and 1 begin; the next one would only reset
    expected = torch.tensor([gamma + gamma**2 * 2, 1 + gamma * 2, 2])
    assert torch.allclose(torch.unique(batch.reward), torch.unique(expected))
    with torch.no_grad():
        choice = agent.online(batch.next_observation).argmax(dim=1)
        value = agent.target(batch.next_observation)[torch.arange(len(choice)), choice]
        goal = batch.reward + torch.where(batch.terminated, 0, batch.discount * value)
        error = agent.online(batch.observation).gather(1, batch.action[:, None])[:, 0] - goal
    assert float(agent.learn(progress.Clock())["critic"].item()) == pytest.approx(float(error.square().mean()))


def test_prioritized_dqn_weighs_its_losses_and_gives_the_errors_back() -> None:
    agent, rows = new_agent("dqn-soft", "--prioritized"), minibatch("dqn-soft")
    agent.buffer.extend(*rows.numpy().values())
    agent.buffer.update_priorities(range(4), [1, 10, 100, 1000])
    agent.explore(np.ones((1, 2), np.float32), STEPS // 2)
    batch = copy.deepcopy(agent.buffer).sample(BATCH_SIZE, beta=0.7)
    assert batch.weight.min() < 0.9
    with torch.no_grad():
        choice = agent.online(batch.next_observation).argmax(dim=1)
        goal = batch.reward + agent.args.gamma * agent.target(batch.next_observation)[torch.arange(len(choice)), choice]
        value = agent.online(batch.observation).gather(1, batch.action[:, None])[:, 0]
    losses = (value - goal).square()
    agent.buffer.max_priority = 0.0
    assert agent.learn(progress.Clock())["critic"].item() == pytest.approx((batch.weight * losses).mean().item())
    assert agent.buffer.max_priority == pytest.approx((value - goal).abs().max().item(), rel=1e-4)


def test_dqn_explores_less_and_less() -> None:
    agent, rows = new_agent("dqn-soft", "--exploration-steps", "1000"), np.ones((20_000, 2), np.float32)
    greedy = agent.act(rows)
    for step, epsilon in ((0, 1.0), (500, 0.5), (1000, 0.05), (50_000, 0.05)):
        differ = (agent.explore(rows, step) != greedy).mean()
        assert differ == pytest.approx(epsilon * 2 / 3, abs=0.015)  # one random action in three is the greedy one


def test_dqn_values_the_action_that_the_online_network_chooses() -> None:
    """Let the target network prefer another action, by far; it must not be asked which."""
    agent, batch = new_agent("dqn-soft", "--gamma", "0.5"), minibatch("dqn-soft")
    with torch.no_grad():
        for parameter in itertools.chain(agent.online.parameters(), agent.target.parameters()):
            parameter.zero_()
        agent.online[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        agent.target[-1].bias.copy_(torch.tensor([70.0, 6.0, 90.0]))
    value = (batch.action == 1).float()
    assert learn(agent, batch) == pytest.approx((batch.reward + 3 - value).square().mean().item())


def test_dqn_learns_in_ever_smaller_steps() -> None:
    """Adam's first step moves most parameters by the learning rate, whatever the gradient."""
    moved = []
    for step in (0, STEPS // 2, STEPS):
        agent, batch = new_agent("dqn-hard", "--learning-rate", "0.01"), minibatch("dqn-hard")
        agent.explore(np.ones((1, 2), np.float32), step)
        before = parameters(agent.online)
        learn(agent, batch)
        pairs = zip(before, parameters(agent.online), strict=True)
        moved.append(max((a - b).abs().max().item() for a, b in pairs))
    assert moved == pytest.approx([0.01, 0.005, 0.0], rel=1e-3)


@by_turns(0, 2)
def test_dqn_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps of a run with the defaults, which mostly explore; only the count of steps is another.

    `make learn` shows that the whole run reaches its goal, and ends there.
    """
    for seeds in ("VALIDATION_SEEDS", "EVALUATION_SEEDS"):
        monkeypatch.setattr(harness, seeds, range(20_000, 20_020))
    assert dqn.main(["--seed", "1", "--steps", "3000", "--save", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["random_return"] < 40
    assert result["last_return"] >= 100


@by_turns(1, 2)
def test_ddpg_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed, end to end; `make learn` trains all of them on three, with the file's defaults.

    These need a third of the steps: on each of the seeds 1 to 6 the best checkpoint reached -150.
    """
    faster = "--steps 2500 --warmup 600 --learning-rate 2e-3 --tau 0.03 --gamma 0.97"
    for seeds in ("VALIDATION_SEEDS", "EVALUATION_SEEDS"):
        monkeypatch.setattr(harness, seeds, range(20_000, 20_020))
    assert ddpg.main(["--seed", "2", *faster.split(), "--save", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["random_return"] < -900
    assert result["best_return"] >= -250


# What is left behind, and how a run goes on


def curve(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "curve.csv").open() as file:
        return [(row["series"], row["step"], row["return"]) for row in csv.DictReader(file)]


def result(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "result.json").read_text())
    return {key: value for key, value in values.items() if key != "seconds" and not key.startswith("share_")}


def assert_same_run(mine: Path, its: Path, my: Saved, other: Saved) -> None:
    for name, value in vars(my.agent).items():
        match value:
            case torch.nn.Module():
                assert all_equal(parameters(value), parameters(getattr(other.agent, name))), name
            case torch.optim.Optimizer():
                a, b = value.state_dict()["state"], getattr(other.agent, name).state_dict()["state"]
                assert all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i]), name
    for a, b in zip(my.agent.buffer[:].numpy(), other.agent.buffer[:].numpy(), strict=True):
        assert np.array_equal(a, b)
    assert my.agent.buffer.rng_state == other.agent.buffer.rng_state
    assert torch.equal(my.rng, other.rng)
    assert curve(mine) == curve(its)
    assert result(mine) == result(its)
    best = [torch.load(folder / "best.pt", weights_only=True) for folder in (mine, its)]
    assert best[0]["step"] == best[1]["step"]
    for name in my.agent.networks:
        assert all(torch.equal(best[0][name][key], best[1][name][key]) for key in best[0][name])


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C in the middle of the first step at or after this one."""
    real, pending = harness.Run._count, [step]

    def count(run: harness.Run, *arguments: Any) -> None:
        real(run, *arguments)
        if pending and run.progress.step >= pending[0]:
            pending.clear()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(harness.Run, "_count", count)


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("name", "num_envs"),
    [*((name, "1") for name in LOOPS), *((name, "3") for name in ("ddpg", "dqn-soft", "sac", "recurrent"))],
)
def test_a_run_goes_on_after_ctrl_c_as_if_nothing_had_been(
    name: str, num_envs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-envs", num_envs, *(["--prioritized"] if name == "dqn-hard" else [])]
    straight = train(name, tmp_path / "straight", *flags)
    middle = STEPS // 2 + 5  # of an episode, and of what is between two validations
    interrupt_at(middle, monkeypatch)
    stopped = train(name, tmp_path / "stopped", *flags, status=130)
    assert middle <= stopped.progress.step < middle + 3
    assert "stopped by Ctrl-C" in capsys.readouterr().out
    resumed = train(name, tmp_path / "stopped", *flags, "--resume")
    assert_same_run(tmp_path / "straight", tmp_path / "stopped", straight, resumed)
    assert not all_equal(parameters(online(stopped.agent)), parameters(online(resumed.agent)))


def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    straight = train("td3", tmp_path / "straight")
    train("td3", tmp_path / "longer", "--steps", str(VALIDATED[-2]))
    longer = train("td3", tmp_path / "longer", "--resume")
    assert_same_run(tmp_path / "straight", tmp_path / "longer", straight, longer)
    assert longer.agent.args.steps == STEPS


@pytest.mark.parametrize("env", ["Forgetful-v0", "Unpicklable-v0"])
def test_environments_that_cannot_be_saved_begin_new_episodes(
    env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train("ddpg", tmp_path, "--env", env, "--num-envs", "2", "--steps", str(VALIDATE_EVERY))
    assert first.envs is None
    capsys.readouterr()
    second = train("ddpg", tmp_path, "--env", env, "--num-envs", "2", "--resume")
    assert f"{env} cannot be saved in mid-episode: new episodes begin" in capsys.readouterr().err
    before, after = first.agent.buffer[:].numpy(), second.agent.buffer[:].numpy()
    assert np.array_equal(after.observation[: len(first.agent.buffer)], before.observation)
    assert (after.observation[len(first.agent.buffer) :][:2, 1] == 0).all()  # both begin at time 0
    assert (after.next_observation - after.observation == [0, 1]).all()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    runs = {folder: train("sac", tmp_path / folder, "--seed", folder[0]) for folder in ("1a", "1b", "2a")}
    assert_same_run(tmp_path / "1a", tmp_path / "1b", runs["1a"], runs["1b"])
    assert curve(tmp_path / "1a") == curve(tmp_path / "1b") != []
    assert not all_equal(parameters(runs["1a"].agent.actor), parameters(runs["2a"].agent.actor))


def test_a_run_leaves_its_curve_its_checkpoint_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.Progress, "draw", DRAW)
    saved = train("td3", tmp_path)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    points = curve(tmp_path)
    assert [step for series, step, _ in points if series == "validations"] == [str(step) for step in VALIDATED]
    assert len([series for series, _, _ in points if series == "episodes"]) == len(saved.progress.episodes)
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert best["validation_return"] == max(point.value for point in saved.progress.validations)
    figures = json.loads((tmp_path / "result.json").read_text())
    shares = {key: value for key, value in figures.items() if key.startswith("share_")}
    assert sorted(shares) == [
        f"share_{part}" for part in ("environment", "gradient", "sampling", "target_update", "validation")
    ]
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert all(share > 0 for share in shares.values())
    assert not list(tmp_path.glob("*.tmp"))
    printed = capsys.readouterr()
    for wanted in ("random policy", "best checkpoint", "last policy", "sampling", "target update"):
        assert wanted in printed.out
    assert re.search(
        rf"{STEPS}/{STEPS} .* steps/s, return .*, environment .*%, sampling .*%, gradient .*%", printed.err
    )


def test_losses_and_returns_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "new_board", NEW_BOARD)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train("sac", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    tags = {"return/training", "return/validation", "loss/critic", "loss/actor", "loss/temperature", "time/sampling"}
    assert set(events.Tags()["scalars"]) >= tags
    assert [event.step for event in events.Scalars("return/validation")] == list(VALIDATED)


def test_runs_need_no_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "new_board", NEW_BOARD)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    train("ddpg", tmp_path)
    assert not list(tmp_path.glob("events*"))


def test_episodes_are_scored_whole_and_once() -> None:
    envs = environments.make_envs("Counting-v0", 3, 0)
    returns = environments.evaluate(envs, lambda rows: np.zeros((len(rows), 2), np.float32), range(3))
    lengths = np.array([7, 12, 17])  # of each environment's first episode
    assert np.array_equal(returns, lengths * (lengths - 1) / 2)


# What is refused


def refusal(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        LOOPS[name][0].main(list(arguments))
    assert left.value.code not in {0, None}
    text = str(left.value.code) if isinstance(left.value.code, str) else capsys.readouterr().err
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ddpg", "--env NoSuch-v0", "error: cannot make environment 'NoSuch-v0'"),
        ("ddpg", "--env CartPole-v1", r"error: actions: expected a flat Box of floats, got Discrete\(2\)"),
        ("dqn-soft", "--env Pendulum-v1", r"error: actions: expected Discrete from 0, got Box\("),
        ("sac", "--steps 0", "argument --steps: expected at least 1, got 0"),
        ("sac", "--steps many", "argument --steps: invalid int value: 'many'"),
        ("td3", "--tau 1.5", r"argument --tau: expected a number in \[0.0, 1.0\], got 1.5"),
        ("td3", "--gamma nan", r"argument --gamma: expected a number in \[0.0, 1.0\], got nan"),
        ("td3", "--policy-every 0", "argument --policy-every: expected at least 1, got 0"),
        ("dqn-soft", "--target slow", "argument --target: invalid choice: 'slow'"),
        ("ddpg", "--seed -1", "argument --seed: expected at least 0, got -1"),
        ("ddpg", "--device abacus", "argument --device: expected one that torch can use, got 'abacus'"),
        ("ddpg", "--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_refusals_name_the_argument(
    name: str, arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refusal(capsys, name, *arguments.split(), "--save", str(tmp_path / "run")))


def test_resuming_refuses_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train("ddpg", tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    same = [*SHORT, "--env", "Counting-v0", "--save", str(tmp_path), "--resume"]
    message = refusal(capsys, "ddpg", *same, "--learning-rate", "0.5")
    assert message == "error: --learning-rate: expected 0.001, as in the run to resume, got 0.5"
    assert "expected a run of TD3, got one of DDPG" in refusal(capsys, "td3", *same)
    assert "there is no" in refusal(capsys, "ddpg", *same, "--save", str(tmp_path / "elsewhere"))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not (tmp_path / "elsewhere").exists()


# From the command line


def test_ctrl_c_and_resume_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, arguments = EXAMPLES / "ddpg.py", ["--steps", "100000", "--hidden", "8", "--save", str(tmp_path)]
    command = [sys.executable, str(script), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    assert "random policy" in process.stdout.readline()  # training begins now
    while "return" not in process.stderr.read(200):  # an episode has ended
        pass
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped by Ctrl-C; the same command with --resume goes on from here" in output
    assert "Traceback" not in errors
    done = re.search(r": (\d+) steps in", output)
    assert done
    steps = str(int(done[1]) + 50)
    # What it saved is of its __main__, so only a script can load it.
    assert run_as_script(script, *arguments, "--resume", "--steps", steps) == 0
    assert f"{steps} steps in" in capsys.readouterr().out
    assert [step for series, step, _ in curve(tmp_path) if series == "validations"][-1] == steps


def test_a_refusal_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = run_as_script(EXAMPLES / "dqn.py", "--env", "NoSuch-v0", "--save", f"{tmp_path}/run")
    assert isinstance(message, str)  # which Python writes to stderr, and exits with 1
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("", "examples/ddpg.py --seed 0"),
        ("ALGO=dqn SEED=3 ARGS='--target hard'", "examples/dqn.py --seed 3 --target hard"),
        ("ALGO=sac ENV=Hopper-v5 STEPS=70", "examples/sac.py --seed 0 --env Hopper-v5 --steps 70"),
    ],
)
def test_make_train_runs_the_algorithm(arguments: str, command: str) -> None:
    """Shells may have an ENV of their own in the environment: it is none of ours."""
    # Not as a part of the make that may run these tests.
    shell = f"env -u MAKEFLAGS -u MAKELEVEL ENV=/etc/profile make --dry-run train {arguments}"
    printed = subprocess.run(shell, shell=True, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert printed.splitlines()[-1].strip().endswith(command)


def test_the_agents_can_be_copied() -> None:
    """The targets of a copy follow the copy's networks: what a resumed run relies upon."""
    agent = new_agent("ddpg")
    twin = copy.deepcopy(agent)
    before = parameters(agent.target_critic)
    learn(twin, minibatch("ddpg"))
    assert all_equal(before, parameters(agent.target_critic))
    assert not all_equal(before, parameters(twin.target_critic))
