# SPDX-License-Identifier: MIT
"""The training loop, and what a run keeps of it: scores, clock, progress, files. It knows no algorithm."""

from __future__ import annotations

import argparse
import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import resuming
import torch
from environments import Array, Envs, evaluate, make_envs
from figures import write_csv
from progress import Clock, Progress
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

import fastreplay as fr

# Validation episodes choose the checkpoint, evaluation episodes measure it: the best of many noisy
# scores flatters the policy that got it, so it is not the score to report.
VALIDATION_SEEDS = range(10_000, 10_020)
EVALUATION_SEEDS = range(20_000, 20_020)

REPORT_EVERY = 100  # steps from one look at losses and shares of time to the next


class Agent(Protocol):
    """What the loop asks of an algorithm."""

    buffer: fr.ReplayBuffer[Tensor]
    networks: dict[str, Any]  # modules, those that a checkpoint holds

    def act(self, observation: Array) -> Array:
        """Choose actions without exploration, (N, *obs_shape) -> (N, *action_shape)."""

    def explore(self, observation: Array, step: int, /) -> Array:
        """Choose actions with the exploration of this step."""

    def learn(self, clock: Clock) -> Mapping[str, Tensor]:
        """Learn from one minibatch of the buffer, and let the target networks follow; return the losses ()."""

    # What only an agent with a memory does otherwise.

    def policy(self) -> Callable[[Array], Array]:
        """Return a policy without exploration, for episodes that all begin at its first call."""
        return self.act

    def store(self, *step: Array) -> None:
        """Store a step of all environments, in the order of the buffer's fields."""
        self.buffer.extend(*step)

    def cut(self) -> None:
        """Begin new episodes, whose first steps do not follow the last ones stored."""
        self.buffer.cut()


NewAgent: TypeAlias = Callable[[Envs, argparse.Namespace], Agent]


class Run:
    """One training run: its progress bar, its curves, and its files in one folder.

    The first Ctrl-C ends `steps` after the current one, so that nothing is cut in two; the third leaves at once.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args, self.interrupts = name, args, 0
        torch.set_num_threads(1)  # layers this narrow are too small to share: more threads only wait
        torch.manual_seed(args.seed)
        folder = f"{args.env.replace('/', '-')}-{name.lower()}-seed{args.seed}"
        self.folder: Path = args.save or Path("runs") / folder
        self.test_envs = make_envs(args.env, len(EVALUATION_SEEDS), args.seed)
        self.resume_folder = self.folder / "resume"
        self.progress, self.saved = Progress(np.zeros(args.num_envs)), None
        if args.resume:
            self.progress, self.saved = resuming.read(self.resume_folder, name, args)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._board = new_board(self.folder, self.progress.step)
        self.random = evaluate(self.test_envs, lambda _: self.test_envs.action_space.sample(), EVALUATION_SEEDS)
        print(f"random policy on {self.args.env}: mean return {self.random.mean():.1f}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if self._board:
            self._board.close()
        self.test_envs.close()

    def _interrupt(self, *_: object) -> None:
        self.interrupts += 1
        if self.interrupts == 3:
            raise KeyboardInterrupt

    def train(self, new_agent: NewAgent) -> Agent:
        """Interact, store, learn from minibatches; repeat."""
        args, clock = self.args, self.progress.clock
        envs = make_envs(args.env, args.num_envs, args.seed)
        agent = new_agent(envs, args)
        observation, _ = envs.reset(seed=args.seed)
        ended = np.zeros(args.num_envs, dtype=bool)
        if self.saved:
            agent, envs, observation, ended = resuming.restored(self.saved, args, self.progress)

        for step in self._steps():
            clock("environment")
            warm = step > args.warmup
            action = agent.explore(observation, step) if warm else envs.action_space.sample()
            next_observation, reward, terminated, truncated, _ = envs.step(action)
            # The step after an episode's end only resets the environment: the buffer leaves its row out.
            agent.store(observation, action, reward, next_observation, terminated, truncated)
            observation, ended = next_observation, terminated | truncated
            self._count(reward, ended)

            for _ in range(args.updates if warm else 0):
                self._show(agent.learn(clock))
            self._validate(agent)
        state = resuming.State(agent, envs, observation, ended)
        resuming.write(self.resume_folder, self.name, args, self.progress, state)
        return agent

    def _steps(self) -> Iterator[int]:
        """Count the steps of all environments together, from that which begins, until --steps or Ctrl-C."""
        progress, num_envs = self.progress, self.args.num_envs
        with tqdm(total=self.args.steps, initial=progress.step, unit=" steps", dynamic_ncols=True) as bar:
            while progress.step < self.args.steps and not self.interrupts:
                progress.step += num_envs
                yield progress.step
                if self._is_due(REPORT_EVERY):
                    latest = f"return {progress.episodes[-1].value:.1f}, " if progress.episodes else ""
                    bar.set_postfix_str(f"{latest}{progress.clock}", refresh=False)
                bar.update(num_envs)
        progress.clock(None)

    def _is_due(self, every: int) -> bool:
        step, steps, num_envs = self.progress.step, int(self.args.steps), int(self.args.num_envs)
        return step % every < num_envs or step >= steps

    def _count(self, reward: Array, ended: Array) -> None:
        """Add the rewards (num_envs,) to their episodes, and note the returns of those that ended."""
        progress = self.progress
        progress.totals += reward
        for total in progress.totals[ended]:
            progress.note(progress.episodes, float(total))
            self._log("return", {"training": total})
        progress.totals[ended] = 0

    def _show(self, losses: Mapping[str, Tensor]) -> None:
        """Show the losses () now and then where TensorBoard is installed."""
        if self._board and self._is_due(REPORT_EVERY):
            self._log("loss", {name: loss.item() for name, loss in losses.items()})
            self._log("time", self.progress.clock.shares())

    def _log(self, group: str, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items() if self._board else ():
            self._board.add_scalar(f"{group}/{name}", value, self.progress.step)

    def _validate(self, agent: Agent) -> None:
        """Where due, score the policy without exploration; save its networks unless an earlier score was better."""
        progress = self.progress
        if not self._is_due(self.args.validate_every):
            return
        progress.clock("validation")
        best = max((point.value for point in progress.validations), default=-math.inf)
        score = float(evaluate(self.test_envs, agent.policy(), VALIDATION_SEEDS).mean())
        progress.note(progress.validations, score)
        self._log("return", {"validation": score})
        if score >= best:  # of equals, that which trained longest
            networks = {name: network.state_dict() for name, network in agent.networks.items()}
            with resuming.replacing(self.folder / "best.pt") as file:
                torch.save({"step": progress.step, "validation_return": score, **networks}, file)

    def report(self, agent: Agent) -> int:
        """Draw the curve; measure the best checkpoint. Return the exit status, 130 after Ctrl-C."""
        progress, folder, args = self.progress, self.folder, self.args
        title = f"{self.name} on {args.env}, seed {args.seed}"
        write_csv(folder / "curve.csv", progress.rows())
        progress.draw(title, self.random.mean(), folder / "curve.png")
        print(f"{title}: {progress.step} steps in {progress.clock.total():.0f} s")
        print(f"  time: {progress.clock}\n  files: {folder}/")
        if progress.step < args.steps:
            print("  stopped by Ctrl-C; the same command with --resume goes on from here")
            return 130
        last = evaluate(self.test_envs, agent.policy(), EVALUATION_SEEDS)
        checkpoint = torch.load(folder / "best.pt", weights_only=True, map_location=args.device)
        for name, network in agent.networks.items():
            network.load_state_dict(checkpoint[name])
        best = evaluate(self.test_envs, agent.policy(), EVALUATION_SEEDS)
        print(
            f"  mean return +- standard deviation of {len(best)} episodes that trained and chose nothing:\n"
            f"    best checkpoint  {best.mean():9.1f} +- {best.std():.1f}  (of step {checkpoint['step']})\n"
            f"    last policy      {last.mean():9.1f} +- {last.std():.1f}\n"
            f"    random policy    {self.random.mean():9.1f} +- {self.random.std():.1f}"
        )
        self._write_result(checkpoint["step"], best, last)
        return 0

    def _write_result(self, best_step: int, best: Array, last: Array) -> None:
        clock = self.progress.clock
        result = {
            "algorithm": self.name,
            "env": self.args.env,
            "seed": self.args.seed,
            "steps": self.progress.step,
            "seconds": round(clock.total(), 1),
            "best_step": best_step,
            "best_return": round(best.mean(), 2),
            "best_std": round(best.std(), 2),
            "last_return": round(last.mean(), 2),
            "random_return": round(self.random.mean(), 2),
            **{f"share_{part.replace(' ', '_')}": round(share, 4) for part, share in clock.shares().items()},
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def run(name: str, new_agent: NewAgent, args: argparse.Namespace) -> int:
    """Train an agent, then measure its best checkpoint beside a random policy on the same episodes."""
    with Run(name, args) as training:
        return training.report(training.train(new_agent))


def new_board(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer that goes on from this step, or None where TensorBoard is not installed."""
    try:
        from torch.utils import tensorboard
    except ImportError:
        return None
    module: Any = tensorboard  # whose functions have no types
    return module.SummaryWriter(str(folder), purge_step=step)
