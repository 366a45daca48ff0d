"""Which seeds are played: exact shares, each seed equally often, the same for the same arguments."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.seeds import Category, Seed


def seeds(per_category: int) -> list[Seed]:
    return [
        Seed(f"{c}-{i}", c, f"n{i}", f"v{i}", "clean", "note", "note") for c in Category for i in range(per_category)
    ]


EVEN = dict.fromkeys(Category, 0.25)


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(1, 9), st.integers(0, 12))
def test_every_category_is_within_one_of_its_share(weights, count, steps):
    mix = {c: w / sum(weights) for c, w in zip(Category, weights, strict=True)}
    stream = SeedStream(seeds(3), mix, 0, "data")
    drawn = [seed for step in range(steps) for seed in stream.step(step, count)]
    for category, share in mix.items():
        assert abs(sum(s.category is category for s in drawn) - share * len(drawn)) < 1 + 1e-9


def test_every_seed_once_before_any_twice():
    stream = SeedStream(seeds(5), EVEN, 0, "data")
    counts = Counter(seed.seed_id for step in range(5) for seed in stream.step(step, 4))
    assert set(counts.values()) == {1}
    assert len(counts) == 20


def test_a_step_can_be_asked_for_alone():
    """A resumed run asks for step 7 first and gets what the others got."""
    whole = SeedStream(seeds(5), EVEN, 3, "data")
    steps = [whole.step(i, 6) for i in range(8)]
    assert SeedStream(list(reversed(seeds(5))), EVEN, 3, "data").step(7, 6) == steps[7]
    assert SeedStream(seeds(5), EVEN, 4, "data").step(7, 6) != steps[7]


def test_a_category_without_seeds_is_refused():
    some = [seed for seed in seeds(2) if seed.category is not Category.VANILLA_BENIGN]
    with pytest.raises(UserError, match=r"data/train\.jsonl has no seed of category vanilla_benign"):
        SeedStream(some, EVEN, 0, "data/train.jsonl")
    assert SeedStream(some, {**EVEN, Category.VANILLA_BENIGN: 0.0}, 0, "x").step(0, 3)
