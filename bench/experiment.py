# SPDX-License-Identifier: MIT
"""What is measured: experiments, of contestants that do the same work, checked and then timed by turns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from absence import Absences
from render import Table
from timing import SECONDS, Call, Reading, Round, take_turns, wall_round


def itself(contestant: Contestant, round_s: float) -> Round:  # noqa: ARG001  as every clock is called
    """Return the contestant's call as the round: it answers with what it measured."""
    return contestant.call


def wall(contestant: Contestant, round_s: float) -> Round:
    """Return a round of many calls under one reading of the clock."""
    return wall_round(contestant.call, round_s=round_s, calls_each=contestant.calls_each)


@dataclass(frozen=True)
class Contestant:
    """One that takes part, ready to be timed.

    Attributes:
        call: What is timed.
        calls_each: How many of the contestant's own calls one `call` makes.
        check: Raises where the results are wrong, before and after the rounds; may say whether they are exact.
        clock: From the contestant and a round's length in seconds to what measures a round.
        close: Ends what runs beside.
    """

    call: Call
    calls_each: int = 1
    check: Callable[[], bool | None] = lambda: None
    clock: Callable[[Contestant, float], Round] = wall
    close: Callable[[], object] = lambda: None


def is_ours(name: str) -> bool:
    return name.startswith("fastreplay")


Quartiles: TypeAlias = Mapping[str, Any]  # of time(ours) / time(yardstick), and whose time the latter is
Contestants: TypeAlias = Mapping[str, Callable[[], Contestant]]


@dataclass(frozen=True)
class Experiment:
    """A piece of work, and who does it: one row of a table.

    Attributes:
        contestants: How each is made, by name and in that order; made anew for every measurement.
        rivals: Those that are left out where they fail, with the reason; the others must not fail.
        unit: Of what is read from a round.
        facts: What else is to be known of the work.
        rounds: How many, where not as many as the question has.
        roofline: Contestants that stand for what the machine can do: the fastest of them is the roofline.
    """

    key: str
    title: str
    contestants: Callable[[], Contestants]
    rivals: Collection[str] = ()
    unit: str = "s a call"
    facts: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    roofline: Collection[str] = ()


@dataclass
class Result:
    """An experiment, measured.

    Attributes:
        readings: One a round, by contestant.
        is_exact: Whether the results were exact, of those whose check says so.
        absent: Why a contestant has no reading.
    """

    experiment: Experiment
    readings: Mapping[str, Sequence[Reading]] = field(default_factory=dict)
    is_exact: Mapping[str, bool] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)

    def series(self, name: str | None, measure: str = SECONDS) -> list[float] | None:
        """Return one number a round, None where it was not measured."""
        readings = self.readings.get(name or "", ())
        return [reading[measure] for reading in readings] if readings and measure in readings[0] else None

    def median(self, name: str | None, measure: str = SECONDS) -> float | None:
        series = self.series(name, measure)
        return None if series is None else median(series)

    def speedup(self, against: str | None, ours: str = "fastreplay", measure: str = SECONDS) -> float | None:
        """Return time(against) / time(ours), the median over rounds, None where either was not measured.

        Taken round by round, since both slow down together when the machine does.
        """
        theirs, mine = self.series(against, measure), self.series(ours, measure)
        return None if theirs is None or mine is None else median(a / b for a, b in zip(theirs, mine, strict=True))

    def slowdown(self, plain: Iterable[str]) -> float | None:
        """Return time(fastreplay) / time(the first of `plain` that was measured), as `speedup` does."""
        name = next((name for name in plain if name in self.readings), None)
        return None if name is None else self.speedup("fastreplay", ours=name)

    def fastest_rival(self) -> str | None:
        return self.fastest(self.experiment.rivals)

    def fastest(self, names: Iterable[str]) -> str | None:
        """Return whose median is the least of those that were measured."""
        medians = {name: self.median(name) for name in names}
        found = {name: value for name, value in medians.items() if value is not None}
        return min(found, key=found.__getitem__, default=None)

    def yardstick(self) -> str | None:
        """Return what runs of other days are compared by: the roofline, or else the fastest rival."""
        return self.fastest(self.experiment.roofline) or self.fastest_rival()

    def over_yardstick(self, name: str, yardstick: str | None = None) -> Quartiles | None:
        """Return how many times as long as the yardstick one of ours took, round by round.

        Args:
            name: Of ours.
            yardstick: Another than the result's own.

        Returns:
            Three quartiles and the yardstick's name, None where either was not measured.
        """
        yardstick = yardstick or self.yardstick()
        mine, theirs = self.series(name), self.series(yardstick)
        if mine is None or theirs is None:
            return None
        q1, middle, q3 = np.quantile(np.divide(mine, theirs), (0.25, 0.5, 0.75)).tolist()
        return {"yardstick": yardstick, "q1": q1, "median": middle, "q3": q3}

    def ours_over_yardstick(self) -> dict[str, Quartiles]:
        """Return the same for each of ours that was measured."""
        found = {name: self.over_yardstick(name) for name in self.readings if is_ours(name)}
        return {name: quartiles for name, quartiles in found.items() if quartiles is not None}

    def of_roofline(self, ours: str = "fastreplay") -> float | None:
        """Return time(roofline) / time(ours), round by round."""
        return self.speedup(self.fastest(self.experiment.roofline), ours)


@dataclass(frozen=True)
class Question:
    """Experiments that together answer something, and the tables that say it: one report.

    Attributes:
        experiments: From whether it is to be quick, small and short, to what is measured.
        tables: From the results so far to the report's tables.
        labels: What contestants are called in print.
        distributions: Whose versions the report names.
        rounds: How many, and the length of one in seconds; likewise `quick_rounds`.
        method: What else is to be known of how it was measured.
        num_threads: How many torch has, and fastreplay at most.
        missing: Says what is needed and missing, "" where nothing is.
        describe: What else the report's header says of the machine.
        figures: From the results and the header to matplotlib's figures, by the end of their files' names.
    """

    title: str
    experiments: Callable[[bool], Sequence[Experiment]]
    tables: Callable[[Sequence[Result]], Sequence[Table]]
    labels: Mapping[str, str]
    distributions: Sequence[str]
    rounds: tuple[int, float]
    quick_rounds: tuple[int, float]
    method: str = "one thread"
    num_threads: Callable[[], int] = lambda: 1
    missing: Callable[[], str] = lambda: ""
    describe: Callable[[], Mapping[str, str]] = dict
    figures: Callable[[Sequence[Result], Mapping[str, str]], Mapping[str, Any]] = lambda _results, _header: {}


def measure(experiment: Experiment, *, rounds: int, round_s: float) -> Result:
    """Make and check every contestant, time them by turns, and check them again."""
    absent = Absences(experiment.rivals)
    ready: dict[str, Contestant] = {}
    is_exact: dict[str, bool] = {}

    def check(name: str) -> None:
        said = ready[name].check()
        if said is not None:
            is_exact[name] = said and is_exact.get(name, True)

    try:
        turns: dict[str, Round] = {}
        for name, make in experiment.contestants().items():
            with absent.excused(name):
                ready[name] = make()
                check(name)
        for name, contestant in ready.items():
            if name not in absent:
                with absent.excused(name):
                    turns[name] = contestant.clock(contestant, round_s)
        readings = take_turns(turns, experiment.rounds or rounds, absent)
        for name in readings:
            with absent.excused(name):
                check(name)
    finally:
        for contestant in ready.values():
            contestant.close()
    whole = {name: taken for name, taken in readings.items() if name not in absent}
    return Result(experiment, whole, is_exact, absent)
