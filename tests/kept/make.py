# SPDX-License-Identifier: MIT
"""Makes the checkpoints that lie beside this file; tests/test_kept.py makes the same buffers and loads those.

    python tests/kept/make.py first|second

What lies here was written once, by the fastreplay that its README names, and is never written again: a file of today
has to be readable by every later fastreplay. A kind that is added is made into a folder of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

import fastreplay as fr
from fastreplay.checkpoint import save as _saving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CAPACITY, NUM_ROWS = 24, 37
saving: Any = _saving


def numbers(seed: int, *shape: int) -> Any:
    """Return multiples of 1/8 in [-16, 16), which every dtype has: as no generator of NumPy's, the same for ever."""
    count = int(np.prod(shape))
    return ((np.arange(seed, seed + count) * 2654435761 >> 7) % 256 / 8 - 16).reshape(shape)


def plain() -> Any:
    """Make a buffer of a few fields, more than full, some minibatches drawn."""
    fields: Any = {"observation": (3,), "action": ((), "int64"), "reward": ((), "float64"), "terminated": ((), "bool")}
    buffer = fr.ReplayBuffer(CAPACITY, fields, output="numpy", seed=11, timeout=2.5)
    rows = np.arange(NUM_ROWS)
    buffer.extend(numbers(0, NUM_ROWS, 3), rows, numbers(5, NUM_ROWS), rows % 5 == 4)
    buffer.sample(7)
    buffer.spawn(2)
    return buffer


def nested() -> Any:
    """Make one of spaces within spaces."""
    space = spaces.Dict(
        {"a": spaces.Tuple([spaces.Discrete(3), spaces.Box(-16, 16, (2,))]), "b/c": spaces.Box(-16, 16)}
    )
    buffer: Any = fr.ReplayBuffer(CAPACITY, fr.Schema.from_spaces(space, spaces.Discrete(2)), output="numpy", seed=12)
    for row in range(9):
        pair = (row % 3, numbers(row, 2)), numbers(row + 50, 1)
        now, later = ({"a": pair[0], "b/c": pair[1] + k} for k in range(2))
        buffer.add(now, row % 2, float(row), later, row == 5, row == 7)
    return buffer


def dtypes() -> Any:
    """Make one of many dtypes, those among them that are stored as bytes."""
    names = ("bool", "int8", "uint16", "int32", "uint64", "float16", "float64", "complex64", "complex128")
    buffer: Any = fr.ReplayBuffer(CAPACITY, {name: ((2,), name) for name in names}, output="numpy", seed=13)
    values = np.abs(numbers(3, NUM_ROWS, 2)).astype("int64")
    buffer.extend(**{name: (values % 2 if name == "bool" else values).astype(name) for name in names})
    return buffer


def frames() -> Any:
    """Make one of stacks of which each frame is stored once, in lanes, with ends and a cut."""
    stack = fr.Field((2, 2), "uint8", stack=3)
    fields: Any = {"observation": stack, "next_observation": stack, "reward": (), "terminated": ((), "bool")}
    buffer = fr.ReplayBuffer(CAPACITY, fields, output="numpy", seed=14, lanes=2, share_next=True)
    film = (np.arange(2 * 60 * 4).reshape(2, 60, 2, 2) * 37 % 251).astype("uint8")
    for step in range(20):
        window = film[:, step : step + 4]
        buffer.extend(window[:, :3], window[:, 1:], np.full(2, step), [step % 6 == 5, step == 13])
        if step == 9:
            buffer.cut(1)
    return buffer


def priorities() -> Any:
    """Make one of weighed transitions in lanes."""
    rule = fr.Priorities(alpha=0.5, beta=0.75, eps=0.125, draws="independent", normalize="buffer", uniform_mix=0.25)
    fields: Any = {"observation": (2,), "reward": (), "terminated": ((), "bool")}
    buffer = fr.ReplayBuffer(CAPACITY, fields, output="numpy", seed=15, lanes=3, priorities=rule)
    for step in range(11):
        buffer.extend(numbers(step, 3, 2), numbers(step + 20, 3), [step == 4, step == 7, False])
    batch: Any = buffer.sample(8)
    buffer.update_priorities(batch.ticket, np.abs(numbers(9, 8)))
    return buffer


FIRST: dict[str, Callable[[], Any]] = {each.__name__: each for each in (plain, nested, dtypes, frames, priorities)}
ATTACHED = {"learner": b"weights", "nothing": b""}
IMAGES = spaces.Box(0, 255, (4, 3, 3), np.uint8)


def counted() -> Any:
    """Make a buffer whose counters are kept, and with which something is."""
    return plain()


def steps_of_images(num_steps: int, num_envs: int) -> Iterator[tuple[Any, ...]]:
    """Yield steps of stacks that go on by a frame, and end now and then."""
    film = (np.arange(num_envs * (num_steps + 4) * 9).reshape(num_envs, -1, 3, 3) * 29 % 253).astype("uint8")
    for step in range(num_steps):
        obs, next_obs = film[:, step : step + 4], film[:, step + 1 : step + 5]
        done = np.arange(num_envs) == step % 7
        infos = [{"TimeLimit.truncated": bool(each and step % 2)} for each in done]
        yield obs, next_obs, np.full((num_envs, 1), step % 4), numbers(step, num_envs), done, infos


def deduped(*, is_filled: bool = True) -> Any:
    """Make a buffer of Stable-Baselines3's form that stores each frame once, with draws of its own."""
    import fastreplay.sb3

    np.random.seed(21)  # noqa: NPY002 - what buffers seed themselves from
    options: Any = {"device": "cpu", "n_envs": 2, "rng": "native", "dedupe": 4}
    buffer = fastreplay.sb3.ReplayBuffer(24, IMAGES, spaces.Discrete(4), **options)
    for step in steps_of_images(17 * is_filled, 2):
        buffer.add(*step)
    return buffer


def hindsight(*, is_filled: bool = True) -> Any:
    """Make a buffer of Stable-Baselines3's form that knows episodes."""
    import fastreplay.sb3

    box = spaces.Box(-16, 16, (2,), np.float32)
    goals = spaces.Dict(dict.fromkeys(("observation", "achieved_goal", "desired_goal"), box))
    env: Any = None
    buffer = fastreplay.sb3.HerReplayBuffer(24, goals, box, env, device="cpu", n_envs=2)
    for step in range(19 * is_filled):
        obs = {name: numbers(step + i, 2, 2).astype("float32") for i, name in enumerate(goals.spaces)}
        buffer.add(obs, obs, obs["observation"], numbers(step, 2), np.array([step % 4 == 3, step % 5 == 4]), [{}, {}])
    return buffer


def rainbow(*, is_filled: bool = True) -> Any:
    """Make CleanRL's prioritized buffer of transitions of three steps, some of which are not complete."""
    import fastreplay.cleanrl

    np.random.seed(22)  # noqa: NPY002 - as above
    buffer = fastreplay.cleanrl.PrioritizedReplayBuffer(12, IMAGES.shape, "cpu", 3, 0.5, dedupe=4)
    for obs, next_obs, action, reward, done, _ in steps_of_images(20 * is_filled, 1):
        buffer.add(obs, action, reward, next_obs, done)
    if is_filled:
        buffer.update_priorities(buffer.sample(4).indices, numbers(7, 4))
    return buffer


SECOND: dict[str, Any] = {each.__name__: each for each in (counted, deduped, hindsight, rainbow)}


def main() -> None:
    """Write the kinds of one time into a folder that is not there."""
    saving._SEGMENT_BYTES = 600  # several segments
    folder = Path(__file__).with_name(sys.argv[1])
    folder.mkdir()
    for name, make in {"first": FIRST, "second": SECOND}[sys.argv[1]].items():
        make().save(folder / name, **({"attached": ATTACHED} if name == "counted" else {}))


if __name__ == "__main__":
    main()
