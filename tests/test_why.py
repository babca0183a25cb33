# SPDX-License-Identifier: MIT
"""The evidence of examples/why.py: its estimators against known answers, its task, its figures, its page."""

from __future__ import annotations

import copy
import csv
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from shares import by_turns
from support import run_as_script

import fastreplay as fr

ROOT = Path(__file__).parents[1]
WHY = ROOT / "examples" / "why.py"
DOCS = ROOT / "docs" / "why"
sys.path.append(str(WHY.parent))

import figures  # noqa: E402
import networks  # noqa: E402
import why  # noqa: E402
from evidence import claims, cliffwalk, correlation, cost, estimates, learner, minibatch, priorities, targets  # noqa: E402
from evidence.effort import QUICK, Workers  # noqa: E402
from evidence.learner import Learner, Settings  # noqa: E402
from evidence.pendulum import EPISODE_STEPS, TORQUES, Pendulums  # noqa: E402

if TYPE_CHECKING:
    from environments import Array

FIGURES = tuple(why.FIGURES)
DATA = {  # columns that name a measurement, and the rows of a quick run
    "minibatch-variance": (("seed", "batch_size"), 2 * 7),
    "minibatch-cost": (("repeat", "batch_size"), 2 * 7),
    "minibatch-return": (("seed", "batch_size"), 2 * 7),
    "correlation-lags": (("seed", "draw", "lag"), 2 * 2 * 32),
    "correlation-sizes": (("seed", "draw", "batch_size"), 2 * 2 * 4),
    "correlation-return": (("draw", "seed", "step"), 2 * 2 * 2),
    "targets-change": (("kind", "seed", "step"), 2 * 200),  # of one seed
    "targets-way": (("kind", "seed"), 2 * 2),
    "targets-return": (("kind", "every", "tau", "seed", "step"), 3 * 2 * 2 + 8 * 2),
    "cost": (("workload", "kind", "repeat", "part"), 3 * 2 * 2 * 3),
    "priorities-walk": (("draw", "length", "seed"), 4 * 2 * 2),
    "priorities-return": (("draw", "seed", "step"), 2 * 2 * 2),
}


@pytest.fixture(scope="module")
def young() -> Learner:
    """Give a learner that has just begun to learn, within its second episode; tests leave it as it is."""
    return learner.trained(Settings(seed=3), EPISODE_STEPS + 10)


def test_trace_of_covariance_of_a_known_distribution() -> None:
    rng = np.random.default_rng(0)
    mixing = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 3.0, 0.5]])
    known = float(np.trace(mixing @ mixing.T))
    draws = rng.standard_normal((40_000, 3)) @ mixing.T + 100.0
    assert estimates.trace_of_covariance(draws) == pytest.approx(known, rel=0.03)
    pairs = rng.standard_normal((20_000, 2, 3)) @ mixing.T
    assert np.mean([estimates.trace_of_covariance(pair) for pair in pairs]) == pytest.approx(known, rel=0.03)


def test_autocorrelation_of_an_autoregressive_process() -> None:
    rng = np.random.default_rng(0)
    coefficients = np.array([0.9, 0.5])
    series = np.zeros((4_000, 40, 2))
    series[0] = rng.standard_normal((40, 2)) / np.sqrt(1 - coefficients**2)
    for step in range(1, len(series)):
        series[step] = coefficients * series[step - 1] + rng.standard_normal((40, 2))
    for feature, coefficient in enumerate(coefficients):
        found = estimates.autocorrelation(50 + 7 * series[:, :, [feature]], 10)
        np.testing.assert_allclose(found, coefficient ** np.arange(11), atol=0.02)
    both = estimates.autocorrelation(series * [1, 1000], 10)
    np.testing.assert_allclose(both, (coefficients ** np.arange(11)[:, None]).mean(axis=1), atol=0.02)


def test_autocorrelation_counts_replicas_that_differ() -> None:
    constant = np.broadcast_to(np.array([-1.0, 1.0])[:, None], (50, 2, 1))
    np.testing.assert_allclose(estimates.autocorrelation(constant, 5), 1)


def test_student_t_quantiles() -> None:
    for degrees in range(1, 60):
        exact = stats.t.ppf(0.975, degrees)
        assert estimates.student_t_quantile(0.975, degrees) == pytest.approx(exact, rel=0.003 if degrees > 2 else 0.2)
    assert estimates.student_t_quantile(0.975, 9) == pytest.approx(2.262157, abs=1e-4)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    samples = 5 + 3 * np.random.default_rng(0).standard_normal((4_000, 10))
    for confidence in (0.95, 0.5):
        found = [estimates.mean_interval(sample, confidence) for sample in samples]
        covered = np.mean([low < 5 < high for _, low, high in found])
        assert covered == pytest.approx(confidence, abs=0.015)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="values: expected at least 2, got 1"):
        estimates.mean_interval([1.0])


def lag_behind_a_ramp(tau: float, every: int, steps: int) -> float:
    """Move a target after a parameter that grows by one a step; return how far behind it is in the second half."""
    online, target = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    update = fr.SoftUpdate([target], [online], tau, every=every)
    behind = []
    for _ in range(steps):
        online += 1
        update.step()
        behind.append((online - target).item())
    return float(np.mean(behind[steps // 2 :]))


@pytest.mark.parametrize("every", [1, 10, 100])
def test_lag_of_hard_and_soft_updates(every: int) -> None:
    tau = estimates.matched_tau(every)
    assert estimates.hard_lag(every) == pytest.approx(lag_behind_a_ramp(1.0, every, 4_000))
    assert estimates.hard_lag(every) == pytest.approx(lag_behind_a_ramp(tau, 1, 4_000))


def test_pendulums_are_those_of_gymnasium() -> None:
    ours, rng = Pendulums(3, seed=0), np.random.default_rng(1)
    theirs: list[Any] = [gym.make("Pendulum-v1").unwrapped for _ in range(3)]
    for index, env in enumerate(theirs):
        env.reset(seed=0)
        env.state = np.array([ours.angle[index], ours.speed[index]])
    for step in range(1, EPISODE_STEPS + 1):
        action = rng.integers(0, len(TORQUES), 3)
        observation, reward, time_is_up = ours.step(action)
        expected = [env.step([TORQUES[each]])[:2] for env, each in zip(theirs, action, strict=True)]
        np.testing.assert_allclose(observation, [each[0] for each in expected], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, [each[1] for each in expected], rtol=1e-5)
        assert time_is_up == (step == EPISODE_STEPS)
    assert ours.reset().shape == (3, 3)
    assert ours.steps == 0
    assert gym.spec("Pendulum-v1").max_episode_steps == EPISODE_STEPS


def test_what_a_learner_stores(young: Learner) -> None:
    stored = young.buffer[:]
    assert len(stored) == young.steps * learner.NUM_ENVS
    here, there = stored.observation[learner.NUM_ENVS :], stored.next_observation[: -learner.NUM_ENVS]
    last = (EPISODE_STEPS - 1) * learner.NUM_ENVS  # after the time limit a new episode begins
    assert torch.equal(here[:last], there[:last])
    assert torch.equal(here[last + learner.NUM_ENVS :], there[last + learner.NUM_ENVS :])
    assert not torch.equal(here[last : last + learner.NUM_ENVS], there[last : last + learner.NUM_ENVS])
    assert set(stored.action.tolist()) == set(range(len(TORQUES)))
    assert -1.7 < stored.reward.min() < stored.reward.max() < 0  # a tenth of the pendulum's -16.3 to 0


def test_draws(young: Learner) -> None:
    recent = learner.most_recent(young.buffer, 64)
    assert recent.ticket.tolist() == list(range(len(young.buffer) - 64, len(young.buffer)))
    drawn = learner.uniform(copy.deepcopy(young.buffer), 4_096).ticket
    assert stats.kstest(drawn.numpy() / len(young.buffer), "uniform").pvalue > 1e-3


def test_the_loss_is_a_mean_over_the_minibatch(young: Learner) -> None:
    batch = young.buffer[:32]
    once = learner.mean_loss(young.online, young.target, *batch)
    twice = learner.mean_loss(young.online, young.target, *(torch.cat([field, field]) for field in batch))
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)


def test_td_targets_bootstrap_from_the_target_network(young: Learner) -> None:
    batch = young.buffer[:32]
    found = learner.td_targets(young.target, batch.reward, batch.next_observation)
    for index in range(32):
        value = max(young.target(batch.next_observation[index]).tolist())
        assert found[index].item() == pytest.approx(batch.reward[index].item() + learner.GAMMA * value, rel=1e-4)


def test_equal_seeds_learn_equally_and_other_seeds_do_not() -> None:
    first, again, other = (learner.learning_curve((Settings(seed), 90, 2)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert [row["step"] for row in first] == [45, 90]


def test_the_learner_learns() -> None:
    rows = learner.learning_curve((Settings(seed=0, tau=estimates.matched_tau(32)), 2_400, 2))
    assert rows[-1]["return"] > -250  # a policy that does nothing earns about -1,200


def test_population_gradient_is_that_of_single_transitions(young: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch, "CHUNK", 32)  # so that the last one is not full
    rows = range(0, len(young.buffer), 41)
    each = np.stack([learner.gradient(young, young.buffer[[row]]) for row in rows]).astype(np.float64)
    signal, variance = minibatch.population_gradient(young, young.buffer[list(rows)])
    assert signal == pytest.approx((each.mean(axis=0) ** 2).sum(), rel=1e-4)
    assert variance == pytest.approx(each.var(axis=0).sum(), rel=1e-4)


def test_gradient_variance_follows_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch, "SIZES", (1, 16, 256))
    rows = minibatch.gradient_variance((3, replace(QUICK, gradients=300)))
    for row in rows:
        assert row["variance_over_law"] == pytest.approx(1, abs=0.25)
    assert rows[0]["law_over_signal"] == pytest.approx(256 * rows[2]["law_over_signal"])


def test_episodes_are_in_the_order_of_time(young: Learner) -> None:
    series = correlation.episodes(young)
    assert series.shape == (EPISODE_STEPS, learner.NUM_ENVS, 3)
    stored = young.buffer[:]
    for step, env in ((0, 0), (7, 3), (150, 15)):
        followed = stored.next_observation[step * learner.NUM_ENVS + env].numpy()
        np.testing.assert_array_equal(series[step + 1, env], followed)


def test_consecutive_transitions_are_worth_less_than_uniform_ones(young: Learner) -> None:
    rows = correlation.effective_sizes(young, 200)
    consecutive, uniform = (figures.where(rows, draw=draw, batch_size=64)[0] for draw in ("consecutive", "uniform"))
    assert uniform["effective_size"] == pytest.approx(64, rel=0.3)
    assert consecutive["effective_size"] < 40
    assert consecutive["variance_over_law"] == pytest.approx(64 / consecutive["effective_size"])


def test_hard_targets_step_at_each_period_and_soft_ones_always() -> None:
    hard, soft = (targets.target_steps((targets.COMPARED[kind], 0, QUICK)) for kind in ("hard", "soft"))
    assert [row["step"] for row in hard if row["change"] > 0] == [targets.MATCHED, 2 * targets.MATCHED]
    assert all(row["change"] > 0 for row in soft)
    assert max(row["change"] for row in soft) < max(row["change"] for row in hard)


def test_variants_have_equal_lag() -> None:
    for hard, soft in zip(targets.VARIANTS[:5], targets.VARIANTS[5:10], strict=True):
        one, other = hard.settings(0), soft.settings(0)
        assert (one.tau, other.every) == (1.0, 1)
        assert other.tau == estimates.matched_tau(one.every)


@pytest.mark.parametrize("length", [2, 5])
def test_the_cliffwalk_stores_what_all_sequences_of_actions_do(length: int) -> None:
    walked: list[tuple[int, int, float]] = []
    for actions in itertools.product((0, 1), repeat=length):
        for state, action in enumerate(actions):
            is_end = action == 0 or state == length - 1
            follower = cliffwalk.NOTHING_FOLLOWS if is_end else 2 * (state + 1)
            walked.append((2 * state + action, follower, float(action == 1 and state == length - 1)))
            if is_end:
                break
    stored = cliffwalk.transitions(length)
    assert sorted(zip(*stored.values(), strict=True)) == sorted(walked)
    assert len(walked) == 2 ** (length + 1) - 2
    assert sum(stored["reward"]) == 1


def test_the_cliffwalks_values_are_what_its_updates_come_to() -> None:
    length, values = 4, [0.0] * 8
    everything = SimpleNamespace(**cliffwalk.transitions(length), weight=np.ones(2 ** (length + 1) - 2))
    for _ in range(60):
        errors = cliffwalk.learn(values, everything, cliffwalk.discount(length))
    np.testing.assert_allclose(values, cliffwalk.true_values(length), atol=1e-4)
    np.testing.assert_allclose(errors, 0, atol=1e-4)
    before = values.copy()
    half = SimpleNamespace(cell=np.array([7]), follower=np.array([-1]), reward=np.array([3.0]), weight=np.array([0.5]))
    assert cliffwalk.learn(values, half, 0.75) == [pytest.approx(3 - before[7])]
    assert values[7] == pytest.approx(before[7] + 0.25 * 0.5 * (3 - before[7]))


def test_priorities_need_fewer_updates_on_the_cliffwalk_and_full_weights_take_that_back() -> None:
    needed = {
        variant.name: np.mean([cliffwalk.updates_to_learn((8, variant, seed))[0]["updates"] for seed in range(3)])
        for variant in cliffwalk.VARIANTS
    }
    assert needed["prioritized"] < needed["uniform"] / 3
    assert needed["prioritized"] < needed["half weighted"] < needed["weighted"]
    assert needed["weighted"] > needed["uniform"]


def test_prioritized_losses_are_weighted_and_their_errors_come_back() -> None:
    young = learner.trained(Settings(seed=3, priorities=priorities.DRAWS["priority"]), 80)
    batch, online = young.buffer.sample(64), young.online
    assert batch.weight.min() < 0.99
    errors = online(batch.observation).gather(1, batch.action[:, None]).squeeze(1)
    errors = errors - learner.td_targets(young.target, batch.reward, batch.next_observation)
    loss = young.weighted_loss(batch)
    assert loss.item() == pytest.approx((batch.weight * errors**2).mean().item(), rel=1e-5)
    before = young.buffer.max_priority
    young.buffer.max_priority = 0.0
    young.weighted_loss(batch)
    assert before >= young.buffer.max_priority == pytest.approx(errors.abs().max().item() + 1e-6, rel=1e-5)


def test_the_usual_ways_do_the_same_work() -> None:
    torch.manual_seed(0)
    online, target = networks.mlp(4, 8, 6), networks.mlp(4, 8, 6)
    ours = copy.deepcopy(target)
    cost.per_tensor_loop(target, online)
    fr.soft_update_(ours, online, cost.TAU)
    for usual, native in zip(target.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(usual, native)
    columns: dict[str, Array] = {"reward": np.arange(50.0), "observation": np.arange(100.0).reshape(50, 2)}
    reward, observation = cost.NumpyRing(columns, seed=0).sample(4_000)
    assert torch.equal(observation[:, 0], 2 * reward)
    assert set(reward.tolist()) == set(range(50))


def test_table_and_csv(tmp_path: Path) -> None:
    claim = claims.Claim("so much", estimates.Interval(-1234.5, -2000.0, 0.01234), " %", "3 seeds")
    assert claims.table([claim]).splitlines()[-1] == "| so much | -1,234 % | -2,000 to 0.0123 | 3 seeds |"
    figures.write_csv(tmp_path / "a.csv", [{"x": 1, "y": 1 / 3}, {"x": 2, "y": 0.5}])
    assert (tmp_path / "a.csv").read_text() == "x,y\n1,0.333333\n2,0.5\n"


@by_turns(0, 2)
def test_quick_run_writes_every_figure_and_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Few steps of each timing, and small buffers: most of what a quick run costs, and none of its kinds.
    short = [replace(workload, capacity=128, steps=2) for workload in cost.WORKLOADS]
    monkeypatch.setattr(cost, "WORKLOADS", short)
    monkeypatch.setattr(minibatch, "MIN_TIMED_S", 0.002)
    workers = Workers(processes=1)  # each imports torch
    monkeypatch.setattr(why, "Workers", lambda: workers)
    monkeypatch.setattr(sys, "argv", [str(WHY), "--quick", "--out", str(tmp_path)])
    with workers.pool:
        why.main()
    printed = capsys.readouterr().out
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.md").read_text() in printed
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(DATA)
    for name, (keys, count) in DATA.items():
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count, name
        assert len({tuple(row[key] for key in keys) for row in rows}) == count, name
        values = [
            float(value) for row in rows for value in row.values() if re.fullmatch(r"-?[\d.]+(e.*)?|nan|inf", value)
        ]
        assert np.isfinite(values).all(), name


def test_an_unknown_figure_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_as_script(WHY, "--out", str(tmp_path / "none"), "costs") == 2
    assert (
        "figure: expected one of minibatch, correlation, targets, cost, priorities, got 'costs'"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "none").exists()


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "why.md").read_text()
    for name in FIGURES:
        assert (DOCS / f"{name}.md").read_text() in page, f"docs/why.md: the table of {name} is not that of docs/why"
        assert f"(why/{name}.png)" in page
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    assert {path.stem for path in DOCS.glob("*.csv")} == set(DATA)
