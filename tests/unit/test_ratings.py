"""Bradley–Terry ratings and circles: against scikit-learn, by hand, and what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from openrlhf_medical.evaluation import cycles, ratings
from openrlhf_medical.evaluation.intervals import Interval


def test_fit_is_penalised_logistic_regression():
    rng = np.random.default_rng(0)
    games = rng.integers(0, 30, (3, 4)).astype(float)
    points = np.floor(games * rng.random((3, 4)))
    design = ratings._design(3, 4)
    rows, outcomes, weights = (
        np.concatenate([design, design]),
        np.repeat([1, 0], 12),
        np.concatenate([points.ravel(), (games - points).ravel()]),
    )
    model = LogisticRegression(C=ratings.PRIOR_SD_NATS**2, fit_intercept=False, tol=1e-12, max_iter=10_000)
    theirs = model.fit(rows, outcomes, sample_weight=weights).coef_[0]
    found = ratings.fit(points, games)
    assert found[:3] == pytest.approx(theirs[1:4] + theirs[0], abs=1e-5)
    assert found[3:] == pytest.approx(theirs[4:], abs=1e-5)


def test_many_games_say_more_than_the_prior():
    """400 Elo are ten to one: an attacker that takes 10 of 11 points."""
    elo = ratings.to_elo(ratings.fit(np.array([[100_000.0]]), np.array([[110_000.0]])), 1)
    assert elo[0] - elo[1] == pytest.approx(400, abs=1) and elo.mean() == pytest.approx(1500)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_table_has_a_finite_fit_at_its_maximum(attackers, assessors, seed):
    """Nobody played, everybody undefeated, groups that never met: all included."""
    rng = np.random.default_rng(seed)
    games = rng.integers(0, 3, (attackers, assessors)) * rng.choice([0, 1, 500], (attackers, assessors)) * 1.0
    points = games * rng.choice([0, 0.5, 1], (attackers, assessors))
    found = ratings.fit(points, games)
    assert np.isfinite(found).all() and np.abs(found).max() < 40
    assert found == pytest.approx(ratings.fit(points[None].repeat(2, 0), games[None].repeat(2, 0))[1])


def interval(value, width=0.05, clusters=50):
    return Interval(value, value - width, value + width, clusters)


def test_arrows_only_where_sure():
    results = {("a", "b"): interval(0.7), ("a", "c"): interval(0.52), ("b", "c"): interval(0.2)}
    assert cycles.side_arrows(results) == [("a", "b"), ("c", "b")]
    few = {("a", "b"): interval(1.0, 0.0, clusters=5)}
    assert cycles.side_arrows(few) == [], "five vignettes are no evidence, even if all say the same"


def test_circles_start_with_the_first_name_and_come_once():
    arrows = [("c", "a"), ("a", "b"), ("b", "c"), ("b", "d"), ("d", "a")]
    assert cycles.circles(arrows) == [["a", "b", "c"], ["a", "b", "d"]]
    assert cycles.circles([("a", "b"), ("b", "c"), ("a", "c")]) == []


def test_many_circles_are_cut_short():
    names = [f"p{i:02}" for i in range(14)]
    arrows = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] + names[: max(0, i - 6)] if a != b]
    assert len(cycles.circles(arrows)) <= cycles.MOST


@pytest.mark.parametrize("results, share", [
    ({("a", "b"): interval(0.6), ("b", "c"): interval(0.6), ("a", "c"): interval(0.7)}, 0.0),  # an order explains all
    ({("a", "b"): interval(0.8), ("b", "c"): interval(0.8), ("a", "c"): interval(0.2)}, 1.0),  # nothing
    ({("a", "b"): interval(0.8), ("b", "c"): interval(0.8)}, None),
    ({("a", "b"): interval(0.5), ("b", "c"): interval(0.5), ("a", "c"): interval(0.5)}, None),
])  # fmt: skip
def test_cyclic_share_by_hand(results, share):
    assert cycles.cyclic_share(["a", "b", "c"], results) == (None if share is None else pytest.approx(share))


def test_the_net_result_is_of_both_directions():
    """A takes 8 of 10 as attacker, and gives 4 of 10 away as assessor: (0.8 + 0.6) / 2."""
    counts = {("a", "b"): {f"v{i}": (float(i < 8), 1.0) for i in range(10)},
              ("b", "a"): {f"v{i}": (float(i < 4), 1.0) for i in range(10)}}  # fmt: skip
    [(pair, result)] = cycles.net_results(["a", "b"], counts, 500).items()
    assert pair == ("a", "b") and result.value == pytest.approx(0.7) and result.low < 0.7 < result.high
