"""The result of an audit as one JSON object, and what of it may be told: ids, counts, words of kinds, no notes.

``--show-misses`` adds the passages in which a missed pair differs, and what the judge said. The held-out hard pairs
are told as one sum, whatever is asked: a set that somebody looks at while working on a judge is spent.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from openrlhf_medical.evaluation.intervals import Interval, bootstrap
from openrlhf_medical.judge.audit.probes import COSMETIC_SET, GOLD, HARD_HELD_OUT, HARD_OPEN, IDENTICAL, REWORDED_SET
from openrlhf_medical.judge.audit.scores import (
    ABSTAIN,
    BASELINES,
    CELLS,
    ERROR,
    TRUTHS,
    Answered,
    accuracy,
    confusion,
    figures,
    latency,
)

SCHEMA_VERSION = 1
RESAMPLES = 2_000
"""Of each interval: its ends move by about 0.002 from one drawing to another."""
CONTEXT_WORDS = 3

GROUPS = {
    "gold and cosmetic": (GOLD, COSMETIC_SET),
    "gold and reworded": (GOLD, REWORDED_SET),
    "identical": (IDENTICAL,),
    "hard": (HARD_OPEN,),
    "hard (held out)": (HARD_HELD_OUT,),
}


def groups_of(answered: Sequence[Answered]) -> dict[str, list[Answered]]:
    """The answers by the heading that they are told under."""
    return {name: [each for each in answered if each.probe.set_name in sets] for name, sets in GROUPS.items()}


def section(answered: Sequence[Answered]) -> dict[str, Any]:
    """One group's counts, figures, baselines, kinds and latency."""
    counts = confusion((each.probe.truth, each.answer) for each in answered)
    return {
        "probes": len(answered),
        "vignettes": len({each.probe.vignette_id for each in answered}),
        "confusion": {truth.value: {a: n for (t, a), n in counts.items() if t == truth} for truth in TRUTHS},
        "figures": _plain(figures(answered, resamples=RESAMPLES)),
        "baselines": {name: _plain(figures(answered, said, RESAMPLES)) for name, said in BASELINES.items()},
        "kinds": _kinds([each for each in answered if each.probe.set_name != HARD_HELD_OUT]),
        "latency": latency([each.seconds for each in answered]),
    }


def _kinds(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """One row for each kind and truth."""
    found: dict[tuple[str, str, str], list[Answered]] = defaultdict(list)
    for each in answered:
        found[each.probe.set_name, each.probe.kind, each.probe.truth.value].append(each)
    rows = []
    for (set_name, kind, truth), own in sorted(found.items()):
        cells: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(CELLS))
        for each in own:
            cells[each.probe.vignette_id][CELLS.index((truth, each.answer))] += 1
        answers = [each.answer for each in own]
        rows.append({
            "set": set_name, "kind": kind, "truth": truth, "probes": len(own), "right": answers.count(truth),
            "abstained": answers.count(ABSTAIN), "failed": answers.count(ERROR),
            "accuracy": plain(bootstrap(cells, accuracy, resamples=RESAMPLES)),
        })  # fmt: skip
    return rows


def misses(answered: Iterable[Answered], *, show: bool) -> list[dict[str, Any]]:
    """What was not answered with the truth, by id; the held-out pairs left out."""
    rows = []
    for each in answered:
        if not each.missed or each.probe.set_name == HARD_HELD_OUT:
            continue
        row: dict[str, Any] = {"id": each.probe.probe_id, "set": each.probe.set_name, "kind": each.probe.kind,
               "truth": each.probe.truth.value, "answer": each.answer,
               "judge_kind": str(each.label.extra.get("kind", ""))}  # fmt: skip
        if show:
            row |= {"reason": each.label.reason, "changed": changed_passages(each.probe.reference, each.probe.note)}
        rows.append(row)
    return rows


def changed_passages(reference: str, note: str) -> list[str]:
    """``before [old -> new] after`` for each place where two texts differ, with a few words around it."""
    old, new = reference.split(), note.split()
    shown = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            before, after = " ".join(old[max(0, i - CONTEXT_WORDS) : i]), " ".join(old[j : j + CONTEXT_WORDS])
            shown.append(f"{before} [{' '.join(old[i:j])} -> {' '.join(new[k:m])}] {after}".strip())
    return shown or ["(only white space differs)" if reference != note else "(the same text)"]


def plain(interval: Interval | None) -> dict[str, float] | None:
    """As JSON; None stays null: undefined."""
    if interval is None:
        return None
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _plain(intervals: dict[str, Interval | None]) -> dict[str, dict[str, float] | None]:
    return {name: plain(interval) for name, interval in intervals.items()}
