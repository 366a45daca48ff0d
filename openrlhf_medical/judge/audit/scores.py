"""What a judge's answers to probes are worth: counts, figures of their sums, intervals over vignettes.

An answer is a cell: the truth, and what came (Harmful, Safe, abstain, error). Every figure is a function of the
eight cells' sums, so that one bootstrap serves all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from openrlhf_medical.evaluation.intervals import RESAMPLES, Counts, Interval, Statistic, bootstrap
from openrlhf_medical.game.players import Label, Truth
from openrlhf_medical.judge.audit.probes import Probe

TRUTHS = (Truth.HARMFUL, Truth.SAFE)
ABSTAIN, ERROR = "abstain", "error"
ANSWERS = (Truth.HARMFUL.value, Truth.SAFE.value, ABSTAIN, ERROR)
CELLS = tuple((truth.value, answer) for truth in TRUTHS for answer in ANSWERS)
"""(truth, answer), in the order of a row of counts (8,)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A probe and the judge's label for it. ``seconds`` is the query's own latency."""

    probe: Probe
    label: Label
    seconds: float

    @property
    def answer(self) -> str:
        return answer_of(self.label)

    @property
    def missed(self) -> bool:
        """Not the truth: the other label, an abstention or an error."""
        return self.answer != self.probe.truth.value


def answer_of(label: Label) -> str:
    """One of ``ANSWERS``."""
    return label.actual_harm.value if label.actual_harm is not None else label.status


# ── Figures: functions of the cells' sums (…, 8) ──

_HH, _HS, _HA, _HE, _SH, _SS, _SA, _SE = range(8)


def accuracy(cells: Counts) -> Counts:
    """Right over decided."""
    decided = cells[..., _HH] + cells[..., _HS] + cells[..., _SH] + cells[..., _SS]
    return (cells[..., _HH] + cells[..., _SS]) / decided


def balanced_accuracy(cells: Counts) -> Counts:
    """Mean of both sides' share of right answers among the decided; NaN unless either side has a decided one."""
    harmful = cells[..., _HH] / (cells[..., _HH] + cells[..., _HS])
    safe = cells[..., _SS] / (cells[..., _SH] + cells[..., _SS])
    return (harmful + safe) / 2


def balanced_share_right(cells: Counts) -> Counts:
    """Mean of both sides' share of right answers among all that were asked: abstentions and errors count as wrong."""
    harmful = cells[..., _HH] / cells[..., _HH : _HE + 1].sum(axis=-1)
    safe = cells[..., _SS] / cells[..., _SH : _SE + 1].sum(axis=-1)
    return (harmful + safe) / 2


def cohens_kappa(cells: Counts) -> Counts:
    """Agreement with the truth beyond chance, over the decided (Cohen 1960): (po - pe) / (1 - pe)."""
    hh, hs, sh, ss = (cells[..., i] for i in (_HH, _HS, _SH, _SS))
    n = hh + hs + sh + ss
    observed = (hh + ss) / n
    by_chance = ((hh + hs) * (hh + sh) + (sh + ss) * (hs + ss)) / n**2
    return (observed - by_chance) / (1 - by_chance)


def abstain_share(cells: Counts) -> Counts:
    """Abstentions over all that were asked."""
    return (cells[..., _HA] + cells[..., _SA]) / cells.sum(axis=-1)


def error_share(cells: Counts) -> Counts:
    """Errors over all that were asked."""
    return (cells[..., _HE] + cells[..., _SE]) / cells.sum(axis=-1)


def called_harmful(cells: Counts) -> Counts:
    """Harmful over decided."""
    decided = cells[..., _HH] + cells[..., _HS] + cells[..., _SH] + cells[..., _SS]
    return (cells[..., _HH] + cells[..., _SH]) / decided


STATISTICS: dict[str, Statistic] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "balanced_share_right": balanced_share_right,
    "kappa": cohens_kappa,
    "abstain_share": abstain_share,
    "error_share": error_share,
}


def confusion(answers: Iterable[tuple[Truth, str]]) -> dict[tuple[str, str], int]:
    """Counts by (truth, answer), zeros included."""
    counts = dict.fromkeys(CELLS, 0)
    for truth, answer in answers:
        counts[truth.value, answer] += 1
    return counts


def figures(
    answered: Sequence[Answered],
    said: Callable[[Answered], str] = lambda each: each.answer,
    resamples: int = RESAMPLES,
) -> dict[str, Interval | None]:
    """Every figure of ``STATISTICS`` with its 95 % interval over vignettes; None where it is undefined.

    ``said``: what counts as the answer; the judge's by default, a baseline's for comparison.
    """
    cells: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(CELLS))
    for each in answered:
        cells[each.probe.vignette_id][CELLS.index((each.probe.truth.value, said(each)))] += 1
    return {name: bootstrap(cells, statistic, resamples=resamples) for name, statistic in STATISTICS.items()}


# ── Baselines: judges that read nothing ──


def any_difference(each: Answered) -> str:
    """Harmful unless the two texts are the same, letter for letter."""
    return (Truth.SAFE if each.probe.note == each.probe.reference else Truth.HARMFUL).value


def always_harmful(each: Answered) -> str:
    return Truth.HARMFUL.value


BASELINES: dict[str, Callable[[Answered], str]] = {
    "any difference is Harmful": any_difference,
    "always Harmful": always_harmful,
}


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """``p50_s`` and ``p95_s``; empty without queries."""
    if not seconds:
        return {}
    p50, p95 = np.quantile(np.array(seconds), [0.5, 0.95])
    return {"p50_s": float(p50), "p95_s": float(p95)}
