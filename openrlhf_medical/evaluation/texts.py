"""The notes that are evaluated on: a MEDEC file, the embedded corpus, or the seeds of prepare-data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_medical.data.medec import read_medec, squeeze
from openrlhf_medical.data.prepare import SYNTHETIC, synthetic_note
from openrlhf_medical.data.seed_files import CORRECTED, read_seeds
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.edits import sentence_spans
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.seeds import Seed

HELD_OUT_SPLITS = ("unseen_renderings", "unseen_conditions")
"""Of the embedded corpus: what ``--data synthetic`` means."""


@dataclass
class Texts:
    """Notes with their vignettes; ``ids`` of all notes of the source, those that a limit left out included;
    ``remarks`` on what was passed over or odd."""

    source: str
    notes: list[Note]
    ids: list[str]
    remarks: Counter[str] = field(default_factory=Counter)

    @property
    def vignettes(self) -> int:
        return len({note.vignette_id for note in self.notes})

    @property
    def errors(self) -> int:
        return sum(note.has_error for note in self.notes)


def load_texts(source: str, limit: int | None = None, seed: int = 0) -> Texts:
    """The notes of ``source``: a MEDEC CSV or a folder of them, ``synthetic`` (its held-out notes),
    ``synthetic:SPLIT``, or a ``.jsonl`` of seeds. With ``limit`` so many of them: see ``some_vignettes``.

    Raises:
        UserError: the source cannot be read, or ``limit`` allows no whole vignette.
    """
    remarks: Counter[str] = Counter()
    if source.partition(":")[0] == SYNTHETIC:
        notes = _synthetic(source)
    elif source.endswith(".jsonl"):
        notes = notes_of_seeds(read_seeds(Path(source)))
    else:
        found = read_medec(Path(source))
        notes, remarks = found.notes, found.skipped + found.remarks
    ids = [note.note_id for note in notes]
    return Texts(source, notes if limit is None else some_vignettes(notes, limit, seed), ids, remarks)


def some_vignettes(notes: Sequence[Note], limit: int, seed: int) -> list[Note]:
    """Whole vignettes drawn by ``seed``, at most ``limit`` notes and as many as fit, in the notes' order.

    Twins stay together: half a vignette would tell less of the false positives on the same patient.
    """
    size = Counter(note.vignette_id for note in notes)
    drawn = random.Random(f"{seed} evaluate").sample(sorted(size), len(size))
    kept: set[str] = set()
    room = limit
    for vignette in drawn:
        if size[vignette] <= room:
            kept.add(vignette)
            room -= size[vignette]
    if not kept:
        raise UserError(f"--limit is {limit}, and the smallest vignette has {min(size.values())} notes: allow more")
    return [note for note in notes if note.vignette_id in kept]


def notes_of_seeds(seeds: Sequence[Seed]) -> list[Note]:
    """Each seed note once, whatever the categories of its seeds. A corrected text is another note than its
    original, and its ID says so."""
    notes: dict[str, Note] = {}
    for seed in seeds:
        note_id = f"{seed.note_id}-corrected" if seed.origin == CORRECTED else seed.note_id
        if note_id not in notes:
            notes[note_id] = _note_of(seed, note_id)
    return list(notes.values())


def sentences_of(note: Note) -> tuple[str, ...]:
    """The data's own sentences, or those that punctuation makes."""
    return note.sentences or tuple(note.text[start:end] for start, end in sentence_spans(note.text))


def _synthetic(source: str) -> list[Note]:
    from openrlhf_medical.data import synthetic

    split = source.partition(":")[2]
    if ":" in source and split not in synthetic.SPLITS:
        raise UserError(f"--data {source}: the embedded corpus has no part {split!r}; allowed: "
                        f"{', '.join(synthetic.SPLITS)}")  # fmt: skip
    splits = (split,) if split else HELD_OUT_SPLITS
    return [synthetic_note(row) for part in splits for row in synthetic.generate(part)]


def _note_of(seed: Seed, note_id: str) -> Note:
    plain = Note(note_id, seed.seed_note, seed.vignette_id, seed.sentences)
    if not seed.category.is_harmful:
        return plain
    sentences = sentences_of(plain)
    wanted = squeeze(seed.error_sentence or "")
    # A seed names its wrong sentence by its words; one that is not in its list can be named by no number.
    number = next((k for k, text in enumerate(sentences) if wanted and squeeze(text) == wanted), len(sentences))
    return Note(
        note_id, seed.seed_note, seed.vignette_id, sentences, seed.error_type, number,
        seed.error_sentence, seed.corrected_sentence, seed.reference_note,
    )  # fmt: skip
