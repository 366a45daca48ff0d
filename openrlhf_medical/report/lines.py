"""Reading what a run wrote, also where it was killed while writing: what can be read is read, the rest is told."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from openrlhf_medical.config.yaml_dialect import Loader

SHOWN_LINES = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be read, or is not as it should be, and in which file."""

    file: str
    what: str


@dataclass(slots=True)
class Reader:
    """Reads a folder's files and collects what is wrong with them."""

    folder: Path
    problems: list[Problem] = field(default_factory=list)

    def tell(self, file: str, what: str) -> None:
        self.problems.append(Problem(file, what))

    def json_lines(self, name: str, *, missing: str | None) -> list[tuple[int, dict[str, Any]]]:
        """(line number, row) of every line that is a JSON object. ``missing`` is what to tell where the file is not
        there; None says nothing."""
        data = self._bytes(name, missing)
        if data is None:
            return []
        rows: list[tuple[int, dict[str, Any]]] = []
        broken: list[int] = []
        garbled: list[int] = []
        lines = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row, whole = _row(line)
            if isinstance(row, dict):
                rows.append((number, row))
                if not whole:
                    garbled.append(number)
            elif number == len(lines):
                self.tell(
                    name,
                    f"line {number}, the last, is cut off after {len(line)} bytes (the run was killed while writing, "
                    f"or is writing still); {len(rows)} lines before it were read",
                )
            else:
                broken.append(number)
        if broken:
            self.tell(name, f"{_lines(broken)} no JSON object: left out")
        if garbled:
            self.tell(name, f"{_lines(garbled)} not UTF-8: read with replacement characters")
        if not rows and not broken and not data.strip():
            self.tell(name, "the file is empty")
        return rows

    def json_object(self, name: str, *, missing: str | None) -> dict[str, Any]:
        data = self._bytes(name, missing)
        if data is None:
            return {}
        found, _ = _row(data)
        if isinstance(found, dict):
            return found
        self.tell(name, f"no JSON object ({len(data)} bytes; cut off?): left out")
        return {}

    def yaml_object(self, name: str, *, missing: str | None) -> dict[str, Any]:
        data = self._bytes(name, missing)
        if data is None:
            return {}
        try:
            found = yaml.load(data.decode("utf-8", "replace"), Loader)
        except yaml.YAMLError as error:
            self.tell(name, f"no YAML: {' '.join(str(error).split())}; left out")
            return {}
        if isinstance(found, dict):
            return found
        self.tell(name, "no YAML mapping: left out")
        return {}

    def text(self, name: str) -> str:
        data = self._bytes(name, None)
        return "" if data is None else data.decode("utf-8", "replace")

    def _bytes(self, name: str, missing: str | None) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            if missing is not None:
                self.tell(name, missing)
        except OSError as error:
            self.tell(name, f"cannot be read: {error.strerror or error}")
        return None


def number_of(row: dict[str, Any], key: str) -> int | None:
    """A whole number of a row, or None: true is none, and neither is 1.5."""
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _row(line: bytes) -> tuple[Any, bool]:
    """The value of one line and whether it was UTF-8; (None, …) where it is no JSON."""
    try:
        text, whole = line.decode("utf-8"), True
    except UnicodeDecodeError:
        text, whole = line.decode("utf-8", "replace"), False
    try:
        return json.loads(text, parse_constant=lambda name: None, parse_float=_finite), whole
    except (ValueError, RecursionError):
        return None, whole


def _finite(digits: str) -> float | None:
    """1e999 is JSON, and no number that can be shown."""
    value = float(digits)
    return value if math.isfinite(value) else None


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN_LINES]))
    more = f" and {len(numbers) - SHOWN_LINES} more" if len(numbers) > SHOWN_LINES else ""
    return f"line {shown} is" if len(numbers) == 1 else f"lines {shown}{more} are"


def listed(names: Iterable[str], most: int = 6) -> str:
    """``a, b, c and 4 more``."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
