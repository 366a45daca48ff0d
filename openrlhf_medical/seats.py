"""Two seats for many players: an engine pool for each role, whose weights are exchanged between matches.

N models take the places of two. What an engine can exchange it exchanges, in seconds: weights of the same
architecture, or an adapter on the same base. For anything else the pool is ended and another started.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.util.placement_group import PlacementGroup, remove_placement_group
from transformers import AutoTokenizer

from openrlhf_medical import casting
from openrlhf_medical.cluster import reserve
from openrlhf_medical.config import RunConfig
from openrlhf_medical.evaluation.arena_players import Entrant
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout.engine_player import EnginePlayer
from openrlhf_medical.rollout.engines import ADAPTER_CONFIG
from openrlhf_medical.rollout.fleet import Fleet
from openrlhf_medical.rollout.opponents import Opponent

ADAPTER = "entrant"
_SAYS_NOTHING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Keys of a model's config.json that do not change its shape."""


class Seat:
    """Plays one role as whoever ``take`` was last called with. Not for use from several threads."""

    def __init__(self, config: RunConfig, role: Role) -> None:
        self._config, self._role = config, role
        self._engines = Fleet.none()
        self._weights: Opponent | None = None
        self._place: PlacementGroup | None = None
        self._kind: tuple[Any, ...] = ()
        self._sitting: Entrant | None = None
        self._loaded = 0

    def take(self, one: Entrant) -> None:
        """Let ``one`` play from now on. Returns before engines that had to be started are up: see ``wait``.

        Raises:
            UserError: no room in the cluster. RuntimeError: engines that read different bytes. StuckError: one that
            did not answer in time.
        """
        if one == self._sitting:
            return
        kind, fresh = kind_of(one), False
        if kind != self._kind:
            self._start(one, kind)
            fresh = True
        if one.base is not None or not fresh:
            self._exchange(one)
        self._sitting = one

    def wait(self) -> None:
        casting.wait_for_engines(self._config, {f"the {self._role}'s": self._engines})

    def player(self) -> EnginePlayer:
        assert self._sitting is not None
        return self._player(self._sitting)

    def _player(self, one: Entrant) -> EnginePlayer:
        return casting.player_of(self._config, self._engines, tokenizer_of(one), name=one.name,
                                 adapter=ADAPTER if one.base else "", frozen=True)  # fmt: skip

    def _start(self, one: Entrant, kind: tuple[Any, ...]) -> None:
        self.close()
        vllm, run = self._config.vllm, self._config.run
        spec = casting.engine_spec(self._config, one.base or one.folder)
        if one.base:
            spec = replace(spec, adapters=1, adapter_rank=adapter_rank(one))
        purpose = f"the arena's {self._role}"
        self._place = reserve(vllm.num_engines * vllm.tensor_parallel_size, run.placement_timeout_s, purpose)
        self._engines = casting.start_fleet(self._config, spec, purpose, self._place, 1.0)
        player, adapter = self._player(one), ADAPTER if one.base else ""
        self._weights = Opponent(self._role, player, self._engines, run.sync_timeout_s, adapter)
        self._kind = kind

    def _exchange(self, one: Entrant) -> None:
        self.wait()
        self._loaded += 1
        assert self._weights is not None
        self._weights.load(one.folder, self._loaded)

    def close(self) -> None:
        """End the engines and give their places back."""
        self._engines.stop()
        if self._place is not None:
            remove_placement_group(self._place)
        self._engines, self._weights, self._place, self._kind, self._sitting = Fleet.none(), None, None, (), None


def kind_of(one: Entrant) -> tuple[Any, ...]:
    """Equal for players that can be exchanged on a running engine."""
    if one.base is not None:
        return ("adapter", one.base, adapter_rank(one))
    file = Path(one.folder) / "config.json"
    if not file.exists():
        return ("hub", one.folder)
    shape = json.loads(file.read_text(encoding="utf-8"))
    return ("model", json.dumps({k: v for k, v in shape.items() if k not in _SAYS_NOTHING}, sort_keys=True))


def adapter_rank(one: Entrant) -> int:
    return json.loads((Path(one.folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]


@functools.cache
def tokenizer_of(one: Entrant) -> Any:
    return AutoTokenizer.from_pretrained(one.base or one.folder, trust_remote_code=True)
