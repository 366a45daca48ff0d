"""What a sweep shows: one bar with the time left, a line for each run that ends, tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table
from tqdm import tqdm

from openrlhf_medical.console import BAR_NUMBERS
from openrlhf_medical.sweep.folder import Record, State, SweepFolder
from openrlhf_medical.sweep.page import figure
from openrlhf_medical.sweep.plan import PlannedRun
from openrlhf_medical.sweep.summary import FAILED, read_rows

_UNFINISHED = (State.PENDING, State.RUNNING, State.INTERRUPTED)


class SweepView:
    """Progress while runs are under way. A context manager: the bar lives inside it."""

    def __init__(self, folder: SweepFolder, concurrency: int, clock: Callable[[], float] = time.time) -> None:
        self.total = 0
        self._folder, self._concurrency, self._clock = folder, concurrency, clock
        self._bar: tqdm = tqdm(disable=True)
        self._ended = 0

    def __enter__(self) -> SweepView:
        form = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs{postfix}"
        self._bar = tqdm(total=self.total, bar_format=form, dynamic_ncols=True, disable=not sys.stderr.isatty())
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()

    def started(self, run: str, record: Record) -> None:
        again = f" (try {record.attempt})" if record.attempt > 1 else ""
        self._say(f"started {run}{again}, {record.submitter} job {record.job_id}")

    def ended(self, run: str, record: Record) -> None:
        self._ended += 1
        self._bar.update()
        took = f" in {duration(record.ended - record.started)}" if record.started and record.ended else ""
        reason = f": {record.reason}" if record.reason else ""
        self._say(f"{run} {record.state}{took}{reason} ({self._ended} of {self.total})")

    def look(self, records: Mapping[str, Record]) -> None:
        if self._bar.disable:
            return
        fractions = {run: fraction(self._folder.status(run)) for run, r in records.items() if r.state is State.RUNNING}
        left = time_left(records, fractions, self._clock(), self._concurrency)
        self._bar.set_postfix_str(f"{len(fractions)} under way" + (f", {duration(left)} left" if left else ""))

    def _say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)


def fraction(status: Mapping[str, Any]) -> float:
    """How much of a run is done, by its status.json; 0 where it does not say."""
    steps = status.get("steps")
    return min(1.0, status.get("steps_done", 0) / steps) if steps else 0.0


def time_left(
    records: Mapping[str, Record], fractions: Mapping[str, float], now: float, concurrency: int
) -> float | None:
    """Seconds until all runs have ended, by the mean of those that finished, else by how far those under way have come;
    None where neither says anything."""
    took = [r.ended - r.started for r in records.values() if r.state is State.FINISHED and r.ended and r.started]
    if not took:
        took = [(now - (records[run].started or now)) / done for run, done in fractions.items() if done]
    if not took:
        return None
    unfinished = [1 - fractions.get(run, 0.0) for run, r in records.items() if r.state in _UNFINISHED]
    side_by_side = max(1, min(concurrency, len(unfinished)))
    return fmean(took) * sum(unfinished) / side_by_side


def duration(seconds: float) -> str:
    """``48 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def status_table(runs: Sequence[PlannedRun], records: Mapping[str, Record], folder: SweepFolder, now: float) -> Table:
    """One line a run: how far it is, and the three numbers that matter of its last step."""
    table = Table(title=f"Sweep {folder.path.name}", title_justify="left")
    for column in ("variant", "seed", "state", "step", "time left", *BAR_NUMBERS.values(), ""):
        table.add_column(column, justify="right" if column in ("seed", "step", *BAR_NUMBERS.values()) else "left",
                         overflow="fold")  # fmt: skip
    for run in runs:
        record, status = records[run.name], folder.status(run.name)
        step = f"{status['steps_done']}/{status['steps']}" if "steps_done" in status and "steps" in status else "-"
        left = ""
        if record.state is State.RUNNING:
            alone = time_left({run.name: record}, {run.name: fraction(status)}, now, 1)
            left = duration(alone) if alone is not None else "?"
        last: dict[str, Any] = {}
        for row in read_rows(folder.run_folder(run.name)):
            last |= {key.removeprefix("eval/"): value for key, value in row.items()}
        numbers = [f"{last[name]:.2f}" if isinstance(last.get(name), float) else "-" for name in BAR_NUMBERS]
        reason = record.reason or "" if record.state in (*FAILED, State.INTERRUPTED) else ""
        table.add_row(run.variant.name, str(run.seed), str(record.state), step, left, *numbers, reason)
    return table


def summary_table(found: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """One line a variant: means over seeds with intervals, and the difference to the reference of the first metric."""
    table = Table(title="Means over seeds, 95 % t-intervals", title_justify="left")
    compared = f"{metrics[0]}, difference to {found['reference']}"
    for column in ("variant", "finished", *metrics, compared):
        table.add_column(column, justify="left" if column == "variant" else "right", overflow="fold")
    for variant in found["variants"]:
        figures = [figure(variant["figures"].get(metric)) for metric in metrics]
        between = figure(variant["difference"].get(metrics[0]), "+")
        table.add_row(variant["name"], f"{variant['finished']} of {variant['runs']}", *figures, between)
    constant = {m: v["figures"][m]["always_harmful"] for v in found["variants"] for m in metrics if m in v["figures"]}
    shown = [f"{constant[m]:.2f}" if constant.get(m) is not None else "-" for m in metrics]
    table.add_row("always Harmful", "", *shown, "-", style="dim")
    return table


def show(table: Table) -> None:
    """On standard output; whole also where that is a file, which has no width."""
    RichConsole(width=None if sys.stdout.isatty() else 200).print(table)
