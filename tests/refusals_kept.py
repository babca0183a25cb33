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


def without_infos(name: str) -> Scene:
    """Make a buffer of which infos are not kept."""
    return filled(name, **({"copy_info_dict": False} if name == "sb3.HerReplayBuffer" else {}))


KEPT_CASES: list[Case] = [
    *(case for name in CLASSES for case in of_class(name, partial(without_infos, name), going_on)),
    *of_class(RAINBOW, rainbow, rainbow_goes_on),
]
