"""How sure a figure is: intervals by a bootstrap over vignettes, and what a sample could show at all.

Games on the same vignette are alike (twins tell of one patient), so vignettes are drawn, never single
games: drawing games would give intervals that are too narrow. Everything here works on additive counts:
a vignette is a row of counts, a figure is a function of the rows' sum. That covers rates, balanced
accuracy and paired differences alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]
Statistic = Callable[[Counts], Counts]
"""From counts (…, M) to figures (…,); NaN where a figure is undefined."""

RESAMPLES = 10_000
_CHUNK = 1_000  # resamples at once: bounds memory at chunk · clusters numbers


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its percentile interval. ``clusters`` were drawn from; in ``undefined`` (a share) of
    the resamples the figure could not be computed, and they are left out of the interval."""

    value: float
    low: float
    high: float
    clusters: int
    undefined: float = 0.0


def bootstrap(
    counts: Mapping[str, Sequence[float]],
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of ``statistic`` over clusters drawn with replacement (Efron & Tibshirani 1993, ch. 13).

    Args:
        counts: cluster (vignette_id) → its counts (M,). The order of clusters does not matter.
        statistic: a function of the counts summed over clusters.
        level: in (0, 1).

    Returns:
        None where the statistic is undefined on the whole sample.

    Raises:
        ValueError: a level outside (0, 1), fewer than one resample, rows of different lengths.
    """
    return bootstrap_all(counts, {"": statistic}, resamples=resamples, level=level, seed=seed)[""]


def bootstrap_all(
    counts: Mapping[str, Sequence[float]],
    statistics: Mapping[str, Statistic],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """``bootstrap`` of several statistics of the same counts, all on the same draws."""
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level is {level} and resamples {resamples}; allowed: 0 < level < 1 and resamples >= 1")
    if not counts:
        return dict.fromkeys(statistics)
    table = np.array([counts[key] for key in sorted(counts)], dtype=float)  # (K, M); ValueError if ragged
    clusters = len(table)
    whole = {name: float(_figures(statistic, table.sum(axis=0))) for name, statistic in statistics.items()}
    rng = np.random.default_rng(seed)
    even = np.full(clusters, 1 / clusters)
    drawn: dict[str, list[Counts]] = {name: [] for name in statistics}
    for start in range(0, resamples, _CHUNK):
        # How often each cluster is drawn, instead of which: the sums are then one matrix product.
        times = rng.multinomial(clusters, even, size=min(_CHUNK, resamples - start))  # (chunk, K)
        totals = times @ table
        for name, statistic in statistics.items():
            drawn[name].append(_figures(statistic, totals))
    return {name: _interval(value, np.concatenate(drawn[name]), clusters, level) for name, value in whole.items()}


def _interval(value: float, figures: Counts, clusters: int, level: float) -> Interval | None:
    if math.isnan(value):
        return None
    defined = figures[~np.isnan(figures)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (value, value)
    return Interval(value, float(low), float(high), clusters, 1 - len(defined) / len(figures))


def paired_difference(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    statistic: Statistic,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of ``statistic(after) - statistic(before)``: a vignette is drawn with both its sides.

    Raises:
        ValueError: the two sides are not of the same clusters.
    """
    if before.keys() != after.keys():
        alone = sorted(before.keys() ^ after.keys())
        raise ValueError(f"{len(alone)} clusters are on one side only, such as {alone[:3]}: pair the games first")
    both = {key: [*before[key], *after[key]] for key in before}

    def difference(totals: Counts) -> Counts:
        half = totals.shape[-1] // 2
        return statistic(totals[..., half:]) - statistic(totals[..., :half])

    return bootstrap(both, difference, resamples=resamples, level=level, seed=seed)


def rate(totals: Counts) -> Counts:
    """Counts (hits, of) → hits / of."""
    return totals[..., 0] / totals[..., 1]


def mean_of_two_rates(totals: Counts) -> Counts:
    """Counts (hits, of, hits, of) → the mean of both rates: balanced accuracy, if hits are right verdicts."""
    return (rate(totals[..., :2]) + rate(totals[..., 2:])) / 2


def detectable_difference(n: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest true difference of two paired proportions that McNemar's test shows with this power.

    Connor (1987, Biometrics 43:207), solved for the difference d: n d² = (z_a √ψ + z_b √(ψ - d²))².
    With half the pairs on either truth and the same discordance ψ on both, a difference of balanced
    accuracy has the same variance, ψ / n, so the number holds for it too.

    Args:
        n: independent pairs. Twins that always agree count once.
        discordance: ψ, the share of pairs on which exactly one of the two sides is right.
        alpha: two-sided.

    Returns:
        None where not even a difference of ψ, the largest possible, could be shown.

    Raises:
        ValueError: n below 1, discordance outside (0, 1], power or alpha outside (0, 1), or a power
            that is not above alpha.
    """
    if n < 1 or not 0 < discordance <= 1 or not 0 < alpha < power < 1:
        raise ValueError(f"n={n}, discordance={discordance}, power={power}, alpha={alpha} are out of range")
    z_a, z_b = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    under_root = n + z_b**2 - z_a**2
    if under_root < 0:
        return None
    found = math.sqrt(discordance) * (math.sqrt(n) * z_a + z_b * math.sqrt(under_root)) / (n + z_b**2)
    return found if found <= discordance else None


def _figures(statistic: Statistic, totals: Counts) -> Counts:
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN on purpose: an undefined figure
        return np.asarray(statistic(totals), dtype=float)
