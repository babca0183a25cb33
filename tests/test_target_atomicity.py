# SPDX-License-Identifier: MIT
"""Whatever is refused, wherever the fault is: targets, masters, versions, counts and the updater are what they were."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from target_support import (
    SoftUpdate,
    assert_moves,
    assert_same_bits,
    hard_update_,
    laid_out,
    lerped,
    linears,
    network,
    networks,
    random_tensor,
    soft_update_,
    unchanged,
    warnings_of_halves,
)
from torch import Tensor

from fastreplay.target import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POSITIONS = range(4)


@pytest.fixture(params=["native", "python"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at tensors by torch's native functions, or by Python."""
    if request.param == "python":
        monkeypatch.setattr(plan, "torch_abi", lambda: None)


def tensors(seed: int) -> list[Tensor]:
    """Give tensors that move in four ways: by the kernel, by torch, copied, and through another dtype."""
    moved = [random_tensor((6,), torch.float32, seed), laid_out(random_tensor((6,), torch.float32, seed + 1), "sliced")]
    return [*moved, torch.full((6,), seed), random_tensor((6,), torch.float64, seed + 2)]


def onlines(seed: int) -> list[Tensor]:
    *others, last = tensors(seed)
    return [*others, last.float()]


@contextmanager
def untouched(update: Any, *more: Tensor) -> Iterator[None]:
    """Assert that an updater, what it moves and what it follows stay as they are."""
    masters = update.state_dict()["masters"]
    before = (update.count, update.tau, update.every, update._target, update._online, update.describe())
    with unchanged(*masters.values(), *more):
        yield
    assert (update.count, update.tau, update.every, update._target, update._online, update.describe()) == before
    after = update.state_dict()["masters"]
    assert all(after[name] is master for name, master in masters.items())


def in_inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


# A fault is put in the place of one tensor of the target.


class NoLerp(Tensor):
    """A subclass that can be copied to, and not moved."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "lerp" in str(function):
            raise NotImplementedError("no lerp here")
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "made in inference mode": in_inference,
    "sparse": lambda t: t.to_sparse(),
    "on meta": lambda t: t.to("meta"),
    "an array": lambda t: t.numpy(),
    "none": lambda _: None,
    "another shape": lambda t: t[:-1],
    "one element": lambda t: t[:1],
    "another dtype": lambda t: t.to(torch.complex64) if t.is_floating_point() else t.float(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor([t[:2], t[2:]]),
    "expanded": lambda t: t[:1].expand(6),
    "zero without memory": lambda t: torch._efficientzerotensor((6,), dtype=t.dtype),
}
faults = pytest.mark.parametrize("fault", FAULTS)
positions = pytest.mark.parametrize("position", POSITIONS)
pytestmark = pytest.mark.filterwarnings("ignore:.*(nested tensors|quantiz|resolve_conj).*")


@faults
@positions
@pytest.mark.parametrize("form", [list, dict])
def test_a_fault_at_any_place_of_the_target(fault: str, position: int, form: type) -> None:
    targets, sources = tensors(1), onlines(20)
    make = list if form is list else lambda values: dict(zip("abcd", values, strict=True))
    held: Any = make(targets)
    source = make(sources)
    update = SoftUpdate(held, source, 0.3)
    update.step()
    wrong = FAULTS[fault](targets[position])
    others = [t for i, t in enumerate(targets) if i != position]
    held["abcd"[position] if form is dict else position] = wrong
    looked_at = [*others, *sources]
    ways: list[Callable[[], Any]] = [update.step, update.step, lambda: soft_update_(held, source, 0.3)]
    if fault != "made in inference mode":  # those may be paired, for when they can be moved
        ways += [update.refresh, lambda: hard_update_(held, source), lambda: SoftUpdate(held, source, 0.3)]
        ways += [lambda: update.load_state_dict({"count": 5, "masters": {}})]
    for refuse in ways:
        with unchanged(*looked_at), pytest.raises((TypeError, ValueError, RuntimeError)):
            refuse()
        assert update.count == 1
    held["abcd"[position] if form is dict else position] = targets[position]
    before = copy.deepcopy(targets)
    update.step()
    assert update.count == 2
    assert_same_bits(targets[0], lerped(before[0], sources[0], 0.3))


@positions
def test_a_target_made_in_inference_mode_moves_there_and_only_there(position: int) -> None:
    targets, sources = tensors(1), onlines(20)
    targets[position] = in_inference(targets[position])
    update = SoftUpdate(targets, sources, 0.3)
    plain = [t for i, t in enumerate(targets) if i != position]
    for tau in (0.3, 1.0):
        with (
            unchanged(*plain),
            pytest.raises(RuntimeError, match=rf"^\[{position}\]: target was made in inference mode"),
        ):
            update.step(tau)
        with (
            unchanged(*plain),
            pytest.raises(RuntimeError, match=rf"^\[{position}\]: target was made in inference mode"),
        ):
            soft_update_(targets, sources, tau)
    assert update.count == 0
    with torch.inference_mode():
        expected = lerped(targets[0], sources[0], 0.3)
        assert update.step()
    assert_same_bits(targets[0], expected)


def test_a_module_with_one_tensor_made_in_inference_mode() -> None:
    target, online = linears()
    with torch.inference_mode():
        target.register_buffer("scale", torch.ones(2))
    online.register_buffer("scale", torch.zeros(2))
    update = SoftUpdate(target, online, 0.3)
    with unchanged(*target.parameters(), *online.parameters()):
        for _ in range(3):
            with pytest.raises(RuntimeError, match=r"^scale: target was made in inference mode"):
                update.step()
    assert update.count == 0


@positions
def test_a_subclass_that_cannot_move_is_refused_before_anything_moves(position: int) -> None:
    targets, sources = tensors(1), onlines(20)
    targets[position] = targets[position].as_subclass(NoLerp)
    if position == 2:  # integers are only copied
        assert SoftUpdate(targets, sources, 0.3).step()
        return
    plain = [t for i, t in enumerate(targets) if i != position]
    for refuse in (SoftUpdate, soft_update_):
        with unchanged(*plain), pytest.raises(TypeError, match=rf"^\[{position}\]: torch cannot update NoLerp"):
            refuse(targets, sources, 0.3)


# tau


@pytest.mark.parametrize(
    "tau",
    [
        *(float("nan"), None, -0.1, 1.1, "0.5", 0.5j, [0.5], torch.tensor([0.5]), torch.tensor(2.0)),
        torch.tensor(0.5, device="meta"),
    ],
    ids=str,
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_schedule_that_goes_wrong(tau: Any, every: int) -> None:
    targets, sources = tensors(1), onlines(20)
    answers: list[Any] = [0.5, 0.5]
    update = SoftUpdate(targets, sources, lambda _: answers.pop(0), every=every)
    update.step()
    update.step()
    for answer in (tau, KeyError):
        answers[:] = [answer]
        if answer is KeyError:
            answers.clear()  # popping raises IndexError
        with untouched(update, *targets, *sources), pytest.raises((TypeError, ValueError, IndexError)):
            update.step()
    if tau is not None:
        with untouched(update, *targets, *sources), pytest.raises((TypeError, ValueError)):
            update.step(tau)
        with unchanged(*targets, *sources), pytest.raises((TypeError, ValueError)):
            soft_update_(targets, sources, tau)


# Masters


def halves() -> tuple[Any, Any, Any]:
    target, online = (net.bfloat16() for net in networks())
    update = SoftUpdate(target, online, 0.01, master=True)
    for _ in range(3):
        update.step()
    return update, target, online


def other_state(update: Any) -> dict[str, Any]:
    masters = {name: master + 1 for name, master in update.state_dict()["masters"].items()}
    return {"count": 7, "masters": masters}


MASTERS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "compressed": lambda t: t.reshape(1, -1).to_sparse_csr(),
    "on meta": lambda t: t.to("meta"),
    "an array": lambda t: t.numpy(),
    "none": lambda _: None,
    "a number": lambda _: 1.0,
    "a list": lambda t: t.tolist(),
    "another shape": lambda t: t.reshape(-1)[1:],
    "one element": lambda t: t.reshape(-1)[:1],
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "complex": lambda t: t.to(torch.complex64),
    "integers": lambda t: t.int(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "a subclass": lambda t: t.as_subclass(NoLerp),
}


@pytest.mark.parametrize("fault", MASTERS)
@positions
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_a_fault_in_any_master(fault: str, position: int) -> None:
    update, target, online = halves()
    state = other_state(update)
    name = list(state["masters"])[position]
    state["masters"][name] = MASTERS[fault](state["masters"][name])
    with (
        untouched(update, *target.parameters(), *target.buffers(), *online.parameters()),
        pytest.raises((TypeError, ValueError), match=rf"^state: masters: {name}: "),
    ):
        update.load_state_dict(state)


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no mapping": lambda _: 3,
    "a list": lambda s: list(s.items()),
    "a key less": lambda s: {"masters": s["masters"]},
    "a key more": lambda s: {**s, "tau": 0.1},
    "masters none": lambda s: {**s, "masters": None},
    "masters listed": lambda s: {**s, "masters": list(s["masters"].values())},
    "a master less": lambda s: {**s, "masters": dict(list(s["masters"].items())[:-1])},
    "a master more": lambda s: {**s, "masters": {**s["masters"], "more": torch.zeros(2)}},
    "a key that is no name": lambda s: {**s, "masters": {**s["masters"], 3: torch.zeros(2)}},
    "a negative count": lambda s: {**s, "count": -1},
    "a count that is none": lambda s: {**s, "count": None},
    "a fraction": lambda s: {**s, "count": 2.0},
}


@pytest.mark.parametrize("fault", STATES)
def test_a_fault_in_a_state(fault: str) -> None:
    update, target, online = halves()
    with (
        untouched(update, *target.parameters(), *target.buffers(), *online.parameters()),
        pytest.raises((TypeError, ValueError), match=r"^state: "),
    ):
        update.load_state_dict(STATES[fault](other_state(update)))


def test_masters_that_cannot_be_written_to_the_target() -> None:
    with torch.inference_mode(), warnings_of_halves():
        targets = [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)]
    targets[0] = torch.zeros(3, dtype=torch.bfloat16)
    update = SoftUpdate(targets, [torch.ones(3), torch.ones(3)], 0.3, master=True)
    with untouched(update, targets[0]), pytest.raises(RuntimeError, match=r"^\[1\]: target was made in inference mode"):
        update.load_state_dict(other_state(update))


def test_live_masters_under_other_names_are_exchanged() -> None:
    targets = [torch.full((3,), value, dtype=torch.bfloat16) for value in (1.0, 2.0)]
    update = SoftUpdate(targets, [torch.zeros(3), torch.zeros(3)], 0.3, master=True)
    first, second = update.state_dict()["masters"].values()
    update.load_state_dict({"count": 0, "masters": {"[0]": second, "[1]": first}})
    assert [target[0].item() for target in targets] == [2.0, 1.0]
    assert (first[0].item(), second[0].item()) == (2.0, 1.0)


# The updater itself


@pytest.mark.parametrize(
    "arguments",
    [
        ((network(1), network(2)), {"tau": 2.0}),
        ((network(1), network(2)), {"every": 0}),
        ((network(1), network(2)), {"buffers": "x"}),
        (([], []), {}),
        (([torch.zeros(2)], [torch.zeros(3)]), {}),
        ((3, network(2)), {}),
        (([torch.zeros(2, dtype=torch.bfloat16)], [torch.zeros(2)]), {}),  # warns, which is an error here
    ],
    ids=range(7),
)
def test_a_second_construction_that_is_refused(arguments: Any) -> None:
    update, target, online = halves()
    positional, named = arguments
    with (
        untouched(update, *target.parameters(), *online.parameters()),
        pytest.raises((TypeError, ValueError, UserWarning)),
    ):
        update.__init__(*positional, **named)
    update.step()
    assert update.count == 4


def test_a_second_construction_starts_anew() -> None:
    target, online = networks()
    update = SoftUpdate(*networks(), 0.5, every=3)
    update.step()
    update.__init__(target, online, 0.3)
    assert (update.count, update.every) == (0, 1)
    assert_moves(update.step, target, online)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: {},
        lambda s: {name: value for name, value in s.items() if name != "_masters"},
        lambda s: {**s, "more": 1},
        lambda s: {**s, "_every": 0},
        lambda s: {**s, "_buffers": "x"},
        lambda s: {**s, "count": -1},
    ],
    ids=range(6),
)
def test_a_pickled_state_that_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    update, target, online = halves()
    with (
        untouched(update, *target.parameters(), *online.parameters()),
        pytest.raises((TypeError, ValueError)),
    ):
        update.__setstate__(change(update.__getstate__()))
    update.step()
    assert update.count == 4


def test_memory_that_runs_out_runs_out_before_anything_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last of the tensors that need memory for a step finds none."""
    targets, sources = [*tensors(1), random_tensor((6,), torch.float64, 3)], [*onlines(20), torch.ones(6)]
    update = SoftUpdate(targets, sources, 0.3)
    real, calls = Tensor.to, [0]

    def fails(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise MemoryError
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", fails)
        with unchanged(*targets, *sources), pytest.raises(MemoryError):
            update.step()
    assert update.count == 0
    assert update.step()
