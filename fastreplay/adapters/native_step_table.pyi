# Written together with native_step_table.pyx; `make typecheck` holds the two against each other.
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from fastreplay._core import Block, Records, Ring
from fastreplay.adapters.step_table import StepField

@disjoint_base
class NativeStepTable:
    def __init__(
        self,
        records: Records,
        fields: Sequence[StepField],
        num_envs: int,
        num_observations: int,
        keys: tuple[str, ...] | None,
    ) -> None: ...
    def _refuse_second_init(self) -> None: ...
    def write(
        self,
        row: int,
        obs: object,
        next_obs: object,
        action: object,
        reward: object,
        done: object,
        infos: object,
    ) -> bool: ...
    @property
    def parts(self) -> list[tuple[int, int, int, tuple[Any, ...]]]: ...
    def gather_into(self, block: Block, rows: object, envs: object) -> bool: ...
    def gather_goals_into(self, block: Block, rows: object, envs: object, achieved: int, desired: int) -> bool: ...
    def gather_n_steps_into(
        self,
        block: Block,
        rows: object,
        envs: object,
        newest_row: int,
        rewards: NDArray[np.float32],
        is_counted: NDArray[np.bool_],
        counts: NDArray[np.float32],
    ) -> bool: ...

@disjoint_base
class NativeFrameTable(NativeStepTable):
    def __init__(
        self,
        ring: Ring,
        fields: Sequence[StepField],
        num_envs: int,
        num_observations: int,
        keys: tuple[str, ...] | None,
    ) -> None: ...
    @property
    def next_row(self) -> int: ...
    @property
    def num_stored(self) -> int: ...
    def go_on(self, next_row: int) -> None: ...

def discounted_sums(rewards: object, discounts: object, is_counted: object, sums: NDArray[np.float32]) -> bool: ...
