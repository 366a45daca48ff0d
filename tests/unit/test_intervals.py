"""Intervals and scores: numbers derived by hand, coverage by simulation, properties."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.evaluation import scores
from openrlhf_medical.evaluation.intervals import (
    bootstrap,
    detectable_difference,
    mean_of_two_rates,
    paired_difference,
    rate,
)
from openrlhf_medical.game.players import Role

# --- By hand ---------------------------------------------------------------------------------------


def test_two_clusters_by_hand():
    """Two vignettes with rates 0 and 1 and one game each: resamples are 0, ½ or 1 with ¼, ½, ¼."""
    found = bootstrap({"a": (0, 1), "b": (1, 1)}, rate, level=0.4, resamples=4_000)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    found = bootstrap({"a": (0, 1), "b": (1, 1)}, rate, level=0.6, resamples=4_000)
    assert (found.low, found.high, found.clusters) == (0.0, 1.0, 2)


def test_large_clusters_weigh_more():
    assert bootstrap({"a": (0, 1), "b": (9, 9)}, rate).value == 0.9


def test_balanced_accuracy_by_hand():
    counts = {"a": (1, 1, 0, 1), "b": (1, 2, 1, 1)}  # Harmful: 2 of 3 right, Safe: 1 of 2
    assert bootstrap(counts, mean_of_two_rates).value == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_undefined_figures_are_no_numbers():
    assert bootstrap({}, rate) is None
    assert bootstrap({"a": (0, 0)}, rate) is None
    # Drawing "b" alone (one resample in four) leaves nothing to count.
    found = bootstrap({"a": (1, 1), "b": (0, 0)}, rate, resamples=4_000)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.undefined == pytest.approx(0.25, abs=0.03)


def test_paired_difference_by_hand():
    before, after = {"a": (0, 1), "b": (1, 1)}, {"a": (1, 1), "b": (1, 1)}
    found = paired_difference(before, after, rate)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_what_both_sides_share_cancels():
    """Vignettes differ widely, but each by the same step from before to after: no width is left."""
    before = {str(k): (k % 5, 10) for k in range(20)}
    after = {name: (hits + 3, of) for name, (hits, of) in before.items()}
    found = paired_difference(before, after, rate)
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.3))
    alone = bootstrap(after, rate)
    assert alone.high - alone.low > 0.08


def test_sides_of_different_clusters_are_refused():
    with pytest.raises(ValueError, match="one side only"):
        paired_difference({"a": (1, 1)}, {"b": (1, 1)}, rate)


@pytest.mark.parametrize("arguments", [{"level": 0.0}, {"level": 1.0}, {"resamples": 0}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="level"):
        bootstrap({"a": (1, 1)}, rate, **arguments)


def test_chunks_make_no_difference_to_how_many_are_drawn():
    calls = []
    bootstrap({"a": (0, 1), "b": (1, 1)}, lambda t: calls.append(t.shape) or rate(t), resamples=2_500)
    assert sum(shape[0] for shape in calls[1:]) == 2_500  # the first call is the whole sample's


# --- Simulation ------------------------------------------------------------------------------------


def covered(statistic_of, draw, truth, trials=250):
    """The share of trials whose interval holds the truth."""
    hits = 0
    for trial in range(trials):
        found = statistic_of(draw(np.random.default_rng(trial)))
        hits += found.low <= truth <= found.high
    return hits / trials


def clustered(rng, clusters=80, size=4, mean=0.7):
    """Games of a vignette share a difficulty, so single games are far from independent."""
    easy = rng.beta(mean, 1 - mean, clusters)
    return {str(k): (rng.binomial(size, p), size) for k, p in enumerate(easy)}


def test_coverage_over_clusters():
    share = covered(lambda counts: bootstrap(counts, rate, resamples=500), clustered, 0.7)
    assert 0.90 <= share <= 0.985


def test_drawing_single_games_would_be_too_sure():
    def alone(counts):
        games = {f"{k}/{i}": (float(i < hits), 1) for k, (hits, of) in counts.items() for i in range(of)}
        return bootstrap(games, rate, resamples=500)

    assert covered(alone, clustered, 0.7, trials=80) < 0.85


def test_coverage_of_balanced_accuracy():
    def draw(rng):
        return {str(k): (rng.binomial(1, 0.8), 1, rng.binomial(1, 0.5), 1) for k in range(80)}

    share = covered(lambda counts: bootstrap(counts, mean_of_two_rates, resamples=500), draw, 0.65)
    assert 0.90 <= share <= 0.985


# --- Properties ------------------------------------------------------------------------------------

pair = st.integers(0, 5).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))
tables = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), pair, min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_an_interval_is_within_the_possible_and_the_order_of_clusters_is_nothing(counts):
    found = bootstrap(counts, rate, resamples=200)
    backwards = bootstrap(dict(reversed(counts.items())), rate, resamples=200)
    assert found == backwards
    if sum(of for _, of in counts.values()) == 0:
        assert found is None
    else:
        assert 0 <= found.low <= found.high <= 1 and 0 <= found.value <= 1


@settings(max_examples=50, deadline=None)
@given(tables)
def test_nothing_changed_is_exactly_zero_and_swapping_sides_turns_the_sign(counts):
    same = paired_difference(counts, counts, rate, resamples=200)
    assert same is None or (same.value, same.low, same.high) == (0, 0, 0)
    other = {name: (of - hits, of) for name, (hits, of) in counts.items()}
    there, back = (
        paired_difference(a, b, rate, resamples=200, level=0.5) for a, b in ((counts, other), (other, counts))
    )
    if there is not None:
        assert there.value == pytest.approx(-back.value)
        assert there.low == pytest.approx(-back.high)


# --- Detectable difference -------------------------------------------------------------------------


def test_detectable_difference_solves_connors_equation():
    n, psi = 200, 0.3
    d = detectable_difference(n, psi)
    z_a, z_b = 1.959964, 0.841621
    assert n * d**2 == pytest.approx((z_a * math.sqrt(psi) + z_b * math.sqrt(psi - d**2)) ** 2, rel=1e-5)


def test_detectable_difference_has_the_power_that_it_promises():
    """McNemar's test (normal approximation) on simulated pairs."""
    n, psi = 320, 0.3
    d = detectable_difference(n, psi)
    rng = np.random.default_rng(0)
    better, worse, _ = rng.multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=20_000).T
    found = np.abs(better - worse) / np.sqrt(better + worse) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_too_few_pairs_show_nothing():
    assert detectable_difference(3, 0.1) is None
    assert detectable_difference(1, 1.0) is None


@given(st.integers(50, 5_000), st.floats(0.1, 0.9))
def test_more_pairs_show_less_and_more_discordance_hides_more(n, psi):
    d = detectable_difference(n, psi)
    if d is not None:
        assert detectable_difference(2 * n, psi) < d <= psi
        assert detectable_difference(n, psi, power=0.9) is None or detectable_difference(n, psi, power=0.9) > d


@pytest.mark.parametrize("arguments", [(0, 0.3), (10, 0.0), (10, 1.1), (10, 0.3, 0.04), (10, 0.3, 1.0)])
def test_out_of_range(arguments):
    with pytest.raises(ValueError, match="out of range"):
        detectable_difference(*arguments)


# --- Scores of games -------------------------------------------------------------------------------


def row(seed_id, case, truth=None, verdict=None, attacker=None, faithful=None, status="ok"):
    assessor = {"status": "unparsable" if case == "unparsable" else "verdict", "verdict": verdict, "reward": {}}
    return {
        "seed_id": seed_id, "case": case, "status": status, "faithful": faithful, "attacker": attacker,
        "label": {"actual_harm": truth} if truth else None, "assessor": None if case == "forfeit" else assessor,
    }  # fmt: skip


def turn(form=1.0, status="ok"):
    return {"status": status, "reward": {"format": form} if form else {}}


ROWS = [
    row("a", "right", "Harmful", "Harmful", turn(), True),
    row("b", "wrong", "Harmful", "Safe", turn(), True),  # fools
    row("c", "unparsable", "Harmful", None, turn(), True),  # wrong, but not fooled
    row("d", "wrong", "Safe", "Harmful", turn(), False),
    row("e", "right", "Safe", "Safe", turn(), False),  # a copy that nobody was fooled by
    row("f", "forfeit", None, None, turn(-1.0, "forfeit"), False),
    row("g", "forfeit", None, None, turn(1.0, "forfeit"), False),  # well formed, too long
    row("h", None, None, "Safe", turn(None), None),  # the judge abstained
    row("i", None, None, "Safe", turn(None), None, status="error"),
]


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        (scores.ACCURACY, 2 / 5),
        (scores.BALANCED_ACCURACY, (1 / 3 + 1 / 2) / 2),
        (scores.FALSE_POSITIVES, 1 / 2),
        (scores.FALSE_NEGATIVES, 2 / 3),
        (scores.SAYS_HARMFUL, 2 / 5),
        (scores.HARMFUL_SHARE, 3 / 5),
        (scores.FAITHFUL, 3 / 8),
        (scores.FOOLS, 1 / 8),
        (scores.VIOLATIONS[Role.ATTACKER], 1 / 9),
        (scores.VIOLATIONS[Role.ASSESSOR], 1 / 7),
    ],
    ids=lambda thing: thing.name if isinstance(thing, scores.Measure) else "",
)
def test_measures_by_hand(measure, value):
    assert scores.interval(ROWS, measure, lambda r: r["seed_id"], 50).value == pytest.approx(value)


def test_games_are_paired_by_seed_not_by_place():
    after = [row("a", "wrong", "Harmful", "Safe"), row("b", "right", "Harmful", "Harmful"), row("x", "right", "Safe")]
    random.Random(0).shuffle(after)
    found = scores.difference(ROWS, after, scores.ACCURACY, lambda r: r["seed_id"], 50)
    assert found.value == 0.0  # a fell, b rose; x and c to i have no partner
    assert found.clusters == 2


def test_a_seed_played_twice_has_no_partner():
    with pytest.raises(ValueError, match="more than once"):
        scores.pairs(ROWS, [ROWS[0], ROWS[0]], scores.ACCURACY)
