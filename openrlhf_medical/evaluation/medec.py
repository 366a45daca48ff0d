"""MEDEC's three subtasks, scored as the official scorer of MEDIQA-CORR 2024 does, and more beside it.

    notes + predictions ─► counts of each text ─► sums by vignette ─► figures with intervals

The official figures: ``flag_accuracy`` (subtask A), ``sentence_accuracy`` (B), ``rouge1_f1`` and
``composite_rouge1`` (C). Flags and sentence IDs are compared letter by letter over all texts, each on its own;
a text without a prediction is wrong. ``rouge1_f1`` is the mean over the texts where data and prediction both
have a correction, whatever sentence was named; the composite adds 1 for every text where both have none, and
is over all texts.

Ours, by the convention of ``game.metrics``, that what gives no verdict is wrong on its note's side:
``false_positive_rate`` is the share of clean notes that were not called clean, ``recall`` the share of error
notes that were flagged, ``balanced_accuracy`` the mean of recall and 1 - false-positive rate. ``precision``
is over the texts flagged ``1``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from openrlhf_medical.evaluation.intervals import RESAMPLES, Counts, Interval, Statistic, bootstrap_all
from openrlhf_medical.evaluation.submission import NA, Prediction
from openrlhf_medical.game.notes import ERROR_TYPES, Note

COLUMNS = (
    "texts", "flag_right", "sentence_right", "errors", "errors_right", "clean", "clean_right", "flagged",
    "both_corrected", "rouge1", "both_na", "missing", "bertscore", "bleurt", "aggregate",
)  # fmt: skip
_AT = {name: place for place, name in enumerate(COLUMNS)}

Predictions = Mapping[str, Prediction]
"""By text ID; a text may be missing."""

LearnedScores = Mapping[str, Mapping[str, float]]
"""``bertscore`` and ``bleurt``, each by text ID, of the texts where both sides have a correction."""


def _share(part: str, of: str) -> Statistic:
    return lambda totals: totals[..., _AT[part]] / totals[..., _AT[of]]


def _false_positive_rate(totals: Counts) -> Counts:
    return 1 - totals[..., _AT["clean_right"]] / totals[..., _AT["clean"]]


def _balanced_accuracy(totals: Counts) -> Counts:
    return (_share("errors_right", "errors")(totals) + _share("clean_right", "clean")(totals)) / 2


def _f1(totals: Counts) -> Counts:
    return 2 * totals[..., _AT["errors_right"]] / (totals[..., _AT["flagged"]] + totals[..., _AT["errors"]])


def _composite(score: str) -> Statistic:
    return lambda totals: (totals[..., _AT[score]] + totals[..., _AT["both_na"]]) / totals[..., _AT["texts"]]


METRICS: dict[str, Statistic] = {
    "flag_accuracy": _share("flag_right", "texts"),
    "sentence_accuracy": _share("sentence_right", "texts"),
    "rouge1_f1": _share("rouge1", "both_corrected"),
    "composite_rouge1": _composite("rouge1"),
    "accuracy": _share("flag_right", "texts"),
    "balanced_accuracy": _balanced_accuracy,
    "precision": _share("errors_right", "flagged"),
    "recall": _share("errors_right", "errors"),
    "f1": _f1,
    "false_positive_rate": _false_positive_rate,
    "missing_rate": _share("missing", "texts"),
}
"""``accuracy`` is ``flag_accuracy`` under its usual name."""

LEARNED_METRICS: dict[str, dict[str, Statistic]] = {
    score: {score: _share(score, "both_corrected"), f"composite_{score}": _composite(score)}
    for score in ("bertscore", "bleurt", "aggregate")
}
"""``aggregate`` is MEDEC's: the mean of ROUGE-1, BERTScore and BLEURT of each text. There only with both."""

TYPE_METRICS = ("recall", "sentence_accuracy", "rouge1_f1")
"""What is told of each error type, over its error notes."""


def rouge1_f1(correction: str, reference: str) -> float:
    """F1 of the PyPI package ``rouge`` 1.0.1: case-sensitive, sets of words, split at white space and every ".".

    0 where a side is nothing but points, on which the package raises. A text scores 0.999999995 against itself:
    the package adds 1e-8 below the line.
    """
    if not correction.replace(".", "") or not reference.replace(".", ""):
        return 0.0
    return float(_rouge().get_scores(correction, reference)[0]["rouge-1"]["f"])


@cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-1"], stats=["f"])


def corrected(notes: Iterable[Note], predictions: Predictions) -> dict[str, tuple[str, str]]:
    """(correction, reference) by text ID where both sides have one: what subtask C's scores are computed on."""
    pairs = {}
    for note in notes:
        said = predictions.get(note.note_id)
        reference = reference_of(note).correction
        if said is not None and NA not in (said.correction, reference):
            pairs[note.note_id] = (said.correction, reference)
    return pairs


def reference_of(note: Note) -> Prediction:
    """What the data says of a note, as a perfect prediction."""
    if not note.has_error:
        return Prediction("0")
    return Prediction("1", str(note.error_sentence_id), note.corrected_sentence or NA)


def counts_of(note: Note, said: Prediction | None, learned: LearnedScores | None = None) -> tuple[float, ...]:
    """What one text adds to the sums, in the order of ``COLUMNS``."""
    truth = reference_of(note)
    row = dict.fromkeys(COLUMNS, 0.0)
    side = "errors" if note.has_error else "clean"
    row["texts"] = row[side] = 1
    if said is None:
        row["missing"] = 1
        return tuple(row.values())
    row["flag_right"] = row[f"{side}_right"] = float(said.flag == truth.flag)
    row["sentence_right"] = float(said.sentence_id == truth.sentence_id)
    row["flagged"] = float(said.flag == "1")
    row["both_na"] = float(said.correction == NA == truth.correction)
    if NA not in (said.correction, truth.correction):
        scores = {"rouge1": rouge1_f1(said.correction, truth.correction)}
        scores |= {name: by_id[note.note_id] for name, by_id in (learned or {}).items()}
        row |= scores | {"both_corrected": 1}
        row["aggregate"] = sum(scores.values()) / len(scores)
    return tuple(row.values())


ALWAYS_FLAG, NEVER_FLAG = "always_flag", "never_flag"


def baselines(notes: Sequence[Note]) -> dict[str, dict[str, Prediction]]:
    """What saying the same of every text gives. ``always_flag`` names a sentence that no text has."""
    return {
        ALWAYS_FLAG: {note.note_id: Prediction("1", no_such_sentence(note)) for note in notes},
        NEVER_FLAG: {note.note_id: Prediction("0") for note in notes},
    }


def no_such_sentence(note: Note) -> str:
    """A sentence ID for a flag without a sentence. Not -1: of a clean note that would be called right."""
    return str(max(len(note.sentences), note.error_sentence_id + 1))


@dataclass(frozen=True, slots=True)
class Block:
    """One column of the results: predictions, and which figures are told of them."""

    predictions: Predictions
    metrics: Mapping[str, Statistic]
    learned: LearnedScores | None = None
    keep: Callable[[Note], bool] = lambda note: True


Figures = dict[str, dict[str, Interval | None]]
"""By block, by metric; None where a figure is undefined."""


def figures(
    notes: Sequence[Note],
    blocks: Mapping[str, Block],
    differences: Iterable[tuple[str, str]] = (),
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures:
    """The figures of every block, and of ``second - first`` for pairs of blocks under ``"second - first"``.

    All are computed on the same draws of vignettes: a difference is paired, and no block is luckier.
    """
    width = len(COLUMNS)
    place = {name: number * width for number, name in enumerate(blocks)}
    sums: dict[str, Any] = defaultdict(lambda: np.zeros(width * len(blocks)))
    for note in notes:
        for name, block in blocks.items():
            if block.keep(note):
                row = counts_of(note, block.predictions.get(note.note_id), block.learned)
                sums[note.vignette_id][place[name] : place[name] + width] += row
    statistics: dict[tuple[str, str], Statistic] = {}
    for name, block in blocks.items():
        for metric, statistic in block.metrics.items():
            statistics[name, metric] = _within(statistic, place[name], width)
    for first, second in differences:
        for metric in blocks[first].metrics.keys() & blocks[second].metrics.keys():
            pair = statistics[first, metric], statistics[second, metric]
            statistics[f"{second} - {first}", metric] = _minus(*pair)
    found = bootstrap_all(sums, {f"{name}\n{metric}": statistic for (name, metric), statistic in statistics.items()},
                          resamples=resamples, seed=seed)  # fmt: skip
    table: Figures = defaultdict(dict)
    for key, interval in found.items():
        name, metric = key.split("\n")
        table[name][metric] = interval
    return dict(table)


def type_blocks(notes: Iterable[Note], predictions: Predictions) -> dict[str, Block]:
    """A block for each error type that the notes have, over its error notes."""
    present = {note.error_type for note in notes}
    metrics = {name: METRICS[name] for name in TYPE_METRICS}
    return {
        kind: Block(predictions, metrics, keep=lambda note, kind=kind: note.error_type == kind)  # type: ignore[misc]
        for kind in ERROR_TYPES
        if kind in present
    }


def _within(statistic: Statistic, start: int, width: int) -> Statistic:
    return lambda totals: statistic(totals[..., start : start + width])


def _minus(first: Statistic, second: Statistic) -> Statistic:
    return lambda totals: second(totals) - first(totals)
