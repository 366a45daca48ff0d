"""Several policies at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from openrlhf_medical.learner.policy import Learner

T = TypeVar("T")


def side_by_side(learners: Sequence[Learner], work: Callable[[Learner], T]) -> list[T]:
    """``work`` on every policy: those with workers of their own at the same time, adapters on the same
    base one after another, in the same order on all ranks."""
    bases: dict[int, list[Learner]] = {}
    for learner in learners:
        bases.setdefault(id(learner.workers.policy), []).append(learner)
    with ThreadPoolExecutor(len(bases)) as pool:
        results = pool.map(lambda own: [work(learner) for learner in own], bases.values())
        return [result for own in results for result in own]
