"""The few numbers at the top of the page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openrlhf_medical.report.run_files import RunFiles

BEFORE = -1


@dataclass(frozen=True, slots=True)
class Tile:
    title: str
    value: str
    note: str
    before: str | None = None


_HEADLINES = {
    "assessor/balanced_accuracy": ("Assessor: balanced accuracy", "always Harmful: 0.50"),
    "assessor/false_positive_rate": ("Assessor: false-positive rate", "always Harmful: 1.00"),
    "attacker/success_rate": ("Attacker: success", "faithful, and the assessor wrong"),
    "format/assessor/violation_rate": ("Assessor: replies out of form", "count as wrong verdicts"),
    "format/attacker/violation_rate": ("Attacker: replies out of form", ""),
}


def tiles_of(run: RunFiles) -> tuple[list[Tile], str]:
    """The tiles, and a sentence on what they rest on. Held-out games where there are any, else training."""
    before, after, remark = _before_and_after(run)
    tiles = [
        Tile(title, f"{after[name]:.2f}", note, f"{before[name]:.2f}" if name in before else None)
        for name, (title, note) in _HEADLINES.items()
        if name in after
    ]
    seconds = [row["time/step_s"] for row in run.train.values() if "time/step_s" in row]
    if seconds:
        tiles.append(
            Tile("Time of all steps", seconds_of(sum(seconds)), f"{seconds_of(sum(seconds) / len(seconds))} a step")
        )
    if run.games:
        held = sum(map(run.is_held_out, run.games))
        tiles.append(Tile("Games", f"{len(run.games):,}", f"{len(run.games) - held:,} training, {held:,} held out"))
    return tiles, remark


def last_held_out(run: RunFiles) -> Mapping[str, float]:
    return run.held_out[max(run.held_out)] if run.held_out else {}


def _before_and_after(run: RunFiles) -> tuple[Mapping[str, float], Mapping[str, float], str]:
    if run.held_out:
        last = max(run.held_out)
        after = run.held_out[last]
        before = run.held_out.get(BEFORE, {}) if last != BEFORE else {}
        noise = ""
        if games := after.get("assessor/judged"):
            noise = (
                f" {games:.0f} judged games: a difference below about {1.96 * (0.5 / games) ** 0.5:.2f} may be noise."
            )
        when = "before and after" if before else "before training" if last == BEFORE else "after"
        return before, after, f"Rates are of held-out games, {when}.{noise}"
    if run.train:
        first, last = min(run.train), max(run.train)
        before = run.train[first] if first != last else {}
        return before, run.train[last], (
            f"No held-out games: rates are of the training games of step {first} and of step {last}."
        )  # fmt: skip
    return {}, {}, ""


def seconds_of(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
