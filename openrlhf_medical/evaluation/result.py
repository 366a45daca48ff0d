"""The result of ``openrlhf-medical evaluate`` as one JSON object.

A figure is ``{"value": v, "low": l, "high": h}``, with a 95 % interval by bootstrap over vignettes, and three
nulls where it is undefined (precision where nothing was flagged). The object::

    {
      "kind": "medec-evaluation", "version": 1,
      "name": "smollm2-135m",                      what the table calls it
      "data": {"source", "texts", "texts_in_source", "errors", "clean", "vignettes", "remarks": {what: count}},
      "asked": {"how": "vllm" | "openai" | "predictions", …},  the model, its weights' fingerprint, sampling, prompts
      "metrics": {"flag_accuracy": figure, "sentence_accuracy", "rouge1_f1", "composite_rouge1", "accuracy",
                  "balanced_accuracy", "precision", "recall", "f1", "false_positive_rate", "missing_rate",
                  and "bertscore", "composite_bertscore", "bleurt", … where these were computed},
      "confusion": {"error": {"flagged", "passed", "neither"}, "clean": {…}},  counts; neither: no flag 0 or 1
      "error_types": {"diagnosis": {"texts": n, "metrics": {"recall", "sentence_accuracy", "rouge1_f1"}}, …},
      "baselines": {"always_flag": {"metrics": …}, "never_flag": {"metrics": …}},
      "compared": null | {"name", "metrics", "difference": {metric: figure of (name - compared)}, "problems"},
      "answers": null | {"verdict": n, "refusal", "unparsable", "too_long",
                         "cut": n,   of the unparsable ones, those that the limit on tokens cut
                         "refusal_rate", "unparsable_rate", "too_long_rate"},   where a model was asked
      "problems": null | {"malformed_lines": [n, …], "duplicates_lines", "unknown_lines", "odd_lines",
                          "missing_ids": [id, …]},                               where a file was read
      "learned_scores": {"bertscore": "not installed" | "computed" | why not, "bleurt": …},
      "published": [{"system", "setting"?, "set": "full" | "MS", "flag_accuracy", "sentence_accuracy"?, "source"}],
      "scorer": {"rouge": "1.0.1", "resamples": 10000, "level": 0.95, "clusters": "vignettes"},
      "command": [word, …], "environment": {versions, commit, hardware}, "seconds": of the whole command
    }

No text of a note is in it.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from openrlhf_medical.evaluation import medec
from openrlhf_medical.evaluation.answers import Outcome
from openrlhf_medical.evaluation.intervals import RESAMPLES, Interval, Statistic
from openrlhf_medical.evaluation.medec import Block, LearnedScores, Predictions
from openrlhf_medical.evaluation.submission import Submission
from openrlhf_medical.evaluation.texts import Texts
from openrlhf_medical.game.notes import Note

KIND, VERSION = "medec-evaluation", 1
MODEL, OTHER = "model", "compared"


@dataclass
class Side:
    """Whose predictions are scored. ``outcomes`` where a model was asked, and how many replies the limit on tokens
    cut; ``submission`` where a file was read."""

    name: str
    predictions: Predictions
    asked: dict[str, Any]
    outcomes: Counter[Outcome] | None = None
    cut: int = 0
    submission: Submission | None = None
    learned: LearnedScores = field(default_factory=dict)
    learned_told: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, Statistic]:
        """What can be told of it: the learned scores only where they are, the aggregate with both of them."""
        there = [*self.learned, *(["aggregate"] if {"bertscore", "bleurt"} <= set(self.learned) else [])]
        extra = {k: v for score in there for k, v in medec.LEARNED_METRICS[score].items()}
        return {**medec.METRICS, **extra}


def result_of(texts: Texts, side: Side, other: Side | None, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Everything but command, environment and time."""
    notes = texts.notes
    blocks = {MODEL: Block(side.predictions, side.metrics(), side.learned)}
    blocks |= {name: Block(said, medec.METRICS) for name, said in medec.baselines(notes).items()}
    if other is not None:
        blocks[OTHER] = Block(other.predictions, other.metrics(), other.learned)
    types = medec.type_blocks(notes, side.predictions)
    found = medec.figures(notes, blocks | types, [(OTHER, MODEL)] if other else [], resamples=resamples)
    return {
        "kind": KIND,
        "version": VERSION,
        "name": side.name,
        "data": _data(texts),
        "asked": side.asked,
        "metrics": plain(found[MODEL]),
        "confusion": confusion(notes, side.predictions),
        "error_types": {
            kind: {"texts": sum(note.error_type == kind for note in notes), "metrics": plain(found[kind])}
            for kind in types
        },
        "baselines": {name: {"metrics": plain(found[name])} for name in (medec.ALWAYS_FLAG, medec.NEVER_FLAG)},
        "compared": None if other is None else {
            "name": other.name,
            "metrics": plain(found[OTHER]),
            "difference": plain(found[f"{MODEL} - {OTHER}"]),
            "problems": other.submission.to_json() if other.submission else None,
        },
        "answers": _answers(side),
        "problems": side.submission.to_json() if side.submission else None,
        "learned_scores": side.learned_told,
        "published": published(),
        "scorer": {"rouge": importlib.metadata.version("rouge"), "resamples": resamples, "level": 0.95,
                   "clusters": "vignettes"},
    }  # fmt: skip


def plain(figures: Mapping[str, Interval | None]) -> dict[str, dict[str, float | None]]:
    return {
        name: {"value": found.value, "low": found.low, "high": found.high}
        if found
        else {"value": None, "low": None, "high": None}
        for name, found in figures.items()
    }


def confusion(notes: Sequence[Note], predictions: Predictions) -> dict[str, dict[str, int]]:
    cells = {truth: {"flagged": 0, "passed": 0, "neither": 0} for truth in ("error", "clean")}
    words = {"1": "flagged", "0": "passed"}
    for note in notes:
        said = predictions.get(note.note_id)
        cells["error" if note.has_error else "clean"][words.get(said.flag if said else "", "neither")] += 1
    return cells


@cache
def _published_file() -> dict[str, Any]:
    text = resources.files("openrlhf_medical.evaluation").joinpath("published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def published() -> list[dict[str, Any]]:
    """The figures of others, each with its set and its source in full."""
    found = _published_file()
    return [{**row, "source": found["sources"][row["source"]]} for row in found["results"]]


def _data(texts: Texts) -> dict[str, Any]:
    count = len(texts.notes)
    return {
        "source": texts.source,
        "texts": count,
        "texts_in_source": len(texts.ids),
        "errors": texts.errors,
        "clean": count - texts.errors,
        "vignettes": texts.vignettes,
        "remarks": dict(texts.remarks),
    }


def _answers(side: Side) -> dict[str, float] | None:
    outcomes = side.outcomes
    if outcomes is None:
        return None
    asked = outcomes.total()
    counts = {outcome.value: outcomes[outcome] for outcome in Outcome}
    rates = {f"{name}_rate": count / asked for name, count in counts.items() if name != Outcome.VERDICT and asked}
    return {**counts, "cut": side.cut, **rates}
