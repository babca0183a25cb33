# SPDX-License-Identifier: MIT
"""Refused calls that save buffers of Stable-Baselines3's and CleanRL's form into folders, and load them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from refusals import Call, Case, Scene, cases
from refusals_adapters import CLASSES, filled, going_on
from refusals_adapters_prioritized import RAINBOW, rainbow, rainbow_goes_on
from refusals_checkpoints import DAMAGED, FILE, FOLDER, KEPT, OF_OTHERS, kept

from fastreplay.checkpoint.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Callable


def beside_folders(make: Callable[[], Scene]) -> Scene:
    """Make a scene, and folders that hold something else."""
    kept()
    return make()


def within_a_save(save: Callable[[Any], None]) -> None:
    """Call in the midst of a save into the same folder."""
    with Folder(str(KEPT)) as folder, folder.turn():
        save(KEPT)


SAVE: dict[str, Any] = {
    "no path": (TypeError, lambda s: Call(s.b.save, 5)),
    "a file": (OSError, lambda s: Call(s.b.save, FILE)),
    "something else's": (ValueError, lambda s: Call(s.b.save, OF_OTHERS)),
    "in the midst of another": (RuntimeError, lambda s: Call(within_a_save, s.b.save)),
}
LOAD: dict[str, Any] = {
    "no path": (TypeError, lambda s: Call(s.b.load, 5)),
    "nothing": (FileNotFoundError, lambda s: Call(s.b.load, FOLDER / "nothing")),
    "a file": (OSError, lambda s: Call(s.b.load, FILE)),
    "a damaged one": (ValueError, lambda s: Call(s.b.load, DAMAGED)),
    "a replay buffer's": (ValueError, lambda s: Call(s.b.load, KEPT)),
}


def of_class(name: str, make: Callable[[], Scene], go_on: Any) -> list[Case]:
    """Give the cases of a class."""
    scene, call = partial(beside_folders, make), partial(cases, go_on=go_on)
    return [*call(f"{name}.save", scene, kinds=SAVE), *call(f"{name}.load", scene, kinds=LOAD)]


def with_an_object(buffer: Any) -> None:
    """Save while an info holds what no checkpoint does."""
    info, buffer.infos[0, 0] = buffer.infos[0, 0], {"x": object()}
    try:
        buffer.save(FOLDER / "infos")
    finally:
        buffer.infos[0, 0] = info


HER = "sb3.HerReplayBuffer"
INFOS: dict[str, Any] = {"an object in an info": (ValueError, lambda s: Call(with_an_object, s.b))}
KEPT_CASES: list[Case] = [
    *(case for name in CLASSES for case in of_class(name, partial(filled, name), going_on)),
    *cases(f"{HER}.save", partial(beside_folders, partial(filled, HER)), go_on=going_on, kinds=INFOS),
    *of_class(RAINBOW, rainbow, rainbow_goes_on),
]
