# SPDX-License-Identifier: MIT
"""A minibatch is the caller's, as a state machine: everything held is compared after every step.

FASTREPLAY_OWNERSHIP_EXAMPLES is how many runs of 60 steps are tried; `make stress` tries many.
"""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.multiprocessing  # registers how tensors are sent
import torch.utils.dlpack
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import FIELDS, NativeBuffer, assert_holds, fill, rows_of, transitions

import fastreplay.sb3

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY = 40
SIZES = st.sampled_from([1, 4, 9])
NAMES = st.sampled_from(list(FIELDS))


class _Tagged(torch.Tensor):
    pass


def _swapped(tensor: Any) -> None:
    if weakref.getweakrefcount(tensor) == 0 and tensor._use_count() == 1:  # else torch refuses
        swap_tensors: Any = torch.utils.swap_tensors
        swap_tensors(tensor, torch.zeros_like(tensor))


# What is made of a tensor, and shares its memory in torch's eyes.
ALIASES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda tensor: tensor,
    "view": lambda tensor: tensor[1:],
    "strided": lambda tensor: tensor[::2],
    "detach": lambda tensor: tensor.detach(),
    "data": lambda tensor: tensor.data,
    "parameter": lambda tensor: torch.nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point()),
    "transpose": lambda tensor: tensor.reshape(tensor.shape[0], -1).t(),
    "storage": lambda tensor: torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()),
}
# The same where the storage is not asked when the tensor's memory moves, as torch has it.
EXPORTS: dict[str, Callable[[Any], Any]] = {
    "numpy": lambda tensor: tensor.detach().numpy(),
    "numpy view": lambda tensor: tensor.detach()[1:].numpy(),
    "memoryview": lambda tensor: memoryview(tensor.detach().numpy()),
    "from_dlpack": lambda tensor: np.from_dlpack(tensor.detach()),
    "dlpack": lambda tensor: torch.utils.dlpack.from_dlpack(tensor.detach()),
}
OF_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda array: array,
    "view": lambda array: array[1:],
    "bytes": lambda array: array.view(np.uint8) if array.ndim and array.shape[0] else array,
    "memoryview": memoryview,
    "tensor": torch.from_numpy,
    "dlpack": torch.utils.dlpack.from_dlpack,
    "subclass": lambda array: array.view(np.recarray),
}
# After these the tensor itself is somebody else's business; its aliases and the other fields are as they were.
LEAVES: dict[str, Callable[[Any], Any]] = {
    "data": lambda tensor: setattr(tensor, "data", torch.zeros_like(tensor)),
    "set_": lambda tensor: tensor.set_(torch.ones_like(tensor)),
    "swap_tensors": _swapped,
    "t_": lambda tensor: tensor.unsqueeze_(0).transpose_(0, 1),
    "resize_": lambda tensor: tensor.resize_(1),
    "class": lambda tensor: setattr(tensor, "__class__", _Tagged),
    "attribute": lambda tensor: setattr(tensor, "note", tensor),
    "requires_grad_": lambda tensor: tensor.requires_grad_(tensor.is_floating_point()),
    "gradient": lambda tensor: setattr(tensor, "grad", torch.zeros_like(tensor)),
    "weakref": lambda tensor: KEPT_FOREVER.append(weakref.ref(tensor)),
    "dict": lambda tensor: KEPT_FOREVER.append(tensor.__dict__),
    "version": torch.autograd.graph.increment_version,
}
# After these the exports hang in the air, as torch has it; its aliases move along.
SENDS: dict[str, Callable[[Any], Any]] = {
    "share_memory_": lambda tensor: tensor.share_memory_(),
    "sent": ForkingPickler.dumps,
}
KEPT_FOREVER: list[Any] = []


@dataclass(eq=False)
class Held:
    """Something held, and what it is to show."""

    value: Any
    batch: int  # which minibatch it was made of
    name: str  # and which of its fields
    is_export: bool = False
    expected: Any = field(default=None)

    def __post_init__(self) -> None:
        self.expected = self.read().copy()

    def read(self) -> Any:
        value = self.value
        return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


class OwnershipMachine(RuleBasedStateMachine):
    """Hold, drop, view, export, move, swap, resize, save, send and reuse minibatches."""

    output = "torch"

    def __init__(self) -> None:
        super().__init__()
        KEPT_FOREVER.clear()
        self.buffer: Any = fill(NativeBuffer(CAPACITY, FIELDS, seed=0, output=self.output), 50)
        self.loader: Any = self.buffer.loader(4, depth=2)
        self.batches: dict[int, Any] = {}  # those that nothing was done to
        self.made = 0
        self.held: list[Held] = []
        self.graphs: list[tuple[int, str, Any, Any, Any]] = []
        self.old: list[Any] = []

    def teardown(self) -> None:
        self.loader.close()
        KEPT_FOREVER.clear()

    def _take(self, batch: Any) -> None:
        assert_holds(batch, np.asarray(batch.ticket))
        if self.output == "torch":
            for tensor in (*batch.values(), batch.ticket):
                self._assert_is_new(tensor)
        self.made += 1
        self.batches[self.made] = batch
        self.held = self.held[-80:]
        for name, value in batch.items():
            self.held.append(Held(value, self.made, name, is_export=self.output == "numpy"))

    @staticmethod
    def _assert_is_new(tensor: Any) -> None:
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.grad is None
        assert tensor.is_leaf
        assert not tensor.__dict__
        assert tensor._version == 0
        assert tensor.is_contiguous()
        assert weakref.getweakrefcount(tensor) == 0
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

    def _chosen(self, choice: int) -> tuple[int, Any]:
        number = list(self.batches)[choice % len(self.batches)]
        return number, self.batches[number]

    @rule(size=SIZES)
    def sample(self, size: int) -> None:
        self._take(self.buffer.sample(size))

    @rule(size=SIZES, first=st.integers(0, CAPACITY - 10), kind=st.sampled_from(["gather", "slice", "list"]))
    def read(self, size: int, first: int, kind: str) -> None:
        slots = range(first, first + size)
        if kind == "gather":
            self._take(self.buffer.gather(slots))
        else:
            self._take(self.buffer[first : first + size] if kind == "slice" else self.buffer[list(slots)])

    @rule()
    def take_from_the_loader(self) -> None:
        self._take(next(self.loader))

    @rule(count=st.integers(1, 30))
    def insert(self, count: int) -> None:
        self.buffer.extend(**transitions(self.buffer.stats()["inserted"], count))

    @rule()
    def begin_another_buffer(self) -> None:
        self.old = [self.loader]  # held to the next time
        self.loader.close()
        self.buffer = fill(NativeBuffer(CAPACITY, FIELDS, seed=0, output=self.output), 50)
        self.loader = self.buffer.loader(4, depth=2)

    @precondition(lambda self: self.batches)
    @rule(choice=st.integers(0, 50), name=NAMES, how=st.integers(0, 50))
    def hold(self, choice: int, name: str, how: int) -> None:
        number, batch = self._chosen(choice)
        if self.output == "numpy":
            ways, exported = OF_ARRAYS, True
        else:
            ways = {**ALIASES, **EXPORTS}
            exported = list(ways)[how % len(ways)] in EXPORTS
        self.held.append(Held(list(ways.values())[how % len(ways)](batch[name]), number, name, is_export=exported))

    @precondition(lambda self: self.batches and self.output == "torch")
    @rule(choice=st.integers(0, 50), name=st.sampled_from(["observation", "reward"]))
    def save_for_backward(self, choice: int, name: str) -> None:
        number, batch = self._chosen(choice)
        weight = torch.ones_like(batch[name], requires_grad=True)
        self.graphs.append((number, name, weight, (weight * batch[name]).sum(), batch[name].detach().clone()))

    @precondition(lambda self: self.graphs)
    @rule(choice=st.integers(0, 50))
    def backward(self, choice: int) -> None:
        _, _, weight, loss, expected = self.graphs.pop(choice % len(self.graphs))
        torch.autograd.backward(loss)
        assert torch.equal(weight.grad, expected)

    @precondition(lambda self: self.batches)
    @rule(choice=st.integers(0, 50))
    def convert(self, choice: int) -> None:
        _, batch = self._chosen(choice)
        ticket = np.asarray(batch.ticket)
        for made in (batch.numpy(), batch.to("cpu"), pickle.loads(pickle.dumps(batch))):
            assert_holds(made, ticket)

    @precondition(lambda self: self.batches)
    @rule(choice=st.integers(0, 50))
    def fill_anew(self, choice: int) -> None:
        """Reuse a minibatch: what shares its memory shows the new rows, and its graphs are refused."""
        number, batch = self._chosen(choice)
        assert self.buffer.sample(len(batch), out=batch) is batch
        assert_holds(batch, np.asarray(batch.ticket))
        for held in self.held:
            if held.batch == number:
                held.expected = held.read().copy()
        for graph in [graph for graph in self.graphs if graph[0] == number]:
            self.graphs.remove(graph)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.backward(graph[3])

    @precondition(lambda self: self.batches and self.output == "torch")
    @rule(choice=st.integers(0, 50), name=NAMES, how=st.integers(0, 50), is_sent=st.booleans())
    def leave_a_trace(self, choice: int, name: str, how: int, is_sent: bool) -> None:
        number, batch = self._chosen(choice)
        ways = SENDS if is_sent else LEAVES
        tensor = batch[name]
        list(ways.values())[how % len(ways)](tensor)
        del self.batches[number]
        for held in list(self.held):
            if held.batch == number and held.name == name and (held.value is tensor or (is_sent and held.is_export)):
                self.held.remove(held)
        # Where the version moved or the memory went, torch may refuse the graph.
        self.graphs = [graph for graph in self.graphs if graph[:2] != (number, name)]
        if list(ways)[how % len(ways)] in {"data", "set_", "t_", "share_memory_", "sent"} and tensor.numel():
            rng_state = self.buffer.rng_state
            with pytest.raises(ValueError, match=f"got '{name}'"):
                self.buffer.sample(len(batch), out=batch)
            assert self.buffer.rng_state == rng_state

    @precondition(lambda self: self.held)
    @rule(choices=st.lists(st.integers(0, 1000), min_size=1, max_size=12))
    def drop(self, choices: list[int]) -> None:
        for choice in choices:
            if self.held:
                self.held.pop(choice % len(self.held))

    @precondition(lambda self: self.batches)
    @rule(choices=st.lists(st.integers(0, 50), min_size=1, max_size=6))
    def forget(self, choices: list[int]) -> None:
        """Drop minibatches and their fields, not what was made of them."""
        for choice in choices:
            if self.batches:
                number, batch = self._chosen(choice)
                fields = batch.values()
                self.held = [
                    held for held in self.held if held.batch != number or all(held.value is not each for each in fields)
                ]
                del self.batches[number], batch, fields

    @rule()
    def collect(self) -> None:
        gc.collect(1)  # the oldest generation holds all of torch

    @invariant()
    def all_that_is_held_is_as_it_was(self) -> None:
        for held in self.held:
            assert held.read().tobytes() == held.expected.tobytes(), (held.name, held.batch)


class NumpyOwnershipMachine(OwnershipMachine):
    """The same with arrays."""

    output = "numpy"


class AdapterMachine(RuleBasedStateMachine):
    """The same with Stable-Baselines3's face: its tuples of tensors are the caller's, too."""

    def __init__(self) -> None:
        super().__init__()
        box = spaces.Box(-1, 1, (3,), np.float32)
        self.buffer: Any = fastreplay.sb3.ReplayBuffer(CAPACITY, box, box, device="cpu")
        self.count = 0
        self.held: list[Held] = []
        self.insert(50)

    @rule(count=st.integers(1, 20))
    def insert(self, count: int) -> None:
        for _ in range(count):
            row = np.full((1, 3), self.count, np.float32)
            number = np.full(1, self.count, np.float32)
            self.buffer.add(row, row + 0.5, -row, number, np.zeros(1), [{}])
            self.count += 1

    @rule(size=SIZES, parts=st.sets(st.integers(0, 4)))
    def sample(self, size: int, parts: set[int]) -> None:
        sample = self.buffer.sample(size)
        number = sample.rewards
        assert torch.equal(sample.observations, number.expand(-1, 3))
        assert torch.equal(sample.next_observations, number.expand(-1, 3) + 0.5)
        assert torch.equal(sample.actions, -number.expand(-1, 3))
        for value in sample[:5]:
            OwnershipMachine._assert_is_new(value)
        self.held += [Held(sample[part], 0, "") for part in parts]

    @precondition(lambda self: self.held)
    @rule(choice=st.integers(0, 100), how=st.sampled_from(sorted(LEAVES)))
    def leave_a_trace(self, choice: int, how: str) -> None:
        held = self.held.pop(choice % len(self.held))
        self.held.append(Held(held.value.detach(), 0, ""))
        LEAVES[how](held.value)

    @precondition(lambda self: self.held)
    @rule(choices=st.lists(st.integers(0, 100), min_size=1, max_size=5))
    def drop(self, choices: list[int]) -> None:
        for choice in choices:
            if self.held:
                self.held.pop(choice % len(self.held))

    @invariant()
    def all_that_is_held_is_as_it_was(self) -> None:
        OwnershipMachine.all_that_is_held_is_as_it_was(self)  # type: ignore[arg-type]


@pytest.mark.parametrize("machine", [OwnershipMachine, NumpyOwnershipMachine, AdapterMachine])
def test_a_minibatch_is_the_callers(machine: Any) -> None:
    case = machine.TestCase()
    examples = int(os.environ.get("FASTREPLAY_OWNERSHIP_EXAMPLES", "20"))
    case.settings = settings(max_examples=examples, stateful_step_count=60, derandomize=examples <= 20)
    case.runTest()


def test_what_the_machine_holds_is_looked_at() -> None:
    """A minibatch that is written to behind the machine's back is noticed."""
    machine = OwnershipMachine()
    machine.sample(4)
    machine.all_that_is_held_is_as_it_was()
    machine.batches[1].reward.numpy()[0] += 1
    with pytest.raises(AssertionError):
        machine.all_that_is_held_is_as_it_was()
    machine.teardown()


@pytest.mark.parametrize("whose", ["torch's", "ours"])
@pytest.mark.parametrize("way", [*ALIASES, *EXPORTS])
def test_what_moves_along_with_a_tensor_is_torchs_own(way: str, whose: str) -> None:
    """What is no alias to torch shows the old address, which it did not keep: here as with any tensor of torch's."""
    ours = fill(NativeBuffer(CAPACITY, FIELDS, seed=0), 50).sample(9).observation
    tensor = ours.clone() if whose == "torch's" else ours
    made = {**ALIASES, **EXPORTS}[way](tensor)

    def distance() -> int:
        start = made.data_ptr() if isinstance(made, torch.Tensor) else np.asarray(made).ctypes.data
        return int(start - tensor.data_ptr())

    before = distance()
    tensor.share_memory_()
    assert (distance() == before) == (way in ALIASES)


def test_rows_describe_themselves() -> None:
    """Rows of two tickets differ in every field but the flag, so that other rows are noticed."""
    first, second = rows_of(np.array([3])), rows_of(np.array([4]))
    assert all((first[name] != second[name]).any() for name in FIELDS)
