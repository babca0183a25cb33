# SPDX-License-Identifier: MIT
"""Deep deterministic policy gradient (DDPG) on fastreplay, in one file.

    python examples/ddpg.py --seed 1                                   # Pendulum-v1, under a minute
    python examples/ddpg.py --env InvertedPendulum-v5 --steps 20000    # needs gymnasium[mujoco]

Works on Gymnasium environments whose observations are a flat Box and whose actions are a flat,
bounded Box. A run leaves its best checkpoint, its learning curve and the numbers behind the curve
in runs/<env>-ddpg-seed<seed>/. On one machine, equal arguments give equal results on the CPU.

Ctrl-C ends training after the current step; the run then saves and reports what it learned and
exits with 130 instead of 0. A third Ctrl-C leaves at once.

Sources:
    Lin 1992, Self-improving reactive agents based on reinforcement learning, planning and
        teaching, Machine Learning 8. https://doi.org/10.1007/BF00992699 (experience replay)
    Mnih et al. 2015, Human-level control through deep reinforcement learning, Nature 518.
        https://doi.org/10.1038/nature14236 (replay and target networks in deep learning)
    Lillicrap et al. 2015, Continuous control with deep reinforcement learning.
        https://arxiv.org/abs/1509.02971 (DDPG and the soft update)
"""

from __future__ import annotations

import argparse
import copy
import csv
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box
from matplotlib.figure import Figure  # without pyplot, so it draws into files on any machine
from torch import Tensor, nn
from tqdm import tqdm

import fastreplay as fr

Array: TypeAlias = npt.NDArray[Any]
Env: TypeAlias = gym.Env[Any, Any]
Policy: TypeAlias = Callable[[Array], Array]  # one observation -> one action

# Validation episodes choose the checkpoint, evaluation episodes measure it: the best of many noisy
# scores flatters the policy that got it, so it is not the score to report.
VALIDATION_SEEDS = range(10_000, 10_010)
EVALUATION_SEEDS = range(20_000, 20_020)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train DDPG on a continuous-control Gymnasium environment.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(name: str, default: str | float, text: str) -> None:
        parser.add_argument(name, type=type(default), default=default, help=text)

    add("--env", "Pendulum-v1", "Gymnasium id")
    add("--steps", 8_000, "environment steps to train for")
    add("--seed", 0, "seed of the networks, the exploration, the environment and the replay")
    add("--capacity", 100_000, "transitions that the replay buffer holds")
    add("--batch-size", 128, "transitions per minibatch")
    add("--gamma", 0.99, "discount per step")
    add("--tau", 0.01, "share of the online networks in each soft update of the targets")
    add("--actor-learning-rate", 1e-3, "Adam's step size for the actor")
    add("--critic-learning-rate", 1e-3, "Adam's step size for the critic")
    add("--noise", 0.1, "standard deviation of the exploration, as a share of the half range")
    add("--warmup", 1_000, "steps with random actions before the first update")
    add("--validate-every", 500, "steps between validations")
    add("--device", "cpu", "torch device of the networks and minibatches")
    add("--out", "runs", "folder that holds the runs")
    args = parser.parse_args()
    for name in ("steps", "capacity", "batch_size", "validate_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(args, name)}")
    if args.seed < 0:
        parser.error(f"--seed: expected at least 0, got {args.seed}")
    return args


def make_env(name: str) -> Env:
    """Make the environment, or leave with one line that says why there is none."""
    try:
        return gym.make(name)
    except (gym.error.Error, ImportError) as error:
        sys.exit(f"ddpg.py: cannot make environment {name!r}: {error}")


def flat_box(space: gym.Space[Any], what: str) -> Box:
    """Return the space, or leave with one line that says why it does not fit this example."""
    if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        sys.exit(f"ddpg.py: {what}: expected a flat Box of floats, got {space}")
    if what == "actions" and not space.is_bounded():
        sys.exit(f"ddpg.py: {what}: expected finite bounds, got {space}")
    return space


def mlp(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """Make a network with two hidden layers, (..., num_inputs) -> (..., num_outputs)."""
    first, second, last = nn.Linear(num_inputs, 64), nn.Linear(64, 64), nn.Linear(64, num_outputs)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class Actor(nn.Module):
    """The deterministic policy mu(s): (..., *obs_shape) -> (..., *action_shape), float32."""

    middle: Tensor  # (*action_shape,)
    half_range: Tensor  # (*action_shape,)

    def __init__(self, observations: Box, actions: Box) -> None:
        super().__init__()
        self.net = mlp(observations.shape[0], actions.shape[0])
        low, high = torch.tensor(actions.low).float(), torch.tensor(actions.high).float()
        self.register_buffer("middle", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, observation: Tensor) -> Tensor:
        """Choose actions within the bounds."""
        return self.middle + self.half_range * torch.tanh(self.net(observation))


class Critic(nn.Module):
    """The action value Q(s, a): (B, *obs_shape), (B, *action_shape) -> (B,), float32."""

    def __init__(self, observations: Box, actions: Box) -> None:
        super().__init__()
        self.net = mlp(observations.shape[0] + actions.shape[0], 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Value each action at its observation."""
        value: Tensor = self.net(torch.cat([observation, action], dim=-1))
        return value.squeeze(-1)


class Agent:
    """The networks, their targets, their optimisers, and the exploration."""

    def __init__(self, env: Env, args: argparse.Namespace) -> None:
        observations = flat_box(env.observation_space, "observations")
        self.actions = flat_box(env.action_space, "actions")
        self.gamma, self.device = args.gamma, args.device
        self.actor = Actor(observations, self.actions).to(self.device)
        self.critic = Critic(observations, self.actions).to(self.device)
        self.target_actor = copy.deepcopy(self.actor)
        self.target_critic = copy.deepcopy(self.critic)
        self.follow_actor = fr.SoftUpdate(self.target_actor, self.actor, args.tau)
        self.follow_critic = fr.SoftUpdate(self.target_critic, self.critic, args.tau)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), args.actor_learning_rate, fused=True)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), args.critic_learning_rate, fused=True)
        self.noise = args.noise * (self.actions.high - self.actions.low) / 2
        self.rng = np.random.default_rng(args.seed)

    @torch.no_grad()
    def act(self, observation: Array) -> Array:
        """Choose the policy's action for one observation, without exploration."""
        row = torch.as_tensor(observation, dtype=torch.float32, device=self.device)
        action: Array = self.actor(row).cpu().numpy().astype(self.actions.dtype, copy=False)
        return action

    def explore(self, observation: Array) -> Array:
        """Choose the policy's action for one observation, plus Gaussian noise, within the bounds."""
        noisy = self.act(observation) + self.rng.normal(0.0, self.noise).astype(self.actions.dtype)
        action: Array = noisy.clip(self.actions.low, self.actions.high)
        return action

    def update(self, batch: fr.Minibatch[Tensor]) -> None:
        """Take one gradient step of the critic and of the actor, then soft update the targets."""
        with torch.no_grad():
            next_action = self.target_actor(batch.next_observation)
            next_value = self.target_critic(batch.next_observation, next_action)
            # Nothing follows a terminated transition. A truncated one met the time limit, which is
            # no property of the state: what follows it still has a value.
            target = batch.reward + self.gamma * next_value * ~batch.terminated

        critic_loss = (self.critic(batch.observation, batch.action) - target).square().mean()
        self.critic_adam.zero_grad()
        critic_loss.backward()
        self.critic_adam.step()

        # This gradient reaches the critic's parameters too; the zero_grad() above discards it there.
        actor_loss = -self.critic(batch.observation, self.actor(batch.observation)).mean()
        self.actor_adam.zero_grad()
        actor_loss.backward()
        self.actor_adam.step()

        self.follow_actor.step()
        self.follow_critic.step()


def evaluate(env: Env, policy: Policy, seeds: range) -> Array:
    """Play one episode per seed without learning; return the episodes' returns, (len(seeds),)."""
    returns = np.zeros(len(seeds))
    for i, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            returns[i] += float(reward)
    return returns


@dataclass
class Run:
    """What a run leaves on disk, and whether Ctrl-C has ended it."""

    folder: Path
    episodes: list[tuple[int, float]] = field(default_factory=list)  # (step, return) in training
    validations: list[tuple[int, float]] = field(default_factory=list)  # (step, mean return)
    interrupts: int = 0

    def interrupt(self, *_: object) -> None:
        """Count a Ctrl-C. Training looks at the count between steps, so nothing is cut in two."""
        self.interrupts += 1
        if self.interrupts == 3:
            raise KeyboardInterrupt

    def validate(self, step: int, env: Env, agent: Agent) -> None:
        """Score the policy without noise; save the networks unless an earlier score was better."""
        earlier = [score for _, score in self.validations]
        score = float(evaluate(env, agent.act, VALIDATION_SEEDS).mean())
        self.validations.append((step, score))
        if not earlier or score > max(earlier):
            networks = {"actor": agent.actor.state_dict(), "critic": agent.critic.state_dict()}
            unfinished = self.folder / "best.pt.tmp"  # renamed when whole: a kill leaves no half file
            torch.save({"step": step, "validation_return": score, **networks}, unfinished)
            unfinished.replace(self.folder / "best.pt")

    def save_curve(self, title: str, random_return: float) -> None:
        """Write the returns to curve.csv and draw them in curve.png."""
        with (self.folder / "curve.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["series", "step", "return"])
            writer.writerows(["training", step, f"{total:.3f}"] for step, total in self.episodes)
            writer.writerows(["validation", step, f"{total:.3f}"] for step, total in self.validations)
        # Sky blue and vermilion of Okabe and Ito (2008): distinct in every kind of colour vision.
        figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.plot(*np.reshape(self.episodes, (-1, 2)).T, ".", color="#56B4E9", label="training episode, with noise")
        axes.plot(*np.reshape(self.validations, (-1, 2)).T, "o-", color="#D55E00", label="validation, mean of 10")
        axes.axhline(random_return, color="0.3", linestyle="--", label="random policy, mean of 20")
        axes.set(title=title, xlabel="environment steps", ylabel="return (sum of rewards)")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
        figure.savefig(self.folder / "curve.png")


def train(env: Env, test_env: Env, agent: Agent, run: Run, args: argparse.Namespace) -> int:
    """Interact, store, sample, update; repeat. Return the number of steps taken."""
    buffer = fr.ReplayBuffer.from_env(env, args.capacity, dtype="float32", seed=args.seed, device=args.device)
    observation, _ = env.reset(seed=args.seed)
    episode_return = 0.0
    with tqdm(total=args.steps, unit=" steps") as bar:
        for step in range(1, args.steps + 1):
            warm = step > args.warmup
            action = agent.explore(observation) if warm else agent.actions.sample()
            next_observation, reward, terminated, truncated, _ = env.step(action)
            buffer.add(observation, action, float(reward), next_observation, terminated, truncated)
            observation = next_observation
            episode_return += float(reward)
            if terminated or truncated:
                run.episodes.append((step, episode_return))
                observation, _ = env.reset()
                episode_return = 0.0
            if warm:
                agent.update(buffer.sample(args.batch_size))

            last = step == args.steps or run.interrupts > 0
            if last or step % args.validate_every == 0:
                run.validate(step, test_env, agent)
            if last or step % 100 == 0:
                latest = f"{run.episodes[-1][1]:.1f}" if run.episodes else "-"
                bar.set_postfix_str(f"return {latest}, buffer {len(buffer) / buffer.capacity:.0%}", refresh=False)
            bar.update()
            if last:
                break
    return step


def main() -> int:
    """Train, then measure the best checkpoint beside a random policy on the same episodes."""
    args = parse_args()
    torch.set_num_threads(1)  # layers of 64 are too small to share: more threads only wait
    torch.manual_seed(args.seed)
    env, test_env = make_env(args.env), make_env(args.env)  # a test must not end a training episode
    agent = Agent(env, args)
    for space in (env.action_space, test_env.action_space):
        space.seed(args.seed)
    run = Run(Path(args.out) / f"{args.env.replace('/', '-')}-ddpg-seed{args.seed}")
    run.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, run.interrupt)

    random = evaluate(test_env, lambda _: test_env.action_space.sample(), EVALUATION_SEEDS)
    print(f"random policy on {args.env}: mean return {random.mean():.1f} over {len(random)} episodes", flush=True)
    start = time.perf_counter()
    steps = train(env, test_env, agent, run, args)
    seconds = time.perf_counter() - start
    run.save_curve(f"DDPG on {args.env}, seed {args.seed}", random.mean())

    best = torch.load(run.folder / "best.pt", weights_only=True)
    agent.actor.load_state_dict(best["actor"])
    final = evaluate(test_env, agent.act, EVALUATION_SEEDS)
    stopped = steps < args.steps
    print(
        f"\nDDPG on {args.env}, seed {args.seed}: {steps} steps in {seconds:.0f} s{', stopped by Ctrl-C' * stopped}\n"
        f"  mean return +- standard deviation of {len(final)} episodes that trained and chose nothing:\n"
        f"    best checkpoint  {final.mean():9.1f} +- {final.std():.1f}  (of step {best['step']})\n"
        f"    random policy    {random.mean():9.1f} +- {random.std():.1f}\n"
        f"  files: {run.folder}/best.pt, curve.png, curve.csv"
    )
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
