from collections.abc import Iterable
from typing import SupportsFloat

from torch import Tensor, nn
from typing_extensions import disjoint_base

from fastreplay.support.torch_abi import FormAbi, TorchAbi

@disjoint_base
class ParameterLists:
    def __init__(self, module_type: type[nn.Module]) -> None: ...
    def of_both(self, some: Iterable[Tensor], others: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None: ...

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
