"""Has training collapsed? Detectors over a step's games and metrics, and a monitor that waits out noise.

A detector is a pure function of one step and answers for its condition: it holds, it does not, or this step
cannot tell (too few turns, notes of one kind only, a figure that is absent). The monitor tells a finding when
its condition has held for ``window`` steps in a row, once until it has cleared. Steps that cannot tell neither
lengthen nor end a streak: a small batch with no Safe note in it clears nobody.

Standard library only: a run directory can be checked on a machine without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.edits import is_copy
from openrlhf_medical.game.players import Role, Truth
from openrlhf_medical.game.records import Game, Turn, turns_of
from openrlhf_medical.game.rewards import Case


class Kind(StrEnum):
    """What can be wrong."""

    ALWAYS_HARMFUL = "always_harmful"
    ALWAYS_SAFE = "always_safe"
    FORMAT_COLLAPSE = "format_collapse"
    ENTROPY_VANISHED = "entropy_vanished"
    COPIES_SEED = "copies_seed"
    NO_NOTE = "no_note"
    EQUAL_REWARDS = "equal_rewards"
    SYNC_MISMATCH = "sync_mismatch"
    NOT_FINITE = "not_finite"
    JUDGE_DRIFT = "judge_drift"


LOST_ABILITIES = frozenset({Kind.FORMAT_COLLAPSE, Kind.NO_NOTE})
"""Conditions that an untrained weak model starts in, and that training is there to mend. They count only
after a step in which the role was able (``HealthLimits.able_share``), that is, as something lost."""

MOST_ABSTAINED = 0.5
"""Share of gold probes without a verdict, from which the judge is not the one that it was: all of one side, at
least, as a quarter are identical pairs, which no judge leaves open."""

AT_ONCE = frozenset({Kind.NOT_FINITE, Kind.JUDGE_DRIFT})
"""Conditions without noise to wait out: weights that became NaN do not come back, and gold probes come only every
few steps, while each step in between learns from a judge that errs."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a condition holds. Shares lie between 0 and 1.

    ``window``              steps in a row before a finding is told
    ``min_turns``           turns in a step, below which a share of them says nothing
    ``one_sided_share``     share of one verdict, from which an assessor says always the same
    ``mixed_truth_share``   share of the rarer truth, from which notes count as mixed (``benign_goal: inject``
                            gives about 0.25). With these two, suspicion needs three quarters of one side to be
                            called wrong: no good assessor meets it
    ``violation_share``     share of a role's replies out of form
    ``forfeit_share``       share of attackers that wrote no note
    ``able_share``          share of misses, of either of these two, up to which a role has shown that it is able.
                            Well below them, so that a weak model's noise around the limit is no loss
    ``copy_share``          share of adversarial notes that are copies of their seed note
    ``entropy_nats``        nats per token, below which nothing is explored. Low, as an attacker that rightly
                            copies most of a note is near 0 by itself; 0.02 is a perplexity of 1.02. The slide to
                            0 is described by Cui et al. 2025 (arXiv 2505.22617)
    ``equal_reward_share``  share of groups (for whitening: of batches) whose rewards are all equal. Whitening
                            then blows up what is left, the KL penalty's noise, to unit variance. Near 1, as a
                            good assessor's pairs are mostly equal too
    ``sync_nats``           mean |log-probability difference| per token between engine and policy. bf16 noise is
                            about 0.02; the trainer stops at 1
    ``gold_accuracy_share`` balanced accuracy of the decided gold probes (``judge.probe_alarm``), below which the
                            judge is not the one that it was

    Raises:
        UserError: on construction, for a value that is not allowed.
    """

    window: int = 3
    min_turns: int = 8
    one_sided_share: float = 0.95
    mixed_truth_share: float = 0.2
    violation_share: float = 0.5
    forfeit_share: float = 0.5
    able_share: float = 0.25
    copy_share: float = 0.8
    entropy_nats: float = 0.02
    equal_reward_share: float = 0.98
    sync_nats: float = 0.2
    gold_accuracy_share: float = 0.8

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            _check_limit(name, getattr(self, name))
        if self.one_sided_share + self.mixed_truth_share <= 1:
            raise UserError(
                f"run.health.one_sided_share ({self.one_sided_share:g}) and run.health.mixed_truth_share "
                f"({self.mixed_truth_share:g}) must add up to more than 1: else a faultless assessor is suspected"
            )
        if self.able_share >= min(self.violation_share, self.forfeit_share):
            raise UserError(
                f"run.health.able_share is {self.able_share:g}; allowed: less than run.health.violation_share "
                f"({self.violation_share:g}) and run.health.forfeit_share ({self.forfeit_share:g})"
            )


@dataclass(frozen=True, slots=True)
class Finding:
    """Something is wrong. ``evidence`` is one sentence with the last step's figures and the steps;
    ``role`` is None for what is no role's."""

    kind: str
    role: str | None
    evidence: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What one step says of one condition. ``holds`` is None where the step cannot tell; ``text`` gives the
    figures; ``able`` says that the role showed itself free of a condition of ``LOST_ABILITIES``."""

    kind: Kind
    role: Role | None
    holds: bool | None
    text: str = ""
    able: bool = False

    @property
    def key(self) -> str:
        """Names the condition in the monitor's state."""
        return f"{self.kind}/{self.role}" if self.role else self.kind.value


class HealthMonitor:
    """Follows every condition of the trained roles over the steps of a run.

    Roles that are not trained are not looked at, nor are turns of frozen opponents.
    """

    def __init__(self, limits: HealthLimits, trained_roles: Iterable[Role]):
        self.limits = limits
        self.trained_roles = tuple(role for role in Role if role in set(trained_roles))
        self._streaks: dict[str, list[int]] = {}
        self._told: set[str] = set()
        self._able: set[str] = set()

    def check(self, step: int, games: Sequence[Game], metrics: Mapping[str, float]) -> list[Finding]:
        """The findings to tell after this step. ``metrics`` are the step's, named as in ``metrics.jsonl``."""
        return [
            Finding(reading.kind.value, reading.role, f"{reading.text} {_when(self._streaks[reading.key])}")
            for reading in readings(games, metrics, self.limits, self.trained_roles)
            if self._follow(step, reading)
        ]

    @property
    def suspicious(self) -> bool:
        """Some condition held when last it could be told, be it for less than the window."""
        return bool(self._streaks)

    def state(self) -> dict[str, Any]:
        """All that ``load`` needs, as JSON: a few step numbers and names for each condition that holds."""
        return {
            "streaks": {key: list(steps) for key, steps in self._streaks.items()},
            "told": sorted(self._told),
            "able": sorted(self._able),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a monitor with this ``state`` was."""
        self._streaks = {key: list(steps) for key, steps in state["streaks"].items()}
        self._told, self._able = set(state["told"]), set(state["able"])

    def _follow(self, step: int, reading: Reading) -> bool:
        """Bring one condition's streak up to date. True if its finding is to be told now."""
        key = reading.key
        if reading.able:
            self._able.add(key)
        if reading.holds is None:
            return False
        if not reading.holds or (reading.kind in LOST_ABILITIES and key not in self._able):
            self._streaks.pop(key, None)
            self._told.discard(key)
            return False
        window = 1 if reading.kind in AT_ONCE else self.limits.window
        self._streaks[key] = [*self._streaks.get(key, []), step][-window:]
        if len(self._streaks[key]) < window or key in self._told:
            return False
        self._told.add(key)
        return True


# ── Detectors: one step each ──


def readings(
    games: Sequence[Game], metrics: Mapping[str, float], limits: HealthLimits, trained_roles: Sequence[Role]
) -> list[Reading]:
    """What one step says of every condition."""
    found = [sync_mismatch(metrics, limits), not_finite("sync/", None, metrics), judge_drift(metrics, limits)]
    for role in trained_roles:
        found += [
            format_collapse(role, games, limits),
            entropy_vanished(role, metrics, limits),
            equal_rewards(role, metrics, limits),
            not_finite(f"policy/{role}/", role, metrics),
        ]
    if Role.ASSESSOR in trained_roles:
        found += [always_says(verdict, games, limits) for verdict in Truth]
    if Role.ATTACKER in trained_roles:
        found += [copies_seed(games, limits), no_note(games, limits)]
    return found


def always_says(verdict: Truth, games: Sequence[Game], limits: HealthLimits) -> Reading:
    """One verdict, whatever the note. Counted over parsed verdicts on notes whose truth is known, so that
    verdicts and truths are shares of the same games."""
    kind = Kind.ALWAYS_HARMFUL if verdict is Truth.HARMFUL else Kind.ALWAYS_SAFE
    pairs = [
        (turn.verdict, game.label.actual_harm)
        for game, turn in _own_turns(games, Role.ASSESSOR)
        if game.case in (Case.RIGHT, Case.WRONG) and game.label is not None
    ]
    if len(pairs) < limits.min_turns:
        return Reading(kind, Role.ASSESSOR, None)
    said = sum(said is verdict for said, _ in pairs) / len(pairs)
    true = sum(truth is verdict for _, truth in pairs) / len(pairs)
    if min(true, 1 - true) < limits.mixed_truth_share:
        return Reading(kind, Role.ASSESSOR, None)
    text = f"{_percent(said)} of {len(pairs)} verdicts were {verdict}, while {_percent(true)} of their notes were,"
    return Reading(kind, Role.ASSESSOR, said >= limits.one_sided_share, text)


def format_collapse(role: Role, games: Sequence[Game], limits: HealthLimits) -> Reading:
    """A role lost the form of its replies."""
    misses = [not turn.well_formed for _, turn in _own_turns(games, role)]
    what = f"{role} replies were out of form"
    return _share(Kind.FORMAT_COLLAPSE, role, misses, limits.violation_share, limits, what)


def no_note(games: Sequence[Game], limits: HealthLimits) -> Reading:
    """Attackers that forfeit: no parsable answer, or not a note."""
    misses = [turn.status is TurnStatus.FORFEIT for _, turn in _own_turns(games, Role.ATTACKER)]
    return _share(Kind.NO_NOTE, Role.ATTACKER, misses, limits.forfeit_share, limits, "attackers wrote no note")


def copies_seed(games: Sequence[Game], limits: HealthLimits) -> Reading:
    """Attackers that pass the seed note on where they were to rewrite it. Vanilla turns are to be copies."""
    copies = [
        is_copy(game.presented_note, game.seed.seed_note)
        for game, _ in _own_turns(games, Role.ATTACKER)
        if not game.seed.category.is_vanilla and game.presented_note is not None
    ]
    what = "adversarial notes were copies of their seed note"
    return _share(Kind.COPIES_SEED, Role.ATTACKER, copies, limits.copy_share, limits, what)


def entropy_vanished(role: Role, metrics: Mapping[str, float], limits: HealthLimits) -> Reading:
    """A policy that writes the same tokens whatever is sampled."""
    entropy = _figure(metrics, f"policy/{role}/entropy")
    if entropy is None:
        return Reading(Kind.ENTROPY_VANISHED, role, None)
    text = f"the {role}'s entropy was {entropy:.3g} nats per token (limit {limits.entropy_nats:g})"
    return Reading(Kind.ENTROPY_VANISHED, role, entropy < limits.entropy_nats, text)


def equal_rewards(role: Role, metrics: Mapping[str, float], limits: HealthLimits) -> Reading:
    """Nothing to learn from: no sample did better than those it is compared with."""
    share = _figure(metrics, f"policy/{role}/equal_reward_share")
    if share is None:
        return Reading(Kind.EQUAL_REWARDS, role, None)
    text = f"the {role}'s rewards were all equal in {_percent(share)} of the groups they are compared in"
    return Reading(Kind.EQUAL_REWARDS, role, share >= limits.equal_reward_share, text)


def sync_mismatch(metrics: Mapping[str, float], limits: HealthLimits) -> Reading:
    """Engines that do not play the policy's weights."""
    gap = _figure(metrics, "sync/logprob_mean_diff")
    if gap is None:
        return Reading(Kind.SYNC_MISMATCH, None, None)
    text = f"engine and policy differed by {gap:.3g} nats per token on average (limit {limits.sync_nats:g})"
    return Reading(Kind.SYNC_MISMATCH, None, gap > limits.sync_nats, text)


def judge_drift(metrics: Mapping[str, float], limits: HealthLimits) -> Reading:
    """A judge that errs on pairs whose truth is known, or that abstains on most of them: the games that it does not
    decide train nobody, and no other check sees that. Steps without a round of probes cannot tell, nor can failures,
    which ``judge.max_failed_fraction`` is for."""
    abstained = _figure(metrics, "judge/gold_abstain_rate")
    if abstained is not None and abstained >= MOST_ABSTAINED:
        return Reading(Kind.JUDGE_DRIFT, None, True, f"the judge abstained on {_percent(abstained)} of the gold probes")
    right = _figure(metrics, "judge/gold_balanced_accuracy")
    if right is None:
        return Reading(Kind.JUDGE_DRIFT, None, None)
    alarm = limits.gold_accuracy_share
    text = f"the judge's balanced accuracy on gold probes was {right:.2f} (judge.probe_alarm {alarm:g})"
    return Reading(Kind.JUDGE_DRIFT, None, right < alarm, text)


def not_finite(prefix: str, role: Role | None, metrics: Mapping[str, float]) -> Reading:
    """NaN or infinity among the metrics that start with ``prefix``."""
    own = {name: value for name, value in metrics.items() if name.startswith(prefix)}
    broken = [f"{name} was {value}" for name, value in sorted(own.items()) if not math.isfinite(value)]
    return Reading(Kind.NOT_FINITE, role, bool(broken) if own else None, ", ".join(broken))


# ── Helpers ──


def _own_turns(games: Iterable[Game], role: Role) -> list[tuple[Game, Turn]]:
    """A role's turns, less those of a frozen opponent: how that one plays is no collapse of training."""
    return [(game, turn) for game, turn in turns_of(games, role) if not turn.reply.frozen]


def _share(kind: Kind, role: Role, hits: Sequence[bool], limit: float, limits: HealthLimits, what: str) -> Reading:
    if len(hits) < limits.min_turns:
        return Reading(kind, role, None)
    share = sum(hits) / len(hits)
    return Reading(kind, role, share >= limit, f"{_percent(share)} of {len(hits)} {what}", share <= limits.able_share)


def _figure(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric, or None where it is absent or NaN: what is NaN is told as such, by ``not_finite``."""
    value = metrics.get(name)
    return None if value is None or math.isnan(value) else value


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _when(steps: Sequence[int]) -> str:
    """``at step 6, the last of 3 such steps (4 to 6)``."""
    if len(steps) == 1:
        return f"at step {steps[-1]}"
    in_a_row = steps[-1] - steps[0] == len(steps) - 1
    listed = f"{steps[0]} to {steps[-1]}" if in_a_row else ", ".join(map(str, steps))
    return f"at step {steps[-1]}, the last of {len(steps)} such steps ({listed})"


def _check_limit(name: str, value: Any) -> None:
    whole, most = name in ("window", "min_turns"), 1 if name.endswith("_share") else math.inf
    right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right_type or not 0 < value <= most or math.isinf(value):
        allowed = f"a {'whole' if whole else 'finite'} number above 0{' and at most 1' if most == 1 else ''}"
        raise UserError(f"run.health.{name} is {value!r}; allowed: {allowed}")
