"""``prepare-data``: from notes to ``train.jsonl`` and ``val.jsonl``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_medical.data.balance import Stock, draw_seeds, file_sizes
from openrlhf_medical.data.download import PUBLIC_URL, fetch_medec
from openrlhf_medical.data.files import write_files
from openrlhf_medical.data.medec import read_medec
from openrlhf_medical.data.seed_files import read_seeds, seeds_to_jsonl
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.seeds import Category, Seed

if TYPE_CHECKING:
    from openrlhf_medical.data.synthetic import SyntheticRow

__all__ = ["PUBLIC_URL", "SYNTHETIC", "PrepareSummary", "prepare_data", "read_seeds", "split_vignettes"]

SYNTHETIC = "synthetic"
"""The ``--source`` that stands for the embedded corpus. A folder of that name is ``./synthetic``."""

TRAIN, VAL = "train", "val"
HELD_FOR_EVALUATION = "notes of the test set, kept for evaluation"
TWIN_OF_TEST = "notes about a vignette that the test set holds too"


@dataclass
class PrepareSummary:
    """What was read, skipped and written.

    ``counts`` is keyed by (``train`` or ``val``, category, origin), ``parts`` by (file, what the seeds' IDs
    begin with), ``vignettes`` by file. ``skipped`` counts what was passed over and ``remarks`` what was kept
    although odd, by reason; ``ignored`` maps a CSV that was passed over to the reason.
    """

    source: str
    notes: int = 0
    total_vignettes: int = 0
    requested: int | None = None
    files_read: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, str] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    counts: Counter[tuple[str, Category, str]] = field(default_factory=Counter)
    parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    vignettes: dict[str, int] = field(default_factory=dict)
    unused_notes: int = 0

    @property
    def written(self) -> int:
        return self.counts.total()

    def size(self, file: str) -> int:
        return sum(count for (name, *_), count in self.counts.items() if name == file)

    def lines(self) -> list[str]:
        """The summary as lines of plain text."""
        lines = [f"source: {self.source}"]
        lines += [f"read: {name}" for name in self.files_read]
        lines += [f"passed over: {name} {reason}" for name, reason in self.ignored.items()]
        lines.append(f"notes: {self.notes} in {self.total_vignettes} vignettes")
        lines += [f"skipped: {count} {reason}" for reason, count in self.skipped.items() if count]
        lines += [f"kept: {count} {reason}" for reason, count in self.remarks.items()]
        for file, path in self.paths.items():
            parts = ", ".join(f"{count} {part}" for (name, part), count in self.parts.items() if name == file)
            of_parts = "" if parts == f"{self.size(file)} {file}" else f" ({parts})"
            lines.append(f"wrote: {path}, {self.size(file)} seeds{of_parts} of {self.vignettes[file]} vignettes")
            for category in Category:
                origins = {o: count for (name, c, o), count in self.counts.items() if (name, c) == (file, category)}
                told = ", ".join(f"{count} {origin}" for origin, count in sorted(origins.items()))
                lines.append(f"  {category.value}: {sum(origins.values())} ({told})")
        if self.requested is not None and self.requested > self.written:
            lines.append(
                f"dropped: {self.requested - self.written} of the {self.requested} seeds asked for, "
                "so that categories and origins balance exactly"
            )
        if self.unused_notes:
            lines.append(f"left over: {self.unused_notes} notes that no seed was drawn from")
        lines.append("vignettes in both files: 0")
        return lines

    def render(self) -> str:
        return "\n".join(self.lines())


def prepare_data(
    source: str,
    output_dir: Path,
    num_samples: int | None = None,
    train_ratio: float = 0.9,
    seed: int = 0,
    download: str | None = None,
    families: Collection[str] = (),
    vignettes: int | None = None,
    wording: str = "all",
) -> PrepareSummary:
    """Write balanced ``train.jsonl`` and ``val.jsonl`` into ``output_dir``.

    ``source`` is ``synthetic``, a MEDEC CSV or a folder of them. ``download`` is the address of a folder
    with MEDEC's public files; they are fetched into ``output_dir/medec`` and read from there.
    ``num_samples`` counts the seeds of both files together, as many as balance when None; ``train_ratio``
    is the share of seeds, and of MEDEC's vignettes, that goes into training (the embedded corpus brings
    its own held-out vignettes). ``families`` keeps to a part of the embedded corpus, ``vignettes`` says how
    many of it are made for training, and ``wording`` with which of its ways of saying things. The same arguments
    give the same bytes.

    Raises UserError, and writes neither file, on a source that cannot be read, a ratio outside 0 to 1
    and a number that the source cannot give.
    """
    if not 0 < train_ratio < 1:
        raise UserError(f"--train-ratio is {train_ratio:g}; allowed: more than 0 and less than 1.")
    if download is not None:
        if source != SYNTHETIC:
            raise UserError(f"--source {source} and --download were both given. Leave one of them out.")
        folder = output_dir / "medec"
        fetch_medec(folder, download)
        source = str(folder)
    summary = PrepareSummary(source=source, requested=num_samples)
    if source != SYNTHETIC and (families or vignettes or wording != "all"):
        raise UserError(
            f"--families, --vignettes and --wording belong to the embedded corpus, but --source is {source}. "
            "Leave them out."
        )
    if source == SYNTHETIC:
        notes, part_of = _synthetic_notes(seed, summary, families, vignettes, wording)
    else:
        notes, part_of = _medec_notes(Path(source), train_ratio, seed, summary)
    stocks = {file: Stock.of(notes[file]) for file in (TRAIN, VAL)}
    sizes = file_sizes(stocks[TRAIN], stocks[VAL], num_samples, train_ratio)
    seeds = {
        file: draw_seeds(stocks[file], size, part_of, random.Random(f"{seed} {file}"))
        for file, size in zip((TRAIN, VAL), sizes, strict=True)
    }
    _count(summary, notes, seeds)
    summary.paths = {file: output_dir / f"{file}.jsonl" for file in seeds}
    write_files({summary.paths[file]: seeds_to_jsonl(drawn) for file, drawn in seeds.items()})
    return summary


def split_vignettes(notes: Sequence[Note], train_ratio: float, seed: int) -> tuple[list[Note], list[Note]]:
    """Part notes for training and validation so that no vignette is in both.

    ``train_ratio`` is the share of vignettes, kept within each kind of them (with an error note, with a
    clean note, with both), so that either side gets its share of every kind. Notes keep their order.
    """
    kinds: dict[str, set[bool]] = {}
    for note in notes:
        kinds.setdefault(note.vignette_id, set()).add(note.has_error)
    shuffled = random.Random(f"{seed} vignettes").sample(list(kinds), len(kinds))
    in_order = sorted(shuffled, key=lambda vignette: sorted(kinds[vignette]))
    # Going along the sorted row, a vignette is for training where the running share reaches a new whole number.
    reached = [int(train_ratio * place + 0.5) for place in range(len(in_order) + 1)]
    train = {vignette for place, vignette in enumerate(in_order) if reached[place + 1] > reached[place]}
    return (
        [note for note in notes if note.vignette_id in train],
        [note for note in notes if note.vignette_id not in train],
    )


def synthetic_note(row: SyntheticRow) -> Note:
    """A text of the embedded corpus as a note like any other."""
    return Note(
        note_id=row.text_id,
        text=row.text,
        vignette_id=row.vignette_id,
        sentences=tuple(row.sentences),
        error_type=row.error_type,
        error_sentence_id=row.error_sentence_id,
        error_sentence=row.error_sentence,
        corrected_sentence=row.corrected_sentence,
        corrected_text=row.corrected_text,
    )


def _synthetic_notes(
    seed: int, summary: PrepareSummary, families: Collection[str], vignettes: int | None, wording: str
) -> tuple[dict[str, list[Note]], dict[str, str]]:
    from openrlhf_medical.data import synthetic

    notes: dict[str, list[Note]] = {TRAIN: [], VAL: []}
    part_of: dict[str, str] = {}
    for split in synthetic.SPLITS:
        own = {"num_vignettes": vignettes, "wording": wording} if split == TRAIN else {}
        for row in synthetic.generate(split, seed=seed, families=families, **own):  # type: ignore[arg-type]
            note = synthetic_note(row)
            notes[TRAIN if split == TRAIN else VAL].append(note)
            part_of[note.note_id] = split
    _count_notes(summary, [*notes[TRAIN], *notes[VAL]])
    return notes, part_of


def _medec_notes(
    path: Path, train_ratio: float, seed: int, summary: PrepareSummary
) -> tuple[dict[str, list[Note]], dict[str, str]]:
    found = read_medec(path)
    summary.files_read, summary.ignored = found.files, found.ignored
    summary.skipped, summary.remarks = found.skipped, found.remarks
    _count_notes(summary, found.notes)
    usable = _without_test_set(found.notes, found.file_of, summary.skipped)
    train, val = split_vignettes(usable, train_ratio, seed)
    part_of = {note.note_id: file for file, side in ((TRAIN, train), (VAL, val)) for note in side}
    return {TRAIN: train, VAL: val}, part_of


def _without_test_set(notes: Sequence[Note], file_of: Mapping[str, str], skipped: Counter[str]) -> list[Note]:
    """Leave out the test set, and what tells its cases in other words, where a folder holds more than it.

    A model trained on them could not be evaluated on the test set. A test set that is named alone is used.
    """

    def is_test(note: Note) -> bool:
        return "testset" in file_of[note.note_id].casefold()

    tested = {note.vignette_id for note in notes if is_test(note)}
    if not tested or all(map(is_test, notes)):
        return list(notes)
    skipped[HELD_FOR_EVALUATION] = sum(map(is_test, notes))
    kept = [note for note in notes if note.vignette_id not in tested]
    skipped[TWIN_OF_TEST] = len(notes) - skipped[HELD_FOR_EVALUATION] - len(kept)
    return kept


def _count_notes(summary: PrepareSummary, notes: Sequence[Note]) -> None:
    summary.notes = len(notes)
    summary.total_vignettes = len({note.vignette_id for note in notes})


def _count(summary: PrepareSummary, notes: Mapping[str, Iterable[Note]], seeds: Mapping[str, list[Seed]]) -> None:
    vignettes = {file: {seed.vignette_id for seed in drawn} for file, drawn in seeds.items()}
    on_both_sides = vignettes[TRAIN] & vignettes[VAL]
    if on_both_sides:  # a fault of ours, not of the user's
        raise RuntimeError(f"vignettes on both sides of the split: {sorted(on_both_sides)[:5]}")
    summary.vignettes = {file: len(ids) for file, ids in vignettes.items()}
    for file, drawn in seeds.items():
        for seed in drawn:
            summary.counts[file, seed.category, seed.origin] += 1
            summary.parts[file, seed.seed_id.split(":", 1)[0]] += 1
    used = {seed.note_id for drawn in seeds.values() for seed in drawn}
    summary.unused_notes = sum(note.note_id not in used for side in notes.values() for note in side)
