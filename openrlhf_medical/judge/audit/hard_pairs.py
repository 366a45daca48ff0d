"""The hard pairs (``judge/hard_pairs.yaml``): small changes that matter, and larger ones that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.audit.probes import HARD_HELD_OUT, HARD_OPEN, IDENTICAL, Probe

FILE = resources.files("openrlhf_medical.judge") / "hard_pairs.yaml"

KINDS = (
    *("dose", "unit", "lookalike_drug", "route", "frequency", "laterality", "polarity", "temporal_order"),
    *("contraindication", "organism", "diagnosis", "formatting", "abbreviation", "synonym", IDENTICAL),
    *("late_edit", "injection"),
)
MIN_PAIRS = 120
MAX_IMBALANCE = 0.05
"""Largest |Harmful - Safe| as a share of all pairs; held for the open and for the held-out ones."""

_REQUIRED, _OPTIONAL = {"id", "kind", "truth", "reason", "note"}, {"edits", "changed", "held_out"}


class BadPairs(ValueError):
    """The file says something that it must not; the message names the pair."""


def hard_probes() -> list[Probe]:
    """Every pair of the repository's file, validated; see ``probes_of``."""
    return probes_of(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def probes_of(rows: Any) -> list[Probe]:
    """Every pair of what such a file holds.

    Raises:
        BadPairs: anything that is not as the file's head describes it, too few pairs, or unbalanced ones.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadPairs("hard pairs: must be a list of mappings")
    probes = [_probe(row) for row in rows]
    _check_whole(probes)
    return probes


def _probe(row: Mapping[str, Any]) -> Probe:
    name = row.get("id")
    if missing := sorted(_REQUIRED - row.keys()):
        raise BadPairs(f"hard pair {name!r}: lacks {', '.join(missing)}")
    if unknown := sorted(row.keys() - _REQUIRED - _OPTIONAL):
        raise BadPairs(f"hard pair {name!r}: unknown keys {', '.join(unknown)}")
    for key in _REQUIRED:
        if not isinstance(row[key], str) or not row[key].strip():
            raise BadPairs(f"hard pair {name!r}: {key} must be a text that is not empty")
    if row["kind"] not in KINDS or row["truth"] not in list(Truth):
        raise BadPairs(f"hard pair {name!r}: kind {row['kind']!r} or truth {row['truth']!r} is not an allowed one")
    if not isinstance(row.get("held_out", False), bool):
        raise BadPairs(f"hard pair {name!r}: held_out must be true or false")
    note, changed = row["note"], _changed(row)
    if (changed == note) is not (row["kind"] == IDENTICAL):
        raise BadPairs(f"hard pair {name!r}: pairs of kind {IDENTICAL} are equal, all others are not")
    set_name = HARD_HELD_OUT if row.get("held_out", False) else HARD_OPEN
    # Pairs on the same note are not independent: the note names the vignette.
    return Probe(f"hard:{name}", set_name, row["kind"], Truth(row["truth"]), note, note, changed)


def _changed(row: Mapping[str, Any]) -> str:
    """The changed note: given whole, or the note with its edits."""
    if "changed" in row and "edits" in row:
        raise BadPairs(f"hard pair {row['id']!r}: has both edits and changed")
    if "changed" in row:
        if not isinstance(row["changed"], str) or not row["changed"].strip():
            raise BadPairs(f"hard pair {row['id']!r}: changed must be a text that is not empty")
        return str(row["changed"])
    note: str = row["note"]
    edits = row.get("edits", [])
    if not isinstance(edits, list):
        raise BadPairs(f"hard pair {row['id']!r}: edits must be a list of [from, to]")
    for edit in edits:
        if not (isinstance(edit, list) and len(edit) == 2 and all(isinstance(part, str) for part in edit)):
            raise BadPairs(f"hard pair {row['id']!r}: an edit must be [from, to], two texts (quote numbers)")
        if (found := row["note"].count(edit[0])) != 1 or note.count(edit[0]) != 1:
            raise BadPairs(f"hard pair {row['id']!r}: {edit[0]!r} stands {found} times in the note, not once")
        note = note.replace(edit[0], edit[1])
    return note


def _check_whole(probes: list[Probe]) -> None:
    if twice := [name for name, count in Counter(probe.probe_id for probe in probes).items() if count > 1]:
        raise BadPairs(f"hard pairs: IDs that come twice: {', '.join(twice)}")
    if len(probes) < MIN_PAIRS:
        raise BadPairs(f"hard pairs: found {len(probes)}; at least {MIN_PAIRS} are needed")
    if absent := [kind for kind in KINDS if kind not in {probe.kind for probe in probes}]:
        raise BadPairs(f"hard pairs: none of kind {', '.join(absent)}")
    for set_name in (HARD_OPEN, HARD_HELD_OUT):
        truths = [probe.truth for probe in probes if probe.set_name == set_name]
        harmful = truths.count(Truth.HARMFUL)
        if abs(2 * harmful - len(truths)) > MAX_IMBALANCE * len(truths):
            raise BadPairs(f"hard pairs: {harmful} of {len(truths)} in the set {set_name!r} are Harmful: not balanced")
