"""Several runs beside each other: one chart a figure, one curve a run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openrlhf_medical.report.charts import Chart, Group, Series, Tone, curve
from openrlhf_medical.report.run_files import RunFiles
from openrlhf_medical.report.settings import differences
from openrlhf_medical.report.tiles import last_held_out, seconds_of

_TONES: tuple[Tone, ...] = ("a", "b", "c", "d", "e", "f")

COMPARED = {
    "play": ("How well each side plays", (
        ("assessor/balanced_accuracy", "Assessor: balanced accuracy", "share"),
        ("assessor/false_positive_rate", "Assessor: false positives", "share"),
        ("assessor/false_negative_rate", "Assessor: false negatives", "share"),
        ("attacker/success_rate", "Attacker: success", "share"),
        ("attacker/faithful_rate", "Attacker: faithful", "share"),
        ("format/assessor/violation_rate", "Assessor: breaks the form", "share"),
        ("format/attacker/violation_rate", "Attacker: breaks the form", "share"),
    )),
    "rewards": ("Rewards", (
        ("reward/attacker/mean", "Mean reward of the attacker", "reward"),
        ("reward/assessor/mean", "Mean reward of the assessor", "reward"),
    )),
    "optimisation": ("Optimisation", (
        ("policy/attacker/kl", "KL, attacker", "nats per token"),
        ("policy/assessor/kl", "KL, assessor", "nats per token"),
        ("policy/attacker/entropy", "Entropy, attacker", "nats per token"),
        ("policy/assessor/entropy", "Entropy, assessor", "nats per token"),
        ("policy/attacker/grad_norm", "Gradient norm, attacker", "norm"),
        ("policy/assessor/grad_norm", "Gradient norm, assessor", "norm"),
    )),
    "judge": ("Judge", (("judge/abstain_rate", "Judge abstains", "share"),
                        ("judge/gold_balanced_accuracy", "Judge on pairs of known truth", "share"))),
    "time": ("Time", (("time/step_s", "Time of a step", "seconds"),
                      ("throughput/tokens_per_s", "Throughput", "tokens per second"))),
}  # fmt: skip
"""group → (title, (figure, title, unit))."""

SUMMARY = {
    "assessor/balanced_accuracy": "balanced accuracy",
    "assessor/false_positive_rate": "false positives",
    "attacker/success_rate": "attacker's success",
    "format/assessor/violation_rate": "assessor breaks form",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    names: list[str]
    columns: list[str]
    rows: list[list[str]]
    difference_columns: list[str]
    differences: list[list[str]]


def named_apart(runs: Sequence[RunFiles]) -> list[RunFiles]:
    """The same runs; those that share a name are called by their folder, and by number where that is shared too."""
    names = [run.name for run in runs]
    named = [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]
    named = [name if named.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(named, 1)]
    return [replace(run, name=name) for run, name in zip(runs, named, strict=True)]


def compare(runs: Sequence[RunFiles]) -> Comparison:
    """Held-out figures of every run, the last there are, and the keys that differ."""
    rows = []
    for run in runs:
        figures = last_held_out(run)
        values = [f"{figures[name]:.2f}" if name in figures else "-" for name in SUMMARY]
        rows.append(
            [run.name, run.state, *values, seconds_of(sum(r.get("time/step_s", 0) for r in run.train.values()))]
        )
    return Comparison(
        [run.name for run in runs],
        ["run", "state", *(f"{title} (held out, last)" for title in SUMMARY.values()), "time of steps"],
        rows,
        ["key", *(run.name for run in runs)],
        [[key, *values] for key, values in differences([run.config for run in runs])],
    )


def comparison_groups(runs: Sequence[RunFiles]) -> list[Group]:
    groups = []
    for group_id, (title, metrics) in COMPARED.items():
        charts = [
            Chart("compare-" + metric.replace("/", "-"), name, _curves(runs, metric), unit=unit, share=unit == "share")
            for metric, name, unit in metrics
        ]
        if kept := [chart for chart in charts if chart.series]:
            groups.append(Group(group_id, title, kept))
    return groups


def _curves(runs: Sequence[RunFiles], metric: str) -> list[Series]:
    series: list[Series] = []
    for i, run in enumerate(runs):
        tone, dash = _TONES[i % 6], (i + i // 6) % 4
        for figures, style, suffix in ((run.train, "line", ""), (run.held_out, "points", ", held out")):
            found = curve(figures, metric, run.name + suffix, tone, style, dash)  # type: ignore[arg-type]
            if found:
                series.append(replace(found, run=run.name))
    return series
