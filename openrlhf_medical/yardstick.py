"""What a run is measured by while it trains: which held-out figure counts, when it was best, when to stop.

In self-play the reward says little, as both players move. Held-out figures move with one player only where the other
stands still: see ``eval/frozen_attacker/…`` and ``eval/frozen_assessor/…`` (``run.eval_frozen``).

Standard library only: games, checkpoints and configuration are the caller's.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openrlhf_medical.errors import UserError

HELD_OUT = "eval/"
FROZEN = ("eval/frozen_attacker/", "eval/frozen_assessor/")
"""Prefixes of the figures of held-out games with the current policies, and against a player that never changes."""

_ASSESSOR = {
    "assessor/accuracy": True,
    "assessor/balanced_accuracy": True,
    "assessor/false_positive_rate": False,
    "assessor/false_negative_rate": False,
    "assessor/sentence_accuracy": True,
    "assessor/correction_f1": True,
    "assessor/correction_gain": True,
    "format/assessor/violation_rate": False,
    "reward/assessor/mean": True,
}
_ATTACKER = {
    "attacker/success_rate": True,
    "attacker/faithful_rate": True,
    "format/attacker/violation_rate": False,
    "reward/attacker/mean": True,
}

HIGHER_IS_BETTER = {
    **{HELD_OUT + name: higher for name, higher in (_ASSESSOR | _ATTACKER).items()},
    **{FROZEN[0] + name: higher for name, higher in _ASSESSOR.items()},
    **{FROZEN[1] + name: higher for name, higher in _ATTACKER.items()},
}
"""Every figure that ``run.best_metric`` may name, and which way is better. Not every one is defined in every run:
``correction_f1`` asks for ``game.localise``."""


def check_metric(name: str) -> None:
    """Raise UserError, with the nearest names, for a figure that no run can be chosen by."""
    if name in HIGHER_IS_BETTER:
        return
    near = difflib.get_close_matches(name, HIGHER_IS_BETTER, n=3, cutoff=0.5) or list(HIGHER_IS_BETTER)[:3]
    raise UserError(f"run.best_metric is {name!r}; allowed: held-out figures such as {', '.join(near)}")


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: after how many steps, and its value."""

    steps_done: int
    value: float


class Yardstick:
    """Says when to measure, which measurement is the best so far, and when enough of them were not.

    Args:
        every: steps between two evaluations during training; 0 measures before and after it alone.
        metric: of ``HIGHER_IS_BETTER``; None chooses nothing and never stops.
        patience: evaluations in a row without a new best, after which training stops; 0 never.
    """

    def __init__(self, every: int, metric: str | None = None, patience: int = 0) -> None:
        if metric is not None:
            check_metric(metric)
        self.every, self.metric, self.patience = every, metric, patience
        self.best: Best | None = None
        self.measured = -1
        """After how many steps the latest evaluation was made; -1 before the first."""
        self._last: Best | None = None
        self._without = 0

    def due(self, steps_done: int) -> bool:
        """Whether the weights after ``steps_done`` steps are to be measured."""
        return self.every > 0 and steps_done % self.every == 0

    def note(self, steps_done: int, figures: Mapping[str, float]) -> bool:
        """Take in an evaluation. True where it is the best so far, the first one included.

        Equal figures are no improvement: the earlier weights stay. An evaluation in which the figure is undefined
        (or NaN) says nothing: it is neither better nor worse.
        """
        self.measured = steps_done
        value = figures.get(self.metric, math.nan) if self.metric else math.nan
        if math.isnan(value):
            return False
        assert self.metric is not None
        better = self.best is None or (
            value > self.best.value if HIGHER_IS_BETTER[self.metric] else value < self.best.value
        )
        self._last = Best(steps_done, value)
        if better:
            self.best, self._without = self._last, 0
        else:
            self._without += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether to stop early."""
        return self.patience > 0 and self._without >= self.patience

    def why(self) -> str:
        """One sentence about ``exhausted``."""
        assert self.best is not None and self._last is not None
        return (
            f"stopped early after {self._last.steps_done} steps: {self.metric} was best after {self.best.steps_done} "
            f"({self.best.value:.3f}), and {self._without} evaluations since were no better (run.early_stop_patience)"
        )

    # ── Resuming ──

    def state(self) -> dict[str, Any]:
        """All that ``load`` needs, as JSON."""
        pairs = {"best": self.best, "last": self._last}
        kept = {name: [one.steps_done, one.value] if one else None for name, one in pairs.items()}
        return {"metric": self.metric, "measured": self.measured, "without": self._without, **kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a yardstick with this ``state`` was. One of another figure is forgotten: its values are no
        measure for this one."""
        self.measured = state["measured"]
        if state["metric"] != self.metric:
            return
        self.best, self._last = (Best(*state[name]) if state[name] else None for name in ("best", "last"))
        self._without = state["without"]
