"""From what an assessor wrote about a note to a prediction of MEDEC's three subtasks."""

from __future__ import annotations

import re
from enum import StrEnum

from openrlhf_medical.evaluation.medec import no_such_sentence
from openrlhf_medical.evaluation.submission import NA, Prediction, one_line
from openrlhf_medical.evaluation.texts import sentences_of
from openrlhf_medical.game.cot import Assessment, TurnStatus, parse_assessment, parse_reply, prefill
from openrlhf_medical.game.localisation import same_sentence, token_f1
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.players import Truth

LEAST_OVERLAP = 0.6
"""Token F1 from which on a named sentence is taken for one of the note's, where it is none word for word."""

_THINK_TAG = re.compile(r"</?think\b", re.IGNORECASE)


class Outcome(StrEnum):
    """What became of a text that a model was asked about. All but the first leave it without a prediction."""

    VERDICT = "verdict"
    REFUSAL = "refusal"
    UNPARSABLE = "unparsable"
    TOO_LONG = "too_long"


def read_reply(text: str, *, cot: bool, truncated: bool = False) -> Assessment:
    """What was written after the prefill, as a game reads it."""
    parsed = parse_reply(text, cot=cot, truncated=truncated)
    return Assessment(TurnStatus.UNPARSABLE) if parsed.answer is None else parse_assessment(parsed.answer)


def read_chat(text: str, *, cot: bool, truncated: bool = False) -> Assessment:
    """What an endpoint wrote, which cannot be made to begin with the prefill: it may begin with it itself, and a
    server that hides a model's thoughts leaves the answer alone."""
    written = text.strip().removeprefix(prefill(cot))
    thoughts_hidden = cot and not _THINK_TAG.search(text)
    if thoughts_hidden:
        written, cot = text.strip().removeprefix(prefill(False)), False
    return read_reply(written, cot=cot, truncated=truncated)


def prediction_of(note: Note, said: Assessment) -> Prediction | None:
    """None where there is no verdict: the text then counts as wrong."""
    if said.status is not TurnStatus.VERDICT:
        return None
    if said.verdict is Truth.SAFE:
        return Prediction("0")
    number = sentence_number(note, said.sentence or "")
    sentence_id = no_such_sentence(note) if number is None else str(number)
    return Prediction("1", sentence_id, one_line(said.correction) if said.correction else NA)


def sentence_number(note: Note, named: str) -> int | None:
    """Which of the note's sentences is named: the closest one, word by word; None where none is close.

    MEDEC splits sentences too often, so that a part of what was named may be one; and a model that copies may
    change a word.
    """
    closest: tuple[float, int] | None = None
    for number, sentence in enumerate(sentences_of(note)):
        likeness = 1.0 + token_f1(named, sentence) if same_sentence(named, sentence) else token_f1(named, sentence)
        if likeness >= LEAST_OVERLAP and (closest is None or likeness > closest[0]):
            closest = (likeness, number)
    return None if closest is None else closest[1]
