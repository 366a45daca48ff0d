"""The files of seeds, ``train.jsonl`` and ``val.jsonl``: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openrlhf_medical.data.files import decode_utf8, read_bytes
from openrlhf_medical.data.medec import squeeze
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import ERROR_TYPES
from openrlhf_medical.game.prompts import check_seed
from openrlhf_medical.game.seeds import Category, Seed

CLEAN, CORRECTED, ERROR = "clean", "corrected", "error"
"""What ``Seed.origin`` can be."""

_TEXT_KEYS = ("seed_id", "note_id", "vignette_id", "seed_note", "reference_note")
_OPTIONAL_TEXT_KEYS = ("error_sentence", "corrected_sentence")
_REQUIRED_KEYS = (*_TEXT_KEYS, "category", "origin")
_KEYS = tuple(Seed.__dataclass_fields__)


def seeds_to_jsonl(seeds: Iterable[Seed]) -> bytes:
    """The bytes of a file of seeds: UTF-8, letters as they are, a line feed after every seed."""
    return "".join(json.dumps(seed.to_json(), ensure_ascii=False) + "\n" for seed in seeds).encode("utf-8")


def read_seeds(path: Path) -> list[Seed]:
    """Read a file of seeds.

    Lines of white space are passed over. Raises UserError, with file, line and key, on a line that is
    not JSON or not a seed, on a seed_id that comes twice, and on a file without seeds.
    """
    text = decode_utf8(read_bytes(path, "a file that `openrlhf-medical prepare-data` wrote"), path)
    seeds: list[Seed] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        seed = _seed(line, where)
        if seed.seed_id in line_of:
            raise UserError(
                f"{where}: seed_id {seed.seed_id!r} stands in line {line_of[seed.seed_id]} already. "
                "Give every seed an ID of its own."
            )
        line_of[seed.seed_id] = number
        seeds.append(seed)
    if not seeds:
        raise UserError(f"{path}: holds no seeds. Write it anew with `openrlhf-medical prepare-data`.")
    return seeds


def known_from(held_out: Iterable[Seed], training: Iterable[Seed]) -> int:
    """How many held-out seeds training knows: by their vignette, or by either text, white space aside."""
    vignettes, texts = set(), set()
    for seed in training:
        vignettes.add(seed.vignette_id)
        texts |= {squeeze(seed.seed_note), squeeze(seed.reference_note)}
    return sum(
        seed.vignette_id in vignettes or bool({squeeze(seed.seed_note), squeeze(seed.reference_note)} & texts)
        for seed in held_out
    )


def _seed(line: str, where: str) -> Seed:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: is not JSON ({error}). Every line must be one whole JSON object; mend or delete the line."
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: found a JSON {type(row).__name__}; allowed is one JSON object a line.")
    missing = [key for key in _REQUIRED_KEYS if key not in row]
    unknown = [key for key in row if key not in _KEYS]
    if missing or unknown:
        found = " and ".join(
            f"{word} {', '.join(keys)}" for word, keys in (("missing keys", missing), ("unknown keys", unknown)) if keys
        )
        raise UserError(f"{where}: {found}. Allowed keys: {', '.join(_KEYS)}.")
    _check_values(row, where)
    seed = Seed.from_json(row)
    try:
        check_seed(seed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return seed


def _check_values(row: dict[str, Any], where: str) -> None:
    def check(key: str, right: bool, allowed: str) -> None:
        if not right:
            raise UserError(f"{where}: key {key} is {str(row[key])[:80]!r}; allowed: {allowed}. Change the value.")

    for key in _TEXT_KEYS:
        check(key, isinstance(row[key], str) and bool(row[key].strip()), "a text that is not empty")
    for key in _OPTIONAL_TEXT_KEYS:
        check(key, row.get(key) is None or isinstance(row[key], str), "a text or null")
    check("category", row["category"] in list(Category), ", ".join(Category))
    harmful = Category(row["category"]).is_harmful
    origins = [ERROR] if harmful else [CLEAN, CORRECTED]
    check("origin", row["origin"] in origins, f"{' or '.join(origins)}, as the category is {row['category']}")
    check("error_type", row.get("error_type") in (None, *ERROR_TYPES), f"{', '.join(ERROR_TYPES)} or null")
    sentences = row.get("sentences", [])
    check("sentences", isinstance(sentences, list) and all(isinstance(s, str) for s in sentences), "a list of texts")
