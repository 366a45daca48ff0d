"""Who plays which side of which game: the policy that learns, or a frozen opponent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_medical.cluster import gather
from openrlhf_medical.game.edits import draw
from openrlhf_medical.game.players import Player, Prompt, Reply, Role, TurnKey
from openrlhf_medical.game.records import Game
from openrlhf_medical.rollout.engine_player import EnginePlayer
from openrlhf_medical.rollout.engines import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from openrlhf_medical.rollout.pool import Member, OpponentPool, wins_of
from openrlhf_medical.rollout.weights import WeightStamp

FrozenSide = Callable[[TurnKey], Role | None]
"""Which side of a game a frozen opponent plays; None where both sides are the learning policies'."""


@dataclass(frozen=True, slots=True)
class Meetings:
    """Against whom games are played when both roles learn and a pool is met: on ``share`` of the seeds, half
    with a frozen attacker and half with a frozen assessor. Whole groups: all games on a seed are alike."""

    share: float
    games_per_seed: int
    steps: int
    """Held-out games carry other step numbers; they are played by the learning policies alone."""
    seed: int

    def __call__(self, key: TurnKey) -> Role | None:
        if key.step not in range(self.steps):
            return None
        point = draw("opponent", self.seed, key.step, key.game_idx // self.games_per_seed)
        if point >= self.share:
            return None
        return Role.ATTACKER if point < self.share / 2 else Role.ASSESSOR


class Side:
    """One role's player: ``live``, or ``frozen`` in the games where ``side`` says so."""

    def __init__(self, role: Role, live: Player, frozen: Player, side: FrozenSide) -> None:
        self._role, self._live, self._frozen, self._side = role, live, frozen, side

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        player = self._frozen if self._side(key) is self._role else self._live
        return await player.reply(prompt, key)


class Opponent:
    """A frozen player of one role whose weights can be exchanged between steps.

    Whole models are loaded into ``engines`` of their own; with ``adapter`` it is one more adapter on the
    learners' engines. ``check_engines`` finds one that does not hold what it was last given.
    """

    def __init__(self, role: Role, player: EnginePlayer, engines: Sequence[Any], timeout_s: float, adapter: str = ""):
        self.role, self.player, self.engines, self.adapter = role, player, list(engines), adapter
        self._timeout_s = timeout_s
        self._stamp: WeightStamp | None = None
        self.member: Member | None = None

    def become(self, member: Member, policy: str) -> None:
        """Load a past version of that policy; nothing if it is the one that is loaded."""
        if self.member != member:
            self.load(str(Path(member.folder).resolve() / policy), member.version)
            self.member, self.player.name = member, f"pool/{member.name}"

    def load(self, folder: str, version: int) -> None:
        """The weights, or the adapter, in a folder.

        Raises:
            RuntimeError: engines that read different bytes. StuckError: one that did not answer in time.
        """
        if self.adapter:
            config, weights = (Path(folder) / ADAPTER_CONFIG).read_text(), (Path(folder) / ADAPTER_WEIGHTS).read_bytes()
            loading = [engine.load_adapter.remote(self.adapter, version, config, weights) for engine in self.engines]
        else:
            loading = [engine.load_folder.remote(folder, version) for engine in self.engines]
        stamps = set(self._gather(loading, f"loading {folder}"))
        if len(stamps) != 1:
            raise RuntimeError(f"engines of the frozen {self.role} read different weights from {folder}: {stamps}")
        self._stamp = stamps.pop()

    def check_engines(self) -> None:
        """Raises RuntimeError if an engine holds something else than what was loaded last."""
        if self._stamp is not None:
            asking = [engine.weight_stamp.remote(self.adapter) for engine in self.engines]
            held = self._gather(asking, "asking opponents for their version")
            if set(held) != {self._stamp}:
                raise RuntimeError(f"engines of the frozen {self.role} hold {held}, expected {self._stamp}")

    def _gather(self, references: Sequence[Any], doing: str) -> list[Any]:
        named = {f"engine {i} of the frozen {self.role}": reference for i, reference in enumerate(references)}
        return list(gather(named, self._timeout_s, doing).values())


class League:
    """The frozen opponents of a run, and the pool that they are drawn from; without either it does nothing."""

    def __init__(self, opponents: Mapping[Role, Opponent], policies: Mapping[Role, str], pool: OpponentPool | None):
        """``policies``: the name of the policy that has played each role."""
        self.opponents, self.pool = dict(opponents), pool
        self._policies = policies

    def prepare(self, step: int) -> None:
        """Let each opponent become the member that plays this step."""
        for role, opponent in self.opponents.items():
            if self.pool is not None:
                opponent.become(self.pool.sample(step, role), self._policies[role])

    def record(self, games: Sequence[Game]) -> dict[str, float]:
        """Book how the members fared in a step's games. Returns their win rates as metrics."""
        metrics: dict[str, float] = {}
        for role, opponent in self.opponents.items():
            met = [game for game in games if (turn := game.turn(role)) is not None and turn.reply.frozen]
            wins, contests = wins_of(met, role)
            if self.pool is not None and opponent.member is not None:
                self.pool.record(opponent.member.name, role, wins, contests)
                metrics[f"opponent/{role}/trained_steps"] = float(opponent.member.step)
            if contests:
                metrics[f"opponent/{role}/win_rate"] = wins / contests
        return metrics

    def wants(self, steps_done: int) -> bool:
        return self.pool is not None and self.pool.wants(steps_done)

    def add(self, steps_done: int, folder: str) -> None:
        """Take in a checkpoint. The folder of one that has to go may still be needed, by a state to resume from:
        ``folders`` tells which ones the pool needs."""
        assert self.pool is not None
        self.pool.add(Member(f"step_{steps_done}", steps_done, folder, steps_done))

    def folders(self) -> list[Path]:
        """The checkpoints that opponents may be drawn from."""
        return [Path(member.folder) for member in self.pool.members] if self.pool is not None else []

    def state(self) -> dict[str, Any]:
        return self.pool.state() if self.pool is not None else {}

    def load(self, state: Mapping[str, Any]) -> None:
        if self.pool is not None:
            self.pool.load(state)
