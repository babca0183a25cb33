# SPDX-License-Identifier: MIT
"""Fields that a device gives out in another way than they are stored. The CPU's minibatches are the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import pytest
import torch
from given_out_support import RULES, numbers
from support import NativeBuffer

import fastreplay as fr

if TYPE_CHECKING:
    from fake_cuda import FakeCuda


def test_page_locked_minibatches_are_converted(cuda: FakeCuda) -> None:
    fields = {"x": fr.Field((8, 8), "uint8", out="float32", divide=255, shift=3)}
    here, there = (NativeBuffer(9, fields, seed=0, device=device) for device in ("cpu", "cuda:0"))
    for buffer in (here, there):
        buffer.extend(x=numbers("uint8", (9, 8, 8)))
    expected, batch = here.sample(5), there.sample(5)
    cuda.run_all()
    assert torch.equal(expected.x, batch.x)


@pytest.mark.parametrize(("rule", "options"), [*zip(RULES, [{}, {"share_next": True}] * 3, strict=True)])
def test_a_device_converts_as_the_cpu_does(cuda: FakeCuda, rule: Any, options: Any) -> None:
    how = {"dtype": "uint8", "out": "float32", "divide": 255, "shift": 4}
    fields: dict[str, Any] = {
        "a": ((), {"dtype": "float16", "out": "float32", "scale": 3}),
        "image": ((30, 50), how),
        "next_image": ((30, 50), how),
        "next_a": ((3,), {"dtype": "bool", "out": "float32"}),
        "b": ((9,), {"dtype": ml_dtypes.bfloat16, "out": "float32", "divide": 7}),
        "c": ((2, 3, 4), {"dtype": ml_dtypes.bfloat16, "out": "float32", "scale": 7, "shift": 2}),
        "d": ((3, 40), {"dtype": "complex64", "shift": 2}),
        "e": ((6, 3, 5), {"dtype": "int16", "shift": 1}),
    }
    there, here = (
        NativeBuffer(
            20,
            {name: fr.Field(shape, **kwargs) for name, (shape, kwargs) in fields.items()}
            | {"reward": (), "terminated": ((), "bool")},
            seed=0,
            lanes=2,
            **place,
            **({"share_next": {"next_image": "image"}} if options else {}),
        )
        for place in ({"device": "cuda:0", "storage": "cuda"}, {})
    )
    for seed in range(15):
        step = {name: numbers(kwargs["dtype"], (2, *shape), seed) for name, (shape, kwargs) in fields.items()}
        for buffer in (there, here):
            buffer.extend(**step, reward=[seed, 1], terminated=[seed % 7 == 3] * 2)
    if isinstance(rule, fr.Window):
        rule = fr.Window({"image": range(-3, 1), "next_a": range(2, 5)}, pad="zero")
    batch, expected = there.sample(9, follow=rule), here.sample(9, follow=rule)
    cuda.run_all()
    for name in fields:
        ours, theirs = (each[name].contiguous().view(torch.uint8) for each in (batch, expected))
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("options", [{}, {"priorities": fr.Priorities()}], ids=["uniform", "priorities"])
@pytest.mark.parametrize("rule", [None, fr.Sequence(3, time_major=True)], ids=["alone", "sequences"])
def test_each_call_of_a_device_shifts_by_its_number(cuda: FakeCuda, rule: Any, options: Any) -> None:
    field = fr.Field((7, 9), "uint8", stack=2, out="float32", divide=255, shift=3)
    here, there = (
        NativeBuffer(12, {"x": field, "next_x": field}, seed=0, lanes=1, ends=(), share_next=True, **options, **place)
        for place in ({}, {"device": "cuda:0", "storage": "cuda"})
    )
    frames = numbers("uint8", (22, 7, 9))
    for buffer in (here, there):
        for at in range(20):
            buffer.add(x=frames[at : at + 2], next_x=frames[at + 1 : at + 3])
    samplers = [buffer.sampler(follow=rule, seed=5) for buffer in (here, there)]
    batch, out = samplers[0].sample(6), samplers[1].sample(6)
    cuda.run_all()
    with cuda.capture() as graph:
        samplers[1].sample(6, out=out)
    for _ in range(4):
        assert torch.equal(out.x, batch.x)
        assert torch.equal(out.next_x, batch.next_x)
        batch = samplers[0].sample(6)
        cuda.replay(graph)
        cuda.run_all()
    assert not torch.equal(batch.x, samplers[0].sample(6).x)
