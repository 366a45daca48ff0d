"""The report that a run leaves behind by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from openrlhf_medical.report.write import write_report


def report_of(folder: Path, warn: Callable[[str], None]) -> None:
    """Write ``report.html`` and say where it is. Whatever goes wrong with it is told and fails no run: figures,
    games and weights are safe by then."""
    try:
        file, page, _ = write_report(folder)
    except Exception as error:
        warn(f"the report was not written ({type(error).__name__}: {error}); `openrlhf-medical report {folder}` tries "
             "again")  # fmt: skip
        return
    for problem in page.problems:
        warn(f"{problem.file}: {problem.what}")
    print(f"The report is {file}")
