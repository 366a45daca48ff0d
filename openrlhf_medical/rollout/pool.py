"""A pool of this run's past checkpoints, to play against.

Self-play against the newest opponent alone can forget how to beat an older one; playing the average of the
past does not (fictitious self-play, Heinrich et al. 2015). Standard library only: files and engines are the
caller's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.edits import draw
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.rewards import Case

Sampling = Literal["latest", "uniform", "hardest"]

MEMORY = 0.8
"""What is left of older results when new ones are recorded. The trained side moves on, so its old wins say
less and less of today; AlphaStar's payoff decays for that reason. About the last five meetings count."""

HARDNESS = 2
"""Exponent of prioritized fictitious self-play's f_hard; AlphaStar's pseudocode has the square."""

ASSESSED = frozenset({Case.RIGHT, Case.WRONG, Case.REFUSAL, Case.UNPARSABLE})
"""Cases in which the assessor replied to a note that can be right or wrong."""


@dataclass(frozen=True, slots=True)
class Member:
    """A checkpoint in the pool. ``step`` is how many steps its weights had been trained (0: the start),
    ``version`` the policy version that its replies carry."""

    name: str
    step: int
    folder: str
    version: int


class OpponentPool:
    """Which past checkpoints are kept, which one plays next, and how they fare.

    Choices depend on ``seed``, the step, the role, the members and their results alone, so that a run that
    resumes from ``state()`` meets the same opponents.

    Raises:
        UserError: on construction, for a value that is not allowed.
    """

    def __init__(self, size: int, every: int, sampling: Sampling, seed: int):
        for key, value in (("size", size), ("every", every)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"roles.pool.{key} is {value!r}; allowed: a whole number of at least 1")
        if sampling not in get_args(Sampling):
            raise UserError(f"roles.pool.sampling is {sampling!r}; allowed: {', '.join(get_args(Sampling))}")
        self.size, self.every, self.sampling, self.seed = size, every, sampling, seed
        self._members: list[Member] = []
        self._results: dict[str, dict[str, tuple[float, float]]] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """The pool, oldest first."""
        return tuple(self._members)

    # ── Who is in ──

    def wants(self, steps_done: int) -> bool:
        """Whether the weights after ``steps_done`` steps are to be added; 0 asks for the start. False for what
        is no newer than the newest member: a resumed run does not add a checkpoint twice."""
        newer = not self._members or steps_done > self._members[-1].step
        return steps_done % self.every == 0 and newer

    def add(self, member: Member) -> Member | None:
        """Take in a checkpoint newer than all others.

        Returns:
            the member that had to go, whose checkpoint nobody here needs any more; None while there is room.
        """
        if self._members and member.step <= self._members[-1].step:
            raise ValueError(f"{member.name} (step {member.step}) is no newer than {self._members[-1].name}")
        if member.name in (other.name for other in self._members):
            raise ValueError(f"the pool has a member {member.name} already")
        self._members.append(member)
        if len(self._members) <= self.size:
            return None
        leaving = self._members.pop(superfluous([other.step for other in self._members]))
        self._results.pop(leaving.name, None)
        return leaving

    # ── Who plays ──

    def sample(self, step: int, role: Role) -> Member:
        """The member that plays ``role`` in this step. ValueError on a pool without members."""
        if not self._members:
            raise ValueError("the pool has no member; add the start before the first step")
        weights = self._weights(role)
        point = draw("pool", self.seed, step, role.value) * sum(weights)
        below = itertools.accumulate(weights)
        chosen = next((i for i, mark in enumerate(below) if point < mark), None)
        # Rounding can leave the point on the last mark; a weight of 0 is never drawn.
        return self._members[chosen if chosen is not None else max(i for i, w in enumerate(weights) if w)]

    def _weights(self, role: Role) -> list[float]:
        if self.sampling == "latest":
            return [0.0] * (len(self._members) - 1) + [1.0]
        if self.sampling == "uniform":
            return [1.0] * len(self._members)
        return hardness([self._result(member.name, role) for member in self._members])

    # ── How they fare ──

    def record(self, name: str, role: Role, wins: int, games: int) -> None:
        """Note what a member won, playing ``role`` against the trained side. No games say nothing."""
        if name not in (member.name for member in self._members):
            raise ValueError(f"{name} is no member of the pool: {', '.join(m.name for m in self._members)}")
        if not 0 <= wins <= games:
            raise ValueError(f"{name} cannot have won {wins} of {games} games")
        if games:
            old_wins, old_games = self._result(name, role)
            results = self._results.setdefault(name, {})
            results[role.value] = (MEMORY * old_wins + wins, MEMORY * old_games + games)

    def win_rate(self, name: str, role: Role) -> float | None:
        """Share of games that a member won in ``role``, recent ones counting most; None if it has not played."""
        wins, games = self._result(name, role)
        return wins / games if games else None

    def _result(self, name: str, role: Role) -> tuple[float, float]:
        return self._results.get(name, {}).get(role.value, (0.0, 0.0))

    # ── Resuming ──

    def state(self) -> dict[str, Any]:
        """All that ``load`` needs, as JSON."""
        results = {name: {role: list(pair) for role, pair in roles.items()} for name, roles in self._results.items()}
        return {"members": [asdict(member) for member in self._members], "results": results}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a pool with this ``state`` was. UserError if it has more members than fit."""
        members = [Member(**row) for row in state["members"]]
        if len(members) > self.size:
            raise UserError(
                f"roles.pool.size is {self.size}, but the checkpoint's pool has {len(members)} members; "
                f"resume with at least {len(members)}, or start a new run"
            )
        self._members = members
        self._results = {
            name: {role: (wins, games) for role, (wins, games) in roles.items()}
            for name, roles in state["results"].items()
        }


def superfluous(steps: Sequence[int]) -> int:
    """The position of the member to evict, of ascending ``steps``.

    The start and the newest stay: the one is the yardstick, the other the strongest. Of those between, the
    one goes whose neighbours are closest to each other (the oldest of equals), so that the pool spreads over
    the whole run. The last few checkpoints alone would be near-copies of the opponent of today. A pool of one
    keeps the newest.
    """
    between = range(1, len(steps) - 1)
    return min(between, key=lambda i: steps[i + 1] - steps[i - 1]) if between else 0


def hardness(results: Sequence[tuple[float, float]]) -> list[float]:
    """Weights of members by their (wins, games) against the trained side.

    Who has not played goes first, as it may be the hardest. Else prioritized fictitious self-play (Vinyals et
    al. 2019, AlphaStar): f_hard(x) = (1 − x)^p with x the trained side's win rate; here 1 − x is the member's
    own, smoothed to (wins + 1) / (games + 2), so that nobody's weight is 0 and everybody is met again. Always
    taking the hardest would never notice that another has become so.
    """
    if not all(games for _, games in results):
        return [float(games == 0) for _, games in results]
    return [((wins + 1) / (games + 2)) ** HARDNESS for wins, games in results]


def wins_of(games: Iterable[Game], role: Role) -> tuple[int, int]:
    """(wins, games) of the player of ``role``, over games that were a contest: the attacker wrote the note, and
    there is a result.

    An attacker wins with a faithful note on which the verdict is wrong; a forfeit is a game that it lost, a
    refusal or an unparsable assessment one that it did not win. An assessor wins where its verdict is right;
    forfeits are not counted, as it did not play.
    """
    contests = [game for game in games if game.attacker is not None and game.case is not None]
    if role is Role.ATTACKER:
        return sum(bool(game.faithful) and game.case is Case.WRONG for game in contests), len(contests)
    assessed = [game for game in contests if game.case in ASSESSED]
    return sum(game.case is Case.RIGHT for game in assessed), len(assessed)
