from torch import Tensor
from typing_extensions import disjoint_base

from fastreplay._torch_abi import FormAbi, TorchAbi

@disjoint_base
class Tensors:
    def __init__(self, templates: tuple[Tensor, ...], torch_abi: TorchAbi, form_abi: FormAbi) -> None: ...
    def are_free(self) -> bool: ...
    def hand_out(self) -> tuple[Tensor, ...]: ...
