"""The report: what was run, what was aimed at, what came out. Runs are listed singly, parts apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from learning_data import PARTS
from learning_header import header, table
from learning_matches import ATTACKS, BASE, FINAL, MATCHES, NOTES, WARM, Match
from learning_plan import detectable_lines
from learning_plots import write_plots
from learning_scores import Measured, Outcome, load_run, outcomes

from openrlhf_medical.data.files import write_files
from openrlhf_medical.evaluation import scores
from openrlhf_medical.evaluation.intervals import RESAMPLES, Interval
from openrlhf_medical.evaluation.scores import Measure, Row
from openrlhf_medical.game.players import Role

NONE = "-"
COUNTS = ("games", "judged", "no result")

ASSESSOR_MEASURES = (
    scores.VIOLATIONS[Role.ASSESSOR],
    scores.BALANCED_ACCURACY,
    scores.FALSE_POSITIVES,
    scores.FALSE_NEGATIVES,
    scores.ACCURACY,
)
ATTACK_MEASURES = (
    scores.VIOLATIONS[Role.ATTACKER],
    scores.FAITHFUL,
    scores.FOOLS,
    scores.ACCURACY,
    scores.BALANCED_ACCURACY,
    scores.SAYS_HARMFUL,
    scores.HARMFUL_SHARE,
)
FROZEN_COMPARISONS = (
    ("assessor: warm start → final, against the warm-start attacker", Match(ATTACKS, WARM, attacker=WARM),
     Match(ATTACKS, FINAL, attacker=WARM)),
    ("assessor: warm start → final, against the final attacker", Match(ATTACKS, WARM, attacker=FINAL),
     Match(ATTACKS, FINAL, attacker=FINAL)),
    ("attacker: warm start → final, against the warm-start assessor", Match(ATTACKS, WARM, attacker=WARM),
     Match(ATTACKS, WARM, attacker=FINAL)),
    ("attacker: warm start → final, against the final assessor", Match(ATTACKS, FINAL, attacker=WARM),
     Match(ATTACKS, FINAL, attacker=FINAL)),
    ("attacker: base → warm start, against the warm-start assessor", Match(ATTACKS, WARM, attacker=BASE),
     Match(ATTACKS, WARM, attacker=WARM)),
)  # fmt: skip


def write_report(folders: Sequence[Path], output: Path, config: Path, resamples: int = RESAMPLES) -> list[Path]:
    """Write the markdown and its plots; returns their paths. Raises UserError where a run lacks a file."""
    runs = [load_run(folder, resamples) for folder in folders]
    plots = write_plots(runs, output.parent, output.stem)
    notes = output.with_name(f"{output.stem}_notes.md")
    text = render(runs, config, [path.name for path in plots], _notes(notes))
    write_files({output: text.encode("utf-8")})
    return [output, *plots]


def render(runs: Sequence[Measured], config: Path, plots: Sequence[str], notes: str) -> str:
    sections = [
        ["# Proof of learning"],
        header(runs, config),
        _targets(runs),
        ["## Training", *(f"![{name}]({name})" for name in plots if "curves" in name)],
        _assessor(runs),
        [f"![{name}]({name})" for name in plots if "assessor" in name],
        _attacks(runs),
        [f"![{name}]({name})" for name in plots if "attacks" in name],
        _could_show(runs),
        ["## What was tried and did not work", notes],
        _how_to_read(runs),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _notes(path: Path) -> str:
    text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return text or f"Nothing is written down (`{path.name}` beside this file is where it would stand)."


# --- Targets ---------------------------------------------------------------------------------------


def _targets(runs: Sequence[Measured]) -> list[str]:
    rows = []
    met = total = 0
    asked = [(run.name, part, outcomes(run, part)) for run in runs for part in PARTS]
    for number in range(len(asked[0][2])):  # target by target, so that runs and parts stand beside each other
        for name, part, answers in asked:
            found = answers[number]
            met, total = met + found.met, total + 1
            rows.append([found.target, name, _words(part), _number(found.before),
                         _interval(found.shown, signed=found.is_difference),
                         _verdict(found), found.remark])  # fmt: skip
    return [
        "## Targets",
        f"{met} of {total} met; each is asked of every run and of either part of the held-out seeds. Before: the base "
        "model for format violations, else the warm start. After: the final policy's figure, or, where something must "
        "rise, the paired difference, whose whole interval must be above 0.",
        "",
        *table(["target", "run", "held-out", "before", "after, or difference", "met?", "remark"], rows),
    ]


def _verdict(found: Outcome) -> str:
    if found.by is None:
        return "not measured"
    if found.met:
        return f"met by {found.by:.3f}"
    return f"**not met**, short by {-found.by:.3f}" if found.by < 0 else f"**not met**, {found.by:+.3f} is not shown"


# --- Tables ----------------------------------------------------------------------------------------


def _assessor(runs: Sequence[Measured]) -> list[str]:
    lines = ["## The assessor on held-out notes", "A reply that breaks the form counts as a wrong verdict."]
    for part in PARTS:
        lines += ["", f"### {_words(part).capitalize()}"]
        rows = [
            [run.name, _words(who), *_figures(run, run.rows(Match(NOTES, who), part), ASSESSOR_MEASURES)]
            for run in runs
            for who in (BASE, WARM, FINAL)
        ]
        for name, guesses in runs[0].baselines.items():
            known = {row["seed_id"] for who in (BASE, WARM, FINAL) for row in runs[0].rows(Match(NOTES, who), part)}
            on_part = [row for row in guesses if row["seed_id"] in known]
            rows.append([NONE, name, *_figures(runs[0], on_part, ASSESSOR_MEASURES)])
        lines += table(["run", "assessor", *map(_column, ASSESSOR_MEASURES), *COUNTS], rows)
        steps = [(f"{_words(a)} → {_words(b)}", Match(NOTES, a), Match(NOTES, b))
                 for a, b in ((BASE, WARM), (WARM, FINAL), (BASE, FINAL))]  # fmt: skip
        lines += ["", "Paired differences on the same notes:", "", *_differences(runs, part, steps, ASSESSOR_MEASURES)]
    return lines


def _attacks(runs: Sequence[Measured]) -> list[str]:
    lines = [
        "## Attacker and assessor against frozen opponents",
        "Faithful and fools are shares of all attacks that were generated; fools means judged faithful and Harmful, "
        "and the verdict was Safe. The assessor's figures are over the attacks that reached it with a truth. "
        "'truly Harmful' is the accuracy that always saying Harmful would have.",
    ]
    for part in PARTS:
        lines += ["", f"### {_words(part).capitalize()}"]
        rows = []
        for run in runs:
            for match in (match for match in MATCHES if match.attacker):
                figures = _figures(run, run.rows(match, part), ATTACK_MEASURES)
                rows.append([run.name, _words(match.attacker or ""), _words(match.assessor), *figures])
        header = ["run", "attacker", "assessor", *map(_column, ATTACK_MEASURES), *COUNTS]
        lines += table(header, rows)
        told = (scores.FAITHFUL, scores.FOOLS, scores.ACCURACY, scores.BALANCED_ACCURACY, scores.SAYS_HARMFUL)
        lines += ["", "Paired differences on the same seeds:", "", *_differences(runs, part, FROZEN_COMPARISONS, told)]
    return lines


def _figures(run: Measured, rows: Sequence[Row], measures: Sequence[Measure]) -> list[str]:
    judged = sum(scores.truth_of(row) is not None for row in rows)
    without = sum(row["case"] is None for row in rows)
    counts = [str(count) if rows else NONE for count in (len(rows), judged, without)]
    return [*(_interval(run.interval(rows, measure)) for measure in measures), *counts]


def _differences(
    runs: Sequence[Measured], part: str, steps: Iterable[tuple[str, Match, Match]], measures: Sequence[Measure]
) -> list[str]:
    rows = []
    for run in runs:
        for what, before, after in steps:
            sides = run.rows(before, part), run.rows(after, part)
            changed = [_interval(run.difference(*sides, measure), signed=True) for measure in measures]
            rows.append([run.name, what, *changed, _same_text(*sides)])
    return table(["run", "from → to", *map(_column, measures), "same note shown"], rows)


def _same_text(before: Sequence[Row], after: Sequence[Row]) -> str:
    """The share of seeds on which both assessors saw the same text: pairing is by seed, attacks are sampled."""
    shown = {row["seed_id"]: row["presented_note"] for row in before}
    same = [shown[row["seed_id"]] == row["presented_note"] for row in after if row["seed_id"] in shown]
    return f"{sum(same) / len(same):.2f}" if same else NONE


# --- The rest --------------------------------------------------------------------------------------


def _could_show(runs: Sequence[Measured]) -> list[str]:
    vanilla = {part: sum(s.category.is_vanilla for s in runs[0].seeds.values() if s.seed_id.startswith(part))
               for part in PARTS}  # fmt: skip
    attacked = {part: sum(not s.category.is_vanilla for s in runs[0].seeds.values() if s.seed_id.startswith(part))
                for part in PARTS}  # fmt: skip
    return detectable_lines(min(vanilla.values()), min(attacked.values()))


def _how_to_read(runs: Sequence[Measured]) -> list[str]:
    return [
        "## How to read this",
        f"- Brackets: 95 % percentile intervals of a bootstrap over vignettes ({runs[0].resamples:,} resamples); both "
        "twins and all attacks of a vignette are drawn together. They speak of other notes, not of other training "
        "runs: how far runs differ is seen by comparing them, and few runs show little of it.",
        "- An interval without width means that all games agreed; with K vignettes a rate of 0 is then below about "
        "3/K (rule of three).",
        "- Intervals are not adjusted for the number of comparisons: of 20 true zeros, one will seem to be none.",
        "- Matches are paired by seed. Replies are sampled, so a frozen attacker does not write the same text twice; "
        "'same note shown' tells how often it did.",
        "- Judged: games whose verdict was held against a truth; a forfeited attack is none. No result: the judge "
        "abstained or failed; such games count for no accuracy.",
        "- The notes are synthetic and the judge compares with a reference by rules: this shows that the machinery "
        "learns, not that a model reads clinical notes.",
    ]


def _column(measure: Measure) -> str:
    return measure.name.removeprefix("assessor ").removeprefix("attacker ")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _interval(found: Interval | None, *, signed: bool = False) -> str:
    if found is None:
        return NONE
    form = "{:+.2f}" if signed else "{:.2f}"
    text = f"{form.format(found.value)} [{form.format(found.low)}, {form.format(found.high)}]"
    # Fewer than one in a thousand move no bound that is shown.
    return text + (f" ({found.undefined:.1%} of resamples undefined)" if found.undefined >= 0.001 else "")


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
