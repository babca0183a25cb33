# SPDX-License-Identifier: MIT
"""How a run is saved so that it goes on as if it had never stopped. It knows no algorithm."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from environments import Array, Envs, make_envs
from progress import Progress

import fastreplay as fr

MAY_CHANGE = {"steps", "save", "resume"}  # arguments in which a resumed run may differ from the saved one


class State(NamedTuple):
    """What the next step depends on, beside torch's generators."""

    agent: Any
    envs: Envs
    observation: Array  # (num_envs, *obs_shape)
    ended: Array  # (num_envs,) bool, of the episodes


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of another when it is whole: a kill leaves no half file."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("wb") as file:
        yield file
    unfinished.replace(path)


class Pickler(pickle.Pickler):
    """Pickles all that refers to a buffer but the buffer."""

    def __init__(self, file: BinaryIO, buffer: fr.ReplayBuffer[Any]) -> None:
        super().__init__(file)
        self.buffer = buffer

    def persistent_id(self, value: Any) -> str | None:
        """Name what is kept elsewhere."""
        return "buffer" if value is self.buffer else None


class Unpickler(pickle.Unpickler):
    """Gives the buffer to those that referred to it."""

    def __init__(self, file: BinaryIO, buffer: fr.ReplayBuffer[Any]) -> None:
        super().__init__(file)
        self.buffer = buffer

    def persistent_load(self, name: str) -> fr.ReplayBuffer[Any]:
        """Return what was named."""
        return {"buffer": self.buffer}[name]


def write(path: Path, name: str, args: argparse.Namespace, progress: Progress, state: State) -> None:
    """Write a run into a folder: the buffer's checkpoint, of which only what is new is written, and the rest with it.

    After a kill, or a loss of power, the folder holds the run before or this one, whole. The environments are used up.
    """
    generators = {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    rest = io.BytesIO()  # one pickle keeps what refers to what: optimisers, targets
    Pickler(rest, state.agent.buffer).dump({**generators, **state._asdict(), "envs": pickled(state.envs)})
    # Apart, since an algorithm's state can be read by that algorithm only.
    run = pickle.dumps({"name": name, "args": vars(args), "progress": progress})
    state.agent.buffer.save(path, attached={"run": run, "rest": rest.getbuffer()})


def read(path: Path, name: str, args: argparse.Namespace) -> tuple[Progress, dict[str, Any]]:
    """Read what `write` wrote, or leave with one line that says why this run cannot go on from there."""
    try:
        buffer: fr.ReplayBuffer[Any] = fr.ReplayBuffer.load(path)
    except FileNotFoundError:
        sys.exit(f"error: --resume: there is no run in {path}")
    run = pickle.loads(buffer.attached["run"])  # a pickle may run any code: resume only runs of your own
    if run["name"] != name:
        sys.exit(f"error: --resume: expected a run of {name}, got one of {run['name']} in {path}")
    for argument, value in run["args"].items():
        now = getattr(args, argument)
        if argument not in MAY_CHANGE and now != value:
            flag = argument.replace("_", "-")
            sys.exit(f"error: --{flag}: expected {value}, as in the run to resume, got {now}")
    return run["progress"], Unpickler(io.BytesIO(buffer.attached.pop("rest")), buffer).load()


def restored(saved: dict[str, Any], args: argparse.Namespace, progress: Progress) -> State:
    """Set torch's generators, and return the rest of the state.

    Environments that could not be saved begin new episodes, from seeds of their own.
    """
    saved["agent"].args = args  # which may be of more steps
    torch.set_rng_state(saved["torch"])
    torch.cuda.set_rng_state_all(saved["cuda"])
    if saved["envs"] is not None:
        return State(saved["agent"], pickle.loads(saved["envs"]), saved["observation"], saved["ended"])
    print(f"{args.env} cannot be saved in mid-episode: new episodes begin", file=sys.stderr)
    seed = int(np.random.SeedSequence((args.seed, progress.step)).generate_state(1)[0] // 2)
    envs = make_envs(args.env, args.num_envs, seed)
    observation, _ = envs.reset(seed=seed)
    saved["agent"].cut()  # the next transitions do not follow the last ones
    progress.totals[:] = 0
    return State(saved["agent"], envs, observation, np.zeros_like(saved["ended"]))


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
