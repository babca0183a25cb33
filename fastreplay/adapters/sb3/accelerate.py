# SPDX-License-Identifier: MIT
"""Lets Stable-Baselines3's algorithms use the classes and the target update of this package, until undone."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar

from stable_baselines3.common import buffers as their_buffers
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.her import HerReplayBuffer as TheirHerReplayBuffer

from fastreplay.adapters.sb3.buffers import DictReplayBuffer, ReplayBuffer
from fastreplay.adapters.sb3.her import HerReplayBuffer
from fastreplay.adapters.sb3.n_step import NStepReplayBuffer
from fastreplay.adapters.sb3.polyak import _sb3_update, polyak_update

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Acceleration", "accelerate"]

_OURS: dict[type[Any] | None, type[Any]] = {
    their_buffers.ReplayBuffer: ReplayBuffer,
    their_buffers.DictReplayBuffer: DictReplayBuffer,
    their_buffers.NStepReplayBuffer: NStepReplayBuffer,
    TheirHerReplayBuffer: HerReplayBuffer,
}
_PACKAGES = ("stable_baselines3", "sb3_contrib")
_ATTRIBUTE = "replay_buffer_class"


class _BufferClass:
    """`OffPolicyAlgorithm.replay_buffer_class` while accelerated: SB3's classes are stored, ours are seen.

    SB3 decides for a class, warns and makes the buffer through this attribute alone, whatever module the class came
    from. A saved model names SB3's class, and so loads where there is no fastreplay.
    """

    def __get__(self, model: OffPolicyAlgorithm | None, owner: type) -> Any:
        if model is None:
            return self
        try:
            chosen = vars(model)[_ATTRIBUTE]
        except KeyError:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {_ATTRIBUTE!r}") from None
        return _OURS.get(chosen, chosen)

    def __set__(self, model: OffPolicyAlgorithm, chosen: Any) -> None:
        vars(model)[_ATTRIBUTE] = chosen


class Acceleration:
    """What `accelerate` returns: undone by `undo`, or at the end of a `with` block."""

    # Taken again where a finalizer that runs meanwhile undoes another acceleration, or the modules imported make one.
    _lock: ClassVar[Any] = RLock()
    _num_active: ClassVar[int] = 0
    _is_active = False

    def __init__(self) -> None:
        with self._lock:
            if self._is_active:
                return  # made a second time, it is still one
            Acceleration._num_active += 1
            try:
                if Acceleration._num_active == 1:
                    _install()
            except BaseException:
                Acceleration._num_active -= 1
                raise
            self._is_active = True

    def undo(self) -> None:
        """Give SB3 its own back, once every other acceleration is undone too. A second call does nothing.

        Thread safety:
            Any number of threads may call this.
        """
        with self._lock:
            if not self._is_active:
                return
            self._is_active = False
            Acceleration._num_active -= 1
            if Acceleration._num_active == 0:
                _uninstall()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<{'active' if self._is_active else 'undone'} acceleration of stable_baselines3>"


def accelerate() -> Acceleration:
    """Let SB3's DQN, DDPG, TD3, SAC and all that is built on `OffPolicyAlgorithm` use this package from now on.

    Models made from now on get our `ReplayBuffer`, `DictReplayBuffer`, `NStepReplayBuffer` and `HerReplayBuffer` in
    place of SB3's, also where SB3's class is passed as `replay_buffer_class`; classes of anybody else's, derived ones
    included, stay. Models that exist keep their buffers. SB3's and sb3_contrib's modules use our `polyak_update`.
    Training gives the same parameters, bit for bit.

    Returns:
        What undoes it, by `undo()` or as a context manager. Calls may be nested and repeated: SB3 gets its own back
        when the last is undone.

    Thread safety:
        Any number of threads may call this; it holds for all threads. A model that another thread makes at the
        moment may get either class.

    Example:
        >>> import fastreplay.sb3
        >>> with fastreplay.sb3.accelerate() as acceleration:
        ...     acceleration
        <active acceleration of stable_baselines3>
    """
    return Acceleration()


def _install() -> None:
    for package in _PACKAGES:
        if find_spec(package) is not None:
            import_module(package)
    setattr(OffPolicyAlgorithm, _ATTRIBUTE, _BufferClass())
    try:
        _replace(_sb3_update, polyak_update)
    except BaseException:
        _uninstall()  # some module would not be changed: those before it get their own back
        raise


def _uninstall() -> None:
    delattr(OffPolicyAlgorithm, _ATTRIBUTE)
    _replace(polyak_update, _sb3_update)


def _replace(old: object, new: object) -> None:
    """Put one update for another in SB3's modules, those that were imported meanwhile included."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in _PACKAGES and vars(module).get("polyak_update") is old:
            module.polyak_update = new  # type: ignore[attr-defined]
