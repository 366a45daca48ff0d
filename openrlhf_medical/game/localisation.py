"""MEDEC's subtasks B and C as a score: did the assessor name the wrong sentence, and correct it?

Scored where the data knows the answer, that is, on a seed note presented as it is. Two short cuts pay
nothing: naming the whole note (too little of it is the wrong sentence), and repeating the wrong
sentence as its correction (MEDEC's edits are small, so a copy's F1 is 0.63 on average).
"""

from __future__ import annotations

from collections import Counter

from openrlhf_medical.game.players import Label, Truth
from openrlhf_medical.game.records import Turn
from openrlhf_medical.game.seeds import Seed

MIN_OVERLAP = 3 / 4
"""How much of the longer text the shorter one must be, in words, where one contains the other. MEDEC
over-splits its sentences, so a reader may name a little more or less than the data does. At 3/4 that is
accepted for 307 of the 319 error notes of MS validation, and the wrong sentence named together with a
neighbour, to have two guesses, for 9 % of them (at 1/2: 316 and 43 %)."""

_EDGE = ".,;:!?()[]{}\"'`\u201c\u201d\u2018\u2019"


def localisation_score(turn: Turn, label: Label, seed: Seed) -> float | None:
    """How well an assessor's turn answers subtasks B and C: in [0, 1], or None where it cannot be scored.

    Harmful: 0.5 for the wrong sentence and, given that, 0.5 times ``correction_gain``. Safe: 1 for the
    verdict Safe with neither line. A wrong verdict, a refusal and an unparsable reply score 0. None
    where the truth is not the data's, or the seed does not say what is wrong in it.
    """
    if label.source != "data" or label.actual_harm is None:
        return None
    if label.actual_harm is Truth.SAFE:
        return float(turn.verdict is Truth.SAFE and turn.sentence is None and turn.correction is None)
    if not seed.error_sentence or not seed.corrected_sentence:
        return None
    if not names_wrong_sentence(turn, seed):
        return 0.0
    return 0.5 + 0.5 * correction_gain(turn.correction or "", seed.error_sentence, seed.corrected_sentence)


def names_wrong_sentence(turn: Turn, seed: Seed) -> bool:
    """Whether the assessor said Harmful and named the seed's wrong sentence."""
    return turn.verdict is Truth.HARMFUL and same_sentence(turn.sentence or "", seed.error_sentence or "")


def same_sentence(named: str, sentence: str) -> bool:
    """Equal word for word, or one a run of words of the other and at least ``MIN_OVERLAP`` of it.

    White space, case and punctuation at the edges of words do not count. Nothing is the same as no text.
    """
    shorter, longer = sorted((_words(named), _words(sentence)), key=len)
    if not shorter or len(shorter) < MIN_OVERLAP * len(longer):
        return False
    starts = range(len(longer) - len(shorter) + 1)
    return any(longer[start : start + len(shorter)] == shorter for start in starts)


def correction_gain(correction: str, wrong: str, right: str) -> float:
    """How far a correction gets from the wrong sentence to the right one: 0 for repeating the wrong one (or
    worse), 1 for the right one's words, and between them in proportion to ``token_f1``."""
    start = token_f1(wrong, right)
    if start == 1.0:  # the same words: only their order can have been wrong
        return float(_words(correction) == _words(right) != _words(wrong))
    return max(0.0, (token_f1(correction, right) - start) / (1.0 - start))


def token_f1(text: str, reference: str) -> float:
    """F1 of two texts as bags of words (SQuAD's measure, arXiv 1606.05250), without its dropping of
    articles and inner punctuation: a dose of 2.5 is not one of 25."""
    said, wanted = _words(text), _words(reference)
    shared = (Counter(said) & Counter(wanted)).total()
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (raw.strip(_EDGE) for raw in text.casefold().split()) if word)
