from collections.abc import Callable
from typing import Any, SupportsFloat

from torch import Tensor
from typing_extensions import disjoint_base

from fastreplay.support.torch_abi import TorchAbi

def cpu_level() -> str: ...

@disjoint_base
class WatchedContainers:
    def __init__(self, containers: list[tuple[dict[str, Any] | None, Any]]) -> None: ...

def is_builtin(container: object) -> bool: ...

@disjoint_base
class Table:
    def __init__(
        self,
        containers: list[tuple[dict[str, Any] | None, Any]],
        torch_abi: TorchAbi | None,
        fused: bool,
        increment_version: Callable[[list[Tensor]], None],
    ) -> None: ...
    def watch(self, tensor: Tensor, alias: Tensor) -> None: ...
    def add(
        self,
        target: Tensor,
        online: Tensor,
        master: Tensor | None,
        target_dtype: str,
        online_dtype: str,
        num_elements: int,
        is_copied: bool,
    ) -> None: ...
    def finish(self) -> None: ...
    def set_device(self, launch: int, device: int, describe: Callable[[int], str]) -> None: ...
    @property
    def num_tensors(self) -> int: ...
    def containers_are_same(self) -> bool: ...
    def is_unchanged(self) -> bool: ...
    def step(self, tau: SupportsFloat) -> bool: ...
    def step_on_device(self, tau: float, stream: int, tau_on_device: int, tau_is_double: bool) -> bool: ...
