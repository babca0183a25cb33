# SPDX-License-Identifier: MIT
"""The results on a GPU as Markdown and JSON. Measures nothing, needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from judging import Target, median_us, quartiles_us, speedup
from output import NONE, bullets, number, ratio, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nets import Net

COPY = "copy"
_LABELS = {
    "lerp": "`lerp_` per tensor",
    "flat": "one flat `lerp_`",
    "foreach": "`_foreach_lerp_`",
    "foreach-graph": "`_foreach_lerp_`, captured",
    "fastreplay": "`fr.SoftUpdate`",
    "fastreplay-graph": "`fr.SoftUpdate`, captured",
    COPY: "copy of as many bytes",
}
_RL_TARGETS = (Target(1.5, "foreach"), Target(1.5, "foreach-graph", "fastreplay-graph"))
_LARGE_TARGETS = (Target(0.85, COPY),)


@dataclass
class GpuResult:
    """One net's updates, measured.

    Attributes:
        online_dtype: What the online network is of, without "torch."; the target is float32.
        seconds: Seconds an update on the device, one number a round, by updater and COPY.
        host_seconds: Seconds of the host an update, likewise.
        is_equal: Whether the results were those of `torch.lerp`, bit for bit; they were close in any case.
    """

    net: Net
    online_dtype: str
    num_tensors: int
    num_elements: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    host_seconds: dict[str, list[float]] = field(default_factory=dict)
    is_equal: dict[str, bool] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.net.title if self.online_dtype == "float32" else f"{self.net.title}, {self.online_dtype}"

    @property
    def num_bytes(self) -> int:
        """Bytes that one update reads and writes: 12 an element, where both are float32."""
        return self.num_elements * (8 + (4 if self.online_dtype == "float32" else 2))

    @property
    def targets(self) -> tuple[Target, ...]:
        if self.online_dtype != "float32":
            return ()
        return _RL_TARGETS if self.net.is_rl_sized else _LARGE_TARGETS if COPY in self.seconds else ()


def to_markdown(results: Sequence[GpuResult], header: Mapping[str, str]) -> str:
    """Return the tables of all results, below the header."""
    parts = ["# Soft updates on a GPU, measured", bullets(header)]
    for title, is_chosen in _KINDS:
        if chosen := [result for result in results if is_chosen(result)]:
            parts += [f"## {title}", _times(chosen)]
    parts += ["## The host", _HOST, _host(results)]
    parts += ["## Targets", _targets(results), "## Bandwidth", _BANDWIDTH, _bandwidth(results)]
    parts += ["## Results beside `torch.lerp`", _equality(results)]
    return "\n\n".join(parts) + "\n"


def to_json(results: Sequence[GpuResult], header: Mapping[str, str]) -> dict[str, Any]:
    """Return all that was measured: per updater the quartiles over rounds, in µs an update."""
    return {"header": dict(header), "nets": [_net_json(result) for result in results]}


_KINDS: tuple[tuple[str, Callable[[GpuResult], bool]], ...] = (
    ("Times, float32 (µs an update)", lambda result: result.online_dtype == "float32"),
    ("Times, bfloat16 online and float32 target (µs an update)", lambda result: result.online_dtype != "float32"),
)
_HOST = "µs of the host an update, until all of it is issued, with the device idle before."
_BANDWIDTH = (
    "GB/s, of the bytes that are read and written: 12 an element in float32, 10 where the online network is bfloat16."
)


def _net_json(result: GpuResult) -> dict[str, Any]:
    targets = []
    for target in result.targets:
        measured = target.ratio(result.seconds)
        targets.append(
            {
                "ours": target.ours,
                "against": target.against,
                "bound": target.factor,
                "ratio": measured,
                "met": None if measured is None else target.is_met(measured),
            }
        )
    return {
        "net": result.net.key,
        "online": result.online_dtype,
        "tensors": result.num_tensors,
        "elements": result.num_elements,
        "bytes_per_update": result.num_bytes,
        "device_us_per_update": quartiles_us(result.seconds),
        "host_us_per_update": quartiles_us(result.host_seconds),
        "is_equal": result.is_equal,
        "targets": targets,
    }


def _names(results: Iterable[GpuResult], part: Callable[[GpuResult], Iterable[str]]) -> list[str]:
    known = {name for result in results for name in part(result)}
    return [name for name in _LABELS if name in known]


def _times(results: Sequence[GpuResult]) -> str:
    names = _names(results, lambda result: result.seconds)
    rows = [
        [
            result.title,
            f"{result.num_tensors}",
            f"{result.num_elements:,}",
            *(number(median_us(result.seconds, name)) for name in names),
            ratio(speedup(result.seconds, "foreach", "fastreplay")),
            ratio(speedup(result.seconds, "foreach-graph", "fastreplay-graph")),
        ]
        for result in results
    ]
    columns = [*(_LABELS[name] for name in names), "over foreach", "over foreach, captured"]
    return table(["net", "tensors", "elements", *columns], rows)


def _host(results: Sequence[GpuResult]) -> str:
    names = _names(results, lambda result: result.host_seconds)
    rows = [[result.title, *(number(median_us(result.host_seconds, name)) for name in names)] for result in results]
    return table(["net", *(_LABELS[name] for name in names)], rows)


def _targets(results: Iterable[GpuResult]) -> str:
    rows = []
    for result in results:
        for target in result.targets:
            measured = target.ratio(result.seconds)
            verdict = target.verdict(measured) or NONE
            names = (_LABELS[target.ours], _LABELS[target.against])
            rows.append([result.title, *names, target.bound, ratio(measured), verdict])
    return table(["net", "ours", "against", "target", "measured", ""], rows)


def _bandwidth(results: Sequence[GpuResult]) -> str:
    names = _names(results, lambda result: result.seconds)
    rows = []
    for result in results:
        times = [median_us(result.seconds, name) for name in names]
        rates = [NONE if us is None else f"{result.num_bytes / us * 1e-3:,.0f}" for us in times]
        rows.append([result.title, *rates, _share(result)])
    return table(["net", *(_LABELS[name] for name in names), "ours of the copy"], rows)


def _share(result: GpuResult) -> str:
    share = speedup(result.seconds, COPY, "fastreplay")
    return NONE if share is None else f"{share:.1%}"


def _equality(results: Sequence[GpuResult]) -> str:
    names = _names(results, lambda result: result.is_equal)
    words = {True: "equal", False: "close", None: NONE}
    rows = [[result.title, *(words[result.is_equal.get(name)] for name in names)] for result in results]
    return table(["net", *(_LABELS[name] for name in names)], rows)
