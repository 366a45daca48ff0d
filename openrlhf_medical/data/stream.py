"""Which seeds are played in which step: exact shares, every seed equally often, nothing to remember."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.seeds import Category, Seed


class SeedStream:
    """An endless stream of seeds that depends only on its arguments.

    ``mix`` is the share of each category among the games played; after any number of draws each
    category is within one of its share. A category's seeds are shuffled anew for each pass over them.

    Raises:
        UserError: a category with a share above 0 has no seed.
    """

    def __init__(self, seeds: Sequence[Seed], mix: Mapping[Category, float], seed: int, where: str) -> None:
        self._mix = {category: share for category, share in mix.items() if share > 0}
        self._pools = {c: sorted((s for s in seeds if s.category is c), key=lambda s: s.seed_id) for c in self._mix}
        self._seed = seed
        self._orders: dict[tuple[Category, int], list[Seed]] = {}
        self._categories: list[Category] = []
        self._drawn = dict.fromkeys(self._mix, 0)
        empty = [category.value for category, pool in self._pools.items() if not pool]
        if empty:
            raise UserError(f"{where} has no seed of category {', '.join(empty)}, but game.mix asks for some: "
                            "prepare the data again, or set that share to 0")  # fmt: skip

    def all_seeds(self) -> list[Seed]:
        """Every seed that may be drawn."""
        return [seed for pool in self._pools.values() for seed in pool]

    def step(self, index: int, count: int) -> list[Seed]:
        """The ``count`` seeds of step ``index`` (from 0) of a run that draws ``count`` in every step."""
        start = index * count
        self._extend(start + count)
        before = dict.fromkeys(self._mix, 0)
        for category in self._categories[:start]:
            before[category] += 1
        drawn = []
        for category in self._categories[start : start + count]:
            drawn.append(self._pick(category, before[category]))
            before[category] += 1
        return drawn

    def _extend(self, length: int) -> None:
        """The category that is furthest behind its share comes next; ties go to the design's order."""
        while len(self._categories) < length:
            n = len(self._categories) + 1
            category = max(self._mix, key=lambda c: self._mix[c] * n - self._drawn[c])
            self._categories.append(category)
            self._drawn[category] += 1

    def _pick(self, category: Category, k: int) -> Seed:
        pool = self._pools[category]
        epoch, position = divmod(k, len(pool))
        if (category, epoch) not in self._orders:
            order = list(pool)
            random.Random(f"{self._seed}/{category}/{epoch}").shuffle(order)
            self._orders = {key: value for key, value in self._orders.items() if key[0] is not category}
            self._orders[category, epoch] = order
        return self._orders[category, epoch][position]
