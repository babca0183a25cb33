# SPDX-License-Identifier: MIT
"""What surrounds an algorithm: command line, environments, evaluation, clock, progress, files. It learns nothing."""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import json
import math
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import SyncVectorEnv
from matplotlib.figure import Figure  # without pyplot, so it draws into files on any machine
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Self

Array: TypeAlias = npt.NDArray[Any]
Envs: TypeAlias = SyncVectorEnv
Policy: TypeAlias = Callable[[Array], Array]  # (N, *obs_shape) -> (N, *action_shape)

# Validation episodes choose the checkpoint, evaluation episodes measure it: the best of many noisy
# scores flatters the policy that got it, so it is not the score to report.
VALIDATION_SEEDS = range(10_000, 10_020)
EVALUATION_SEEDS = range(20_000, 20_020)

REPORT_EVERY = 100  # steps from one look at losses and shares of time to the next
MAY_CHANGE = {"steps", "save", "resume"}  # arguments in which a resumed run may differ from the saved one

# Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
SKY_BLUE, VERMILION, GREY = "#56B4E9", "#D55E00", "0.3"


class Agent(Protocol):
    """What a run asks of an algorithm."""

    def act(self, observation: Array) -> Array:
        """Choose actions without exploration, (N, *obs_shape) -> (N, *action_shape)."""

    def networks(self) -> Mapping[str, nn.Module]:
        """Name the networks that a checkpoint holds."""


class Point(NamedTuple):
    """One point of a learning curve."""

    step: int
    seconds: float  # of training until then
    value: float


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return what reads a number in [low, high], an int where low is one, and refuses others."""
    kind = type(low)

    def read(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            wanted = f"at least {low}" if high == math.inf else f"a number in [{low}, {high}]"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is no number
    return read


def torch_device(text: str) -> str:
    """Return the name of a device that torch can use, and refuse others."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected one that torch can use, got {text!r}") from error
    return text


def new_parser(description: str, **defaults: str | float) -> argparse.ArgumentParser:
    """Make a parser with the arguments that all algorithms share, and this algorithm's defaults."""
    parser = argparse.ArgumentParser(
        description=description, usage="%(prog)s [arguments]", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--env", default="Pendulum-v1", help="Gymnasium id")
    add("--steps", type=number(1), default=8_000, help="environment steps to train for, over all environments")
    add("--seed", type=number(0), default=0, help="of the networks, the exploration, the environments, the replay")
    add("--num-envs", type=number(1), default=1, help="environments that step together")
    add("--updates", type=number(1), default=1, help="gradient steps for each step of all environments")
    add("--capacity", type=number(1), default=100_000, help="transitions that the replay buffer holds")
    add("--batch-size", type=number(1), default=128, help="transitions per minibatch")
    add("--hidden", type=number(1), default=64, help="units in each of the two hidden layers")
    add("--learning-rate", type=number(0.0), default=1e-3, help="Adam's step size")
    add("--gamma", type=number(0.0, 1.0), default=0.99, help="discount per step")
    add("--tau", type=number(0.0, 1.0), default=0.01, help="share of the online networks in a soft update")
    add("--warmup", type=number(0), default=1_000, help="steps with random actions before the first update")
    add("--validate-every", type=number(1), default=500, help="steps between validations")
    add("--device", type=torch_device, default="cpu", help="torch device of the networks and minibatches")
    add("--save", type=Path, metavar="FOLDER", help="where the run's files go (default: a folder in runs/)")
    add("--resume", action="store_true", help="go on with the run that was saved there")
    parser.set_defaults(**defaults)
    return parser


def make_envs(name: str, num_envs: int, seed: int) -> Envs:
    """Make environments that step together, or leave with one line that says why there are none.

    An environment resets in the step after an episode's end (Gymnasium's next-step autoreset): that
    step's row holds no transition.
    """
    try:
        envs = SyncVectorEnv([functools.partial(gym.make, name)] * num_envs)
    except (gym.error.Error, ImportError) as error:
        sys.exit(f"error: cannot make environment {name!r}: {error}")
    envs.action_space.seed(seed)
    return envs


def flat_box(space: gym.Space[Any], what: str, *, bounded: bool = False) -> Box:
    """Return the space, or leave with one line that says why it does not fit this algorithm."""
    if not isinstance(space, Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        sys.exit(f"error: {what}: expected a flat Box of floats, got {space}")
    if bounded and not space.is_bounded():
        sys.exit(f"error: {what}: expected finite bounds, got {space}")
    return space


def discrete(space: gym.Space[Any], what: str) -> Discrete:
    """Return the space, or leave with one line that says why it does not fit this algorithm."""
    if not isinstance(space, Discrete) or space.start != 0:
        sys.exit(f"error: {what}: expected Discrete from 0, got {space}")
    return space


def evaluate(envs: Envs, policy: Policy, seeds: range) -> Array:
    """Play one episode from each seed without learning; return the episodes' returns, (len(seeds),)."""
    observation, _ = envs.reset(seed=list(seeds))
    returns, runs = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    while runs.any():
        observation, reward, terminated, truncated, _ = envs.step(policy(observation))
        returns += reward * runs
        runs &= ~(terminated | truncated)
    return returns


class Clock:
    """Where the time goes: `clock("sampling")` says that from now on it goes to sampling.

    A GPU works on while Python goes ahead; there the shares are those of the launching thread.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("environment", "sampling", "gradient", "target update", "validation"), 0.0)
        self.part: str | None = None
        self.since = 0.0

    def __call__(self, part: str | None) -> None:
        """Stop the part that runs, and start this one; None only stops."""
        now = time.perf_counter()
        if self.part is not None:
            self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def total(self) -> float:
        """Return the seconds counted so far."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Return each part's share of the time, in [0, 1]."""
        total = self.total() or 1.0
        return {part: seconds / total for part, seconds in self.seconds.items()}


@dataclass
class Progress:
    """How far a run has come, and what it has seen; saved with it."""

    totals: Array  # (num_envs,) rewards of the episodes that run
    step: int = 0
    episodes: list[Point] = field(default_factory=list)  # returns in training, with exploration
    validations: list[Point] = field(default_factory=list)  # mean returns without it
    clock: Clock = field(default_factory=Clock)


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
        self.progress = Progress(np.zeros(args.num_envs))
        self.saved = self._read() if args.resume else None
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

    @property
    def clock(self) -> Clock:
        """Where the time of this run goes."""
        return self.progress.clock

    def steps(self) -> Iterator[int]:
        """Count the steps of all environments together, from that which begins, until --steps or Ctrl-C."""
        progress, num_envs = self.progress, self.args.num_envs
        with tqdm(total=self.args.steps, initial=progress.step, unit=" steps", dynamic_ncols=True) as bar:
            while progress.step < self.args.steps and not self.interrupts:
                progress.step += num_envs
                yield progress.step
                if self._is_due(REPORT_EVERY):
                    bar.set_postfix_str(self._summary(), refresh=False)
                bar.update(num_envs)
        self.clock(None)

    def _is_due(self, every: int) -> bool:
        step, steps, num_envs = self.progress.step, int(self.args.steps), int(self.args.num_envs)
        return step % every < num_envs or step >= steps

    def _summary(self) -> str:
        latest = f"return {self.progress.episodes[-1].value:.1f}, " if self.progress.episodes else ""
        return latest + ", ".join(f"{part} {share:.1%}" for part, share in self.clock.shares().items())

    def count(self, reward: Array, ended: Array) -> None:
        """Add the rewards (num_envs,) to their episodes, and note the returns of those that ended."""
        progress = self.progress
        progress.totals += reward
        for total in progress.totals[ended]:
            progress.episodes.append(Point(progress.step, self.clock.total(), float(total)))
            self._log({"return/training": total})
        progress.totals[ended] = 0

    def losses(self, losses: Mapping[str, Tensor]) -> None:
        """Show the losses () now and then where TensorBoard is installed."""
        if self._board and self._is_due(REPORT_EVERY):
            self._log({f"loss/{name}": loss.item() for name, loss in losses.items()})
            self._log({f"time/{part}": share for part, share in self.clock.shares().items()})

    def _log(self, scalars: Mapping[str, float]) -> None:
        if self._board:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, self.progress.step)

    def validate(self, agent: Agent) -> None:
        """Where due, score the policy without exploration; save its networks unless an earlier score was better."""
        if not self._is_due(self.args.validate_every):
            return
        self.clock("validation")
        earlier = [point.value for point in self.progress.validations]
        score = float(evaluate(self.test_envs, agent.act, VALIDATION_SEEDS).mean())
        self.progress.validations.append(Point(self.progress.step, self.clock.total(), score))
        self._log({"return/validation": score})
        if score >= max(earlier, default=-math.inf):  # of equals, that which trained longest
            networks = {name: network.state_dict() for name, network in agent.networks().items()}
            with replacing(self.folder / "best.pt") as unfinished:
                torch.save({"step": self.progress.step, "validation_return": score, **networks}, unfinished)

    def save(self, agent: Agent, buffer: object, envs: Envs, observation: Array, ended: Array) -> None:
        """Write all that the next step depends on. One pickle keeps what refers to what: optimisers, targets.

        The environments must not be used again.
        """
        state = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "learner": (agent, buffer),
            "environments": (pickled(envs), observation, ended),
        }
        with replacing(self.folder / "resume.pkl") as unfinished, unfinished.open("wb") as file:
            # Apart, since an algorithm's state can be read by that algorithm only.
            pickle.dump({"name": self.name, "args": vars(self.args), "progress": self.progress}, file)
            pickle.dump(state, file)

    def _read(self) -> dict[str, Any]:
        path = self.folder / "resume.pkl"
        if not path.exists():
            sys.exit(f"error: --resume: there is no {path}")
        with path.open("rb") as file:  # a pickle may run any code: resume only runs of your own
            run = pickle.load(file)
            if run["name"] != self.name:
                sys.exit(f"error: --resume: expected a run of {self.name}, got one of {run['name']} in {path}")
            for name, value in run["args"].items():
                now = getattr(self.args, name)
                if name not in MAY_CHANGE and now != value:
                    flag = name.replace("_", "-")
                    sys.exit(f"error: --{flag}: expected {value}, as in the run to resume, got {now}")
            self.progress = run["progress"]
            state: dict[str, Any] = pickle.load(file)
        return state

    def load(self) -> tuple[Any, Any, Envs, Array, Array]:
        """Return what `save` was given: agent, buffer, environments, observation, ended.

        Environments that could not be saved begin new episodes, from seeds of their own.
        """
        assert self.saved
        torch.set_rng_state(self.saved["torch"])
        torch.cuda.set_rng_state_all(self.saved["cuda"])
        agent, buffer = self.saved["learner"]
        saved_envs, observation, ended = self.saved["environments"]
        if saved_envs is not None:
            return agent, buffer, pickle.loads(saved_envs), observation, ended
        print(f"{self.args.env} cannot be saved in mid-episode: new episodes begin", file=sys.stderr)
        seed = int(np.random.SeedSequence((self.args.seed, self.progress.step)).generate_state(1)[0] // 2)
        envs = make_envs(self.args.env, self.args.num_envs, seed)
        observation, _ = envs.reset(seed=seed)
        self.progress.totals[:] = 0
        return agent, buffer, envs, observation, np.zeros_like(ended)

    def report(self, agent: Agent) -> int:
        """Draw the curve; measure the best checkpoint. Return the exit status, 130 after Ctrl-C."""
        self._write_curve()
        self._draw_curve()
        progress, folder, args = self.progress, self.folder, self.args
        times = ", ".join(f"{part} {share:.1%}" for part, share in self.clock.shares().items())
        print(f"{self.name} on {args.env}, seed {args.seed}: {progress.step} steps in {self.clock.total():.0f} s")
        print(f"  time: {times}\n  files: {folder}/")
        if progress.step < args.steps:
            print("  stopped by Ctrl-C; the same command with --resume goes on from here")
            return 130
        last = evaluate(self.test_envs, agent.act, EVALUATION_SEEDS)
        checkpoint = torch.load(folder / "best.pt", weights_only=True, map_location=args.device)
        for name, network in agent.networks().items():
            network.load_state_dict(checkpoint[name])
        best = evaluate(self.test_envs, agent.act, EVALUATION_SEEDS)
        print(
            f"  mean return +- standard deviation of {len(best)} episodes that trained and chose nothing:\n"
            f"    best checkpoint  {best.mean():9.1f} +- {best.std():.1f}  (of step {checkpoint['step']})\n"
            f"    last policy      {last.mean():9.1f} +- {last.std():.1f}\n"
            f"    random policy    {self.random.mean():9.1f} +- {self.random.std():.1f}"
        )
        self._write_result(checkpoint["step"], best, last)
        return 0

    def _write_result(self, best_step: int, best: Array, last: Array) -> None:
        result = {
            "algorithm": self.name,
            "env": self.args.env,
            "seed": self.args.seed,
            "steps": self.progress.step,
            "seconds": round(self.clock.total(), 1),
            "best_step": best_step,
            "best_return": round(best.mean(), 2),
            "best_std": round(best.std(), 2),
            "last_return": round(last.mean(), 2),
            "random_return": round(self.random.mean(), 2),
            **{f"share_{part.replace(' ', '_')}": round(share, 4) for part, share in self.clock.shares().items()},
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")

    def _write_curve(self) -> None:
        with (self.folder / "curve.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["series", "step", "seconds", "return"])
            for series in ("episodes", "validations"):
                for point in getattr(self.progress, series):
                    writer.writerow([series, point.step, f"{point.seconds:.2f}", f"{point.value:.3f}"])

    def _draw_curve(self) -> None:
        episodes, validations = (
            np.reshape([(point.step, point.value) for point in points], (-1, 2)).T
            for points in (self.progress.episodes, self.progress.validations)
        )
        figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.plot(*episodes, ".", color=SKY_BLUE, markersize=4, label="training episode, with exploration")
        axes.plot(*validations, "o-", color=VERMILION, markersize=4, label="validation, mean of 20 episodes")
        axes.axhline(self.random.mean(), color=GREY, linestyle="--", label="random policy, mean of 20 episodes")
        axes.set(
            title=f"{self.name} on {self.args.env}, seed {self.args.seed}",
            xlabel="environment steps",
            ylabel="return (sum of rewards)",
        )
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend()
        figure.savefig(self.folder / "curve.png")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to that takes the place of another when it is whole: a kill leaves no half file."""
    unfinished = path.with_name(f"{path.name}.tmp")
    yield unfinished
    unfinished.replace(path)


def pickled(envs: Envs) -> bytes | None:
    """Return the environments as bytes, or None where the bytes are not the environments in mid-episode.

    Whether they are, the next step shows: MuJoCo's pickle, but only the arguments of their constructors.
    That step is lost, so the environments must not be used again.
    """
    try:
        data = pickle.dumps(envs)
        copy, action = pickle.loads(data), envs.action_space.sample()
        outcomes = zip(envs.step(action)[:4], copy.step(action)[:4], strict=True)
        return data if all(np.array_equal(mine, its) for mine, its in outcomes) else None
    except (AttributeError, TypeError, pickle.PicklingError, gym.error.Error):
        return None


def new_board(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer that goes on from this step, or None where TensorBoard is not installed."""
    try:
        from torch.utils import tensorboard
    except ImportError:
        return None
    module: Any = tensorboard  # whose functions have no types
    return module.SummaryWriter(str(folder), purge_step=step)
