# SPDX-License-Identifier: MIT
# ruff: noqa: RUF001  the signs of the printed table
"""Every question's tables over made-up readings, and the checks of target updates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import curves
import pytest
import torch
from compare import compared, earlier_report
from experiment import Experiment, Question, Result
from experiments import buffers, end_to_end, gpu_pipeline, gpu_soft_update, growth, loader, sb3, target, threads
from nets import LARGE, NETS, Net, flattened
from render import Table, aligned, number, to_json, to_markdown
from report import Report
from sources import Setting
from timing import Call, Reading
from torch import nn
from updaters import TAU, Updater, check, check_exact, detached
from workloads import WORKLOADS


def seconds(**by_name: Sequence[float]) -> dict[str, list[Reading]]:
    return {name.replace("_", "-"): [{"s": each} for each in taken] for name, taken in by_name.items()}


def report(question: Question, *results: Result) -> str:
    assert json.loads(json.dumps(to_json(results, {"date": "today"})))["header"] == {"date": "today"}
    return to_markdown(question, results, {"date": "today"})


def test_ratios_are_taken_round_by_round() -> None:
    experiment = Experiment("key", "title", dict, rivals=["foreach", "flat", "sb3"])
    readings = seconds(foreach=[4, 5, 40], flat=[3, 3, 3], fastreplay=[1, 1, 10])
    result = Result(experiment, readings)
    assert result.median("foreach") == 5
    assert result.speedup("foreach") == pytest.approx(4)
    assert result.speedup("flat") == pytest.approx(3)
    assert result.speedup("sb3") is None
    assert result.median("sb3") is None
    assert result.series("flat", "host") is None
    assert result.fastest_rival() == "flat"
    assert Result(experiment).fastest_rival() is None


def test_quartiles_are_kept() -> None:
    result = Result(Experiment("key", "title", dict, facts={"elements": 3}), seconds(sb3=[1, 2, 3]), {"sb3": True})
    (kept,) = to_json([result], {})["experiments"]
    assert kept == {
        "key": "key",
        "title": "title",
        "unit": "s a call",
        "elements": 3,
        "is_exact": {"sb3": True},
        "absent": {},
        "over_yardstick": {},
        "readings": {"sb3": {"s": {"q1": 1.5, "median": 2, "q3": 2.5, "rounds": 3}}},
    }


def test_buffers() -> None:
    every = {experiment.key: experiment for experiment in buffers.at_scale()}
    floor = [{"s": 1e-6, "plain_gather": 1e-6, "streamed_gather": 2e-6}]
    text = report(
        buffers.QUESTION,
        Result(every["add-pendulum"], seconds(numpy=[2e-6], rlox=[5e-7], fastreplay=[1e-7])),
        Result(
            every["sample-pendulum-256"],
            {**seconds(cpprb=[5e-5], fastreplay=[4e-6], kernel=[3e-6], floor_halves=[5e-7]), "floor": floor},
            absent={"rlox": "float32 only"},
        ),
        Result(every["sample-atari-32"], seconds(numpy=[9e-4], fastreplay=[1e-3])),
    )
    assert text.startswith("# Replay buffers, measured\n\n- date: today\n\n## A rival in front\n")
    assert "| `sample(32)` atari | 0.90× (NumPy ring) |\n\n## Inserting\n" in text
    assert "| work | capacity | NumPy ring | rlox | fastreplay | over the fastest rival |" in text
    assert "| `add` pendulum | 1,000,000 | 2.00 | 0.500 | 0.100 | 5.00× (rlox) |" in text
    assert "| `sample(256)` pendulum | 1,000,000 | – | 50.0 | – | 4.00 | 1.00 | 0.500 | 3.00 | 12.50× (cpprb) |" in text
    assert "| `add` pendulum | 36 | 10 Mrows/s, 360 MB/s | – | 2 Mrows/s, 72 MB/s | – |" in text
    assert "| `sample(256)` pendulum | 1.00 | 2.00 | 3.00 | 0.500 | 2.00× | 25.0% | – | 2.0% | – |" in text
    assert "–: not measured.\n\n- `sample(256)` pendulum, rlox: float32 only\n" in text


def test_what_changed_since_an_earlier_run(tmp_path: Path) -> None:
    experiment = Experiment("sample-x", "x", dict, rivals=["numpy"], roofline=["floor"])
    theirs = {"floor": [1.0] * 3, "numpy": [9.0] * 3}
    earlier = Result(experiment, seconds(fastreplay=[2.0, 2.0, 2.2], fastreplay_out=[1.0] * 3, **theirs))
    (tmp_path / "d-m-buffers.json").write_text(json.dumps(to_json([earlier], {"date": "d", "commit": "c"})))
    (tmp_path / "d-m-further-buffers.md").touch()
    assert earlier_report(tmp_path, "target") is None
    assert earlier_report(tmp_path / "d-m-buffers.json", "target") is None
    found = earlier_report(tmp_path, "buffers")
    assert found is not None
    # The machine is half as fast: what counts is what was measured with it.
    now = seconds(fastreplay=[6.0, 4.8, 4.8], fastreplay_out=[1.6, 2.0, 1.6], floor=[2.0] * 3)
    text = str(compared([Result(experiment, now)], found, {"floor": "bare gather", "fastreplay-out": "`out=`"}))
    assert "then: d, commit c. 1 of 2 slower" in text
    assert "| x, fastreplay | bare gather | 2 | 2.4 | 20.0% | slower |" in text
    assert "| x, `out=` | bare gather | 1 | 0.8 | -20.0% | faster |" in text
    noisy = seconds(fastreplay=[3.0, 4.8, 4.8], floor=[2.0] * 3)  # beyond 5 %, and within the quartiles
    assert "| x, fastreplay | bare gather | 2 | 2.4 | 20.0% |  |" in str(
        compared([Result(experiment, noisy)], found, {"floor": "bare gather"})
    )


def test_tables_for_a_terminal() -> None:
    text = str(Table("Title", "", "work", {"a": 1.0, "long name": 20.0}, {"µs": number, "": lambda _: "x"}))
    assert aligned(f"{text}\n\nafter\n") == (
        "## Title\n\nwork         µs\n---------  ----  -\na          1.00  x\nlong name  20.0  x\n\nafter\n"
    )


def test_growth(tmp_path: Path) -> None:
    results = []
    for experiment in growth.at_scale(growth.Scale()):
        x = experiment.facts["x"]
        names = [name for name in experiment.contestants() if name != "rlox"]
        readings = {name: [{"s": 1e-6 * (x or 1), growth._SAMPLED: 2e6, growth._INSERTED: 1e3 * x}] for name in names}
        results.append(Result(experiment, readings, absent={"rlox": "reason"}))
    assert len({result.experiment.key for result in results}) == len(results)
    text = report(growth.QUESTION, *results)
    assert "| 32 rows a minibatch | 32.0 | 32.0 | 32.0 | – | 32.0 |" in text
    assert "| 28 B a row | 28.0 |" in text
    assert "| 2 writing, 1 sampling | 2 M + 2 k | 2 M + 2 k | 2 M + 2 k | – | 2 M + 2 k |" in text
    header = {"CPU": "a CPU", "date": "today", "commit": "abc"}
    figures = growth.QUESTION.figures(results, header)
    assert set(figures) == {"sampling.svg", "threads.svg", "growth.png"}
    figures["sampling.svg"].savefig(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    for said in ("fastreplay", "NumPy ring", "Rows of a minibatch", "a CPU · today · commit abc"):
        assert f"<!-- {said}" in drawn
    assert "rlox" not in drawn
    assert not growth.QUESTION.figures(results[:2], header)


def test_a_report_shows_its_figures(tmp_path: Path) -> None:
    figure = SimpleNamespace(savefig=lambda path, metadata: path.write_text(str(metadata)))
    question = replace(buffers.QUESTION, figures=lambda _results, _header: {"a.svg": figure, "b.png": figure})
    written = Report("buffers", question, {"date": "2026", "CPU": "My CPU, 2 cores"}, tmp_path, None)
    assert "![" not in written.write([])
    written.draw([])
    text = written.write([])
    assert (
        "\n![Replay buffers: a](2026-my-cpu-buffers-a.svg)\n\n![Replay buffers: b](2026-my-cpu-buffers-b.png)\n" in text
    )
    assert (tmp_path / "2026-my-cpu-buffers.md").read_text() == text
    assert (tmp_path / "2026-my-cpu-buffers-a.svg").read_text() == "{'Date': None}"  # the same from run to run
    assert (tmp_path / "2026-my-cpu-buffers-b.png").read_text() == "None"


def test_names_of_lines_stand_apart() -> None:
    assert curves._spread([0.2, 0.5, 0.9]) == [0.2, 0.5, 0.9]
    placed = curves._spread([0.0, 0.01, 0.5, 0.51, 0.52, 0.95])
    assert placed[3] == pytest.approx(0.51)
    assert placed[0] > 0.02
    assert all(above - below > 0.0549 for below, above in itertools.pairwise(placed))


def test_target_updates() -> None:
    readings = seconds(
        foreach=[4e-6, 5e-6, 40e-6],
        flat=[3e-6] * 3,
        fastreplay=[1e-6, 1e-6, 10e-6],
        foreach_2_threads=[2e-6, 2.5e-6, 20e-6],
    )
    result = Result(target.experiment(NETS[3]), readings, absent={"flat-2-threads": "no threads"})
    text = report(target.QUESTION, result)
    assert "| Nature CNN | 10 | 1,687,206 | 5.00 | 3.00 | 1.00 | 4.00× |" in text
    assert "| Nature CNN | 5.00 → 2.50 (2.00×) | 3.00 → – (–) | 1.00 → – (–) |" in text
    assert "- Nature CNN, one flat `lerp_` on 2 threads: no threads" in text
    assert "## 2 threads" not in report(target.QUESTION, Result(target.experiment(NETS[0]), readings))


def test_threads() -> None:
    insert, rates, together, latency = (threads._experiments(True)[i] for i in (0, 2, -2, -1))
    both = {"ours": 2e6, "against": 4e6}
    text = report(
        threads.QUESTION,
        Result(insert, {"native": [{"ours": 15.0, "against": 3.0}]}),
        Result(rates, {"native": [both]}),
        Result(together, {name: [{"inserted": x, "sampled": x, "together": 2 * x}] for name, x in RATES.items()}),
        Result(latency, {"alone": [dict.fromkeys(threads._QUANTILES, 1e-6)]}),
    )
    assert "| insert one row of 165 B | 15.0 ns | 3.0 ns bare | +12.0 ns |" in text
    assert "| sample(256) of 165 B beside a writer | 2 M/s | 4 M/s alone | 0.50× |" in text
    assert "| SB3 | 1 krows/s | 1 krows/s | 2 krows/s | 8.00× |" in text
    assert "| alone | 1.00 µs | 1.00 µs | 1.00 µs | 1.00 µs | 1.00 µs |" in text


RATES = {"fastreplay": 8e3, "sb3": 1e3}


def test_sb3_loader_and_training() -> None:
    row = Result(sb3.at_scale(50)[0], seconds(sb3=[9e-6], fastreplay=[1e-6]))
    assert "| `add` cheetah, 1 env, with infos | 9.00 | 1.00 | 9.00× |" in report(sb3.QUESTION, row)
    readings: dict[str, list[Reading]] = {
        **seconds(sample=[6e-5, 6e-5]),
        "loader": [{"s": 4e-5, "waited": share} for share in (0.0, 0.5)],
    }
    row = Result(loader._experiments(True)[0], readings)
    assert "| cheetah 256 | 60.0 | 40.0 | 1.50× | 25% |" in report(loader.QUESTION, row)
    parts: Reading = {"add": 1e-3, "sample": 2e-3, "target update": 5e-3}
    ours: Reading = {"s": 16e-3, **parts, "sample": 0.0}
    row = Result(end_to_end._experiments(True)[0], {"sb3": [{**parts, "s": 2e-2}], "fastreplay": [ours]})
    shares = "5.00% → 6.25% | 10.00% → 0.00% | 25.00% → 31.25% | 40.00% → 37.50%"
    assert f"| 50.0 | 62.5 | 1.25× | 1.11× | {shares} |" in report(end_to_end.QUESTION, row)


def on_gpu(net: Net, dtype: str, device: Mapping[str, float], host: Mapping[str, float] = {}, **exact: bool) -> Result:
    readings: dict[str, list[Reading]] = {
        name: [{"device": s, **({"host": host[name]} if name in host else {})}] for name, s in device.items()
    }
    return Result(gpu_soft_update.experiment(net, dtype), readings, exact)


def test_soft_updates_on_a_gpu() -> None:
    device = {"foreach": 6e-6, "foreach-graph": 2e-6, "fastreplay": 3e-6, "fastreplay-graph": 1.6e-6}
    small = on_gpu(NETS[0], "float32", device, {"foreach": 5e-6, "fastreplay": 2e-6}, foreach=True, fastreplay=False)
    large = on_gpu(LARGE[0], "float32", {"fastreplay": 4e-4, "copy": 3.6e-4})
    mixed = on_gpu(LARGE[0], "bfloat16", {"foreach": 9e-4, "fastreplay": 4e-4})
    text = report(gpu_soft_update.QUESTION, small, large, mixed)
    assert "| 2×64 | 6 | 4,481 | 6.00 | 2.00 | 3.00 | 1.60 | – | 2.00× | 1.25× |" in text
    assert "| 2×64 | 5.00 | 2.00 |" in text
    assert "| nets of deep RL, over `_foreach_lerp_` | 1.50× | 2.00× |" in text
    assert "| the same, both captured | 1.20× | 1.25× |" in text
    assert "| 100 M and 1 G, of the copy's bandwidth | 88.0% | 90.0% |" in text
    assert "| MLP of 100 M | – | – | 3,021 | – | 3,356 | 90.0% |" in text
    assert "| MLP of 100 M, bfloat16 | 1,119 | – | 2,517 | – | – | – |" in text
    assert "| 2×64 | equal | close |" in text


def test_minibatches_on_a_gpu() -> None:
    atari = gpu_pipeline.minibatches(Setting(WORKLOADS["atari"], 256, 300, "cpu"))
    learner = gpu_pipeline.learner_steps(Setting(WORKLOADS["cheetah"], 256, 300, "cpu"))
    moved = {
        "sb3": [{"ready": 8e-3, "rate": 7e-3}],
        "sample": [{"ready": 2e-3, "rate": 6e-3}],
        "loader": [{"ready": 1e-3, "rate": 4e-4}],
        "link": [{"rate": 3e-4}],
    }
    cheetah = gpu_pipeline.minibatches(Setting(WORKLOADS["cheetah"], 256, 300, "cpu"))
    text = report(
        gpu_pipeline.QUESTION,
        Result(cheetah, moved),
        Result(atari, moved, absent={"torchrl": "torchrl is not installed"}),
        Result(learner, seconds(ceiling=[1e-4], loader=[1.04e-4], sb3=[2e-4])),
    )
    assert "| atari 256 | 8,000 | – | 2,000 | 1,000 |" in text
    assert "| atari 256 | 2.06 | – | 2.41 | 36.1 | 48.2 |" in text
    assert "| `loader`, cheetah 256: learner steps, of those without any buffer | 95.0% | 96.2% |" in text
    assert "| `sample` until a minibatch is there, cheetah 256, over SB3 | 4.00× | 4.00× |" in text
    assert "| `loader`, atari 256, of the link's page-locked bandwidth | 80.0% | 75.0% |" in text
    assert "| SB3 | 200 | 5,000 | 50.0% |" in text
    assert "- atari 256, TorchRL, pinned, prefetch 2: torchrl is not installed" in text
    assert report(gpu_pipeline.QUESTION, Result(atari, moved))  # what there is before the learner's turn


def test_one_tensor_holds_all_elements() -> None:
    target_net, _ = NETS[0].pair()
    assert torch.equal(detached(flattened(target_net))[0][:192].view(64, 3), detached(target_net)[0])


def test_wrong_updates_are_found() -> None:
    target_net, online = NETS[0].pair()

    def convex() -> None:
        for to, source in zip(detached(target_net), detached(online), strict=True):
            to.mul_(1 - TAU).add_(source, alpha=TAU)

    def writes_online() -> None:
        torch._foreach_lerp_(detached(target_net), detached(online), TAU)
        detached(online)[0][0] += 1

    def updater(*, is_lerp: bool) -> Updater:
        return Updater("wrong", "", _unused, is_lerp=is_lerp)

    check_exact(updater(is_lerp=False), convex, target_net, online)
    with pytest.raises(AssertionError, match="not what"):
        check_exact(updater(is_lerp=True), convex, target_net, online)
    with pytest.raises(AssertionError, match="wrong: Tensor-likes are not close"):
        check(updater(is_lerp=False), lambda: None, target_net, online)
    with pytest.raises(AssertionError, match="online network changed"):
        check(updater(is_lerp=True), writes_online, target_net, online)


def _unused(_target: nn.Module, _online: nn.Module) -> Call:
    raise NotImplementedError
