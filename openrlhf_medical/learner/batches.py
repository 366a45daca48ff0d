"""How samples become optimizer steps, ranks and micro-batches: a pure plan.

One update uses all of a step's samples, whatever their number. ``batch_size`` only splits it into
optimizer steps, and which samples share an optimizer step does not depend on the number of ranks.
Ranks are filled up to equal counts with masked micro-batches, because a rank that has no work while
the others enter a collective call would hang all of them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MASKED: tuple[int, ...] = ()
"""A micro-batch of nothing: one fully masked sample that enters neither loss nor metrics."""


@dataclass(frozen=True, slots=True)
class Item:
    """A sample as the plan sees it. Samples of different ``kind`` (role) never share a micro-batch; those with the same
    ``prompt``, if it is given, follow each other, and without a limit on tokens share one wherever they fit."""

    kind: Hashable
    length: int
    prompt: Hashable = None


MicroBatch = tuple[int, ...]
"""Indices of items."""


def plan_micro_batches(
    items: Sequence[Item], indices: Sequence[int], micro_batch_size: int, ranks: int, max_tokens: int | None = None
) -> list[list[MicroBatch]]:
    """Micro-batches for each rank: ``[rank][i]`` is a tuple of indices, or ``MASKED``.

    A micro-batch holds at most ``micro_batch_size`` samples, or, with ``max_tokens``, as many as have no more
    tokens together (one that is longer stays alone). Samples that answer the same prompt share a
    micro-batch, and beyond that those of similar length (little padding); the longest micro-batches are
    dealt first, to the rank with the least work so far; all ranks end with the same count.
    """
    kinds = sorted({items[i].kind for i in indices}, key=str)
    micro_batches: list[MicroBatch] = []
    for kind in kinds:
        own = [i for i in indices if items[i].kind == kind]
        if max_tokens is None:
            micro_batches += _of_size(_by_prompt(items, own), micro_batch_size)
        else:
            longest_first = [i for together in _by_prompt(items, own) for i in together]
            micro_batches += _filled([(i, items[i].length) for i in longest_first], max_tokens)

    def cost(micro_batch: MicroBatch) -> int:
        return len(micro_batch) * max(items[i].length for i in micro_batch)

    per_rank = -(-len(micro_batches) // ranks)
    plan: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for micro_batch in sorted(micro_batches, key=lambda m: (-cost(m), m)):
        rank = min((r for r in range(ranks) if len(plan[r]) < per_rank), key=lambda r: (load[r], r))
        plan[rank].append(micro_batch)
        load[rank] += cost(micro_batch)
    return [own + [MASKED] * (per_rank - len(own)) for own in plan]


def _by_prompt(items: Sequence[Item], own: Sequence[int]) -> list[list[int]]:
    """Indices of samples with the same prompt together, longest first, and those with the longest sample first."""
    together: dict[Hashable, list[int]] = {}
    for i in sorted(own, key=lambda i: (-items[i].length, i)):
        prompt = items[i].prompt
        together.setdefault(("alone", i) if prompt is None else ("prompt", prompt), []).append(i)
    return list(together.values())


def _of_size(groups: Sequence[Sequence[int]], size: int) -> list[MicroBatch]:
    """At most ``size`` indices each; a group is only split where it is larger."""
    batches: list[list[int]] = []
    for group in groups:
        for start in range(0, len(group), size):
            part = group[start : start + size]
            if not batches or len(batches[-1]) + len(part) > size:
                batches.append([])
            batches[-1] += part
    return [tuple(batch) for batch in batches]


def _filled(own: Sequence[tuple[int, int]], max_tokens: int) -> list[MicroBatch]:
    """(index, tokens) pairs, in their order, in as few batches of at most ``max_tokens`` as that order allows."""
    batches: list[list[int]] = []
    room = 0
    for index, tokens in own:
        if not batches or tokens > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= tokens
    return [tuple(batch) for batch in batches]


def plan_update(
    items: Sequence[Item],
    batch_size: int,
    micro_batch_size: int,
    ranks: int,
    rng: random.Random,
    max_tokens: int | None = None,
) -> list[list[list[MicroBatch]]]:
    """``[optimizer step][rank][i]``: every item exactly once, at most ``batch_size`` in each step.

    The items are shuffled by ``rng`` and spread so evenly that steps differ by at most one sample:
    a last step of one leftover sample would be a full-size step on almost no evidence.
    """
    order = list(range(len(items)))
    rng.shuffle(order)
    steps = -(-len(order) // batch_size)
    bounds = [round(i * len(order) / steps) for i in range(steps + 1)] if steps else []
    return [
        plan_micro_batches(items, order[start:end], micro_batch_size, ranks, max_tokens)
        for start, end in itertools.pairwise(bounds)
    ]
