"""A plan as tables for people, readable at 100 columns."""

from __future__ import annotations

import textwrap
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf_medical.plan.memory import GIB
from openrlhf_medical.plan.planning import SHORT, TIGHT, Plan, Row

WIDTH = 100
PARTS = {"weights": "weights", "gradients": "grads", "optimizer": "optim", "passes": "passes", "cache": "cache",
         "process": "process"}  # fmt: skip
"""Columns of the memory table; a moving average of the weights counts as weights."""
_STYLES = {SHORT: "bold red", TIGHT: "yellow"}


def show(plan: Plan, file: IO[str]) -> None:
    """Print all of a plan."""
    # A file or a job's log gets the same width; a narrower terminal wraps.
    console = Console(file=file, width=WIDTH, highlight=False)
    console.print(Text(f"Plan for {plan.hardware.title}", style="bold"))
    console.print(_places(plan))
    if any(row.needs for row in (*plan.rows, *plan.warm_start)):
        console.print(_memory(plan))
    console.print(_checks(plan))
    advice = [f"{check.verdict}: {check.what}. What would help: {', '.join(check.keys)}" for check in plan.shortfalls]
    for note in (*advice, *plan.notes):
        console.print(Text(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ")))


def line(plan: Plan) -> str:
    """A whole plan that fits, in one line."""
    bundles = sum(row.place.bundles for row in plan.rows)
    tight = [check.what for check in plan.checks if check.verdict == TIGHT]
    where = "GPUs" if plan.hardware.has_gpus else "places (no GPU here)"
    more = f"; tight: {', '.join(tight)}" if tight else ""
    return f"plan: {bundles} of {plan.hardware.gpus} {where} on {plan.hardware.title}{more} (--dry-run shows it)"


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="italic", box=box.HORIZONTALS, pad_edge=False)
    for name, justify in columns:
        # First columns and figures stay whole, what is said beside them wraps.
        whole = justify == "right" or not table.columns
        table.add_column(name, justify=justify, no_wrap=whole)  # type: ignore[arg-type]
    return table


def _places(plan: Plan) -> Table:
    table = _table("Who sits where, in placement groups of {1 GPU, 1 CPU}", ("place", "left"), ("bundles", "right"),
                   ("workers on each bundle", "left"), ("machines", "left"))  # fmt: skip
    for row in (*plan.rows, *plan.warm_start):
        place = row.place
        workers = f"{', '.join(place.workers)} ({place.gpus_of_each:g} GPU{' each' * (len(place.workers) > 1)})"
        style = _STYLES[SHORT] if row.nodes is None else ""
        table.add_row(place.purpose, str(place.bundles), workers, _machines(plan, row), style=style)
    table.add_row("judge", "-", plan.judge, "")
    return table


def _machines(plan: Plan, row: Row) -> str:
    if row.nodes is None:
        return "no room"
    if len(plan.hardware.nodes) == 1:
        return plan.hardware.nodes[0].name
    return ", ".join(f"{node.name}: {n}" for node, n in zip(plan.hardware.nodes, row.nodes, strict=True) if n)


def _memory(plan: Plan) -> Table:
    title = "Memory of one GPU" if plan.hardware.has_gpus else "Host memory of one bundle"
    columns = [("place", "left"), ("worker", "left"), *((part, "right") for part in PARTS.values()), ("sum", "right")]
    table = _table(f"{title}, GiB, estimated for samples of data.max_len tokens", *columns)
    for row in (*plan.rows, *plan.warm_start):
        if row.needs is None:
            continue
        for i, (kind, need) in enumerate(row.needs.workers.items()):
            beside = sum(count for part, count in need.device.items() if part not in PARTS)
            cells = [need.device.get(part, 0) + (beside if part == "weights" else 0) for part in PARTS]
            table.add_row(row.place.purpose if not i else "", kind, *map(_cell, cells), _cell(need.device_bytes))
        if len(row.needs.workers) > 1:
            table.add_row("", "together", *[""] * len(PARTS), _cell(row.needs.device_bytes), style="bold")
    return table


def _checks(plan: Plan) -> Table:
    table = _table("Needed and there", ("resource", "left"), ("needed", "right"), ("there", "right"), ("", "left"))
    for check in plan.checks:
        table.add_row(check.what, check.needed, check.there, check.verdict, style=_STYLES.get(check.verdict, ""))
    return table


def _cell(count: int) -> str:
    return f"{count / GIB:.1f}" if count else "-"
