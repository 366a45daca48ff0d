"""Who beats whom, and where that goes round in a circle.

One number for each player cannot tell of rock, paper and scissors, and self-play is known to run in such circles
(Balduzzi et al. 2019). An arrow A → B stands only where the difference is significant: its interval, by a bootstrap
over vignettes at ``LEVEL``, lies on one side of even. Two kinds of arrows:

- **sides** A and B that have both an attacker and an assessor. The net result of A over B is the mean of A's points
  as attacker against B's assessor and of A's points as assessor against B's attacker, on the same seeds.
- **players**: an attacker beats an assessor that it takes more than half of the points from, and is beaten by one
  that takes more from it. A circle goes attacker, assessor, attacker, assessor, and back to the first.

``reversals`` are weaker than a circle of players and need no even game: two attackers of which one does better against
one assessor, and the other against another. Wherever one number per player tells all, there are none.

Intervals are of single differences: of twenty arrows between equals, one is expected by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import networkx
import numpy as np
from numpy.typing import NDArray

from openrlhf_medical.evaluation.intervals import Counts, Interval, bootstrap

Floats = NDArray[np.float64]
Pair = tuple[str, str]
"""(attacker, assessor)."""

PairCounts = Mapping[Pair, Mapping[str, tuple[float, float]]]
"""Pair → vignette → (the attacker's points, games)."""

LEVEL = 0.95
LONGEST = 6
"""Members of the longest circle that is looked for: there may be very many longer ones, and each holds little news."""

FEWEST = 6
"""Vignettes of an arrow: fewer, even if all say the same, are no evidence at 5 % by a sign test (2 / 2⁵ = 0.06)."""

MOST = 50
"""Circles that are listed, the shortest first."""


def net_results(sides: Sequence[str], counts: PairCounts, resamples: int) -> dict[tuple[str, str], Interval]:
    """(A, B), A before B → A's net points over B, from 0 to 1 with 0.5 for even, and its interval.

    Vignettes on which only one of the two directions was decided count for that one alone.
    """
    found = {}
    for a, b in itertools.combinations(sides, 2):
        merged = _joined([counts.get((a, b), {}), counts.get((b, a), {})])
        result = bootstrap(merged, _net, resamples=resamples, level=LEVEL)
        if result is not None:
            found[a, b] = result
    return found


def _net(totals: Counts) -> Counts:
    """Counts (A's points as attacker, games, B's points as attacker, games) → A's net points."""
    return (totals[..., 0] / totals[..., 1] + 1 - totals[..., 2] / totals[..., 3]) / 2


def _points_rate(totals: Counts) -> Counts:
    return totals[..., 0] / totals[..., 1]


def _joined(parts: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, list[float]]:
    vignettes = sorted({name for part in parts for name in part})
    return {name: [number for part in parts for number in part.get(name, (0.0, 0.0))] for name in vignettes}


def side_arrows(results: Mapping[tuple[str, str], Interval]) -> list[tuple[str, str]]:
    """(A, B) wherever A beats B."""
    arrows = []
    for (a, b), result in results.items():
        if winner := _side_of(result, 0.5):
            arrows.append((a, b) if winner > 0 else (b, a))
    return arrows


def _side_of(result: Interval | None, even: float) -> int:
    """1 or -1 where the interval is above or below ``even``, 0 where nothing can be said."""
    if result is None or result.clusters < FEWEST:
        return 0
    return int(result.low > even) - int(result.high < even)


def player_arrows(counts: PairCounts, resamples: int) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """((role, name), (role, name)) wherever the first beats the second."""
    arrows = []
    for (attacker, assessor), own in counts.items():
        result = bootstrap(_joined([own]), _points_rate, resamples=resamples, level=LEVEL)
        first, second = ("attacker", attacker), ("assessor", assessor)
        if winner := _side_of(result, 0.5):
            arrows.append((first, second) if winner > 0 else (second, first))
    return arrows


def circles(arrows: Iterable[tuple[Any, Any]]) -> list[list[Any]]:
    """Elementary circles, the shortest first, each from its first member in the order of names."""
    graph = networkx.DiGraph(sorted(arrows))
    found = networkx.simple_cycles(graph, length_bound=LONGEST)
    turned = []
    for circle in itertools.islice(found, 10_000):  # the graph of 20 equal players can have millions
        start = circle.index(min(circle))
        turned.append(circle[start:] + circle[:start])
    return sorted(turned, key=lambda circle: (len(circle), circle))[:MOST]


def reversals(
    attackers: Sequence[str], assessors: Sequence[str], counts: PairCounts, resamples: int
) -> list[dict[str, str]]:
    """Two attackers whose order two assessors see differently, both significantly."""
    found = []
    for a, b in itertools.combinations(attackers, 2):
        better: dict[str, str] = {}
        for assessor in assessors:
            merged = _joined([counts.get((a, assessor), {}), counts.get((b, assessor), {})])
            result = bootstrap(merged, _lead, resamples=resamples, level=LEVEL)
            if winner := _side_of(result, 0.0):
                better[assessor] = a if winner > 0 else b
        for first, second in itertools.combinations(better, 2):
            if better[first] != better[second]:
                found.append({"better": better[first], "against": first, "worse_against": second,
                              "than": better[second]})  # fmt: skip
    return found


def _lead(totals: Counts) -> Counts:
    return totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3]


def cyclic_share(sides: Sequence[str], results: Mapping[tuple[str, str], Interval]) -> float | None:
    """How much of the net results no order of the sides explains: 0 none of it, 1 all.

    Of the antisymmetric matrix of net results, the part that is no difference of two row means, in squares (the
    Hodge decomposition; Jiang et al. 2011, Balduzzi et al. 2019). Chance adds to it: of equals it is near 1 − 2/n.
    None below three sides, where a pair is missing, or where all is even.
    """
    n = len(sides)
    if n < 3 or len(results) < n * (n - 1) // 2:
        return None
    leads: Floats = np.zeros((n, n))
    for (a, b), result in results.items():
        i, j = sides.index(a), sides.index(b)
        leads[i, j] = 2 * result.value - 1
        leads[j, i] = -leads[i, j]
    mean = leads.mean(axis=1)
    left = leads - (mean[:, None] - mean[None, :])
    whole = float((leads**2).sum())
    return float((left**2).sum()) / whole if whole else None
