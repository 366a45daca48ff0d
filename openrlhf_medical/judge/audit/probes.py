"""Probes: pairs of which it is known, before any judge is asked, whether the note is Safe or Harmful."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.data import synthetic
from openrlhf_medical.data.medec import read_medec
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.edits import is_copy
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit.cosmetic import COSMETIC

GOLD, COSMETIC_SET, IDENTICAL = "gold", "cosmetic", "identical"
HARD_OPEN, HARD_HELD_OUT = "hard", "hard (held out)"
"""Sets: figures are told for each by itself. Gold and cosmetic probes together make the judge's accuracy."""

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


def cosmetic_probes(notes: Sequence[Note], at_least: int) -> list[Probe]:
    """Clean texts, each rewritten in turn by another rewrite: Safe. One for each note, and more until there are
    ``at_least`` so many; a rewrite that leaves a text as it is passes it on to the next."""
    probes: list[Probe] = []
    names = list(COSMETIC)
    for rounds in range(len(names)):
        if rounds and len(probes) >= at_least:
            break
        for number, note in enumerate(notes):
            turn = number + rounds * (len(names) // 2 + 1)
            # From the second round on a pair may have come up before.
            known = {probe.kind for probe in probes if probe.vignette_id == note.vignette_id} if rounds else set()
            name = next((name for name in _turned(names, turn) if name not in known and _changes(name, note)), None)
            if name is not None:
                probes.append(_probe(note, COSMETIC_SET, name, Truth.SAFE, COSMETIC[name](note.reference)))
    return probes


def _turned(names: Sequence[str], turn: int) -> Iterator[str]:
    start = turn % len(names)
    yield from names[start:]
    yield from names[:start]


def _changes(name: str, note: Note) -> bool:
    return COSMETIC[name](note.reference) != note.reference


def _probe(note: Note, set_name: str, kind: str, truth: Truth, text: str) -> Probe:
    probe_id = f"{set_name}:{note.note_id}" if set_name != COSMETIC_SET else f"{set_name}:{kind}:{note.note_id}"
    return Probe(probe_id, set_name, kind, truth, note.vignette_id, note.reference, text)
