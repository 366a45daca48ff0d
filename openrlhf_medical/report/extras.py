"""What other commands left in the folder: arena, evaluations, sweep. Read for what is there, refused for nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.report.lines import Problem, Reader, listed
from openrlhf_medical.report.run_files import is_run

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


# ── Arena ──


@dataclass(frozen=True, slots=True)
class Cell:
    rate: str
    detail: str
    share: float


@dataclass(frozen=True, slots=True)
class Arena:
    assessors: list[str]
    rows: list[tuple[str, list[Cell]]]
    ratings: list[list[str]]
    cycles: list[str]


def arena_of(row: Row, problems: list[Problem]) -> Arena | None:
    """``arena.json`` as tables; what is not as it should be is told in ``problems``."""
    if not row:
        return None
    cells = {
        (str(cell.get("attacker")), str(cell.get("assessor"))): cell for cell in _objects(row.get("matrix"))
    }  # fmt: skip
    attackers = _names(row.get("attackers")) or list(dict.fromkeys(a for a, _ in cells))
    assessors = _names(row.get("assessors")) or list(dict.fromkeys(b for _, b in cells))
    if not cells:
        problems.append(Problem("arena.json", "it has no matrix: left out"))
        return None
    rows = [(a, [_cell(cells.get((a, b), {})) for b in assessors]) for a in attackers]
    ratings = sorted(_objects(row.get("ratings")), key=lambda one: -_number(one.get("elo"), 0.0))
    return Arena(
        assessors,
        rows,
        [[str(one.get("player")), str(one.get("role", "")), figure(one.get("elo"), 0), interval(one, 0)]
         for one in ratings],
        [" beats ".join([*_names(cycle), _names(cycle)[0]]) for cycle in row.get("cycles") or [] if _names(cycle)],
    )  # fmt: skip


def _cell(cell: Row) -> Cell:
    if not isinstance(rate := cell.get("rate"), int | float):
        return Cell("-", "not played", 0.0)
    return Cell(f"{rate:.2f}", f"{interval(cell, 2)} · {cell.get('games', '?')} games", min(1.0, max(0.0, float(rate))))


# ── Evaluations ──


def evaluation_tables(found: Iterable[tuple[str, Row]]) -> list[dict[str, Any]]:
    """One table a file: figure, value, interval."""
    tables = []
    for name, row in found:
        rows = []
        for metric, value in row["metrics"].items():
            if isinstance(value, Mapping):
                rows.append([str(metric), figure(value.get("value"), 3), interval(value, 3)])
            elif isinstance(value, int | float):
                rows.append([str(metric), figure(value, 3), ""])
        tables.append({"name": str(row.get("model") or row.get("name") or name), "rows": rows})
    return tables


def interval(row: Row, digits: int) -> str:
    low, high = row.get("low"), row.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return ""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def figure(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def included(path: Path) -> tuple[str, dict[str, Any]]:
    """("arena" or "evaluation", content) of a file of another folder.

    Raises:
        UserError: it is neither.
    """
    reader = Reader(path.parent)
    row = reader.json_object(path.name, missing="there is no such file")
    for kind, key in (("arena", "matrix"), ("evaluation", "metrics")):
        if isinstance(row.get(key), list | dict):
            return kind, row
    why = reader.problems[0].what if reader.problems else "neither matrix nor metrics is in it"
    raise UserError(f"{path}: {why}; --include takes arena.json of an arena, or the JSON file of evaluate")


# ── Sweep ──

MOST_RUNS = 40


def is_sweep(folder: Path) -> bool:
    return (folder / "sweep.json").exists() or (folder / "summary.csv").exists() or bool(runs_of(folder))


def runs_of(folder: Path) -> list[Path]:
    """The runs directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path)) if folder.is_dir() else []


def sweep_tables(folder: Path) -> tuple[list[Table], list[Problem]]:
    """The summary as the sweep wrote it, the runs that are not finished, and what sweep.json lists."""
    reader = Reader(folder)
    tables = []
    lines = list(csv.reader(io.StringIO(reader.text("summary.csv"))))
    if len(lines) > 1:
        width = len(lines[0])
        tables.append(
            Table(
                "Summary",
                lines[0],
                [[_shown(cell) for cell in (line + [""] * width)[:width]] for line in lines[1:] if line],
            )
        )
    else:
        reader.tell("summary.csv", "missing or empty: the sweep has written no summary yet")
    jobs = sorted(path.name for path in (folder / "jobs").glob("*.json") if not path.name.endswith(".exit.json"))
    records = {name.removesuffix(".json"): reader.json_object(f"jobs/{name}", missing=None) for name in jobs}
    unfinished = [
        [name, str(record.get("state", "unknown")), str(record.get("reason") or "")]
        for name, record in records.items()
        if record.get("state") != "finished"
    ]
    if unfinished:
        tables.append(Table("Runs that are not finished", ["run", "state", "why"], unfinished))
    runs = [_one_level(row) for row in _objects(reader.json_object("sweep.json", missing=None).get("runs"))]
    if runs:
        columns = list(dict.fromkeys(name for row in runs for name in row))
        tables.append(Table("Runs", columns, [[_shown(row.get(name)) for name in columns] for row in runs]))
    return tables, reader.problems


def _one_level(row: Row) -> dict[str, Any]:
    """``{"name": …, "figures": {metric: value}}`` as one line of a table."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= {str(k): v for k, v in value.items()} if isinstance(value, Mapping) else {str(key): value}
    return found


def _shown(value: Any) -> str:
    """A cell; a long number from a CSV file is cut to what can be read."""
    if isinstance(value, str):
        try:
            return f"{float(value):.4g}" if "." in value else value
        except ValueError:
            return value
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def too_many(runs: list[Path]) -> str:
    return f"{len(runs)} runs: the first {MOST_RUNS} are compared, without {listed(r.name for r in runs[MOST_RUNS:])}"


def _objects(value: Any) -> list[Row]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _names(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise
