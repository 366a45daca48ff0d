"""The audit's figures on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openrlhf_medical.game.players import Label, Truth
from openrlhf_medical.judge.audit import scores
from openrlhf_medical.judge.audit.probes import Probe
from openrlhf_medical.judge.audit.scores import Answered

H, S = Truth.HARMFUL, Truth.SAFE


def cells(*counts: float) -> np.ndarray:
    """Truly Harmful: said Harmful, Safe, abstained, failed; then truly Safe."""
    return np.array(counts, dtype=float)


def answered(truth: Truth, answer: str, vignette: str = "v", note: str = "b") -> Answered:
    harm = Truth(answer) if answer in list(Truth) else None
    label = Label("ok" if harm else answer, harm)  # type: ignore[arg-type]
    return Answered(Probe("p", "gold", "dose", truth, vignette, "a", note), label, 0.1)


def test_kappa_by_hand():
    # Of 50 pairs 35 agree: po = 0.7. By chance (25 * 30 + 25 * 20) / 2500 = 0.5. So 0.2 / 0.5.
    table = cells(20, 5, 0, 0, 10, 15, 0, 0)
    assert scores.cohens_kappa(table) == pytest.approx(0.4)
    assert scores.accuracy(table) == pytest.approx(0.7)
    assert scores.balanced_accuracy(table) == pytest.approx((0.8 + 0.6) / 2)


def test_kappa_of_unequal_sides_by_hand():
    # 40 Harmful, 10 Safe; said: 38 + 4 Harmful. po = 44/50; pe = (40 * 42 + 10 * 8) / 2500 = 0.704.
    assert scores.cohens_kappa(cells(38, 2, 0, 0, 4, 6, 0, 0)) == pytest.approx((0.88 - 0.704) / (1 - 0.704))


@pytest.mark.parametrize("table, kappa", [((5, 0, 0, 0, 0, 5, 0, 0), 1), ((0, 5, 0, 0, 5, 0, 0, 0), -1),
                                          ((5, 0, 0, 0, 5, 0, 0, 0), 0)])  # fmt: skip
def test_kappa_of_an_oracle_a_liar_and_a_constant(table, kappa):
    assert scores.cohens_kappa(cells(*table)) == pytest.approx(kappa)


def test_abstentions_and_errors_leave_the_decided_and_count_in_shares():
    table = cells(20, 5, 10, 5, 10, 15, 0, 35)
    assert scores.balanced_accuracy(table) == pytest.approx(0.7)
    assert scores.balanced_share_right(table) == pytest.approx((20 / 40 + 15 / 60) / 2)
    assert scores.abstain_share(table) == pytest.approx(10 / 100)
    assert scores.error_share(table) == pytest.approx(40 / 100)


def test_what_is_undefined_is_none():
    only_harmful = scores.figures([answered(H, "Harmful"), answered(H, "Safe")], resamples=50)
    assert only_harmful["balanced_accuracy"] is None and only_harmful["balanced_share_right"] is None
    assert only_harmful["accuracy"] is not None and only_harmful["accuracy"].value == 0.5
    nothing = scores.figures([answered(H, "abstain"), answered(S, "error")], resamples=50)
    assert nothing["accuracy"] is nothing["kappa"] is None
    assert nothing["balanced_share_right"].value == 0 and nothing["abstain_share"].value == 0.5
    assert all(value is None for value in scores.figures([], resamples=50).values())


def test_confusion_has_every_cell():
    table = scores.confusion([(H, "Harmful"), (H, "abstain"), (S, "error"), (S, "error")])
    assert len(table) == 8 and sum(table.values()) == 4
    assert table["Harmful", "abstain"] == 1 and table["Safe", "error"] == 2 and table["Safe", "Safe"] == 0


def test_intervals_draw_vignettes_not_pairs():
    """Ten equal pairs of one vignette are no more sure than one: with two vignettes an interval spans all."""
    alike = [answered(H, "Harmful", "a")] * 10 + [answered(H, "Safe", "b")] * 10
    apart = [answered(H, each.answer, str(i)) for i, each in enumerate(alike)]
    wide, narrow = (scores.figures(each, resamples=400)["accuracy"] for each in (alike, apart))
    assert (wide.value, wide.low, wide.high, wide.clusters) == (0.5, 0, 1, 2)
    assert narrow.clusters == 20 and 0.2 < narrow.low < narrow.high < 0.8


def test_baselines_read_nothing():
    same, other = answered(S, "abstain", note="a"), answered(S, "abstain", note="b")
    assert [scores.any_difference(each) for each in (same, other)] == ["Safe", "Harmful"]
    assert scores.always_harmful(same) == "Harmful"
    figures = scores.figures([same, other, answered(H, "error")], scores.any_difference, resamples=50)
    assert figures["balanced_accuracy"].value == pytest.approx(0.75) and figures["abstain_share"].value == 0


def test_an_answer_is_missed_unless_it_is_the_truth():
    assert [answered(H, said).missed for said in ("Harmful", "Safe", "abstain", "error")] == [False, True, True, True]


def test_latency():
    assert scores.latency([0.1] * 90 + [1.0] * 10) == {"p50_s": pytest.approx(0.1), "p95_s": pytest.approx(1.0)}
    assert scores.latency([]) == {}
    assert math.isclose(scores.latency([2.0])["p95_s"], 2)
