"""How different an attacker's attacks are from each other. Pure: standard library and numpy.

A policy that has found one trick wins for a while and teaches its assessor that trick alone. Whole notes hide it, since
they differ anyway and an edit is a few words of hundreds; so everything here looks at the edited sentences: those of
the presented note that its seed note does not have.

================== ==================================================================================================
``self_bleu``      1 − mean BLEU-4 of each edited sentence against all the others (Zhu et al. 2018): 0 all alike
``spread``         1 − mean cosine of two edited sentences' embeddings (optional, see ``embeddings``)
``edit_words``     words deleted and inserted, mean
``one_error_share`` edits of one contiguous span: the task is one error, not a rewritten note
``type_entropy``   entropy of the seeds' error types among faithful attacks, over its maximum: 1 all types alike
``types``          how many of the error types came with a faithful attack
``near_duplicates`` share of edited sentences that share at least ``ALIKE`` of their words with another
``copy_share``     attacks that changed nothing; they have no edited sentence and count nowhere else
================== ==================================================================================================

What the attacker was given counts, too: compare figures of the same seeds, or of many.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from openrlhf_medical.game.edits import sentence_spans
from openrlhf_medical.game.notes import ERROR_TYPES
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game, turns_of

ALIKE = 0.8
"""Jaccard index of two sentences' words from which they are near duplicates."""

MOST = 128
"""Attacks that are looked at in one training step, at most: the cost of comparing grows with the square."""

_ORDER = 4
_WORD = re.compile(r"\w+(?:[.,/]\d+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Attack:
    """A note that an attacker wrote, beside the one that it was given."""

    before: str
    after: str
    error_type: str | None = None
    faithful: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """``sentence``: the edited ones, joined; "" where sentences were only taken out. ``words``: deleted and inserted.
    ``spans``: contiguous stretches of words that changed."""

    sentence: str
    words: int
    spans: int


def words_of(text: str) -> list[str]:
    """Lower-case words, numbers with their decimals, and punctuation marks."""
    return _WORD.findall(text.lower())


def edit_of(before: str, after: str) -> Edit | None:
    """What changed between two notes; None where only white space did."""
    old, new = _sentences(before), _sentences(after)
    if old == new:
        return None
    kept, words, spans = [], 0, 0
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag != "equal":
            kept += new[j1:j2]
            changed = _changes(words_of(" ".join(old[i1:i2])), words_of(" ".join(new[j1:j2])))
            words, spans = words + sum(changed), spans + len(changed)
    return Edit(" ".join(kept), words, spans)


def _sentences(note: str) -> list[str]:
    return [" ".join(note[start:end].split()) for start, end in sentence_spans(note)]


def _changes(old: Sequence[str], new: Sequence[str]) -> list[int]:
    """Words deleted and inserted in each contiguous stretch that changed."""
    opcodes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [i2 - i1 + j2 - j1 for tag, i1, i2, j1, j2 in opcodes if tag != "equal"]


# ── Attacks ──


def attacks_of_games(games: Iterable[Game]) -> list[Attack]:
    """The notes that attackers wrote, each once; those of frozen opponents and forfeits left out."""
    return [
        Attack(game.seed.seed_note, game.presented_note, game.seed.error_type, bool(game.faithful))
        for game, turn in turns_of(games, Role.ATTACKER)
        if game.presented_note is not None and not turn.reply.frozen and not game.seed.category.is_vanilla
    ]


def attacks_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[Attack]:
    """The same of rows of ``games.jsonl``."""
    found: dict[tuple[Any, ...], Attack] = {}
    for row in rows:
        turn = row.get("attacker")
        vanilla = str(row.get("category", "")).startswith("vanilla")
        if turn and row.get("presented_note") is not None and not turn.get("frozen") and not vanilla:
            key = (row.get("step"), row.get("seed_id"), row.get("attack_idx"), tuple(row.get("pair") or ()))
            attack = Attack(row["seed_note"], row["presented_note"], row.get("error_type"), bool(row.get("faithful")))
            found.setdefault(key, attack)
    return list(found.values())


# ── Figures ──


def diversity(attacks: Sequence[Attack]) -> dict[str, float]:
    """All figures but ``spread``; what is undefined is absent."""
    edits = [edit_of(attack.before, attack.after) for attack in attacks]
    real = [edit for edit in edits if edit is not None]
    found: dict[str, float] = {}
    if attacks:
        found["attacks"] = float(len(attacks))
        found["copy_share"] = 1 - len(real) / len(attacks)
    if real:
        found["edit_words"] = fmean(edit.words for edit in real)
        found["one_error_share"] = fmean(edit.spans == 1 for edit in real)
    sentences = [words_of(edit.sentence) for edit in real if edit.sentence]
    if len(sentences) > 1:
        found["self_bleu"] = 1 - self_bleu(sentences)
        found["near_duplicates"] = near_duplicates(sentences)
    types = Counter(attack.error_type for attack in attacks if attack.faithful and attack.error_type)
    if types:
        found["types"] = float(len(types))
        found["type_entropy"] = type_entropy(types)
    return found


def training_figures(games: Iterable[Game]) -> dict[str, float]:
    """A step's figures, as ``attacker/diversity/…``, of at most ``MOST`` attacks: milliseconds beside a step."""
    return {f"attacker/diversity/{name}": value for name, value in diversity(attacks_of_games(games)[:MOST]).items()}


def edited_sentences(attacks: Iterable[Attack]) -> list[str]:
    """What ``spread`` compares."""
    edits = (edit_of(attack.before, attack.after) for attack in attacks)
    return [edit.sentence for edit in edits if edit is not None and edit.sentence]


def type_entropy(types: Mapping[str, int]) -> float:
    """Entropy over error types, divided by that of all of ``notes.ERROR_TYPES`` alike."""
    total = sum(types.values())
    entropy = -sum(count / total * math.log(count / total) for count in types.values())
    return entropy / math.log(len(ERROR_TYPES)) + 0.0  # no -0.0


def near_duplicates(sentences: Sequence[Sequence[str]]) -> float:
    sets = [frozenset(words) for words in sentences]
    alike = [
        any(i != j and len(one & other) >= ALIKE * len(one | other) for j, other in enumerate(sets))
        for i, one in enumerate(sets)
    ]
    return fmean(alike)


def self_bleu(sentences: Sequence[Sequence[str]]) -> float:
    """Mean sentence BLEU-4 of each against all the others, from 0 to 1.

    BLEU as Papineni et al. (2002) define it: clipped n-gram precisions against the most frequent reference, brevity
    penalty against the reference of the closest length. Precisions above unigrams get 1 added to both counts (Lin &
    Och 2004): sacrebleu's ``add-k``, which the tests compare with. Sentences shorter than four words are measured by
    the orders that they have (sacrebleu counts the others as hits). Ours, because one against all others takes a
    library n² comparisons; the two largest counts of each n-gram are all that is needed.
    """
    if len(sentences) < 2:
        raise ValueError("one sentence has no other to be compared with")
    grams = [[_grams(words, n) for words in sentences] for n in range(1, _ORDER + 1)]
    largest = [_two_largest(own) for own in grams]
    lengths = sorted(len(words) for words in sentences)
    return fmean(_bleu(i, sentences, grams, largest, lengths) for i in range(len(sentences)))


def _bleu(
    i: int,
    sentences: Sequence[Sequence[str]],
    grams: Sequence[Sequence[Counter[tuple[str, ...]]]],
    largest: Sequence[Mapping[tuple[str, ...], tuple[int, int, int]]],
    lengths: Sequence[int],
) -> float:
    length = len(sentences[i])
    logs = []
    for n in range(_ORDER):
        total = length - n
        if total < 1:
            break
        hits = 0
        for gram, count in grams[n][i].items():
            owner, first, second = largest[n][gram]
            hits += min(count, second if owner == i else first)
        smoothing = 1 if n else 0
        if hits + smoothing == 0:
            return 0.0
        logs.append(math.log((hits + smoothing) / (total + smoothing)))
    others = list(lengths)
    others.remove(length)
    closest = min(others, key=lambda other: (abs(other - length), other))
    brevity = 1.0 if length >= closest else math.exp(1 - closest / length)
    return brevity * math.exp(fmean(logs)) if logs else 0.0


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _two_largest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """n-gram → (whose count is the largest, that count, the largest count of any other)."""
    found: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for i, own in enumerate(counts):
        for gram, count in own.items():
            owner, first, second = found.get(gram, (-1, 0, 0))
            found[gram] = (i, count, first) if count > first else (owner, first, max(second, count))
    return found
