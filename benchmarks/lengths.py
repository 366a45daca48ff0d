"""How long replies are: hidden thoughts, as long-tailed as in a real run, and an answer as long as its form asks for.

    thoughts   lognormal, with median and spread of the replies in ``lengths.json`` that ended by themselves: an
               untrained SmolLM2 on MEDEC's notes
    answer     the attacker writes a note, or one sentence of it (``game.edit``); the assessor a verdict, the wrong
               sentence and its correction. MEDEC's notes: median 182 tokens, 95th percentile 324 (facts/cpu-stack.md)

Of the real replies 27 of 96 went round in circles until they were cut. They are left out here: a model that does that
is not trained yet. ``with_loops`` has them back.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.game.players import Role

FILE = Path(__file__).parent / "lengths.json"
MOST = 2048
"""rollout.max_new_tokens of configs/selfplay_8b_multinode.yaml: there replies are cut."""

NOTE_MEDIAN, NOTE_LOG_SD = 182, math.log(324 / 182) / 1.645
SENTENCE, VERDICT = 30, 60
"""Tokens: a numbered sentence; a verdict with two sentences."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """``median`` and ``log_sd`` of the thoughts, in tokens and e-folds; ``loops``: share of replies that never end."""

    median: float
    log_sd: float
    loops: float = 0.0

    def draw(self, role: Role, edit: str, rng: random.Random) -> int:
        """Tokens of one reply."""
        if rng.random() < self.loops:
            return MOST
        thoughts = self.median * math.exp(rng.gauss(0, self.log_sd))
        if role is Role.ASSESSOR:
            answer: float = VERDICT
        elif edit == "sentence":
            answer = SENTENCE
        else:
            answer = NOTE_MEDIAN * math.exp(rng.gauss(0, NOTE_LOG_SD))
        return min(MOST, round(thoughts + answer))


def real(path: Path = FILE) -> Lengths:
    """Of the replies that ended by themselves."""
    tokens = [n for each in json.loads(path.read_text(encoding="utf-8"))["tokens"].values() for n in each]
    logs = [math.log(n) for n in tokens]
    return Lengths(math.exp(statistics.mean(logs)), statistics.stdev(logs))


def with_loops(path: Path = FILE) -> Lengths:
    """The same and as many that never end as there were."""
    found = json.loads(path.read_text(encoding="utf-8"))
    cut, ended = sum(found["cut"].values()), sum(map(len, found["tokens"].values()))
    own = real(path)
    return Lengths(own.median, own.log_sd, cut / (cut + ended))
