"""Draw seeds from notes so that no category and no origin gives the label away.

Every file holds the four categories in equal numbers, and its clean seed notes come half from notes that
never had an error and half from Corrected Texts: from one kind alone, writing style would tell the label.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openrlhf_medical.data.medec import squeeze
from openrlhf_medical.data.seed_files import CLEAN, CORRECTED, ERROR
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.seeds import Category, Seed

UNITS = (2 * len(Category), len(Category))
"""A file's size is a multiple of 8, so that the clean seeds of each category halve exactly. Only where a
file must be smaller is it a multiple of 4; the odd clean note then goes once to either kind."""

_ORIGINS = {
    Category.VANILLA_HARMFUL: (ERROR,),
    Category.ADVERSARIAL_HARMFUL: (ERROR,),
    Category.VANILLA_BENIGN: (CLEAN, CORRECTED),
    Category.ADVERSARIAL_BENIGN: (CORRECTED, CLEAN),
}
"""The origins that a category's seeds take in turn."""


@dataclass(frozen=True)
class Stock:
    """The notes that one file may draw from, by the origin of a seed. No text comes twice in a list."""

    error: list[Note]
    clean: list[Note]
    corrected: list[Note]

    @classmethod
    def of(cls, notes: Sequence[Note]) -> Stock:
        """Notes with an error count twice: as they are, and by their Corrected Text."""
        wrong = [note for note in notes if note.has_error]
        right = [note for note in notes if not note.has_error]
        # The first of several notes that differ in white space alone stands for all of them.
        by_text = [
            list({squeeze(text): note for note, text in reversed(pairs)}.values())[::-1]
            for pairs in (
                [(note, note.text) for note in wrong],
                [(note, note.text) for note in right],
                [(note, note.reference) for note in wrong],
            )
        ]
        return cls(*by_text)

    @property
    def per_category(self) -> int:
        """The most seeds that every category can have when a note serves once in each."""
        return min(len(self.error), 2 * len(self.clean), 2 * len(self.corrected))


def file_sizes(train: Stock, val: Stock, num_samples: int | None, train_ratio: float) -> tuple[int, int]:
    """How many seeds go into either file: as many as asked for, or None for as many as there can be.

    ``num_samples`` is rounded down to what balances exactly. Raises UserError when that leaves nothing,
    or when it is more than the notes allow.
    """
    smallest = 2 * UNITS[-1]
    if num_samples is not None and num_samples < smallest:
        raise UserError(
            f"--num-samples is {num_samples}; allowed: at least {smallest}, one of each of the "
            f"{len(Category)} categories in both train.jsonl and val.jsonl."
        )
    for unit in UNITS:
        most_train, most_val = (stock.per_category * len(Category) // unit for stock in (train, val))

        def parts(units: int) -> tuple[int, int]:
            in_train = min(max(math.floor(units * train_ratio + 0.5), 1), units - 1)
            return in_train, units - in_train

        # Both parts grow with the whole, so every smaller number is possible too.
        possible = most_train + most_val
        while possible > 1 and not (parts(possible)[0] <= most_train and parts(possible)[1] <= most_val):
            possible -= 1
        wanted = possible if num_samples is None else num_samples // unit
        if possible < 2 or wanted < 2:
            continue
        if wanted > possible:
            raise UserError(
                f"--num-samples is {num_samples}, but this source gives at most {possible * unit} with a "
                f"--train-ratio of {train_ratio:g}: a note serves at most once in each category. Ask for fewer."
            )
        in_train, in_val = parts(wanted)
        return in_train * unit, in_val * unit
    raise UserError(
        f"too few notes for both files: train.jsonl can draw on {_counts(train)}, val.jsonl on {_counts(val)}, "
        "and each needs at least one of every kind. Name a larger source or another --train-ratio."
    )


def draw_seeds(stock: Stock, size: int, part_of: Mapping[str, str], rng: random.Random) -> list[Seed]:
    """Draw ``size`` seeds, a multiple of 4 that ``stock`` can give.

    They are in an order whose every stretch of four seeds, counted from the start, holds each category
    once, and whose every eight hold clean and corrected notes equally. ``part_of`` maps a note's ID to
    what its seeds' IDs begin with.
    """
    # One endless row of notes per origin: a category goes on where the one before it stopped, so the
    # categories share as few notes as they must, and none meets a note twice.
    supply = {
        origin: itertools.cycle(rng.sample(notes, len(notes)))
        for origin, notes in ((ERROR, stock.error), (CLEAN, stock.clean), (CORRECTED, stock.corrected))
    }
    rows = []
    for category in Category:
        origins = itertools.islice(itertools.cycle(_ORIGINS[category]), size // len(Category))
        chosen = [(origin, next(supply[origin])) for origin in origins]
        rows.append([_seed(category, origin, note, part_of[note.note_id]) for origin, note in chosen])
    seeds: list[Seed] = []
    for block in zip(*rows, strict=True):
        seeds.extend(rng.sample(block, len(block)))
    return seeds


def corrected_sentences(note: Note) -> tuple[str, ...]:
    """The sentences of an error note's Corrected Text.

    MEDEC does not list them. Putting the corrected sentence in its place gives them nearly always; where
    it does not give the Corrected Text, white space aside, none are returned.
    """
    if note.corrected_sentence is None or not 0 <= note.error_sentence_id < len(note.sentences):
        return ()
    before, after = note.sentences[: note.error_sentence_id], note.sentences[note.error_sentence_id + 1 :]
    sentences = (*before, note.corrected_sentence.strip(), *after)
    return sentences if squeeze("".join(sentences)) == squeeze(note.reference) else ()


def _seed(category: Category, origin: str, note: Note, part: str) -> Seed:
    seed_id = f"{part}:{category.value}:{note.note_id}"
    # White space at the ends is dropped: MEDEC's error notes end with a blank more often than the clean ones.
    reference = note.reference.strip()
    if origin != ERROR:
        sentences = note.sentences if origin == CLEAN else corrected_sentences(note)
        return Seed(
            seed_id, category, note.note_id, note.vignette_id, origin, reference, reference, sentences=sentences
        )
    return Seed(
        seed_id,
        category,
        note.note_id,
        note.vignette_id,
        origin,
        note.text.strip(),
        reference,
        error_type=note.error_type,
        error_sentence=note.error_sentence,
        corrected_sentence=note.corrected_sentence,
        sentences=note.sentences,
    )


def _counts(stock: Stock) -> str:
    return f"{len(stock.error)} error, {len(stock.clean)} clean and {len(stock.corrected)} corrected notes"
