"""The page of all results, and the table at the end of ``run_all.sh``.

    python benchmarks/page.py            # writes benchmarks/README.md
    python benchmarks/page.py --table    # prints the table only

Reads every ``benchmarks/results/*.json`` that has rows; what is said by hand is in ``benchmarks/notes.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import RESULTS, Row, print_table

FOLDER = Path(__file__).parent
ORDER = ("games", "schedule", "learner", "step", "trl_grpo", "judge", "start", "peak_memory", "scale")
"""Of the table; whatever else has rows comes after them."""

HEAD = """# Benchmarks

<!-- Written by benchmarks/page.py from benchmarks/results and benchmarks/notes.md: change those. -->

## How to run
```
benchmarks/run_all.sh            # everything: within an hour on 2 cores, with nothing else running
benchmarks/run_all.sh --quick    # small and once, to see that it runs: minutes, writes no result
python benchmarks/schedule.py    # one of them; --help says what it does
```
Each command prints its table and writes `benchmarks/results/NAME.json`: rows, every single sample, hardware, versions
and commit. These are measurements, not tests: CI only sees that they run.

## How to read
*Ratio* is what was measured, against what the row names; a figure with a unit is an absolute one. *Spread* is the
lowest and the highest of the alternations: where two things are compared, they are run in turn, at least five times,
and the ratio is that of the medians. *Target* is what we hold ourselves to. Seconds and tokens/s in the JSON files are
those of one machine on one day; only ratios are worth comparing with yours. What is measured is what `train` runs: the
project's own classes, never a copy of them.
"""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results that have rows, in the order of the table."""
    found = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and isinstance(result.get("rows"), list) and result["rows"]:
            found.append({"benchmark": path.stem, **result})
    rank = {name: place for place, name in enumerate(ORDER)}
    return sorted(found, key=lambda result: (rank.get(result["benchmark"], len(ORDER)), result["benchmark"]))


def row_of(found: dict[str, Any]) -> Row:
    spread = found.get("spread")
    return Row(found["name"], found["ratio"], found["target"], found["better"], found.get("unit", "\u00d7"),
               tuple(spread) if spread else None, found.get("note", ""))  # fmt: skip


def render_row(row: Row) -> str:
    sign = "≥" if row.better == "higher" else "≤"
    spread = f"{number(row.spread[0])} to {number(row.spread[1])}" if row.spread else ""
    verdict = "holds" if row.holds else f"**missed** by {missed_by(row):.0%}"
    cells = [
        row.name,
        f"{number(row.ratio)} {row.unit}",
        spread,
        f"{sign} {row.target:,g} {row.unit}",
        verdict,
        row.note,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def missed_by(row: Row) -> float:
    """Share of the target."""
    return abs(row.ratio - row.target) / row.target


def number(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def render(results: Sequence[dict[str, Any]], notes: str) -> str:
    rows = [row_of(found) for result in results for found in result["rows"]]
    held = sum(row.holds for row in rows)
    parts = [HEAD, f"\n## Results\n{held} of the {len(rows)} targets measured hold.\n"]
    measured = {result["benchmark"] for result in results}
    if missing := [name for name in ORDER if name not in measured]:
        parts.append(f"\nNo result yet: {', '.join(missing)}.\n")
    for result in results:
        parts.append(f"\n### {result['benchmark']}\n{_made(result)}\n\n")
        parts.append("| what | ratio | spread | target | verdict | note |\n| --- | --- | --- | --- | --- | --- |\n")
        parts += [render_row(row_of(found)) + "\n" for found in result["rows"]]
        if (RESULTS / f"{result['benchmark']}.md").exists():
            parts.append(f"\nMore: [{result['benchmark']}.md](results/{result['benchmark']}.md)\n")
    if notes.strip():
        parts.append(f"\n{notes.strip()}\n")
    return "".join(parts)


def _made(result: dict[str, Any]) -> str:
    """Command, commit and machine of a result, in one line."""
    hardware = result.get("hardware") or {}
    gpus = hardware.get("gpus")
    machine = (
        f"{hardware.get('cpu_cores', '?')} cores of {hardware.get('cpu', '?')}, {hardware.get('memory_gib', '?')} GiB"
    )
    changed = " with uncommitted changes" if result.get("uncommitted_changes") else ""
    commit = str(result.get("commit") or "?")[:12]
    return (
        f"`{result.get('command', '?')}` at commit `{commit}`{changed}, {result.get('when', '?')}, on {machine}, "
        f"{', '.join(map(str, gpus)) if gpus else 'no GPU'}."
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the whole table; write nothing")
    options = parser.parse_args(words)
    results = read_results(RESULTS)
    if not results:
        sys.exit(f"no results with rows in {RESULTS}: run benchmarks/run_all.sh")
    if options.table:
        print_table([row_of(found) for result in results for found in result["rows"]])
        return
    notes = FOLDER / "notes.md"
    text = render(results, notes.read_text(encoding="utf-8") if notes.exists() else "")
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(f"wrote {FOLDER / 'README.md'}")


if __name__ == "__main__":
    main()
