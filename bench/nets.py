# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""The networks whose target updates are measured. Knows no updater and no clock."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import nn


@dataclass(frozen=True)
class Net:
    """A named architecture.

    Attributes:
        is_rl_sized: Whether it is the size of what is trained in deep RL.
    """

    key: str
    title: str
    make: Callable[[], nn.Module]
    is_rl_sized: bool = True

    def meta(self) -> nn.Module:
        """Return a network without memory, to be counted."""
        with torch.device("meta"):
            return self.make()

    def pair(self, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
        """Return a target and an online network that differ everywhere, the same at every call."""
        # Made where it lives, and filled there: 100 M parameters come from no CPU generator.
        with torch.device(device):
            online = self.make()
        target = copy.deepcopy(online)
        randomize(online, seed=1)
        randomize(target, seed=2)
        return target, online


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> None:
    """Fill the parameters with normal numbers, in place."""
    parameters = list(module.parameters())
    random = torch.Generator(parameters[0].device).manual_seed(seed)
    for parameter in parameters:
        parameter.normal_(generator=random)


def flattened(module: nn.Module) -> nn.Module:
    """Return a module of one parameter, which holds the elements of all of `module`'s."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])
    return nn.ParameterList([nn.Parameter(flat)])


def _mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for num_inputs, num_outputs in pairwise(sizes):
        layers += [nn.Linear(num_inputs, num_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _critics(count: int) -> nn.Module:
    return nn.ModuleList(_mlp(23, 256, 256, 1) for _ in range(count))


def _nature_cnn() -> nn.Module:
    """Mnih et al. 2015, https://doi.org/10.1038/nature14236, for six actions."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, stride=4),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Linear(512, 6),
    )


def _small_tensors() -> nn.Module:
    return nn.ModuleList(nn.Linear(8, 16) for _ in range(400))


NETS: tuple[Net, ...] = (
    Net("2x64", "2×64", partial(_mlp, 3, 64, 64, 1)),
    Net("twin-critic", "SAC twin critic 2×256", partial(_critics, 2)),
    Net("ten-critics", "10 critics 2×256", partial(_critics, 10)),
    Net("nature-cnn", "Nature CNN", _nature_cnn),
    Net("small-tensors", "800 small tensors", _small_tensors),
    Net("mlp-17m", "MLP of 17 M", partial(_mlp, *[2048] * 5), is_rl_sized=False),
)
LARGE: tuple[Net, ...] = (  # on a GPU only
    Net("mlp-100m", "MLP of 100 M", partial(_mlp, *[4096] * 7), is_rl_sized=False),
    Net("mlp-1g", "MLP of 1 G", partial(_mlp, *[16384] * 5), is_rl_sized=False),
)
