# SPDX-License-Identifier: MIT
"""What becomes of rows that are given out otherwise than they are stored, as torch does it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

import fastreplay as fr

STORED = ["bool", "uint8", "int8", "uint16", "int16", "float16", ml_dtypes.bfloat16]
FACTORS: list[dict[str, Any]] = [{}, {"divide": 255}, {"scale": 1 / 255}, {"divide": 0.3}, {"scale": 7e5}]
RULES: list[Any] = [
    None,
    fr.NStep(3, gamma=0.9),
    fr.Sequence(4, burn_in=2, pad="zero"),
    fr.Sequence(4, stride=2, time_major=True, first_only="next_a"),
    fr.Sequence(50, pad="zero", time_major=True),
    fr.Window({"a": range(-3, 1), "next_a": range(2, 5)}, pad="zero"),
]


def as_float(stored: torch.Tensor, divide: float | None = None, scale: float | None = None) -> torch.Tensor:
    made = stored.to(torch.float32)
    if divide is not None:
        made.div_(divide)
    return made if scale is None else made.mul_(scale)


def assert_same_bits(ours: Any, theirs: torch.Tensor) -> None:
    """Compare bit by bit; NaN that differ are quiet: torch keeps what else some of them say, and not others'."""
    ours, theirs = torch.as_tensor(ours), theirs.contiguous()
    assert ours.dtype == theirs.dtype == torch.float32
    assert torch.equal(ours.isnan(), theirs.isnan())
    differ = ours.view(torch.int32) != theirs.view(torch.int32)
    assert ours[differ].isnan().all()
    assert ((ours.view(torch.int32)[differ] & 0x00400000) != 0).all()


def tensor_of(array: Any) -> torch.Tensor:
    """Give an array as a tensor, of bfloat16 too."""
    is_known = array.dtype != ml_dtypes.bfloat16
    return torch.from_numpy(array) if is_known else torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def numbers(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> Any:
    """Give random numbers, all bits of them: NaN, infinities and subnormal ones, too."""
    if dtype == "bool":
        return np.random.default_rng(seed).random(shape) < 0.5
    itemsize = np.dtype(dtype).itemsize
    return np.random.default_rng(seed).integers(0, 256, (*shape, itemsize), np.uint8).view(dtype).reshape(shape)


def words_of(state: Any, call: int, row: int, field: int) -> list[int]:
    counter = np.array([row, call, field, 2**32], np.uint64)
    return [int(w) for w in np.random.Philox(key=np.array(state["key"], np.uint64), counter=counter).random_raw(2)]


def shifted(images: torch.Tensor, most: int, words: list[int]) -> torch.Tensor:
    """Pad (..., H, W) by the edge and cut a place out that is drawn by two words."""
    *_, height, width = images.shape
    down, across = (word * (2 * most + 1) >> 64 for word in words)
    padded = torch.nn.functional.pad(images.reshape(1, -1, height, width), (most,) * 4, mode="replicate")
    return padded[..., down : down + height, across : across + width].reshape(images.shape)
