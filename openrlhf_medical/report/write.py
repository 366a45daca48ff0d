"""``openrlhf-medical report``: read, render, write; once, or again and again while a run trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from openrlhf_medical.errors import UserError
from openrlhf_medical.report.comparison import named_apart
from openrlhf_medical.report.extras import MOST_RUNS, included, is_sweep, runs_of, sweep_tables, too_many
from openrlhf_medical.report.lines import Problem
from openrlhf_medical.report.page import Page, page_of_run, page_of_runs, render
from openrlhf_medical.report.run_files import is_run, read_run

FILE_NAME = "report.html"


def build(folder: Path, others: Sequence[Path], include: Sequence[Path] = (), *, texts: bool) -> tuple[Page, bool]:
    """The page of a run, or of a sweep, and whether all its runs have ended.

    Raises:
        UserError: a folder that is neither.
    """
    if folder.is_dir() and not is_run(folder) and is_sweep(folder):
        return _sweep_page(folder, others)
    if folder.is_dir() and not is_run(folder):
        raise UserError(f"{folder} holds no run and no sweep: give the folder of a run (runs/NAME, with "
                        "metrics.jsonl or games.jsonl in it) or of a sweep")  # fmt: skip
    runs = named_apart([read_run(folder), *(read_run(other, games=False) for other in others)])
    for path in include:
        kind, row = included(path)
        if kind == "arena":
            runs[0].arena = row
        else:
            runs[0].evaluations.append((path.name, row))
    return page_of_run(runs[0], others=runs[1:], texts=texts), all(run.finished for run in runs)


def _sweep_page(folder: Path, others: Sequence[Path]) -> tuple[Page, bool]:
    tables, problems = sweep_tables(folder)
    found = [*runs_of(folder), *others]
    if len(found) > MOST_RUNS:
        problems.append(Problem(folder.name, too_many(found)))
    runs = named_apart([read_run(path, games=False) for path in found[:MOST_RUNS]])
    page = page_of_runs(folder.resolve().name, folder, runs, tables, problems)
    return page, bool(runs) and all(run.finished for run in runs)


def write_report(
    folder: Path, output: Path | None = None, others: Sequence[Path] = (), include: Sequence[Path] = (), *,
    texts: bool = True, live: int = 0,
) -> tuple[Path, Page, bool]:  # fmt: skip
    """Write the page beside its place and move it there, so that a browser never reads half of it.

    Returns:
        (the file, the page, whether the run has ended). An ended run's page does not load itself again.
    """
    page, ended = build(folder, others, include, texts=texts)
    output = output or folder / FILE_NAME
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(render(page, live=0 if ended else live), encoding="utf-8")
    partial.replace(output)
    return output, page, ended


def keep_writing(
    folder: Path, output: Path | None, others: Sequence[Path], include: Sequence[Path], *, texts: bool, seconds: int,
    tell: Callable[[Page], None], sleep: Callable[[float], None] = time.sleep,
) -> tuple[Path, Page]:  # fmt: skip
    """Write the page every ``seconds`` until the run has ended. Ctrl-C leaves the last one, which is whole."""
    while True:
        file, page, ended = write_report(folder, output, others, include, texts=texts, live=seconds)
        tell(page)
        if ended:
            return file, page
        sleep(seconds)
