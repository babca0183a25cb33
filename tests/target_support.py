# SPDX-License-Identifier: MIT
"""What the tests of target updates share: tensors of every layout, networks, comparisons bit by bit."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import fastreplay as fr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES, torch.complex64, torch.complex128)
SoftUpdate: Any = fr.SoftUpdate  # untyped: tests also pass what the types refuse
soft_update_: Any = fr.soft_update_
hard_update_: Any = fr.hard_update_

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """Give a tensor's bits as integers."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.clone(memory_format=torch.contiguous_format).view(_WORDS[tensor.element_size()])


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    assert torch.equal(bits(got), bits(expected)), f"{got} != {expected}"


def assert_same_values(got: Tensor, *expected: Tensor) -> None:
    """Compare bits with what is expected, element by element with any of it, but for which NaN it is."""
    parts, same = real(got), torch.tensor(False)
    for wanted in expected:
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        same = same | (bits(got) == bits(wanted)) | (parts.isnan() & real(wanted).isnan())
    wrong = ~same
    assert bool(same.all()), f"{parts[wrong][:5]} != {real(expected[0])[wrong][:5]}, {int(wrong.sum())} elements"


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def lerped(target: Tensor, online: Tensor, tau: float) -> Tensor:
    """Give what torch.lerp_ makes of a copy of the target, of the same strides: some signs of zeros depend on them."""
    return copy.deepcopy(target.detach()).lerp_(online.detach(), tau)


def lerped_whole(target: Tensor, online: Tensor, tau: float) -> Tensor:
    """As `lerped`, with every element in torch's vector loop.

    torch gives some zeros of complex tensors another sign in the last few elements than before those, and in all
    of them where it has no vector instructions: there the loop's formula is written out.
    """
    weight = torch.tensor(tau, dtype=real(target).dtype)
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT" and abs(weight) >= 0.5 and tau != 1:
        return online.detach() + (online.detach() - target.detach()) * (weight - 1)
    parts = [
        torch.cat([t.detach().flatten(), torch.zeros(64 - t.numel() % 64, dtype=t.dtype)]) for t in (target, online)
    ]
    return parts[0].lerp_(parts[1], tau)[: target.numel()].view(target.shape)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Give ordinary numbers."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(tuple(shape), dtype=wide, generator=generator(seed)).to(dtype)


def special_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Give numbers of which many are zeros of either sign, infinite, NaN, subnormal, or the largest."""
    real = torch.empty((), dtype=dtype).real.dtype
    parts = 2 if dtype.is_complex else 1
    info, random = torch.finfo(real), generator(seed)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, info.max, -info.max], dtype=real)
    values = torch.cat([values, torch.tensor([info.tiny / 4, -info.tiny / 2, info.tiny], dtype=real)])
    full = (*shape, parts)
    chosen = values[torch.randint(len(values), full, generator=random)]
    plain = torch.randn(full, dtype=torch.float64, generator=random).to(real)
    mixed = torch.where(torch.rand(full, generator=random) < 0.5, chosen, plain)
    return torch.view_as_complex(mixed) if dtype.is_complex else mixed[..., 0].contiguous()


LAYOUTS = ("contiguous", "offset", "transposed", "channels_last", "sliced", "padded")


def laid_out(values: Tensor, layout: str) -> Tensor:
    """Give the same values, laid out in memory in another way."""
    shape = values.shape
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1)
    if layout == "channels_last" and values.dim() == 4:
        return values.clone(memory_format=torch.channels_last)
    result = values.clone(memory_format=torch.contiguous_format)
    if layout == "offset":
        result = torch.empty(values.numel() + 3, dtype=values.dtype)[3:].view(shape)
    elif layout == "sliced" and values.dim() > 0:
        result = torch.empty(*shape[:-1], 2 * shape[-1], dtype=values.dtype)[..., ::2]
    elif layout == "padded" and values.dim() > 0:
        result = torch.empty([size + 1 for size in shape], dtype=values.dtype)
        for dim, size in enumerate(shape):
            result = result.narrow(dim, 1, size)
    return result.copy_(values)


def network(seed: int, width: int = 8) -> Any:
    """Make a small net of float32, with a BatchNorm."""
    net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))
    return scrambled(net, seed)


def deep_network(seed: int, depth: int = 12) -> Any:
    """Make a net of more modules than one step looks at."""
    return scrambled(nn.Sequential(*(nn.Linear(3, 3) for _ in range(depth))), seed)


def scrambled(net: Any, seed: int) -> Any:
    """Fill all floating tensors of a module with random numbers, in place."""
    with torch.no_grad():
        for i, tensor in enumerate([*net.parameters(), *net.buffers()]):
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.copy_(random_tensor(tensor.shape, tensor.dtype, 1000 * seed + i))
            else:
                tensor.fill_(seed)
    return net


def networks(make: Callable[[int], Any] = network) -> tuple[Any, Any]:
    """Make a target and an online network of equal structure and different values."""
    return make(1), make(2)


def expected_of(target: nn.Module, online: nn.Module, tau: float) -> dict[str, Tensor]:
    """Give what a module's tensors become: parameters as torch.lerp_ says, buffers copied."""
    onlines = online.state_dict()
    names = {name for name, _ in target.named_parameters(remove_duplicate=False)}
    return {
        name: lerped(tensor, onlines[name], tau) if name in names and tau != 1.0 else onlines[name].clone()
        for name, tensor in target.state_dict().items()
    }


def assert_holds(target: nn.Module, expected: dict[str, Tensor]) -> None:
    """Assert that a module's tensors are these, bit by bit."""
    state = target.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert_same_bits(tensor, expected[name])


def assert_moves(update: Callable[[], Any], target: nn.Module, online: nn.Module, tau: float = 0.3) -> None:
    """Assert that one call moves the target as torch.lerp_ would, whatever went before."""
    expected, before = expected_of(target, online, tau), copy.deepcopy(online.state_dict())
    update()
    assert_holds(target, expected)
    assert_holds(online, before)


def linears() -> tuple[Any, Any]:
    """Make two layers of equal shape and different values."""
    return networks(lambda seed: scrambled(nn.Linear(3, 3), seed))


@contextmanager
def unchanged(*tensors: Tensor, versions: bool = True) -> Iterator[None]:
    """Assert that these tensors keep their bits, and their versions."""
    before = [(tensor.detach().clone(), tensor._version) for tensor in tensors]
    yield
    for tensor, (values, version) in zip(tensors, before, strict=True):
        assert_same_bits(tensor, values)
        assert not versions or tensor._version == version


@contextmanager
def warnings_of_halves() -> Iterator[None]:
    """Let the warning of 16-bit targets pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*stands still", category=UserWarning)
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
