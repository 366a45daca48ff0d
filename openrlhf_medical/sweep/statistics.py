"""Figures of a run, and what a few seeds say about a variant. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

LAST_STEPS = 5

_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval. One seed has none: ``low`` and ``high`` are None."""

    mean: float
    low: float | None
    high: float | None
    n: int


def t_975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t. Raises ValueError below one degree of freedom.

    A table up to 30; above, the first terms of its expansion about the normal quantile (Abramowitz & Stegun 26.7.5),
    which are right to four decimals there.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom")
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def estimate(values: Sequence[float]) -> Estimate | None:
    """None of no values."""
    if not values:
        return None
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = t_975(n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired_difference(of: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """``of`` minus ``reference`` over the seeds that both have: what a seed does to both is not counted as noise."""
    return estimate([of[seed] - reference[seed] for seed in sorted(of.keys() & reference.keys())])


def final_figures(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> tuple[dict[str, float], str]:
    """A run's figures at its end, by metric, and where they come from.

    Held-out games after training where the run played any (the last row with ``eval/`` keys whose step is not before
    the first one), else the mean over the last ``LAST_STEPS`` training steps. One source for all figures of a run.

    Args:
        rows: of metrics.jsonl, in its order.
        metrics: names as in metrics.jsonl, without ``eval/``.
    """
    held_out = [row for row in rows if row.get("step", -1) >= 0 and any(key.startswith("eval/") for key in row)]
    if held_out:
        last = {key.removeprefix("eval/"): value for key, value in held_out[-1].items() if key.startswith("eval/")}
        return {name: float(last[name]) for name in metrics if _is_number(last.get(name))}, "held-out games"
    by_step = {row["step"]: row for row in rows if row.get("step", -1) >= 0}  # a resumed run may repeat a step
    steps = [by_step[step] for step in sorted(by_step)][-LAST_STEPS:]
    found = {}
    for name in metrics:
        if values := [float(row[name]) for row in steps if _is_number(row.get(name))]:
            found[name] = fmean(values)
    return found, f"mean of the last {len(steps)} steps" if steps else "no metrics"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
