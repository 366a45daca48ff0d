"""How the reference backend does on real notes: error notes, and other writings of clean ones.

The rewrites are the audit's: they have word lists of their own, so that they cannot agree with the rules by sharing
them.
"""

from __future__ import annotations

import csv
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit.cosmetic import COSMETIC
from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.findings import BlindPair, Finding

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "medec"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"MEDEC's files are not at {FOLDER}")


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.)\s+", text.strip())


def _shuffled(text: str) -> str:
    return " ".join(random.Random(len(text)).sample(_sentences(text), len(_sentences(text))))


# Another order may be another history, so it is no probe of the audit's; these rules are to see no difference in it.
REWRITES: dict[str, Callable[[str], str]] = {**COSMETIC, "order": _shuffled}


@pytest.fixture(scope="module")
def notes() -> list[tuple[str, str]]:
    """(clean reference, text) of every note."""
    (path,) = FOLDER.glob("*.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row["Corrected Text"] if row["Error Flag"] == "1" else row["Text"], row["Text"]) for row in rows]


def _judged(pairs: list[tuple[str, str]]) -> list[Finding]:
    return ReferenceBackend().judge([BlindPair(*pair) for pair in pairs])


def test_error_notes_and_other_writings_are_told_apart(notes: list[tuple[str, str]]) -> None:
    errors = [(reference, text) for reference, text in notes if " ".join(reference.split()) != " ".join(text.split())]
    cosmetic = [
        (reference, change(reference))
        for reference, _ in notes[::2]
        for change in REWRITES.values()
        if change(reference) != reference
    ]
    found_errors, found_cosmetic = _judged(errors), _judged(cosmetic)
    harmful = Counter(finding.actual_harm for finding in found_errors)
    safe = Counter(finding.actual_harm for finding in found_cosmetic)
    # An abstention counts as wrong here, and is limited on its own besides.
    assert (harmful[Truth.HARMFUL] / len(errors) + safe[Truth.SAFE] / len(cosmetic)) / 2 >= 0.97, (harmful, safe)
    assert harmful[None] / len(errors) <= 0.05 and safe[None] / len(cosmetic) <= 0.05, (harmful, safe)
    # "gray" and "grey" are two words to the rules.
    assert harmful[Truth.SAFE] == 0 and safe[Truth.HARMFUL] <= 2, (harmful, safe)


def test_identical_notes_are_safe(notes: list[tuple[str, str]]) -> None:
    assert {finding.actual_harm for finding in _judged([(text, text) for _, text in notes])} == {Truth.SAFE}


def test_dropped_or_added_sentences_are_never_called_safe(notes: list[tuple[str, str]]) -> None:
    pairs = [(text, " ".join(_sentences(text)[:-1])) for _, text in notes if len(_sentences(text)) > 3]
    pairs += [(text, f"{text} He was discharged home with ibuprofen.") for _, text in notes]
    assert {finding.status for finding in _judged(pairs)} == {"abstain"}


def test_a_thousand_queries_a_second(notes: list[tuple[str, str]]) -> None:
    pairs = [pair for pair in notes if pair[0] != pair[1]] + [(ref, COSMETIC["abbreviations"](ref)) for ref, _ in notes]
    best = 0.0
    for _ in range(3):  # CPU time and the best of three: other work on the machine is not what is measured
        start = time.process_time()
        for i in range(0, len(pairs), 64):
            _judged(pairs[i : i + 64])
        best = max(best, len(pairs) / (time.process_time() - start))
    assert best >= 1000
