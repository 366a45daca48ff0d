"""Supervised examples as a learner takes them: tokenised once, drawn by number."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_medical import devices
from openrlhf_medical.data.sft import SftExample
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout.engine_player import prompt_ids
from openrlhf_medical.rollout.trajectories import Trajectory, to_experience

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import Experience, split_experience_batch  # noqa: E402  (after prepare_process)

Ids = tuple[int, ...]


class SupervisedExamples:
    """Token ids of examples by role. Batch ``number`` depends on ``seed`` and that number alone, so that a
    resumed run sees the batches that it would have seen.

    Raises:
        UserError: an example is longer than ``max_len`` tokens.
    """

    def __init__(self, examples: Mapping[Role, Sequence[SftExample]], tokenizer: Any, max_len: int, seed: int):
        self._seed = seed
        self._ids = {role: [_ids(e, tokenizer, max_len) for e in own] for role, own in examples.items()}
        self._orders: dict[tuple[Role, int], list[int]] = {}

    def share_longer_than(self, role: Role, tokens: int) -> float:
        """Share of the role's replies that a game would cut."""
        own = self._ids[role]
        return sum(len(reply) > tokens for _, reply in own) / len(own)

    def draw(self, roles: Sequence[Role], number: int, size: int) -> list[tuple[Role, Experience]]:
        """``size`` examples, shared equally by ``roles``; each role goes through its examples in shuffled
        rounds, each round in another order."""
        drawn = []
        for i in range(size):
            role = roles[i % len(roles)]
            share = len(range(roles.index(role), size, len(roles)))
            drawn.append((role, self._experience(role, number * share + i // len(roles))))
        return drawn

    def _experience(self, role: Role, position: int) -> Experience:
        own = self._ids[role]
        epoch, place = divmod(position, len(own))
        if (role, epoch) not in self._orders:
            order = list(range(len(own)))
            random.Random(f"{self._seed}/sft/{role}/{epoch}").shuffle(order)
            self._orders = {key: value for key, value in self._orders.items() if key[0] is not role}
            self._orders[role, epoch] = order
        prompt, reply = own[self._orders[role, epoch][place]]
        sample = Trajectory(role, -1, "sft", "sft", prompt, reply, (0.0,) * len(reply), 0.0)
        return split_experience_batch(to_experience(sample, 0))[0]


def _ids(example: SftExample, tokenizer: Any, max_len: int) -> tuple[Ids, Ids]:
    """Prompt and reply; the reply ends with the end of text, for those who play without a stop string."""
    prompt = prompt_ids(tokenizer, example.prompt)
    reply = [*tokenizer(example.reply, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if len(prompt) + len(reply) > max_len:
        raise UserError(f"the {example.role}'s supervised example from seed {example.seed_id} has "
                        f"{len(prompt) + len(reply)} tokens: raise data.max_len ({max_len})")  # fmt: skip
    return tuple(prompt), tuple(reply)
