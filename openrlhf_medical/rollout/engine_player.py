"""The player that plays one role on a pool of engines: implements ``game.players.Player``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from openrlhf_medical.game.players import Prompt, Reply, TurnKey
from openrlhf_medical.rollout.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn. ``deterministic`` gives every turn a seed of its own, derived from the
    run's seed and the turn's key, so that a turn's tokens do not depend on arrival order."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    deterministic: bool = False


class EnginePlayer:
    """Plays one role on a pool of engines: renders prompts to token ids, and lets the pool play the turn.

    Implements ``game.players.Player``. ``timeout_s`` is the deadline of one reply; what exceeds it
    raises TimeoutError naming the engine, which costs one game and not the run.
    """

    def __init__(
        self,
        engines: Fleet,
        tokenizer: Any,
        sampling: Sampling,
        max_model_len: int,
        timeout_s: float,
        *,
        name: str = "",
        adapter: str = "",
        frozen: bool = False,
    ):
        """``name``: who plays, for the record; ``adapter``: which one of the engines'; ``frozen``: its turns
        are never trained on."""
        self.name, self.adapter, self.frozen = name, adapter, frozen
        self._engines = engines
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._max_model_len = max_model_len
        self._timeout_s = timeout_s

    def sampling_for(self, key: TurnKey, room: int) -> dict[str, Any]:
        """Arguments of vLLM's SamplingParams for one turn; ``room`` is how many tokens still fit."""
        sampling = self._sampling
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": min(sampling.max_new_tokens, room),
            "stop": list(sampling.stop) or None,
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "seed": turn_seed(sampling.seed, key) if sampling.deterministic else None,
        }

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        ids = prompt_ids(self._tokenizer, prompt)
        room = self._max_model_len - len(ids)
        if room < 1:
            raise ValueError(f"the prompt of game {key.game_idx} has {len(ids)} tokens and data.max_len is "
                             f"{self._max_model_len}: nothing can be answered")  # fmt: skip
        sampling = self.sampling_for(key, room)
        reply = await self._engines.turn(
            lambda engine: engine.reply.remote(ids, sampling, self.adapter),
            f"the {key.role} of game {key.game_idx}",
            self._timeout_s,
        )
        return replace(reply, player=self.name, frozen=self.frozen)


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """(T_p,) ids of the chat template's text up to the reply, and of the prefill that the reply starts with."""
    text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
    return tokenizer(text + prompt.prefill, add_special_tokens=False)["input_ids"]


def turn_seed(run_seed: int, key: TurnKey) -> int:
    """A 63-bit seed that depends only on the run's seed and which turn this is."""
    text = f"{run_seed}/{key.step}/{key.game_idx}/{key.role}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
