"""Held-out seeds: notes in new words, and notes about conditions that training never saw."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from openrlhf_medical.data.conditions import load_conditions
from openrlhf_medical.data.files import write_files
from openrlhf_medical.data.medec import squeeze
from openrlhf_medical.data.seed_files import CLEAN, ERROR, seeds_to_jsonl
from openrlhf_medical.data.synthetic import SyntheticRow, generate
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.seeds import Category, Seed

PARTS = ("unseen_renderings", "unseen_conditions")
"""Reported apart: the first asks for reading known medicine in new words, the second for new medicine."""

GENERATED_FROM = 1_000
"""Not ``prepare-data``'s seed 0: that one's val.jsonl holds notes of the same parts, which a run watches."""


OPTIONS = "held_out.json"
"""How the held-out seeds were made, for the report."""


def held_out_seeds(
    part: str, vignettes: int, attacked: int, seed: int = GENERATED_FROM, families: Collection[str] = ()
) -> list[Seed]:
    """Both twins of each vignette as vanilla seeds, and of the first ``attacked`` vignettes as adversarial ones.

    ``families``: those of the training notes; known medicine in new words must be known. Conditions that
    training never saw come from every family.
    ``adversarial_benign`` starts from the clean twin, ``adversarial_harmful`` from the error note.
    Seed IDs begin with ``part:``, which tells the parts apart once they are played together.
    """
    wanted = families if part == "unseen_renderings" else ()
    rows = generate(part, seed=seed, num_vignettes=vignettes, families=wanted)
    names = sorted({row.vignette_id for row in rows})
    under_attack = set(names[:attacked])
    seeds = [_seed(row, part, vanilla=True) for row in rows]
    seeds += [_seed(row, part, vanilla=False) for row in rows if row.vignette_id in under_attack]
    return seeds


def _seed(row: SyntheticRow, part: str, *, vanilla: bool) -> Seed:
    harmful = bool(row.error_flag)
    if harmful:
        category = Category.VANILLA_HARMFUL if vanilla else Category.ADVERSARIAL_HARMFUL
    else:
        category = Category.VANILLA_BENIGN if vanilla else Category.ADVERSARIAL_BENIGN
    return Seed(
        seed_id=f"{part}:{category.value}:{row.text_id}",
        category=category,
        note_id=row.text_id,
        vignette_id=row.vignette_id,
        origin=ERROR if harmful else CLEAN,
        seed_note=row.text,
        reference_note=row.corrected_text or row.text,
        error_type=row.error_type,
        error_sentence=row.error_sentence,
        corrected_sentence=row.corrected_sentence,
        sentences=row.sentences,
    )


def part_of(seed_id: str) -> str:
    return seed_id.split(":", 1)[0]


def check_apart(held_out: Sequence[Seed], train: Sequence[Seed]) -> None:
    """Refuse held-out notes that training knows.

    Raises:
        UserError: a note or its reference is in the training data, white space aside, or a training note
            tells of a condition that is held out.
    """
    known = {squeeze(text) for seed in train for text in (seed.seed_note, seed.reference_note)}
    for seed in held_out:
        if squeeze(seed.seed_note) in known or squeeze(seed.reference_note) in known:
            raise UserError(f"{seed.seed_id}: this note is in the training data too; choose another --seed")
    texts = [seed.reference_note for seed in train]
    for condition in load_conditions():
        if condition.held_out:
            marks = (*condition.presentation, *condition.findings)
            if any(mark in text for mark in marks for text in texts):
                raise UserError(f"the training data has a note about {condition.name}, a condition that is held out")


def write_held_out(
    folder: Path,
    train: Sequence[Seed],
    vignettes: int,
    attacked: int,
    seed: int = GENERATED_FROM,
    families: Collection[str] = (),
) -> dict[Path, list[Seed]]:
    """Write ``<part>.jsonl`` for either part; nothing is written if anything is known to training."""
    files = {folder / f"{part}.jsonl": held_out_seeds(part, vignettes, attacked, seed, families) for part in PARTS}
    for seeds in files.values():
        check_apart(seeds, train)
    options = {"vignettes": vignettes, "attacked": attacked, "seed": seed, "families": ",".join(families)}
    written = {path: seeds_to_jsonl(seeds) for path, seeds in files.items()}
    write_files({**written, folder / OPTIONS: (json.dumps(options) + "\n").encode()})
    return files
