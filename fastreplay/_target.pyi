from collections.abc import Callable, Iterable
from typing import Any, SupportsFloat

from torch import Tensor, nn
from typing_extensions import disjoint_base

from fastreplay._torch_abi import FormAbi, TorchAbi

def cpu_level() -> str: ...

@disjoint_base
class Dicts:
    def __init__(self, places: list[tuple[dict[str, Any], str]]) -> None: ...

@disjoint_base
class Table:
    def __init__(
        self,
        places: list[tuple[dict[str, Any], str]],
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
    def chunk_bytes(self) -> bytes: ...
    def set_device(self, launch: int, device: int, chunks: Tensor) -> None: ...
    @property
    def num_tensors(self) -> int: ...
    def modules_are_same(self) -> bool: ...
    def is_same(self) -> bool: ...
    def step(self, tau: SupportsFloat) -> bool: ...
    def step_on_device(self, tau: float, stream: int, tau_on_device: int, tau_is_double: bool) -> bool: ...

@disjoint_base
class Walk:
    def __init__(self, module_type: type[nn.Module]) -> None: ...
    def listed(self, values: Iterable[Tensor]) -> list[Tensor]: ...
    def parameters(self, module: nn.Module) -> list[Tensor] | None: ...

@disjoint_base
class PolyakUpdate:
    def __init__(
        self,
        torch_abi: TorchAbi,
        form_abi: FormAbi,
        fused: bool,
        tensor_type: type[Tensor],
        parameter_type: type[nn.Parameter],
    ) -> None: ...
    def update(self, onlines: list[Tensor], targets: list[Tensor], tau: SupportsFloat) -> bool: ...
