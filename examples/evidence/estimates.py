# SPDX-License-Identifier: MIT
"""The statistics behind the figures; no torch, no learning."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from environments import Array


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def student_t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t by its expansion in 1 / degrees; 0.2 % off at 4 degrees, less above.

    Abramowitz and Stegun 1964, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))


def mean_interval(values: Sequence[float] | Array, confidence: float = 0.95) -> Interval:
    """Return the mean of independent values, one a seed, and its Student-t interval; needs two values."""
    count = len(values)
    if count < 2:
        raise ValueError(f"values: expected at least 2, got {count}")
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = student_t_quantile((1 + confidence) / 2, count - 1) * deviation / count**0.5
    return Interval(mean, mean - half, mean + half)


def trace_of_covariance(vectors: Array) -> float:
    """Estimate, without bias, the trace of the covariance of which `vectors` (K, P) are independent draws."""
    return float(vectors.astype(np.float64).var(axis=0, ddof=1).sum())


def autocorrelation(series: Array, max_lag: int) -> Array:
    """Estimate the autocorrelation at lags 0 to max_lag, (max_lag + 1,), of `series` (time, replicas, features).

    Pairs lie within one replica; mean and variance are those of each feature over all replicas, so that
    replicas which differ count as correlated in time. Features are averaged.
    """
    deviation = series - series.mean(axis=(0, 1))
    variance = (deviation**2).mean(axis=(0, 1))
    length = len(series)
    covariances = [(deviation[: length - lag] * deviation[lag:]).mean(axis=(0, 1)) for lag in range(max_lag + 1)]
    return np.stack([(covariance / variance).mean() for covariance in covariances])


def hard_lag(every: int) -> float:
    """Return by how many steps a copy made every `every` steps is behind, on average over time."""
    return (every - 1) / 2


def matched_tau(every: int) -> float:
    """Return the tau whose mean age of parameters, (1 - tau) / tau, is `hard_lag(every)`."""
    return 2 / (every + 1)
