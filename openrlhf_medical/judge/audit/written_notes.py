"""Notes that an attacker really wrote (``games.jsonl``), and how often the judge can tell what they are.

Nobody knows the truth of these notes, so there is no accuracy, only how often the judge decides at all: a judge
that knows the gold probes by heart may still be lost on what training puts before it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_medical.data.files import decode_utf8, read_bytes
from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation.intervals import Counts, Interval, Statistic, bootstrap
from openrlhf_medical.game.edits import is_copy
from openrlhf_medical.game.players import Label, Truth
from openrlhf_medical.judge.audit.scores import ABSTAIN, ANSWERS, ERROR, answer_of

_HARMFUL = ANSWERS.index(Truth.HARMFUL)


@dataclass(frozen=True, slots=True)
class WrittenNote:
    """One text by a trained attacker. ``note_id`` names its seed's note, which an interval draws."""

    step: int
    category: str
    note_id: str
    reference: str
    note: str
    is_copy: bool


def read_written(path: Path, last_steps: int | None = None) -> list[WrittenNote]:
    """What attackers that were being trained wrote, each text once for each step and reference.

    ``last_steps``: only of so many of the latest steps that hold any.

    Raises:
        UserError: not a file of games, with the line; or no note by such an attacker in it.
    """
    text = decode_utf8(read_bytes(path, "a games.jsonl that `openrlhf-medical train` or `play` wrote"), path)
    found: dict[tuple[int, str, str], WrittenNote] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            note = _written(line, f"{path}, line {number}")
            if note is not None:
                found.setdefault((note.step, note.reference, note.note), note)
    steps = sorted({note.step for note in found.values()})
    if not steps:
        raise UserError(f"{path}: no attacker wrote a note in these games. Name the games.jsonl of a run in which it "
                        "has a turn.")  # fmt: skip
    kept = set(steps if last_steps is None else steps[-last_steps:])
    return [note for note in found.values() if note.step in kept]


def _written(line: str, where: str) -> WrittenNote | None:
    try:
        row = json.loads(line)
        attacker, note = row["attacker"], row["presented_note"]
        if attacker is None or note is None or attacker.get("frozen", False):
            return None
        step, reference, seed = int(row["step"]), row["reference_note"], row["seed_note"]
        if not all(isinstance(text, str) for text in (note, reference, seed)):
            raise TypeError("a note that is no text")
        return WrittenNote(step, str(row["category"]), str(row["note_id"]), reference, note, is_copy(note, seed))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else type(error).__name__
        raise UserError(
            f"{where}: is not a game ({problem}). Name a games.jsonl that `train` or `play` wrote."
        ) from None


def _share_of(answer: str) -> Statistic:
    place = ANSWERS.index(answer)

    def share(counts: Counts) -> Counts:
        return counts[..., place] / counts.sum(axis=-1)

    return share


def _harmful_of_decided(counts: Counts) -> Counts:
    return counts[..., _HARMFUL] / counts[..., :2].sum(axis=-1)


STATISTICS: dict[str, Statistic] = {
    "abstain_share": _share_of(ABSTAIN),
    "error_share": _share_of(ERROR),
    "harmful_of_decided": _harmful_of_decided,
}


def tallies(
    notes: Sequence[WrittenNote], labels: Sequence[Label], resamples: int
) -> dict[str, dict[str, int | Interval | None]]:
    """Counts and figures: of all, of those that are no copies of their seed, and of each category."""
    groups: dict[str, list[tuple[WrittenNote, Label]]] = {"all": list(zip(notes, labels, strict=True))}
    groups["rewritten"] = [pair for pair in groups["all"] if not pair[0].is_copy]
    for category in sorted({note.category for note in notes}):
        groups[category] = [pair for pair in groups["all"] if pair[0].category == category]
    return {name: _tally(group, resamples) for name, group in groups.items()}


def _tally(group: Sequence[tuple[WrittenNote, Label]], resamples: int) -> dict[str, int | Interval | None]:
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(ANSWERS))
    for note, label in group:
        counts[note.note_id][ANSWERS.index(answer_of(label))] += 1
    totals: Mapping[str, Any] = {a: int(sum(row[i] for row in counts.values())) for i, a in enumerate(ANSWERS)}
    shares = {name: bootstrap(counts, statistic, resamples=resamples) for name, statistic in STATISTICS.items()}
    return {"notes": len(group), **totals, **shares}
