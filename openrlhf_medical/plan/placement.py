"""On which machines Ray puts placement groups of {1 GPU, 1 CPU} with strategy PACK: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Free:
    """What is left on a machine. ``cpus`` infinite where it is not known."""

    gpus: int
    cpus: float

    def bundles(self) -> int:
        return int(min(self.gpus, self.cpus))


def pack(bundles: int, free: Sequence[Free]) -> list[int] | None:
    """Bundles on each machine, taken from ``free``; None, and nothing taken, where they do not fit.

    Ray (2.55, ``BundlePackSchedulingPolicy``): the machine with the largest share left after one bundle comes first
    and takes all that fit, then the next. Of equal machines Ray may take another one than the first here. A test
    compares this with a real cluster.
    """
    counts, left = [0] * len(free), bundles
    candidates = [i for i, node in enumerate(free) if node.bundles()]
    while left and candidates:
        best = max(candidates, key=lambda i: (_score(free[i]), -i))
        candidates.remove(best)
        counts[best] = min(left, free[best].bundles())
        left -= counts[best]
    if left:
        return None
    for node, taken in zip(free, counts, strict=True):
        node.gpus -= taken
        node.cpus -= taken
    return counts


def _score(node: Free) -> float:
    """Ray's ``LeastResourceScorer``: the shares of what is free that a bundle of {1 GPU, 1 CPU} would leave."""
    cpus = 1.0 if node.cpus == float("inf") else (node.cpus - 1) / node.cpus
    return (node.gpus - 1) / node.gpus + cpus
