"""A run folder as the report sees it: figures by step, games, configuration, and what is wrong with the files."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.report.lines import Problem, Reader, listed, number_of
from openrlhf_medical.report.settings import flat

Row = dict[str, Any]
Figures = dict[int, dict[str, float]]
"""step → name → value; a figure that was no number (null) is absent."""

MARKS = ("metrics.jsonl", "games.jsonl", "config.yaml")
"""A folder with one of these is a run."""

EVAL = "eval/"
GAME_KEYS = frozenset({
    "step", "game_idx", "category", "note_id", "seed_note", "reference_note", "presented_note", "status", "attacker",
    "assessor", "label", "seed_id", "attack_idx", "assessment_idx", "groups", "case", "faithful", "booked", "reason",
    "judge_failures", "held_out", "vignette_id", "error_type",
})  # fmt: skip
TURN_KEYS = frozenset({
    "thinking", "answer", "verdict", "status", "reward", "trained", "policy_version", "player", "frozen",
})  # fmt: skip
NEEDED_GAME_KEYS = ("category", "status", "case", "seed_note")
_WARNING = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\S* (?:WARNING|ERROR|CRITICAL) openrlhf_medical\S*: (.+)$")


@dataclass(slots=True)
class RunFiles:
    """Everything that was read of one run. ``train`` and ``held_out`` are figures by step; ``held_out`` has lost the
    prefix ``eval/``. ``games`` are rows of games.jsonl in their order, the last one of each (step, game_idx)."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    environment: Row = field(default_factory=dict)
    train: Figures = field(default_factory=dict)
    held_out: Figures = field(default_factory=dict)
    warm_start: Figures = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    games: list[Row] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    arena: Row = field(default_factory=dict)
    evaluations: list[tuple[str, Row]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    state: str = ""
    finished: bool = False

    @property
    def steps_planned(self) -> int | None:
        steps = self.config.get("run.steps")
        return steps if isinstance(steps, int) else None

    def is_held_out(self, game: Row) -> bool:
        """Games before and after training are told by their step: training plays steps 0 to run.steps - 1."""
        if isinstance(given := game.get("held_out"), bool):
            return given
        step = game["step"]
        if step < 0 or (self.steps_planned is not None and step >= self.steps_planned):
            return True
        return step in self.held_out and step not in self.train


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in MARKS)


def read_run(folder: Path, *, games: bool = True) -> RunFiles:
    """Raises UserError where the folder is not there or holds nothing of a run."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder of a run (runs/NAME) or of a sweep")
    if not is_run(folder):
        raise UserError(f"{folder} holds no run: none of {', '.join(MARKS)} is in it")
    reader = Reader(folder)
    config = flat(reader.yaml_object("config.yaml", missing="missing: no configuration can be shown"))
    name = config.get("run.name")
    run = RunFiles(folder, str(name) if name is not None else folder.resolve().name, config)
    run.environment = reader.json_object("environment.json", missing="missing: versions and hardware are not known")
    _read_figures(run, reader)
    if games:
        run.games = _read_games(reader)
    for _, row in reader.json_lines("warm_start.jsonl", missing=None):
        if (step := number_of(row, "step")) is not None:
            run.warm_start[step] = _figures(row)
    run.warnings = [found.groups() for line in reader.text("run.log").splitlines() if (found := _WARNING.match(line))]  # type: ignore[misc]
    run.arena = reader.json_object("arena.json", missing=None)
    run.evaluations = _evaluations(reader)
    run.state, run.finished = _state(run)
    run.problems = reader.problems
    return run


def _read_figures(run: RunFiles, reader: Reader) -> None:
    """A line's figures with ``eval/`` are held-out ones. A step that was done again after a resume: the last wins,
    each of the two kinds on its own."""
    again: Counter[str] = Counter()
    stepless = 0
    for _, row in reader.json_lines("metrics.jsonl", missing="missing: the run has not finished a step"):
        step = number_of(row, "step")
        if step is None:
            stepless += 1
            continue
        figures = _figures(row)
        evals = {key.removeprefix(EVAL): value for key, value in figures.items() if key.startswith(EVAL)}
        own = {key: value for key, value in figures.items() if not key.startswith(EVAL)}
        for kind, into, given in (("training", run.train, own), ("held-out", run.held_out, evals)):
            if given:
                again[kind] += step in into
                into[step] = given
        if own and isinstance(time := row.get("time"), int | float):
            run.times[step] = float(time)
    run.train, run.held_out = dict(sorted(run.train.items())), dict(sorted(run.held_out.items()))
    if stepless:
        reader.tell("metrics.jsonl", f"{stepless} lines have no whole number as step: left out")
    for kind, count in again.items():
        if count:
            reader.tell("metrics.jsonl", f"{count} {kind} steps are there more than once (done again after a resume): "
                                         "the last line of each counts")  # fmt: skip
    if not run.train and (reader.folder / "metrics.jsonl").exists():
        reader.tell("metrics.jsonl", "no training step in it yet")


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in row.items()
        if key not in ("step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _read_games(reader: Reader) -> list[Row]:
    found: dict[tuple[Any, ...], Row] = {}
    unkeyed: list[int] = []
    unknown: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    again = 0
    for number, row in reader.json_lines("games.jsonl", missing="missing: there are no games to show"):
        step, game_idx = number_of(row, "step"), number_of(row, "game_idx")
        if step is None or game_idx is None:
            unkeyed.append(number)
            continue
        for key in row.keys() - GAME_KEYS:
            unknown[key] += 1
        for role in ("attacker", "assessor"):
            for key in _turn_of(row, role, reader, number).keys() - TURN_KEYS:
                unknown[f"{role}.{key}"] += 1
        for key in NEEDED_GAME_KEYS:
            lacking[key] += key not in row
        name = (step, game_idx, row.get("held_out"))
        again += found.pop(name, None) is not None
        found[name] = row
    if unkeyed:
        reader.tell("games.jsonl", f"{len(unkeyed)} lines have no step or game_idx "
                                   f"(line {listed(map(str, unkeyed))}): left out")  # fmt: skip
    if unknown:
        named = listed(f"{key} ({count} lines)" for key, count in sorted(unknown.items()))
        reader.tell("games.jsonl", f"fields that this version does not know, and does not show: {named}")
    if missing := listed(f"{key} ({count} lines)" for key, count in lacking.items() if count):
        reader.tell("games.jsonl", f"lines without {missing}: written by another version; shown as unknown")
    if again:
        reader.tell("games.jsonl", f"{again} games were played again after a resume: the last line of each counts")
    return list(found.values())


def _turn_of(row: Row, role: str, reader: Reader, number: int) -> Row:
    """The turn, made sound in place: what is no object is nothing."""
    for key in (role, "label", "booked"):
        if row.get(key) is not None and not isinstance(row[key], dict):
            reader.tell("games.jsonl", f"line {number}: {key} is no object: not shown")
            row[key] = None
    turn = row.get(role) or {}
    if turn and not isinstance(turn.get("reward"), dict):
        turn["reward"] = {}
    return turn


def _evaluations(reader: Reader) -> list[tuple[str, Row]]:
    """JSON files of ``openrlhf-medical evaluate`` in the run's folder or its folder ``evaluations``."""
    names = sorted(
        str(path.relative_to(reader.folder))
        for pattern in ("*.json", "evaluations/*.json", "evaluation/*.json")
        for path in reader.folder.glob(pattern)
        if path.name not in ("environment.json", "arena.json", "sweep.json")
    )
    found = [(name, reader.json_object(name, missing=None)) for name in names]
    return [(name, row) for name, row in found if isinstance(row.get("metrics"), dict)]


def _state(run: RunFiles) -> tuple[str, bool]:
    done, planned = len(run.train), run.steps_planned
    checkpoints = run.folder / "checkpoints"
    count = f"{done} of {planned} steps" if planned is not None else f"{done} steps"
    for name, word in (("collapsed", "stopped after a collapse"), ("interrupted", "interrupted")):
        if (checkpoints / name).exists():
            return f"{word} after {count}", True
    if (checkpoints / "final").exists() and (planned is None or done >= planned):
        return f"finished, {count}", True
    return f"{count} so far (running, or ended early)", False
