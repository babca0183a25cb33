# SPDX-License-Identifier: MIT
"""Target updates after parameters were re-allocated or modules changed: noticed, and old memory left alone."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from target_support import (
    SoftUpdate,
    assert_holds,
    assert_moves,
    assert_same_bits,
    deep_network,
    hard_update_,
    lerped,
    network,
    networks,
    random_tensor,
    scrambled,
    soft_update_,
    unchanged,
    warnings_of_halves,
)
from torch import Tensor, nn

from fastreplay.target import plan
from fastreplay.target.functional import _PLANS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["native", "python"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at tensors by torch's native functions, or by Python."""
    if request.param == "python":
        monkeypatch.setattr(plan, "torch_abi", lambda: None)


def small(seed: int) -> nn.Sequential:
    """Make a net of which every step of an updater sees every layer."""
    return scrambled(nn.Sequential(nn.Linear(3, 3)), seed)  # type: ignore[no-any-return]


def layer(seed: int, size: int = 3) -> Any:
    return scrambled(nn.Linear(size, size), seed)


def move_data(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data = random_tensor(parameter.shape, parameter.dtype, 77)


def assign(net: nn.Module) -> None:
    state = {name: random_tensor(tensor.shape, tensor.dtype, 78) for name, tensor in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


def replace_parameter(net: Any) -> None:
    net[0].bias = nn.Parameter(torch.full((3,), 5.0))


def replace_layer(net: Any) -> None:
    net[0] = layer(79)


def swap(net: Any) -> None:
    other = nn.Parameter(random_tensor((3, 3), torch.float32, 80))
    torch.utils.swap_tensors(net[0].weight, other)  # type: ignore[no-untyped-call]


def set_source(net: Any) -> None:
    with torch.no_grad():
        net[0].weight.set_(random_tensor((3, 3), torch.float32, 81))


def to_double_and_back(net: Any) -> None:
    net.double().float()


def transpose_data(net: Any) -> None:
    net[0].weight.data = net[0].weight.data.t().contiguous().t()


def one_flat_tensor(net: Any) -> None:
    """Make all parameters views of one tensor, as optimizers do that flatten."""
    flat = torch.cat([parameter.data.flatten() for parameter in net.parameters()])
    first = 0
    for parameter in net.parameters():
        parameter.data = flat[first : first + parameter.numel()].view(parameter.shape)
        first += parameter.numel()


def freeze(net: Any) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach().clone(), requires_grad=False)


CHANGES: list[Callable[[Any], None]] = [
    move_data,
    assign,
    replace_parameter,
    replace_layer,
    swap,
    set_source,
    to_double_and_back,
    transpose_data,
    one_flat_tensor,
    freeze,
]


def add_layer(net: Any) -> None:
    net.append(layer(82))


def double(net: Any) -> None:
    net.double()


def to_complex(net: Any) -> None:
    net.to(torch.complex64)


def delete_and_append(net: Any) -> None:
    """Let torch put another dictionary in the place of `_modules`."""
    del net[-1]
    net.append(layer(83))


def tie(net: Any) -> None:
    net.append(nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight


def add_buffer(net: Any) -> None:
    net[0].register_buffer("scale", torch.zeros(2))


CHANGES_OF_BOTH: list[Callable[[Any], None]] = [add_layer, double, to_complex, tie, delete_and_append]


@pytest.fixture
def swapping() -> Iterator[None]:
    """Let conversions of modules swap tensors."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def updates(kind: str, target: Any, online: Any) -> Callable[[], Any]:
    """Make one of the two ways to update, by 0.3."""
    if kind == "function":
        return lambda: soft_update_(target, online, 0.3)
    update = SoftUpdate(target, online, 0.3)
    return update.step  # type: ignore[no-any-return]


kinds = pytest.mark.parametrize("kind", ["updater", "function"])


def memory_of(*nets: nn.Module) -> list[Tensor]:
    """Give tensors that keep what the nets' parameters lie in now."""
    return [parameter.detach() for net in nets for parameter in net.parameters()]


def assert_noticed(
    update: Callable[[], Any], target: Any, online: Any, change: Callable[[Any], None], *changed: Any
) -> None:
    """Assert that the first update after a change moves what is there then, and nothing else."""
    for _ in range(2):
        assert_moves(update, target, online)
    old = memory_of(target, online)
    for net in changed:
        change(net)
    now = {parameter.data_ptr() for net in (target, online) for parameter in net.parameters()}
    left = [tensor for tensor in old if tensor.data_ptr() not in now]
    with unchanged(*left, versions=False):
        for _ in range(2):
            scrambled(online, 90)
            assert_moves(update, target, online)


@kinds
@pytest.mark.parametrize(
    ("change", "side"),
    [
        *((change, side) for change in CHANGES for side in ("target", "online", "both")),
        *((change, "both") for change in CHANGES_OF_BOTH),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
def test_a_change_is_noticed_at_once(kind: str, change: Callable[[Any], None], side: str) -> None:
    target, online = networks(small)
    changed = {"target": [target], "online": [online], "both": [target, online]}[side]
    assert_noticed(updates(kind, target, online), target, online, change, *changed)


@kinds
@pytest.mark.parametrize("both", [True, False])
def test_swapped_parameters_are_noticed(kind: str, both: bool, swapping: None) -> None:
    target, online = networks(small)

    def change() -> None:
        weight = target[0].weight
        target.double()
        assert target[0].weight is weight
        online.double().float()
        if both:
            online.double()

    update = updates(kind, target, online)
    assert_moves(update, target, online)
    old = memory_of(target, online)
    with unchanged(*old, versions=False):
        change()
        expected = [
            lerped(to, source.double(), 0.3)
            for to, source in zip(target.parameters(), online.parameters(), strict=True)
        ]
        update()
    for to, want in zip(target.parameters(), expected, strict=True):
        assert_same_bits(to, want)


@kinds
def test_a_resized_storage_is_noticed(kind: str) -> None:
    target, online = networks(lambda seed: scrambled(nn.Sequential(nn.Linear(100, 100)), seed))
    update = updates(kind, target, online)
    assert_moves(update, target, online)
    for net in (target, online):
        storage, address = net[0].weight.untyped_storage(), net[0].weight.data_ptr()
        storage.resize_(storage.nbytes() + 2**16)
        assert net[0].weight.data_ptr() != address
        assert_moves(update, target, online)


@kinds
def test_a_target_of_another_dtype(kind: str) -> None:
    target, online = networks(small)
    update = updates(kind, target, online)
    assert_moves(update, target, online)
    for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.float32):
        target.to(dtype)
        compute = dtype if dtype in (torch.float32, torch.float64) else torch.float32
        expected = [
            lerped(to.to(compute), source.to(compute), 0.3).to(dtype)
            for to, source in zip(target.parameters(), online.parameters(), strict=True)
        ]
        with warnings_of_halves():
            update()
        for to, want in zip(target.parameters(), expected, strict=True):
            assert_same_bits(to, want)


@pytest.mark.parametrize("change", [replace_layer, add_layer, add_buffer, delete_and_append], ids=lambda f: f.__name__)
def test_a_function_notices_changes_deep_down_at_once(change: Callable[[Any], None]) -> None:
    target, online = networks(deep_network)
    for _ in range(3):  # whatever the rotation looks at next
        soft_update_(target, online, 0.3)
    for seed in range(5):
        for net in (target, online):
            change(net)
            scrambled(net, seed + (7 if net is target else 8))
        assert_moves(lambda: soft_update_(target, online, 0.3), target, online)
    assert_moves(lambda: hard_update_(target, online), target, online, 1.0)


@pytest.mark.parametrize("position", [0, 5, 11])
@pytest.mark.parametrize("side", ["target", "online"])
def test_an_updater_notices_changes_deep_down_in_rotation(side: str, position: int) -> None:
    """It looks at 4 dictionaries with entries a step; there are 13 of each net."""
    target, online = networks(deep_network)
    update = SoftUpdate(target, online, 0.3)
    for _ in range(position):
        update.step()
    net = target if side == "target" else online
    net[position] = layer(50)
    for _ in range(math.ceil(26 / 4)):
        update.step()
    assert_moves(update.step, target, online)


def test_an_updater_notices_a_first_buffer_in_rotation() -> None:
    target, online = networks(small)
    update = SoftUpdate(target, online, 0.3)
    update.step()
    for net, value in ((target, 1.0), (online, 2.0)):
        net[0].register_buffer("scale", torch.full((2,), value))
    for _ in range(4):  # 2 empty dictionaries a step; there are 8
        update.step()
    assert torch.equal(target[0].scale, torch.full((2,), 2.0))


def test_memory_deep_down_is_looked_at_in_every_step() -> None:
    target, online = networks(deep_network)
    update = SoftUpdate(target, online, 0.3)
    for position in range(12):
        for net in (target, online):
            old = net[position].weight.detach()
            with unchanged(old, versions=False):
                net[position].weight.data = old.clone()
                assert_moves(update.step, target, online)


def test_refresh_sees_everything_at_once() -> None:
    target, online = networks(deep_network)
    update = SoftUpdate(target, online, 0.3)
    target[7] = layer(60)
    update.refresh()
    assert_moves(update.step, target, online)
    target[3].weight.data.t_()  # in place: only refresh sees it
    online[4].weight.data.t_()
    update.refresh()
    assert_moves(update.step, target, online)


def test_lists_follow_their_tensors() -> None:
    target, online = torch.zeros(5), torch.ones(5)
    update = SoftUpdate([target], [online], 0.5)
    update.step()
    old = target.detach()
    with unchanged(old, versions=False):
        target.data, online.data = torch.zeros(7), torch.full((7,), 4.0)
        update.step()
    assert torch.equal(target, torch.full((7,), 2.0))


# Refused, by name


def shrink(net: Any) -> None:
    net[0].weight.data = net[0].weight.data[:2]


def to_one_element(net: Any) -> None:
    net[0].weight.data = torch.ones(1)  # torch would spread it out


def to_nothing(net: Any) -> None:
    net[0].weight.data = torch.ones(0, 3)


def to_meta(net: Any) -> None:
    net.to("meta")


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["by the kernel", "by torch"])
@pytest.mark.parametrize("change", [shrink, to_one_element, to_nothing, to_meta], ids=lambda change: change.__name__)
@pytest.mark.parametrize("side", ["target", "online"])
def test_what_no_longer_fits_is_refused_by_name(
    kind: str, change: Callable[[Any], None], side: str, dtype: torch.dtype
) -> None:
    target, online = networks(small)
    target.to(dtype)
    update = updates(kind, target, online)
    update()
    before = target[0].weight.data, online[0].weight.data
    biases = [target[0].bias, online[0].bias]
    net = target if side == "target" else online
    kept = copy.deepcopy(net.state_dict())
    change(net)
    with unchanged(*before, *(bias for bias in biases if bias.device.type == "cpu")):
        for _ in range(3):
            with pytest.raises(ValueError, match=r"^0\.weight: "):
                update()
    if change is not to_meta:
        net[0].weight.data = kept["0.weight"]
        expected = [
            lerped(to, source.to(dtype), 0.3)
            for to, source in zip(target.parameters(), online.parameters(), strict=True)
        ]
        update()
        for to, want in zip(target.parameters(), expected, strict=True):
            assert_same_bits(to, want)


@kinds
@pytest.mark.parametrize("side", ["target", "online"])
def test_a_layer_more_on_one_side_is_refused_by_name(kind: str, side: str) -> None:
    target, online = networks(small)
    update = updates(kind, target, online)
    update()
    nets = {"target": target, "online": online}
    nets[side].append(layer(3))
    other = "online" if side == "target" else "target"
    with unchanged(*memory_of(target, online)):
        for _ in range(3):
            with pytest.raises(ValueError, match=rf"^1\.weight: is in {side}, but not in {other}$"):
                update()
    nets[other].append(layer(4))
    assert_moves(update, target, online)


def test_a_refused_step_is_not_counted() -> None:
    target, online = networks(small)
    update = SoftUpdate(target, online, 0.3, every=2)
    update.step()
    online.append(layer(3))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^1\.weight: is in online"):
            update.step()
    with pytest.raises(ValueError, match=r"^1\.weight: is in online"):
        update.refresh()
    assert update.count == 1
    del online[1]
    assert update.step()
    assert update.count == 2


def test_a_change_deep_down_is_refused_until_it_is_undone() -> None:
    """Not only in the steps that happen to look there."""
    target, online = networks(deep_network)
    update = SoftUpdate(target, online, 0.3)
    update.step()
    online[6].register_parameter("extra", nn.Parameter(torch.zeros(2)))
    for _ in range(math.ceil(26 / 4)):
        with suppress(ValueError):
            update.step()
    for _ in range(10):
        with unchanged(*memory_of(target)), pytest.raises(ValueError, match=r"^6\.extra: is in online"):
            update.step()


@kinds
def test_a_target_that_came_to_share_memory_is_refused(kind: str) -> None:
    target, online = networks(small)
    update = updates(kind, target, online)
    update()
    target[0].weight.data = online[0].weight.data
    with (
        unchanged(*memory_of(target, online)),
        pytest.raises(ValueError, match=r"^0\.weight: target and online share memory"),
    ):
        update()


# Masters


def test_loading_writes_the_target_that_is_there() -> None:
    target, online = (net.bfloat16() for net in networks(small))
    update = SoftUpdate(target, online, 0.01, master=True)
    for _ in range(5):
        update.step()
    state = copy.deepcopy(update.state_dict())
    wanted = copy.deepcopy(target.state_dict())
    old = memory_of(target)
    assign(target)
    with unchanged(*old, versions=False):
        update.load_state_dict(state)
    assert_holds(target, wanted)
    update.step()
    twin_target, twin_online = small(1), copy.deepcopy(online)
    twin_target.bfloat16().load_state_dict(wanted)
    twin = SoftUpdate(twin_target, twin_online, 0.01, master=True)
    twin.load_state_dict(state)
    twin.step()
    assert_holds(target, twin_target.state_dict())


# The cache of soft_update_


@pytest.fixture
def pairings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect a mark for each time that tensors are paired."""
    found: list[object] = []
    real = plan.pairs_of  # type: ignore[attr-defined]

    def spy(*args: Any, **kwargs: Any) -> Any:
        found.append(args[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(plan, "pairs_of", spy)
    return found


def test_modules_are_paired_once(pairings: list[object]) -> None:
    target, online = networks()
    for i in range(20):
        soft_update_(target, online, 0.1 * (i % 3))
        hard_update_(target, online)
    assert len(pairings) == 1
    other = network(3)
    for _ in range(5):
        soft_update_(target, online, 0.3)
        soft_update_(other, online, 0.3)
        soft_update_(other, target, 0.3)
    assert len(pairings) == 3
    for i in range(5):
        target[0].weight.data = target[0].weight.data.clone()
        soft_update_(target, online, 0.3)
        soft_update_(target, online, 0.3)
        assert len(pairings) == 3 + i + 1


def test_an_updater_pairs_once(pairings: list[object]) -> None:
    update = SoftUpdate(*networks(deep_network), 0.3)
    for _ in range(100):
        update.step()
    assert len(pairings) == 1


def test_lists_and_dictionaries_are_paired_at_every_call(pairings: list[object]) -> None:
    target, online = networks()
    for _ in range(3):
        soft_update_(list(target.parameters()), list(online.parameters()), 0.3)
        soft_update_(target.state_dict(), online.state_dict(), 0.3)
    assert len(pairings) == 6
    assert not known(target)


def known(target: nn.Module) -> dict[int, Any]:
    """Give the plans that are kept in a target, by the identity of the online module."""
    found: dict[int, Any] = target.__dict__.get(_PLANS, {})
    return found


def assert_dies(nets: dict[str, Any], dies: str) -> None:
    """Assert that what soft_update_ keeps of two modules lets either die."""
    soft_update_(nets["target"], nets["online"], 0.3)
    assert list(known(nets["target"])) == [id(nets["online"])]
    gone = [weakref.ref(nets.pop(name)) for name in (["target", "online"] if dies == "both" else [dies])]
    gc.collect()
    assert [reference() for reference in gone] == [None] * len(gone)
    assert not (known(nets["target"]) if dies == "online" else {})


@pytest.mark.parametrize("dies", ["target", "online", "both"])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel], ids=["module", "wrapped"])
def test_no_module_is_kept_alive(dies: str, wrap: Any) -> None:
    assert_dies(dict(zip(("target", "online"), map(wrap, networks(deep_network)), strict=True)), dies)


class Hooked(nn.Module):
    """A module to which a part of it refers, as after `part.register_forward_hook(self.method)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layer.register_forward_hook(self.look)

    def look(self, *_: Any) -> None:
        """Stand for a hook."""


@pytest.mark.parametrize("dies", ["target", "both"])
def test_no_module_is_kept_alive_to_which_its_parts_refer(dies: str) -> None:
    assert_dies({"target": Hooked(), "online": Hooked()}, dies)


def test_the_cache_frees_memory_that_was_left() -> None:
    target, online = networks(small)
    soft_update_(target, online, 0.3)
    storage = weakref.ref(target[0].weight.untyped_storage())
    target[0].weight.data = torch.zeros(3, 3)
    soft_update_(target, online, 0.3)
    gc.collect()
    assert storage() is None


def test_another_module_at_the_same_address_is_another() -> None:
    target, online = networks(small)
    soft_update_(target, online, 0.3)
    other_target, other_online = networks(small)
    soft_update_(other_target, online, 0.3)
    # As if one had died, been forgotten too late, and another came to lie where it lay.
    known(target)[id(other_online)] = known(target)[id(online)]
    known(other_target)[id(online)] = known(target)[id(online)]
    with unchanged(target[0].weight):
        assert_moves(lambda: soft_update_(other_target, online, 0.3), other_target, online)
    assert_moves(lambda: soft_update_(target, other_online, 0.3), target, other_online)
    assert_moves(lambda: soft_update_(target, online, 0.3), target, online)


@pytest.mark.parametrize("stays", ["target", "online"])
def test_modules_come_and_go(stays: str) -> None:
    nets, seen = {stays: small(2)}, set()
    goes = "online" if stays == "target" else "target"
    for i in range(120):
        nets[goes] = small(3 + i % 5)
        seen.add(id(nets[goes]))
        assert_moves(lambda: soft_update_(nets["target"], nets["online"], 0.3), nets["target"], nets["online"])
        del nets[goes]
        if i % 40 == 39:
            gc.collect()
    gc.collect()
    assert len(seen) < 120  # addresses were used again
    assert stays == "online" or not known(nets["target"])


@pytest.mark.parametrize(
    "carry", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_a_copied_module_is_paired_for_itself(carry: Any) -> None:
    target, online = networks()
    soft_update_(target, online, 0.3)
    twin = carry(target)
    assert not known(twin)
    with unchanged(*target.parameters()):
        assert_moves(lambda: soft_update_(twin, online, 0.3), twin, online)
    with unchanged(*twin.parameters()):
        assert_moves(lambda: soft_update_(target, online, 0.3), target, online)
