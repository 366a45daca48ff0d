"""Plots of the report, as SVG that is the same for the same runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from learning_data import PARTS
from learning_matches import BASE, FINAL, MATCHES, NOTES, WARM, Match
from learning_scores import ALWAYS_HARMFUL, BAG_OF_WORDS, Measured
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openrlhf_medical.evaluation import scores
from openrlhf_medical.evaluation.intervals import Interval
from openrlhf_medical.evaluation.scores import Measure
from openrlhf_medical.game.players import Role

STYLE = {
    "svg.hashsalt": "openrlhf_medical",  # else element ids differ from one drawing to the next
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
}
ATTACKER, ASSESSOR, NEUTRAL = "#c4552d", "#2b6cb0", "#444444"
SHADES = {BASE: "#c9c9c9", WARM: "#8fb8de", FINAL: "#2b6cb0"}
PAIRS = dict(zip((match for match in MATCHES if match.attacker),
                 ("#c9c9c9", "#8fb8de", "#2b6cb0", "#e9ab91", "#c4552d"), strict=True))  # fmt: skip
LINES = ("-", "--", ":", "-.")
WINDOW = 7

CURVES: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("assessor: balanced accuracy", (("assessor/balanced_accuracy", "assessor", ASSESSOR),)),
    ("format violations", (("format/attacker/violation_rate", "attacker", ATTACKER),
                           ("format/assessor/violation_rate", "assessor", ASSESSOR))),
    ("attacker: faithful, and successful", (("attacker/faithful_rate", "faithful", "#e9ab91"),
                                            ("attacker/success_rate", "success", ATTACKER))),
    ("mean reward", (("reward/attacker/mean", "attacker", ATTACKER), ("reward/assessor/mean", "assessor", ASSESSOR))),
    ("KL to the reference", (("policy/attacker/kl", "attacker", ATTACKER),
                             ("policy/assessor/kl", "assessor", ASSESSOR))),
    ("entropy", (("policy/attacker/entropy", "attacker", ATTACKER), ("policy/assessor/entropy", "assessor", ASSESSOR))),
)  # fmt: skip
"""Panel title, and its (metric, label, colour)."""


def write_plots(runs: Sequence[Measured], folder: Path, stem: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"curves": curves(runs), "assessor": assessor_bars(runs), "attacks": attack_bars(runs)}
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{stem}_{name}.svg")
        with matplotlib.rc_context(STYLE):
            figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def curves(runs: Sequence[Measured]) -> Figure:
    """Training games over steps: dots are steps, lines their running mean; a line style for each run."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        for axes, (title, metrics) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
            axes.set_title(title, loc="left")
            for run, line in zip(runs, LINES * len(runs), strict=False):
                for metric, label, colour in metrics:
                    name = f"{label}, {run.name}" if len(metrics) > 1 else run.name
                    _curve(axes, run.metrics, metric, name, colour, line)
            if axes.lines:
                axes.legend(fontsize=7, frameon=False)
            axes.set_xlabel("step")
        figure.suptitle(f"Training games (dots: one step; lines: mean of up to {WINDOW} steps)", x=0.01, ha="left")
        return figure


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, name: str, colour: str, line: str) -> None:
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, ".", color=colour, alpha=0.2, markersize=4, rasterized=True)  # hundreds of dots
        axes.plot(steps, running_mean(values), line, color=colour, linewidth=1.6, label=name)


def running_mean(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Mean of each value and up to ``window`` - 1 before it: never of what comes later."""
    last = [values[max(0, i + 1 - window) : i + 1] for i in range(len(values))]
    return [sum(some) / len(some) for some in last]


def assessor_bars(runs: Sequence[Measured]) -> Figure:
    """Held-out notes: base, warm start and final beside each other."""
    measures = (scores.BALANCED_ACCURACY, scores.FALSE_POSITIVES, scores.FALSE_NEGATIVES,
                scores.VIOLATIONS[Role.ASSESSOR])  # fmt: skip
    series = {who.replace("_", " "): (Match(NOTES, who), SHADES[who]) for who in (BASE, WARM, FINAL)}

    def baselines(axes: Axes, run: Measured, part: str) -> None:
        for name, line in ((ALWAYS_HARMFUL, ":"), (BAG_OF_WORDS, "--")):
            on_part = [row for row in run.baselines[name] if row["seed_id"].startswith(part)]
            found = run.interval(on_part, scores.BALANCED_ACCURACY)
            if found:
                axes.plot([-0.45, 0.45], [found.value] * 2, line, color=NEUTRAL, linewidth=1.2, label=name)

    return _bars(runs, measures, series, "The assessor on held-out notes (whiskers: 95 % intervals)", baselines)


def attack_bars(runs: Sequence[Measured]) -> Figure:
    """Held-out seeds under attack: every pair of attacker and assessor that was played."""
    measures = (scores.FAITHFUL, scores.FOOLS, scores.ACCURACY, scores.SAYS_HARMFUL)
    series = {f"{m.attacker} attacker, {m.assessor} assessor".replace("_", " "): (m, c) for m, c in PAIRS.items()}
    return _bars(runs, measures, series, "Attacks (whiskers: 95 % intervals)", lambda *_: None)


def _bars(
    runs: Sequence[Measured],
    measures: Sequence[Measure],
    series: Mapping[str, tuple[Match, str]],
    title: str,
    extra: Callable[[Axes, Measured, str], None],
) -> Figure:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.9 + 2.7 * len(runs)), layout="constrained")
        grid = figure.subplots(len(runs), len(PARTS), squeeze=False, sharey=True)
        for run, line in zip(runs, grid, strict=True):
            for part, axes in zip(PARTS, line, strict=True):
                axes.set_title(f"{run.name}, {part.replace('_', ' ')}", loc="left")
                axes.set_ylim(0, 1)
                axes.set_xticks(
                    range(len(measures)), [m.name.removeprefix("assessor ").replace(" ", "\n", 1) for m in measures]
                )
                width = 0.8 / len(series)
                for place, (label, (match, colour)) in enumerate(series.items()):
                    offset = (place - (len(series) - 1) / 2) * width
                    found = [run.interval(run.rows(match, part), measure) for measure in measures]
                    _group(axes, found, offset, width, colour, label)
                extra(axes, run, part)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False)
        figure.suptitle(title, x=0.01, ha="left")
        return figure


def _group(axes: Axes, found: Sequence[Interval | None], offset: float, width: float, colour: str, label: str) -> None:
    heights = [f.value if f else math.nan for f in found]
    below = [f.value - f.low if f else 0.0 for f in found]
    above = [f.high - f.value if f else 0.0 for f in found]
    axes.bar([i + offset for i in range(len(found))], heights, width * 0.92, color=colour, label=label,
             yerr=[below, above], error_kw={"elinewidth": 1, "ecolor": NEUTRAL, "capsize": 1.5})  # fmt: skip
