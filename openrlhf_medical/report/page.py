"""From what was read to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from openrlhf_medical import __version__
from openrlhf_medical.report.charts import Group
from openrlhf_medical.report.comparison import Comparison, compare, comparison_groups
from openrlhf_medical.report.curves import groups_of
from openrlhf_medical.report.extras import Arena, Table, arena_of, evaluation_tables
from openrlhf_medical.report.lines import Problem
from openrlhf_medical.report.outcomes import TRUTHS, VERDICTS, confusion
from openrlhf_medical.report.packing import Packed, pack_games
from openrlhf_medical.report.run_files import RunFiles
from openrlhf_medical.report.settings import flat, settings_of, shown
from openrlhf_medical.report.tiles import Tile, tiles_of

SCRIPTS = ("base.js", "charts.js", "games.js", "game.js", "page.js")
FILTERS = {
    "category": "Category",
    "outcome": "Outcome",
    "status": "Status",
    "kind": "Played in",
    "truth": "Truth",
    "verdict": "Verdict",
    "step": "Step",
}


@dataclass(slots=True)
class Page:
    """What the template shows; an empty part is no section."""

    title: str
    state: str
    source: str
    texts: bool
    written: str
    version: str = __version__
    tiles: list[Tile] = field(default_factory=list)
    remark: str = ""
    problems: list[Problem] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    confusions: list[dict[str, Any]] = field(default_factory=list)
    comparison: Comparison | None = None
    sweep: list[Table] = field(default_factory=list)
    arena: Arena | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    games: Packed | None = None
    settings: dict[str, list[list[str]]] | None = None
    environment: list[list[str]] = field(default_factory=list)

    @property
    def sections(self) -> list[tuple[str, str]]:
        """(id, name) of the sections that have something."""
        known = {
            "sweep": ("Sweep", self.sweep),
            "comparison": ("Runs compared", self.comparison),
            "curves": ("Curves", self.groups),
            "arena": ("Arena", self.arena),
            "evaluations": ("Evaluations", self.evaluations),
            "games": ("Games", self.games),
            "configuration": ("Configuration", self.settings),
            "environment": ("Environment", self.environment),
        }
        return [("overview", "Overview"), *((key, name) for key, (name, part) in known.items() if part)]

    truths = TRUTHS
    verdicts = tuple({"Harmful": "says Harmful", "Safe": "says Safe", "refusal": "refuses",
                      "unparsable": "breaks the form"}[verdict] for verdict in VERDICTS)  # fmt: skip
    filters = tuple(FILTERS.items())

    @property
    def charts_json(self) -> Markup:
        return as_script([chart.to_json() for group in self.groups for chart in group.charts])

    @property
    def confusions_json(self) -> Markup:
        return as_script(self.confusions)


def page_of_run(run: RunFiles, *, others: Sequence[RunFiles] = (), texts: bool = True) -> Page:
    """The page of one run; with ``others`` the curves are of all of them."""
    page = Page(run.name, run.state, str(run.folder), texts, _now())
    page.tiles, page.remark = tiles_of(run)
    page.warnings = run.warnings
    page.problems = list(run.problems)
    page.arena = arena_of(run.arena, page.problems)
    page.evaluations = evaluation_tables(run.evaluations)
    if run.games:
        page.games = pack_games(run, texts=texts)
    page.environment = [[key, shown(value)] for key, value in flat(run.environment).items()]
    settings = settings_of(run.config)
    if settings:
        page.settings = {
            "changed": [[s.key, s.value, "-" if s.default is None else s.default, s.description]
                        for s in settings if s.changed],
            "all": [[s.key, s.value, s.description] for s in settings],
        }  # fmt: skip
    if others:
        _compare(page, [run, *others])
    else:
        page.groups = groups_of(run)
        page.confusions = _confusions(run)
    return page


def page_of_runs(
    title: str, folder: Path, runs: Sequence[RunFiles], sweep: list[Table], problems: list[Problem]
) -> Page:
    """The page of a sweep: its tables, and its runs compared."""
    finished = sum(run.finished for run in runs)
    page = Page(title, f"{len(runs)} runs, {finished} of them ended", str(folder), True, _now())
    page.sweep, page.problems = sweep, problems
    if runs:
        _compare(page, runs)
    return page


def _compare(page: Page, runs: Sequence[RunFiles]) -> None:
    page.comparison = compare(runs)
    page.groups = comparison_groups(runs)
    for run in runs[1:] if page.games or page.settings else runs:
        page.problems += [Problem(f"{run.name}/{problem.file}", problem.what) for problem in run.problems]


def _confusions(run: RunFiles) -> list[dict[str, Any]]:
    """Counts [truth][verdict] of all training games, of each round of held-out games, and of each step."""
    train = confusion(game for game in run.games if not run.is_held_out(game))
    held = confusion(game for game in run.games if run.is_held_out(game))
    named = [("all training games", list(train.values()))]
    named += [("held out, before training" if s < 0 else f"held out, after step {s}", [c]) for s, c in held.items()]
    named += [(f"training, step {step}", [counts]) for step, counts in train.items()]
    return [
        {"name": name, "counts": [[sum(c[t, v] for c in counts) for v in VERDICTS] for t in TRUTHS]}
        for name, counts in named
        if counts
    ]


def as_script(value: Any) -> Markup:
    """JSON inside a script element: no letter of it can end that element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def render(page: Page, *, live: int = 0) -> str:
    """The file. Its policy forbids the network and every script but ours and the chart library, told by hash.

    ``live``: seconds after which the page loads itself again; 0 never does.
    """
    plotly, plotly_hash = _plotly()
    script = '"use strict";(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' '{plotly_hash}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("page.html.j2"))
    return template.render(
        page=page, live=live, policy=policy, style=Markup(_asset("style.css")), script=Markup(script), plotly=plotly
    )


@functools.cache
def _plotly() -> tuple[str, str]:
    """The chart library as its package ships it, gzipped in base64, and its hash."""
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs()
    return base64.b64encode(gzip.compress(source.encode(), mtime=0, compresslevel=6)).decode("ascii"), _hash(source)


@functools.cache
def _asset(name: str) -> str:
    return (resources.files("openrlhf_medical.report") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")
