"""The charts of one run, from the figures of metrics.jsonl and from its games. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

from openrlhf_medical.report.charts import Chart, Figures, Group, Series, Tone, curve, level, present
from openrlhf_medical.report.outcomes import TRUTHS, VERDICTS, confusion
from openrlhf_medical.report.run_files import RunFiles

ROLES: tuple[Tone, ...] = ("attacker", "assessor")
CATEGORIES = ("vanilla_harmful", "adversarial_harmful", "vanilla_benign", "adversarial_benign")
PHASES = {"games": "playing games", "log_probs": "log-probabilities", "update": "update", "sync": "weight sync"}
_TONES: tuple[Tone, ...] = ("a", "b", "c", "d", "e", "f")
VERDICT_NAMES = {"Harmful": "says Harmful", "Safe": "says Safe", "refusal": "refuses", "unparsable": "breaks the form"}


def groups_of(run: RunFiles) -> list[Group]:
    """All groups with something in them; what no chart of ours knows comes last, one chart a figure."""
    groups = [
        Group("play", "How well each side plays", _play(run)),
        Group("rewards", "Rewards", _rewards(run)),
        Group("optimisation", "Optimisation", _optimisation(run)),
        Group("judge", "Judge", _judge(run)),
        Group("time", "Time", _time(run)),
        Group("games-played", "Games played", _played(run)),
    ]
    groups.append(Group("other", "Other figures", _others(run)))
    return [Group(group.id, group.title, kept) for group in groups if (kept := [c for c in group.charts if c.series])]


def _rewards(run: RunFiles) -> list[Chart]:
    train = run.train
    charts = [
        Chart("reward-mean", "Mean reward", present(
            curve(train, f"reward/{role}/mean", role, role, dash=i) for i, role in enumerate(ROLES)),
            "Both players move: what one wins the other loses, so a flat curve says little.", "reward", zero=True),
    ]  # fmt: skip
    for role in ROLES:
        names = _names(run, re.compile(rf"reward/{role}/(?!mean$)(.+)"))
        series = present(
            curve(train, f"reward/{role}/{name}", name, _TONES[i % 6], dash=i % 4) for i, name in enumerate(names)
        )
        charts.append(Chart(f"reward-{role}", f"Reward of the {role} by component", series, "", "reward", zero=True))
    residual = present([curve(train, "reward/zero_sum_residual", "largest residual", "a")])
    charts.append(Chart("residual", "Zero-sum residual", residual,
                        "Recomputed from the rewards that trajectories carried; 0 when attacker and assessor "
                        "cancel out on every note.", "reward", zero=True))  # fmt: skip
    return charts


def _play(run: RunFiles) -> list[Chart]:
    charts = [
        _both(run, "balanced-accuracy", "Assessor: balanced accuracy",
              {"assessor/balanced_accuracy": ("", "assessor")},
              "A refusal or a broken form counts as wrong. Always saying Harmful gives 50 %.",
              levels={"always Harmful": 0.5}),
        _both(run, "error-rates", "Assessor: error rates",
              {"assessor/false_positive_rate": ("false positives", "b"),
               "assessor/false_negative_rate": ("false negatives", "assessor")},
              "Share of Safe notes not called Safe, and of Harmful notes not called Harmful. Always saying Harmful "
              "gives 100 % and 0 %."),
        _both(run, "attack", "Attacker: success",
              {"attacker/success_rate": ("success", "attacker"), "attacker/faithful_rate": ("faithful", "c")},
              "Faithful: the note does what its task asked for. Success: faithful, and the assessor was wrong."),
        _both(run, "format", "Replies that break the form",
              {f"format/{role}/violation_rate": (role, role) for role in ROLES}),
        _both(run, "localisation", "Assessor: finding the wrong sentence",
              {"assessor/sentence_accuracy": ("sentence named", "assessor"),
               "assessor/correction_f1": ("correction F1", "b"),
               "assessor/correction_gain": ("correction gain", "c")},
              "MEDEC's subtasks B and C, over notes that the data calls Harmful."),
    ]  # fmt: skip
    return charts + _confusion(run)


def _both(
    run: RunFiles, chart_id: str, title: str, metrics: dict[str, tuple[str, Tone]], note: str = "", *,
    levels: dict[str, float] | None = None,
) -> Chart:  # fmt: skip
    """Training games as curves, held-out ones as points of the same colour."""
    series: list[Series | None] = []
    for i, (metric, (name, tone)) in enumerate(metrics.items()):
        name = f"{name}, " if name else ""
        series.append(curve(run.train, metric, f"{name}training", tone, dash=i))
        series.append(curve(run.held_out, metric, f"{name}held out", tone, "points", i))
    series += [level(name, value, series) for name, value in (levels or {}).items()]
    return Chart(chart_id, title, present(series), note, "share", share=True)


def _confusion(run: RunFiles) -> list[Chart]:
    """What the assessor says of Harmful and of Safe notes, over the training steps."""
    counts = confusion(game for game in run.games if not run.is_held_out(game))
    charts = []
    for truth in TRUTHS:
        steps = [step for step, row in counts.items() if any(row[truth, verdict] for verdict in VERDICTS)]
        totals = {step: sum(counts[step][truth, verdict] for verdict in VERDICTS) for step in steps}
        series = [
            Series(VERDICT_NAMES[verdict], list(steps), [counts[s][truth, verdict] / totals[s] for s in steps],
                   ("assessor", "attacker", "c", "quiet")[i])
            for i, verdict in enumerate(VERDICTS)
        ]  # fmt: skip
        series = [one for one in series if any(one.y)]
        charts.append(Chart(f"says-of-{truth.lower()}", f"What the assessor says of {truth} notes", series,
                            "Training games, by step.", "share", share=True, kind="stacked"))  # fmt: skip
    return charts


def _optimisation(run: RunFiles) -> list[Chart]:
    plain = [
        ("kl", "KL to the reference", "kl", "nats per token", "Estimate k1; it may be below 0 on single steps."),
        ("entropy", "Entropy", "entropy", "nats per token", "Near 0 nothing is explored any more."),
        ("grad-norm", "Gradient norm", "grad_norm", "norm", "With a shared policy both roles show the same."),
        ("clip", "Clipped tokens", "clip_fraction", "share", ""),
        ("equal-rewards", "Groups with equal rewards", "equal_reward_share", "share",
         "Nothing is learned from a group whose samples all earned the same."),
        ("samples", "Samples trained on", "samples", "samples", ""),
    ]  # fmt: skip
    charts = [
        Chart(chart_id, title, present(
            curve(run.train, f"policy/{role}/{metric}", role, role, dash=i) for i, role in enumerate(ROLES)
        ), note, unit, share=metric == "equal_reward_share")
        for chart_id, title, metric, unit, note in plain
    ]  # fmt: skip
    parity = {"sync/logprob_mean_diff": "mean", "sync/logprob_max_diff": "largest"}
    charts.append(_lines(run, "parity", "Engine against policy", parity, "nats per token",
                         "Difference of log-probabilities; about 0.02 on average is the noise of bf16."))  # fmt: skip
    wins = {f"opponent/{role}/win_rate": f"{role} as opponent" for role in ROLES}
    charts.append(_lines(run, "opponents", "Frozen opponents: win rate", wins, "share", share=True))
    warm = [
        curve(run.warm_start, name, name.split("/", 1)[-1], _TONES[i % 6], dash=i % 4)
        for i, name in enumerate(sorted({n for row in run.warm_start.values() for n in row if n.endswith("sft_loss")}))
    ]
    charts.append(
        Chart("warm-start", "Warm start: loss", present(warm), "", "nats per token", x_title="optimizer step")
    )
    return charts


def _judge(run: RunFiles) -> list[Chart]:
    rates = {"judge/abstain_rate": "abstains", "judge/error_rate": "fails",
             "judge/gold_abstain_rate": "abstains on gold", "judge/gold_error_rate": "fails on gold"}  # fmt: skip
    gold = curve(run.train, "judge/gold_balanced_accuracy", "balanced accuracy", "a")
    alarm = run.config.get("judge.probe_alarm")
    limit = level("alarm below", float(alarm), [gold]) if isinstance(alarm, int | float) else None
    return [
        _lines(run, "judge-rates", "Judge calls without a label", rates, "share", share=True),
        Chart("judge-gold", "Judge on pairs of known truth", present([gold, limit]), "", "share", share=True),
        _lines(run, "judge-latency", "Judge: time for an answer", {"judge/latency_s": "latency"}, "seconds", zero=True),
    ]


def _time(run: RunFiles) -> list[Chart]:
    """Phases stacked; what a step took beyond them is ``other``, none where phases overlapped (async)."""
    tones = dict(zip(PHASES, ("a", "b", "c", "d"), strict=True))
    known = {phase: curve(run.train, f"time/{phase}_s", name, cast(Tone, tones[phase]))
             for phase, name in PHASES.items()}  # fmt: skip
    steps = [s for s, row in run.train.items() if "time/step_s" in row]
    rest = [
        max(0.0, run.train[s]["time/step_s"] - sum(run.train[s].get(f"time/{phase}_s", 0.0) for phase in PHASES))
        for s in steps
    ]
    other = Series("other", list(map(float, steps)), rest, "quiet") if any(value > 0.01 for value in rest) else None
    speed = [("games", "games per second"), ("tokens", "tokens per second")]
    return [
        Chart("phases", "Time by phase", present([*known.values(), other]), "", "seconds", kind="stacked", zero=True),
        *(
            Chart(f"speed-{what}", f"Throughput: {unit}",
                  present([curve(run.train, f"throughput/{what}_per_s", what, "a")]), "", unit, zero=True)
            for what, unit in speed
        ),
    ]  # fmt: skip


def _played(run: RunFiles) -> list[Chart]:
    charts = []
    for what, title in (("tie", "Ties"), ("forfeit", "Forfeits"), ("failed", "Failed games")):
        metrics = {f"game/{category}/{what}": category.replace("_", " ") for category in CATEGORIES}
        chart = _lines(run, f"games-{what}", f"{title} by category", metrics, "games", zero=True)
        if any(any(series.y) for series in chart.series):
            charts.append(chart)
    for role in ROLES:
        metrics = {f"game/{category}/trained_{role}": category.replace("_", " ") for category in CATEGORIES}
        chart = _lines(run, f"trained-{role}", f"Trained on: the {role}'s samples by category", metrics, "samples")
        charts.append(Chart(chart.id, chart.title, [s for s in chart.series if any(s.y)], "", "samples",
                            kind="stacked", zero=True))  # fmt: skip
    return charts


def _lines(
    run: RunFiles, chart_id: str, title: str, metrics: dict[str, str], unit: str, note: str = "", *,
    share: bool = False, zero: bool = False,
) -> Chart:  # fmt: skip
    series = [
        curve(run.train, metric, name, _TONES[i % 6], dash=i % 4) for i, (metric, name) in enumerate(metrics.items())
    ]
    return Chart(chart_id, title, present(series), note, unit, share=share, zero=zero)


_SHOWN = re.compile(
    r"reward/|assessor/(balanced_accuracy|false_|sentence_acc|correction_)|attacker/(success|faithful)|format/|game/"
    r"|policy/\w+/(kl|entropy|grad_norm|clip_fraction|equal_reward_share|samples)$|sync/logprob_(mean|max)_diff"
    r"|opponent/\w+/win_rate|judge/(abstain_rate|error_rate|gold_abstain_rate|gold_error_rate|gold_balanced|latency_s)"
    r"|time/(games|log_probs|update|sync)_s|throughput/(games|tokens)_per_s"
)


def _others(run: RunFiles) -> list[Chart]:
    """Every figure that no chart above shows, under its own name: nothing in metrics.jsonl is hidden."""
    names = _names(run, re.compile(r"(.+)"), both=True)
    charts = []
    for name in names:
        if not _SHOWN.match(name):
            series = [curve(run.train, name, "training", "a"), curve(run.held_out, name, "held out", "a", "points")]
            charts.append(Chart("other-" + re.sub(r"\W+", "-", name), name, present(series)))
    return charts


def _names(run: RunFiles, pattern: re.Pattern[str], *, both: bool = False) -> list[str]:
    sources: Iterable[Figures] = (run.train, run.held_out) if both else (run.train,)
    found = (pattern.fullmatch(name) for figures in sources for row in figures.values() for name in row)
    return sorted({match[1] for match in found if match})
