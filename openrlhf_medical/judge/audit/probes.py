"""Probes: pairs of which it is known, before any judge is asked, whether the note is Safe or Harmful."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.data import synthetic
from openrlhf_medical.data.medec import read_medec
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.edits import is_copy
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit.cosmetic import COSMETIC, REWORDED, Rewrite

GOLD, COSMETIC_SET, REWORDED_SET, IDENTICAL = "gold", "cosmetic", "reworded", "identical"
HARD_OPEN, HARD_HELD_OUT = "hard", "hard (held out)"
"""Sets: figures are told for each by itself. Gold and cosmetic probes together make the judge's accuracy."""
REWRITES: dict[str, dict[str, Rewrite]] = {COSMETIC_SET: COSMETIC, REWORDED_SET: REWORDED}

SYNTHETIC_SPLITS = ("unseen_renderings", "unseen_conditions")
"""Of the embedded corpus: what no model was trained on."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One pair. ``vignette_id`` names what an interval draws: pairs about one patient stand or fall together."""

    probe_id: str
    set_name: str
    kind: str
    truth: Truth
    vignette_id: str
    reference: str
    note: str


def read_notes(medec: Path | None, seed: int = 0) -> list[Note]:
    """MEDEC's notes, or the embedded corpus's held-out ones where no folder is named.

    Raises:
        UserError: files that are not MEDEC's, or hold no note with an error.
    """
    if medec is not None:
        notes = read_medec(medec).notes
        if not any(note.has_error for note in notes):
            raise UserError(f"{medec}: found {len(notes)} notes and none with an error, so there is nothing to probe "
                            "with. Name files with ground truth (Error Flag 1).")  # fmt: skip
        return notes
    rows = [row for split in SYNTHETIC_SPLITS for row in synthetic.generate(split, seed=seed)]
    return [
        Note(row.text_id, row.text, row.vignette_id, error_type=row.error_type, corrected_text=row.corrected_text)
        for row in rows
    ]


def drawn(notes: Sequence[Note], num_samples: int | None, seed: int) -> list[Note]:
    """At most ``num_samples`` notes with an error, by chance, and as many clean ones; all where it is None."""
    if num_samples is None:
        return list(notes)
    chosen: set[str] = set()
    for has_error in (True, False):
        ids = [note.note_id for note in notes if note.has_error is has_error]
        chosen |= set(random.Random(f"{seed}/{has_error}").sample(ids, min(num_samples, len(ids))))
    return [note for note in notes if note.note_id in chosen]


def gold_probes(notes: Sequence[Note]) -> list[Probe]:
    """Each note with an error against its own Corrected Text: Harmful, one kind for each type of error.

    A few of MEDEC's corrections change nothing but white space; those pairs are no error and no probe.
    """
    return [
        _probe(note, GOLD, note.error_type or "unknown", Truth.HARMFUL, note.text)
        for note in notes
        if note.has_error and not is_copy(note.text, note.reference)
    ]


def identical_probes(notes: Sequence[Note]) -> list[Probe]:
    """Each clean text against itself: Safe, and no achievement."""
    return [_probe(note, IDENTICAL, IDENTICAL, Truth.SAFE, note.reference) for note in notes]


def rewritten_probes(notes: Sequence[Note], set_name: str, at_least: int = 0) -> list[Probe]:
    """Clean texts, rewritten by the rewrites of a set in turn: Safe. One for each note, and more until there are
    ``at_least`` so many; a rewrite that leaves a text as it is passes it on to the next."""
    rewrites = REWRITES[set_name]
    names = list(rewrites)
    probes: list[Probe] = []
    used: dict[str, set[str]] = {note.note_id: set() for note in notes}
    for rounds in range(len(names)):
        if rounds and len(probes) >= at_least:
            break
        for number, note in enumerate(notes):
            for name in _from(names, number + rounds):
                text = rewrites[name](note.reference)
                if name not in used[note.note_id] and text != note.reference:
                    used[note.note_id].add(name)
                    probes.append(_probe(note, set_name, name, Truth.SAFE, text))
                    break
    return probes


def _from(names: Sequence[str], turn: int) -> list[str]:
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def _probe(note: Note, set_name: str, kind: str, truth: Truth, text: str) -> Probe:
    probe_id = f"{set_name}:{kind}:{note.note_id}" if set_name in REWRITES else f"{set_name}:{note.note_id}"
    return Probe(probe_id, set_name, kind, truth, note.vignette_id, note.reference, text)
