"""Many games at once through one client, each label checked against the truth that its text gives away."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from faulty_judge import truth_of

from openrlhf_medical.game.players import Label, Query
from openrlhf_medical.judge.client import JudgeClient

REFERENCE = "A {age}-year-old man has gout. He takes {drug} {dose} mg daily. He is well."


def queries(count: int, seed: int, *, abstain: bool = True) -> list[Query]:
    """No two with the same reference, so that no label can be right by accident of another's. A third has a
    changed dose, which any judge, the rules of ``reference`` too, calls Harmful."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        dose = 5 + i
        original = REFERENCE.format(age=rng.randint(20, 90), drug=rng.choice(["colchicine", "aspirin"]), dose=dose)
        kind = rng.choice(["same", "changed", "perhaps" if abstain else "same"])
        note = {"same": original, "changed": original.replace(f"{dose} mg", f"{dose * 10} mg")}.get(kind)
        made.append(Query(i, original, note or original + " He is perhaps tired.", "", None, "adversarial_benign"))
    return made


def storm(client: JudgeClient, asked: list[Query], at_once: int = 512) -> list[Label]:
    """The labels, in the order of the queries."""

    async def play() -> list[Label]:
        room = asyncio.Semaphore(at_once)

        async def one(query: Query) -> Label:
            async with room:
                return await client.label(query)

        return await asyncio.gather(*map(one, asked))

    return asyncio.run(play())


def check(asked: list[Query], labels: list[Label]) -> Counter[str]:
    """How many games ended how. Fails on a label that is lost, another's, or wrong."""
    assert len(labels) == len(asked)
    for query, label in zip(asked, labels, strict=True):
        if label.status == "error":
            assert label.actual_harm is None and label.reason
            continue
        found = "abstain" if label.status == "abstain" else str(label.actual_harm)
        assert found == truth_of(query.original_note, query.medical_note), (query, label)
        assert label.extra["game_idx"] == query.game_idx
    return Counter(label.status for label in labels)
