"""BERTScore and BLEURT, where their packages are installed: MEDEC's other two scores of a correction.

Used as the official scorer uses them (model, rescaling, clipped to [0, 1]). Neither package is among our pins:
they bring models of gigabytes, and BLEURT brings TensorFlow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Pairs = Mapping[str, tuple[str, str]]
"""(correction, reference) by text ID."""

BERTSCORE_MODEL, BLEURT_CHECKPOINT = "microsoft/deberta-xlarge-mnli", "BLEURT-20"

NOT_INSTALLED = "not installed"
COMPUTED = "computed"
NOTHING_TO_SCORE = "nothing to score: no text with a correction on both sides"


def bertscore(corrections: Sequence[str], references: Sequence[str]) -> list[float]:
    import bert_score

    found = bert_score.score(
        list(corrections), list(references), model_type=BERTSCORE_MODEL, lang="en", rescale_with_baseline=True
    )
    return [float(value) for value in found[2]]  # precision, recall, F1


def bleurt(corrections: Sequence[str], references: Sequence[str]) -> list[float]:
    from bleurt import score

    scorer = score.BleurtScorer(checkpoint=BLEURT_CHECKPOINT)
    return [float(value) for value in scorer.score(references=list(references), candidates=list(corrections))]


_SCORERS: dict[str, tuple[str, Callable[[Sequence[str], Sequence[str]], list[float]]]] = {
    "bertscore": ("bert_score", bertscore),
    "bleurt": ("bleurt", bleurt),
}


def learned_scores(pairs: Pairs) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """(scores by name and text ID, for each name what became of it).

    A package that is there and cannot score (no model, no network) is told by name, and its score is left out.
    """
    scores: dict[str, dict[str, float]] = {}
    told: dict[str, str] = {}
    for name, (package, scorer) in _SCORERS.items():
        if importlib.util.find_spec(package) is None:
            told[name] = NOT_INSTALLED
        elif not pairs:
            told[name] = NOTHING_TO_SCORE
        else:
            values, told[name] = _attempt(scorer, pairs)
            if values is not None:
                scores[name] = values
    return scores, told


def _attempt(scorer: Any, pairs: Pairs) -> tuple[dict[str, float] | None, str]:
    corrections, references = zip(*pairs.values(), strict=True)
    try:
        values = scorer(corrections, references)
    except Exception as error:  # other people's programs, which fetch models: whatever goes wrong is told
        reason = str(error).strip().partition("\n")[0][:160]
        return None, f"installed, but it failed: {type(error).__name__}: {reason}"
    clipped = [max(0.0, min(1.0, value)) for value in values]
    return dict(zip(pairs, clipped, strict=True)), COMPUTED
