"""Games as a page carries them: a light table of all, and their texts in compressed parts that are opened on demand.

``index``    one list a column, one entry a game: what the list shows and filters by.
``details``  parts of ``GAMES_PER_PART`` games; a text is the number of a string.
``strings``  parts of ``STRINGS_PER_PART`` strings, each once: notes come again in every step.
A part is gzip in base64. Text is never part of the page's markup.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_medical.report.outcomes import OUTCOMES, outcome_of, truth_of, verdict_of
from openrlhf_medical.report.run_files import RunFiles
from openrlhf_medical.report.word_diff import changed_words, word_diff

Row = dict[str, Any]

GAMES_PER_PART = 500
STRINGS_PER_PART = 2000
BUDGET_BYTES = 20_000_000
"""Of all parts together, as they stand in the page: the file stays under 25 MB with the chart library (2 MB)."""

_LABEL_FACTS = frozenset({
    "source", "status", "actual_harm", "error_present", "error_detected", "assessor_correct", "error_realistic",
    "note_valid", "is_parsing_error", "unassessable", "kind", "model", "cached",
})  # fmt: skip
"""Fields of a label that hold no clinical text."""


@dataclass(frozen=True, slots=True)
class Packed:
    """``total`` games were read, ``shown`` are in the page."""

    index: str
    details: list[str]
    strings: list[str]
    total: int
    shown: int

    @property
    def size(self) -> int:
        return len(self.index) + sum(map(len, self.details)) + sum(map(len, self.strings))


def pack_games(run: RunFiles, *, texts: bool, budget: int = BUDGET_BYTES) -> Packed:
    """All games, or as many, evenly spread over the run, as fit into ``budget`` bytes."""
    games = run.games
    packed = _pack(run, games, texts)
    while packed.size > budget and packed.shown > 1:
        keep = max(1, min(packed.shown - 1, int(packed.shown * budget / packed.size * 0.97)))
        games = [run.games[i * len(run.games) // keep] for i in range(keep)]
        packed = _pack(run, games, texts)
    return packed


def compressed(value: Any) -> str:
    """JSON, gzipped, in base64. ASCII JSON, so that a lone surrogate (a model can write one) survives."""
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def _pack(run: RunFiles, games: Sequence[Row], texts: bool) -> Packed:
    pool = _Strings(texts)
    details = [_detail(row, pool) for row in games]
    index = {
        "step": [row["step"] for row in games],
        "game": [row["game_idx"] for row in games],
        "held_out": [int(run.is_held_out(row)) for row in games],
        "category": [str(row.get("category") or "unknown") for row in games],
        "status": [str(row.get("status") or "unknown") for row in games],
        "outcome": [outcome_of(row) for row in games],
        "truth": [truth_of(row) for row in games],
        "verdict": [verdict_of(row) for row in games],
        "note": [str(row.get("note_id") or "") for row in games],
        "attacker": [_total(row, "attacker") for row in games],
        "assessor": [_total(row, "assessor") for row in games],
        "changed": [detail["changed"] for detail in details],
        "outcomes": OUTCOMES,
        "games_per_part": GAMES_PER_PART,
        "strings_per_part": STRINGS_PER_PART,
        "texts": texts,
    }
    return Packed(
        compressed(index),
        [compressed(details[i : i + GAMES_PER_PART]) for i in range(0, len(details), GAMES_PER_PART)],
        [compressed(pool.all[i : i + STRINGS_PER_PART]) for i in range(0, len(pool.all), STRINGS_PER_PART)],
        total=len(run.games),
        shown=len(games),
    )


class _Strings:
    """Every string once, by number; none at all where texts stay out."""

    def __init__(self, kept: bool) -> None:
        self.kept = kept
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}
        self._diffs: dict[tuple[str, str], list[int]] = {}

    def number(self, text: Any) -> int | None:
        if not self.kept or text is None or text == "":
            return None
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]

    def diff(self, before: str, after: str) -> list[int]:
        if (before, after) not in self._diffs:
            self._diffs[before, after] = word_diff(before, after)
        return self._diffs[before, after]


def _detail(row: Row, pool: _Strings) -> Row:
    seed, reference, presented = (_text(row.get(key)) for key in ("seed_note", "reference_note", "presented_note"))
    detail: Row = {
        "seed": pool.number(seed),
        "reference": pool.number(reference),
        "presented": pool.number(presented),
        "case": row.get("case"),
        "faithful": row.get("faithful"),
        "reason": pool.number(row.get("reason")),
        "failures": pool.number("\n".join(map(str, row.get("judge_failures") or []))),
        "booked": row.get("booked") or {},
        "attacker": _turn(row.get("attacker"), pool),
        "assessor": _turn(row.get("assessor"), pool),
        "label": _label(row.get("label"), pool),
        "changed": None,
    }
    if presented is not None and seed is not None:
        diff = pool.diff(seed, presented)
        detail["changed"] = changed_words(seed, presented, diff)
        if pool.kept:
            detail["from_seed"] = diff
            detail["from_reference"] = pool.diff(reference, presented) if reference is not None else None
    return detail


def _turn(turn: Row | None, pool: _Strings) -> Row | None:
    if not turn:
        return None
    kept = {
        key: turn.get(key) for key in ("verdict", "status", "reward", "trained", "policy_version", "player", "frozen")
    }
    return kept | {"thinking": pool.number(turn.get("thinking")), "answer": pool.number(turn.get("answer"))}


def _label(label: Row | None, pool: _Strings) -> Row | None:
    """Facts as they are, everything else (the judge's reasoning, a panel's findings) as text."""
    if not label:
        return None
    facts = {key: value for key, value in label.items() if key in _LABEL_FACTS and value is not None}
    rest = {
        key: pool.number(value)
        for key, value in label.items()
        if key not in _LABEL_FACTS and key != "game_idx" and value not in (None, "", [], {})
    }
    return {"facts": facts, "texts": {key: number for key, number in rest.items() if number is not None}}


def _total(row: Row, role: str) -> float | None:
    """What a role earned: its own components, else those booked for it."""
    earned = (row.get(role) or {}).get("reward") or (row.get("booked") or {}).get(role)
    if not isinstance(earned, dict) or not earned:
        return None
    return round(sum(value for value in earned.values() if isinstance(value, int | float)), 4)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
