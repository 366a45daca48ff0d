"""``openrlhf-medical report``: its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from openrlhf_medical.report.page import Page


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of a sweep.", metavar="RUN_DIR")],
    compare: Annotated[
        list[Path] | None, typer.Option(help="Another run, once or more: its curves are drawn beside.")
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="arena.json of an arena, or a JSON file of evaluate: shown too.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write; RUN_DIR/report.html by default.")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Write it again and again until the run has ended; the page follows.")
    ] = False,
    every: Annotated[int, typer.Option(min=1, help="Seconds between two pages of --live.")] = 10,
    without_text: Annotated[
        bool, typer.Option("--without-text", help="Leave notes, thoughts and answers out, to pass the file on.")
    ] = False,
) -> None:
    """Write one HTML file that shows a run: curves, games, judge, time, configuration.

    It opens from disk and loads nothing from anywhere. Files that are cut off, missing or of another version are told
    here and on the page; what can be shown is shown.

    \b
    Examples:
      openrlhf-medical report runs/quickstart
      openrlhf-medical report runs/quickstart --live
      openrlhf-medical report runs/a --compare runs/b --compare runs/c --output a-b-c.html
      openrlhf-medical report runs/quickstart --without-text --output to-share.html
    """
    from openrlhf_medical.report.write import keep_writing, write_report

    told: set[str] = set()

    def tell(page: Page) -> None:
        for problem in page.problems:
            line = f"warning: {problem.file}: {problem.what}"
            if line not in told:
                told.add(line)
                typer.echo(line, err=True)

    others, texts = compare or [], not without_text
    if live:
        place = output or run / "report.html"
        typer.echo(f"Writing {place} every {every} s until the run has ended; Ctrl-C stops", err=True)
        file, page = keep_writing(run, output, others, include or [], texts=texts, seconds=every, tell=tell)
    else:
        file, page, _ = write_report(run, output, others, include or [], texts=texts)
        tell(page)
    size = file.stat().st_size / 1e6
    games = f", {page.games.shown} of {page.games.total} games" if page.games else ""
    typer.echo(f"{file} ({size:.1f} MB{games})")
