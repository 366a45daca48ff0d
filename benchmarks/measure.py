"""What every measurement here has in common: alternating runs, medians, one table, one JSON file.

    alternate({"ours": play, "bound": generate})  ─►  seconds of each run, in the order A B A B …
    Result("games", rows, samples).report()       ─►  a table on the console, benchmarks/results/games.json

Only ratios of what ran side by side count: tomorrow the machine is another one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from openrlhf_medical.run_directory import environment

RESULTS = Path(__file__).parent / "results"
RUNS = 5
"""Alternating runs of a comparison; the median of each side is what its ratio is made of."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``better``: on which side of ``target`` the ratio has to be; ``spread``: lowest and
    highest ratio of single alternations, where there were several."""

    name: str
    ratio: float
    target: float
    better: Literal["higher", "lower"]
    unit: str = "×"  # noqa: RUF001  (times)
    spread: tuple[float, float] | None = None
    note: str = ""
    """What limits it, in a few words."""

    @property
    def holds(self) -> bool:
        return self.ratio >= self.target if self.better == "higher" else self.ratio <= self.target


@dataclass(slots=True)
class Result:
    """``name``.json: rows, and whatever samples they were made of."""

    name: str
    rows: list[Row]
    samples: Mapping[str, Any] = field(default_factory=dict)

    def report(self, folder: Path | None = RESULTS) -> None:
        """Print the table; write the JSON unless ``folder`` is None."""
        print_table(self.rows)
        if folder is None:
            return
        env = environment()
        found = {
            "benchmark": self.name,
            "command": "python " + shlex.join([str(Path(sys.argv[0])), *sys.argv[1:]]),
            "commit": env.get("git_commit"),
            "uncommitted_changes": env.get("git_dirty"),
            "hardware": {key: env.get(key) for key in ("cpu", "cpu_cores", "memory_gib", "gpus")},
            "versions": env.get("versions"),
            "when": time.strftime("%Y-%m-%d %H:%M %Z"),
            "rows": [{**asdict(row), "holds": row.holds} for row in self.rows],
            "samples": dict(self.samples),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_table(rows: Sequence[Row]) -> None:
    table = Table("what", "ratio", "spread", "target", "verdict")
    for row in rows:
        sign = "≥" if row.better == "higher" else "≤"
        spread = f"{row.spread[0]:.3g} to {row.spread[1]:.3g}" if row.spread else ""
        table.add_row(row.name, f"{row.ratio:.3g} {row.unit}", spread, f"{sign} {row.target:g} {row.unit}",
                      "holds" if row.holds else "missed")  # fmt: skip
    Console().print(table)


def alternate(sides: Mapping[str, Callable[[], float | None]], runs: int = RUNS) -> dict[str, list[float]]:
    """Every side once to warm up, then ``runs`` times in turn. A side answers its own seconds, or is timed whole.

    The order turns round from one alternation to the next, so that a machine that slows down does so for all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-1, runs):
        for name in names if number % 2 else reversed(names):
            began = time.perf_counter()
            own = sides[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - began if own is None else own)
                print(f"  {name} {number + 1}/{runs}: {seconds[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return seconds


def compare(
    name: str,
    ours: Sequence[float],
    other: Sequence[float],
    target: float,
    better: Literal["higher", "lower"],
    note: str = "",
) -> Row:
    """How many times faster (``higher``: seconds of ``other`` ÷ ours) or how many times the other's seconds
    (``lower``) we took: the ratio of the medians, and its spread over the alternations."""
    a, b = (other, ours) if better == "higher" else (ours, other)
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    return Row(name, statistics.median(a) / statistics.median(b), target, better, spread=(min(pairs), max(pairs)),
               note=note)  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """``--runs``, and ``--quick``: small and once, to see that it runs; nothing is written then."""
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--runs", type=int, default=RUNS, help="alternations (default: %(default)s)")
    words.add_argument("--quick", action="store_true", help="small and once, to see that it runs; writes no result")
    return words
