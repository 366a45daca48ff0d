"""Which sentence of the note stands for which of the reference, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from openrlhf_medical.judge.rules.text import canonical, clean, split_sentences

Tokens = tuple[str, ...]

# Least share of common tokens (Dice) for two sentences to be versions of one; and for the only two left.
_SAME_SENTENCE, _LAST_TWO = 0.5, 0.2
_MOST_COMPARED = 4_000_000  # token pairs, 2,000 words against 2,000
_MOST_SENTENCE_PAIRS = 10_000


@dataclass(frozen=True, slots=True)
class Hunk:
    """One contiguous difference."""

    removed: Tokens
    added: Tokens


@dataclass(frozen=True, slots=True)
class Change:
    """Two versions of one passage."""

    reference: Tokens
    note: Tokens
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is left once everything that says the same has been struck out.

    ``dropped`` and ``added`` are whole sentences on one side only. ``cut_short``: the note stops in the middle
    of a sentence, as a reply does that ran out of tokens; its last change is then the end of the note.
    """

    changes: tuple[Change, ...]
    dropped: tuple[Tokens, ...]
    added: tuple[Tokens, ...]
    cut_short: bool = False


def strike_equal(left: Sequence, right: Sequence) -> tuple[list[int], list[int], dict[int, int]]:
    """Indices of what has no equal on the other side, and the matches (index on the right -> left)."""
    places: dict[object, list[int]] = {}
    for i, item in enumerate(left):
        places.setdefault(item, []).append(i)
    matches: dict[int, int] = {}
    rest_right: list[int] = []
    for j, item in enumerate(right):
        found = places.get(item)
        if found:
            matches[j] = found.pop(0)
        else:
            rest_right.append(j)
    taken = set(matches.values())
    return [i for i in range(len(left)) if i not in taken], rest_right, matches


def difference(reference: Tokens, note: Tokens) -> tuple[Hunk, ...]:
    """The contiguous differences of two passages. Very long ones count as different altogether."""
    if len(reference) * len(note) > _MOST_COMPARED:
        return (Hunk(reference, note),)
    # From 200 tokens on difflib leaves words that come up all the time out of account: its time grows with
    # the cube on a text that repeats itself, and such texts are what a weak player writes.
    matcher = SequenceMatcher(None, reference, note)
    return tuple(Hunk(reference[i:j], note[k:m]) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal")


def _dice(left: frozenset[str], right: frozenset[str]) -> float:
    return 2 * len(left & right) / (len(left) + len(right))


def compare(reference: str, note: str) -> Comparison:
    """Aligns two notes. Sentences may change places; that alone is no difference."""
    reference_sentences = split_sentences(clean(reference))
    note_sentences = split_sentences(clean(note))
    left, right, matches = strike_equal(reference_sentences, note_sentences)
    left_tokens = {i: canonical(reference_sentences[i]) for i in left}
    right_tokens = {j: canonical(note_sentences[j]) for j in right}
    left = [i for i in left if left_tokens[i]]
    right = [j for j in right if right_tokens[j]]
    rest_left, rest_right, more = strike_equal([left_tokens[i] for i in left], [right_tokens[j] for j in right])
    matches |= {right[j]: left[i] for j, i in more.items()}
    left, right = [left[i] for i in rest_left], [right[j] for j in rest_right]
    whole_left = tuple(token for i in left for token in left_tokens[i])
    whole_right = tuple(token for j in right for token in right_tokens[j])
    if whole_left == whole_right:
        return Comparison((), (), ())
    cut_short = bool(right) and right[-1] == len(note_sentences) - 1 and note_sentences[-1][-1] not in ".!?"
    if len(left) * len(right) > _MOST_SENTENCE_PAIRS:
        return Comparison((Change(whole_left, whole_right, difference(whole_left, whole_right)),), (), (), cut_short)
    by_sentence = _by_sentence(left, right, left_tokens, right_tokens, matches, cut_short)
    if len(left) != len(right):  # sentences were split or joined: perhaps the whole text aligns better
        hunks = difference(whole_left, whole_right)
        size = sum(max(len(h.removed), len(h.added)) for h in hunks)
        if size < 0.7 * _size(by_sentence):
            return Comparison((Change(whole_left, whole_right, hunks),), (), (), cut_short)
    return by_sentence


def _size(comparison: Comparison) -> int:
    inner = sum(max(len(h.removed), len(h.added)) for change in comparison.changes for h in change.hunks)
    return inner + sum(map(len, comparison.dropped)) + sum(map(len, comparison.added))


def _by_sentence(
    left: list[int],
    right: list[int],
    left_tokens: dict[int, Tokens],
    right_tokens: dict[int, Tokens],
    matches: dict[int, int],
    cut_short: bool,
) -> Comparison:
    """Pairs the remaining sentences, the most alike first; then one for one where the place is the same."""
    left_words = {i: frozenset(left_tokens[i]) for i in left}
    right_words = {j: frozenset(right_tokens[j]) for j in right}
    scores = sorted(
        ((_dice(left_words[i], right_words[j]), i, j) for i in left for j in right),
        key=lambda score: (-score[0], abs(score[1] - score[2])),
    )
    partner: dict[int, int] = {}
    used: set[int] = set()
    for score, i, j in scores:
        if score < _SAME_SENTENCE:
            break
        if i not in used and j not in partner:
            partner[j] = i
            used.add(i)
    lone_left, lone_right = [i for i in left if i not in used], [j for j in right if j not in partner]
    if len(lone_left) == len(lone_right) == 1:
        # One sentence put in the place of another, all else as it was. With more, nothing says which is which.
        i, j = lone_left[0], lone_right[0]
        if _same_place(i, j, matches | partner) or _dice(left_words[i], right_words[j]) >= _LAST_TWO:
            partner[j] = i
            used.add(i)
    changes = tuple(
        Change(left_tokens[i], right_tokens[j], difference(left_tokens[i], right_tokens[j]))
        for j, i in sorted(partner.items())
    )
    dropped = [left_tokens[i] for i in left if i not in used]
    added = [right_tokens[j] for j in right if j not in partner]
    changes = tuple(_without_moved(change, dropped, added) for change in changes)
    return Comparison(changes, tuple(dropped), tuple(added), cut_short)


def _without_moved(change: Change, dropped: list[Tokens], added: list[Tokens]) -> Change:
    """A sentence that was only run into another one is neither dropped nor added: strikes it out."""
    hunks = []
    for hunk in change.hunks:
        if not hunk.removed and hunk.added in dropped:
            dropped.remove(hunk.added)
        elif not hunk.added and hunk.removed in added:
            added.remove(hunk.removed)
        else:
            hunks.append(hunk)
    return change if len(hunks) == len(change.hunks) else Change(change.reference, change.note, tuple(hunks))


def _same_place(i: int, j: int, known: dict[int, int]) -> bool:
    """The sentences before both are versions of one another, or both are the first."""
    return (i == 0 and j == 0) or known.get(j - 1) == i - 1
