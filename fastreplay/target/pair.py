# SPDX-License-Identifier: MIT
"""One target tensor and what it follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HALVES", "Pair"]

HALVES = frozenset([torch.float16, torch.bfloat16])


@dataclass(frozen=True)
class Pair:
    """One target tensor and what it follows."""

    name: str
    target: Tensor
    online: Tensor
    is_copied: bool  # whatever tau is
    master: Tensor | None = None  # float32, of which a 16-bit target is the rounded image
