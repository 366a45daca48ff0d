"""What ``medec_flag.yaml`` calls: texts, and flags from replies, as ``openrlhf-medical evaluate`` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrlhf_medical.evaluation.answers import prediction_of, read_reply
from openrlhf_medical.evaluation.medec import reference_of
from openrlhf_medical.evaluation.texts import load_texts
from openrlhf_medical.game.cot import STOP, THINK
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.prompts import assessor_prompt


def load(
    data: str = "synthetic", limit: int | None = None, seed: int = 0, cot: bool = True, **others: Any
) -> dict[str, Any]:
    """The split ``test``. The harness adds what it likes to the metadata, such as the model's arguments: ignored."""
    import datasets

    rows = [_row(note, cot) for note in load_texts(data, limit, seed).notes]
    return {"test": datasets.Dataset.from_list(rows)}


def _row(note: Note, cot: bool) -> dict[str, str]:
    prompt = assessor_prompt(note.text, cot=cot)
    return {
        "text_id": note.note_id,
        "text": note.text,
        "prompt": prompt.messages[0]["content"],
        "prefix": prompt.prefill,
        "flag": reference_of(note).flag,
    }


def flag_of(doc: dict[str, str], reply: str) -> str | None:
    """``1``, ``0``, or None where there is no verdict. What comes after the end of the answer does not count: the
    engines of ``evaluate`` stop there."""
    answer, end, _ = reply.partition(STOP)
    said = read_reply(answer + end, cot=doc["prefix"] == THINK)
    prediction = prediction_of(Note(doc["text_id"], doc["text"], doc["text_id"]), said)
    return None if prediction is None else prediction.flag


def process_results(doc: dict[str, str], results: Sequence[str]) -> dict[str, Any]:
    flag = flag_of(doc, results[0])
    right = float(flag == doc["flag"])
    return {"flag_accuracy": right, "balanced_accuracy": (doc["flag"], right), "no_verdict": float(flag is None)}


def balanced_accuracy(items: Sequence[tuple[str, float]]) -> float:
    """The mean of the accuracies on error notes and on clean notes; NaN where one kind is not there."""
    sides = [[right for truth, right in items if truth == flag] for flag in ("1", "0")]
    return sum(sum(side) / len(side) for side in sides) / 2 if all(sides) else float("nan")
