"""Ratings of two populations that play each other: attackers and assessors, on one Elo scale.

Bradley & Terry (1952) for a game with two sides: the attacker's expected points against an assessor are
σ(level + attacker − assessor). ``level`` is how far the game itself favours attackers; it is counted to the attackers,
so that two ratings 400 apart say 10 to 1, whatever the populations. Only differences mean something: the mean of the
two populations' means is set to 1500.

A player that won everything has no finite maximum-likelihood rating, nor have groups that never lost to each other.
So every parameter has a Gaussian prior around 0 with ``PRIOR_SD_NATS``: a maximum a posteriori estimate, finite and
unique whoever played whom. Intervals come from a bootstrap over vignettes in which the prior's centre is drawn anew,
too (randomised MAP; Bardsley et al. 2014): a resample of an undefeated player is as undefeated, and the bootstrap alone
would call sure what nobody knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ELO_PER_NAT = 400 / math.log(10)
CENTRE = 1500.0

PRIOR_SD_NATS = 2.0
"""347 Elo: wide against what games can tell (100 decided games know a rating to about 35 Elo), and narrow enough that
nobody is rated thousands for a dozen games."""

RESAMPLES = 1_000
_CHUNK = 200
_STEPS, _LONGEST_STEP, _CONVERGED = 100, 2.0, 1e-10


@dataclass(frozen=True, slots=True)
class Rating:
    """A player's Elo with its percentile interval. ``swept``: it won, or lost, every point, so that the prior alone
    keeps the rating finite on that side."""

    player: str
    role: str
    elo: float
    low: float
    high: float
    games: int
    points: float
    swept: bool


def fit(points: Floats, games: Floats, centre: Floats | None = None) -> Floats:
    """Attackers' and assessors' strengths (…, A + S) in nats, from the attackers' points and games (…, A, S).

    ``centre`` (…, 1 + A + S): of the prior; 0 by default. Newton's method on a strictly concave function, with a
    bounded step.
    """
    attackers, assessors = points.shape[-2:]
    lead = points.shape[:-2]
    design = _design(attackers, assessors)  # (C, P)
    won, played = points.reshape(*lead, -1), games.reshape(*lead, -1)
    mean = np.zeros((*lead, design.shape[1])) if centre is None else centre
    found = mean.copy()
    precision = np.eye(design.shape[1]) / PRIOR_SD_NATS**2
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-(found @ design.T)))
        gradient = (won - played * expected) @ design - (found - mean) / PRIOR_SD_NATS**2
        weights = played * expected * (1 - expected)
        hessian = np.einsum("...c,cp,cq->...pq", weights, design, design) + precision
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=-1, keepdims=True)
        found = found + step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _CONVERGED))
        if longest.max() < _CONVERGED:
            break
    strengths = found[..., 1:].copy()
    strengths[..., :attackers] += found[..., :1]
    return strengths


def _design(attackers: int, assessors: int) -> Floats:
    """(A · S, 1 + A + S): a row for each pair, the level first."""
    rows = np.zeros((attackers, assessors, 1 + attackers + assessors))
    rows[:, :, 0] = 1
    for a in range(attackers):
        rows[a, :, 1 + a] = 1
    for s in range(assessors):
        rows[:, s, 1 + attackers + s] = -1
    return rows.reshape(attackers * assessors, -1)


def to_elo(strengths: Floats, attackers: int) -> Floats:
    """Nats to Elo, with the mean of the two populations' means at ``CENTRE``."""
    middle = (strengths[..., :attackers].mean(axis=-1) + strengths[..., attackers:].mean(axis=-1)) / 2
    return CENTRE + ELO_PER_NAT * (strengths - middle[..., None])


def ratings(
    attackers: Sequence[str],
    assessors: Sequence[str],
    counts: Mapping[str, Floats],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> list[Rating]:
    """Everyone who played, attackers first, each population from the strongest down.

    Args:
        counts: vignette → (A, S, 2): the attackers' points, and games, of each pair.
    """
    if not counts:
        return []
    table = np.stack([counts[key] for key in sorted(counts)]).astype(float)  # (K, A, S, 2)
    total = table.sum(axis=0)
    n = len(attackers)
    elo = to_elo(fit(total[..., 0], total[..., 1]), n)
    drawn = np.concatenate(list(_resampled(table, n, resamples, seed)))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    own = [*(("attacker", name, total[i]) for i, name in enumerate(attackers)),
           *(("assessor", name, total[:, i]) for i, name in enumerate(assessors))]  # fmt: skip
    found = []
    for i, (role, name, cells) in enumerate(own):
        points, games = cells.sum(axis=0)
        if role == "assessor":
            points = games - points
        if games:
            swept = bool(points in (0, games))
            found.append(Rating(name, role, float(elo[i]), float(low[i]), float(high[i]), int(games), float(points),
                                swept))  # fmt: skip
    return sorted(found, key=lambda rating: (rating.role != "attacker", -rating.elo))


def _resampled(table: Floats, attackers: int, resamples: int, seed: int):
    """Elo (chunk, A + S) of vignettes drawn with replacement, under priors whose centres are drawn."""
    rng = np.random.default_rng(seed)
    clusters = len(table)
    parameters = 1 + table.shape[1] + table.shape[2]
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)
        sums = np.einsum("rk,kasc->rasc", times, table)
        centre = rng.normal(0, PRIOR_SD_NATS, (size, parameters))
        yield to_elo(fit(sums[..., 0], sums[..., 1], centre), attackers)
