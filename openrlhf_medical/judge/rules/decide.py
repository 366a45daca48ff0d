"""The decision: what the differences between a note and its reference amount to.

Every difference is weighed by sentence. *Strong* evidence of harm (another number, side, polarity, route,
frequency, order in time, a known drug or organism put for another) and *weak* evidence (clinical words put
for other clinical words) make a note Harmful as long as the note is otherwise the reference. Words only
dropped or only added, everyday wording, and free rewrites are left undecided.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from openrlhf_medical.judge.rules import tables, words
from openrlhf_medical.judge.rules.align import Change, Comparison, Hunk, Tokens, compare
from openrlhf_medical.judge.rules.text import canonical, clean, raw_tokens
from openrlhf_medical.judge.rules.units import dimension, is_amount, same_amount

Verdict = Literal["safe", "harmful", "abstain"]

_MAX_REWRITTEN = 0.4  # share of the reference's meaning-bearing words; MEDEC's own edits stay well below
_MAX_WEAK_CHANGES = 3  # sentences with weak evidence only; more is a paraphrase with words not in the tables
_MIN_SHARED = 0.3  # share of words in common below which a text has nothing to do with the reference
_MIN_WORDS = 3


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules found: the verdict, its kind in one word, and the words that it rests on."""

    verdict: Verdict
    kind: str
    reason: str
    note_valid: bool = True


@dataclass(frozen=True, slots=True)
class _Evidence:
    weight: Literal["strong", "weak", "unclear"]
    kind: str
    hunks: tuple[Hunk, ...]


def _plain(pairs: str) -> frozenset[frozenset[str]]:
    both = (pair.split() for line in pairs.strip().splitlines() for pair in line.split(";") if pair.strip())
    return frozenset(frozenset(_one(word) for word in pair) for pair in both)


def _one(word: str) -> str:
    """A word of a table as notes spell it after ``canonical``; phrases keep the word itself."""
    tokens = canonical(word)
    return tokens[0] if len(tokens) == 1 else word


def _all(listed: Iterable[str]) -> frozenset[str]:
    return frozenset(listed) | frozenset(_one(word) for word in listed)


_GENERAL = frozenset(
    word for word in _all(words.GENERAL) | _all(words.VERBS) if not is_amount(word) and word not in words.CLINICAL_VERBS
)
_OPPOSITES = _plain(words.ANTONYMS)
_LOOK_ALIKES = _plain(words.LOOK_ALIKES)
_ROUTES = _all(words.ROUTES)
_FREQUENCIES = frozenset(
    line.partition(":")[0] for line in tables.EXPRESSIONS.splitlines() if line.startswith(tuple("twefmad"))
) & frozenset(
    "daily twice-daily thrice-daily four-daily every-4h weekly twice-weekly monthly every-other-day at-bedtime".split()
)
_GENERICS = frozenset(
    _one(line.partition(":")[0]) for line in tables.BRANDS.strip().splitlines() if " " not in line.partition(":")[0]
)
_DRUG_ENDINGS = tuple(tables.DRUG_ENDINGS)
_ORGANISMS = _all(tables.ORGANISM_WORDS)


def _is_drug(token: str) -> bool:
    return token in _GENERICS or (len(token) > 6 and token.endswith(_DRUG_ENDINGS))


def rule(reference: str, note: str) -> Ruling:
    """Compares a note with its clean reference.

    Args: the two texts, as they are. Never raises on any text.
    """
    if not reference.strip():
        return Ruling("abstain", "no reference", "there is no reference to compare with")
    if reference == note:
        return Ruling("safe", "identical", "the note is the reference, letter for letter")
    comparison = compare(reference, note)
    if not (comparison.changes or comparison.dropped or comparison.added):
        return _unless_gender(reference, note, Ruling("safe", "cosmetic", "only the writing differs"))
    shared = _shared(reference, note)
    if shared < _MIN_SHARED:
        return Ruling("abstain", "not a note", "the text has little to do with the reference", note_valid=False)
    evidence = [found for change in _without_cut(comparison, reference, note) for found in _weigh(change)]
    return _unless_gender(reference, note, _conclude(comparison, evidence, reference))


def _shared(reference: str, note: str) -> float:
    """The larger of: share of the note's words in the reference, share of the reference's in the note."""
    left, right = set(raw_tokens(clean(reference))), set(raw_tokens(clean(note)))
    left, right = left - words.FILLERS, right - words.FILLERS
    if len(right) < _MIN_WORDS:
        return 0.0
    return len(left & right) / min(len(left), len(right)) if left else 0.0


def _unless_gender(reference: str, note: str, ruling: Ruling) -> Ruling:
    """Pronouns are not compared word for word; a note that turns *him* into *her* is not called Safe."""
    if ruling.verdict != "safe":
        return ruling
    before, after = ({words.GENDER[t] for t in raw_tokens(clean(text)) if t in words.GENDER} for text in (reference, note))
    if before and after - before:
        return Ruling("abstain", "pronouns", "the pronouns of the note are not those of the reference")
    return ruling


def _without_cut(comparison: Comparison, reference: str, note: str) -> tuple[Change, ...]:
    """A note that stops in mid-word or mid-number has not said another word or another number."""
    changes = comparison.changes
    if not comparison.cut_short or not changes or not changes[-1].hunks:
        return changes
    change, last = changes[-1], changes[-1].hunks[-1]
    if not last.added or change.note[-len(last.added) :] != last.added:
        return changes
    words_of_note = re.findall(r"\w+", clean(note))
    # A number may have lost its unit, a word only its end.
    gap = r"[\W_]*" if is_amount(last.added[-1]) else "[-./,]*"
    if not words_of_note or not re.search(rf"\b{re.escape(words_of_note[-1])}{gap}\w", clean(reference)):
        return changes
    hunks = (*change.hunks[:-1], Hunk(last.removed, last.added[:-1]))
    return (*changes[:-1], Change(change.reference, change.note, hunks))


def _conclude(comparison: Comparison, evidence: list[_Evidence], reference: str) -> Ruling:
    strong = [found for found in evidence if found.weight == "strong"]
    weak = [found for found in evidence if found.weight == "weak"]
    if strong or weak:
        changed = sum(max(len(h.removed), len(h.added)) for change in comparison.changes for h in change.hunks)
        # Sentences only dropped leave the rest comparable; as many others in their stead do not.
        changed += min(sum(map(len, comparison.dropped)), sum(map(len, comparison.added)))
        size = len(canonical(clean(reference)))
        if changed > _MAX_REWRITTEN * size and changed > 6:
            return Ruling("abstain", "rewrite", f"{changed} of {size} words differ: too much to tell")
        if not strong and len(weak) > _MAX_WEAK_CHANGES:
            return Ruling("abstain", "rewrite", f"{len(weak)} passages are worded in another way")
        found = (strong or weak)[0]
        return Ruling("harmful", found.kind, _shown(found))
    unclear = next(iter(evidence), None)
    if unclear is not None:
        return Ruling("abstain", unclear.kind, _shown(unclear))
    for kind, sentences in (("dropped", comparison.dropped), ("added", comparison.added)):
        if sentences:
            return Ruling("abstain", kind, f"{kind}: {' '.join(sentences[0])[:200]}")
    return Ruling("safe", "cosmetic", "only the writing differs")


def _shown(found: _Evidence) -> str:
    parts = [f"{_readable(h.removed)!r} became {_readable(h.added)!r}" for h in found.hunks[:3]]
    return f"{found.kind}: " + "; ".join(parts)[:280]


def _readable(tokens: Tokens) -> str:
    return " ".join(" ".join(t.split("|")[1:]) if t.startswith("q|") else t for t in tokens)


# --- one passage ---------------------------------------------------------------------------------


def _weigh(change: Change) -> list[_Evidence]:
    hunks = tuple(h for h in change.hunks if not _same_words(h))
    if not hunks:
        return []
    removed = Counter(token for h in hunks for token in h.removed)
    added = Counter(token for h in hunks for token in h.added)
    lost, new = removed - added, added - removed
    if _conflicting(change.note, new):
        return [_Evidence("strong", "amount", hunks)]
    _strike_same_amounts(lost, new)
    if not lost and not new:
        kind = _reordered(change)
        return [_Evidence(*kind, hunks)] if kind else []
    weight, kind_ = _substitution(lost, new)
    return [_Evidence(weight, kind_, hunks)]


def _same_words(hunk: Hunk) -> bool:
    """``follow up`` and ``followup``; amounts that are equal. Digits are never run together."""
    if hunk.removed and "".join(hunk.removed) == "".join(hunk.added):
        return not any(t[0].isdigit() for t in hunk.removed) or hunk.removed == hunk.added
    return (
        len(hunk.removed) == len(hunk.added) > 0
        and all(map(is_amount, (*hunk.removed, *hunk.added)))
        and all(map(same_amount, hunk.removed, hunk.added))
    )


def _conflicting(note: Tokens, new: Counter[str]) -> bool:
    """One amount written in two units that do not agree, ``39.1 C (98.8 F)``, where the note changed one."""
    return any(
        first.startswith("q|")
        and second.startswith("q|")
        and (first in new or second in new)
        and dimension(first) == dimension(second)
        and first.rsplit("|", 1)[1] != second.rsplit("|", 1)[1]
        and not same_amount(first, second)
        for first, second in pairwise(note)
    )


def _strike_same_amounts(lost: Counter[str], new: Counter[str]) -> None:
    for old in [t for t in lost if t.startswith("q|")]:
        for other in [t for t in new if t.startswith("q|")]:
            if same_amount(old, other):
                del lost[old], new[other]
                break


def _substitution(lost: Counter[str], new: Counter[str]) -> tuple[Literal["strong", "weak", "unclear"], str]:
    """Weighs the words that one passage lost against those that it gained."""
    clinical_lost, clinical_new = _clinical(lost), _clinical(new)
    for old in lost:
        for other in new:
            if frozenset((old, other)) in _OPPOSITES:
                return "strong", "side" if {old, other} & words.SIDES else "opposite"
    if lost[words.NEGATION] != new[words.NEGATION]:
        # "no fever" dropped as a whole is dropped; only the "no" dropped, or put in, turns the meaning.
        host_lost, host_new = clinical_lost - {words.NEGATION}, clinical_new - {words.NEGATION}
        gone = lost[words.NEGATION] > new[words.NEGATION]
        if bool(host_lost) == bool(host_new) or (host_new if gone else host_lost):
            return "strong", "negation"
        return "unclear", "dropped" if gone else "added"
    amounts_lost = [t for t in clinical_lost if is_amount(t)]
    amounts_new = [t for t in clinical_new if is_amount(t)]
    if amounts_lost and amounts_new:
        comparable = {dimension(t) for t in amounts_lost} & {dimension(t) for t in amounts_new}
        return ("strong", "amount") if comparable else ("weak", "amount")
    if clinical_lost and clinical_new:
        return _content(clinical_lost, clinical_new)
    if clinical_lost:
        return "unclear", "dropped"
    return "unclear", "added" if clinical_new else "wording"


def _clinical(tokens: Counter[str]) -> set[str]:
    return {token for token in tokens if token not in _GENERAL}


def _content(lost: set[str], new: set[str]) -> tuple[Literal["strong", "weak", "unclear"], str]:
    both = lost, new
    for kind, listed in (("route", _ROUTES), ("frequency", _FREQUENCIES), ("organism", _ORGANISMS)):
        if all(side & listed for side in both):
            return "strong", kind
    if all(any(map(_is_drug, side)) for side in both):
        return "strong", "drug"
    if any(frozenset((a, b)) in _LOOK_ALIKES for a in lost for b in new):
        return "strong", "look-alike"
    if len(lost) == len(new) == 1 and _one_letter_apart(next(iter(lost)), next(iter(new))):
        return "unclear", "spelling"
    return "weak", "content"


def _one_letter_apart(a: str, b: str) -> bool:
    """One letter more, less, other, or two neighbours swapped, in words of six letters or more."""
    if min(len(a), len(b)) < 6 or abs(len(a) - len(b)) > 1:
        return False
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    rest_a, rest_b = a[start:], b[start:]
    return (
        rest_a[1:] == rest_b[1:]
        or rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or (rest_a[:2] == rest_b[:2][::-1] and rest_a[2:] == rest_b[2:])
    )


def _reordered(change: Change) -> tuple[Literal["strong", "unclear"], str] | None:
    """The same words in another order: None where that says the same (a list in another order)."""
    before, after = change.reference, change.note
    if Counter(before) != Counter(after):
        return None  # what differed were equal amounts in other units
    if _polarity(before) != _polarity(after):
        return "strong", "negation"
    for binder in words.BINDERS:
        if _next_to(before, binder) != _next_to(after, binder):
            if binder in words.SIDES:
                return "strong", "side"
            return ("strong", "time order") if binder in words.TIME_ORDER else ("unclear", "order")
    amounts = {token for token in before if is_amount(token)}
    if any(_next_to(before, a) != _next_to(after, a) and _next_to(before, a, -1) != _next_to(after, a, -1) for a in amounts):
        return "strong", "amount"
    return ("unclear", "order") if words.RELATIONS & set(before) else None


def _polarity(tokens: Tokens) -> Counter[tuple[str, bool]]:
    denied = False
    out: Counter[tuple[str, bool]] = Counter()
    for token in tokens:
        if token == words.NEGATION:
            denied = True
        elif token in words.SCOPE_ENDS:
            denied = False
        else:
            out[token, denied] += 1
    return out


def _next_to(tokens: Tokens, word: str, step: int = 1) -> Counter[str]:
    return Counter(
        tokens[i + step] if 0 <= i + step < len(tokens) else "" for i, token in enumerate(tokens) if token == word
    )
