"""What the differences within one passage show: strong, weak or unclear evidence of harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from openrlhf_medical.judge.rules import drugs, tables, words
from openrlhf_medical.judge.rules.align import Change, Hunk, Tokens
from openrlhf_medical.judge.rules.shortened import is_short_for, looks_shortened
from openrlhf_medical.judge.rules.text import canonical
from openrlhf_medical.judge.rules.units import dimension, is_amount, same_amount

Weight = Literal["strong", "weak", "unclear"]


@dataclass(frozen=True, slots=True)
class Evidence:
    weight: Weight
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
    word
    for word in _all(words.GENERAL) | _all(words.VERBS) | words.SCOPE_ENDS
    if not is_amount(word) and word not in words.CLINICAL_VERBS
)
_OPPOSITES = _plain(words.ANTONYMS)
_LOOK_ALIKES = _plain(words.LOOK_ALIKES)
_ROUTES = _all(words.ROUTES)
_GENERICS = frozenset(_one(generic) for generic, _ in tables.entries(drugs.BRANDS))
_ORGANISMS = _all(drugs.ORGANISMS)


def _is_drug(token: str) -> bool:
    return token in _GENERICS or (len(token) > 6 and token.endswith(drugs.DRUG_ENDINGS))


def weigh(change: Change) -> list[Evidence]:
    """What one passage shows: nothing where only the writing differs."""
    hunks = tuple(h for h in change.hunks if not _same_words(h) and not is_short_for(h.added, h.removed))
    if not hunks:
        return []
    removed = Counter(token for h in hunks for token in h.removed)
    added = Counter(token for h in hunks for token in h.added)
    lost, new = removed - added, added - removed
    if _conflicting(change.note, new):
        return [Evidence("strong", "amount", hunks)]
    _strike_same_amounts(lost, new)
    if not (lost.keys() | new.keys()) - words.REPORTING:
        kind = _reordered(
            *(tuple(t for t in side if t not in words.REPORTING) for side in (change.reference, change.note))
        )
        return [Evidence(*kind, hunks)] if kind else []
    weight, kind_ = _substitution(lost, new)
    if weight == "unclear" and _only_polarity_differs(change):
        weight, kind_ = "strong", "negation"
    return [Evidence(weight, kind_, hunks)]


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


def _substitution(lost: Counter[str], new: Counter[str]) -> tuple[Weight, str]:
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


def _content(lost: set[str], new: set[str]) -> tuple[Weight, str]:
    both = lost, new
    for kind, listed in (("route", _ROUTES), ("frequency", words.FREQUENCIES), ("organism", _ORGANISMS)):
        if all(side & listed for side in both):
            return "strong", kind
    if all(any(map(_is_drug, side)) for side in both):
        return "strong", "drug"
    if any(frozenset((a, b)) in _LOOK_ALIKES for a in lost for b in new):
        return "strong", "look-alike"
    if _only_shortened(lost) != _only_shortened(new):
        return "unclear", "abbreviation"
    if len(lost) == len(new) == 1 and _one_letter_apart(next(iter(lost)), next(iter(new))):
        return "unclear", "spelling"
    return "weak", "content"


def _only_shortened(side: set[str]) -> bool:
    return all(map(looks_shortened, side))


def _one_letter_apart(a: str, b: str) -> bool:
    """One letter more, less, other, or two neighbours swapped, in words of six letters or more."""
    if min(len(a), len(b)) < 6 or abs(len(a) - len(b)) > 1 or not (a + b).isalpha():
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


def _reordered(before: Tokens, after: Tokens) -> tuple[Literal["strong", "unclear"], str] | None:
    """The same words in another order: None where that says the same (a list in another order)."""
    if Counter(before) != Counter(after):
        return None  # what differed were equal amounts in other units
    if _polarity(before) != _polarity(after):
        return "strong", "negation"
    for binder in words.BINDERS:
        if _next_to(before, binder) != _next_to(after, binder) and not _still_bound(before, after, binder):
            if binder in words.SIDES:
                return "strong", "side"
            return ("strong", "time order") if binder in words.TIME_ORDER else ("unclear", "order")
    if _under_headings(before) != _under_headings(after):
        return "strong", "drug"
    if _doses(before) != _doses(after):
        return "strong", "amount"
    amounts = {token for token in before if is_amount(token) and not _is_dose(token)}
    if any(
        _next_to(before, a) != _next_to(after, a) and _next_to(before, a, -1) != _next_to(after, a, -1) for a in amounts
    ):
        return "strong", "amount"
    return ("unclear", "order") if words.RELATIONS & set(before) else None


def _only_polarity_differs(change: Change) -> bool:
    before, after = _polarity(change.reference), _polarity(change.note)
    return before != after and sorted(t for t, _ in before.elements()) == sorted(t for t, _ in after.elements())


def _polarity(tokens: Tokens) -> Counter[tuple[str, bool]]:
    """The clinical words, each with whether a ``no`` before it reaches it."""
    denied = False
    out: Counter[tuple[str, bool]] = Counter()
    for token in tokens:
        if token == words.NEGATION:
            denied = True
        elif token in words.SCOPE_ENDS:
            denied = False
        elif token not in _GENERAL:
            out[token, denied] += 1
    return out


def _next_to(tokens: Tokens, word: str, step: int = 1) -> Counter[str]:
    return Counter(
        tokens[i + step] if 0 <= i + step < len(tokens) else "" for i, token in enumerate(tokens) if token == word
    )


def _still_bound(before: Tokens, after: Tokens, side: str) -> bool:
    """*Right weakness* and *weakness of the right*: the only side that is named, beside the same word."""
    if side not in words.SIDES or before.count(side) != 1 or len(words.SIDES & set(before)) != 1:
        return False
    (first,), (last,) = _next_to(before, side), _next_to(after, side, -1)
    (after_it,) = _next_to(after, side)
    return bool(first) and first == last and (after_it == "" or after_it in _GENERAL)


def _is_dose(token: str) -> bool:
    return token.startswith("q|") and token.rsplit("|", 1)[1] in ("g", "iu")


def _doses(tokens: Tokens) -> Counter[tuple[str, str]]:
    """Each dose with its drug: the one before it, or after it where the passage names doses first."""
    drugs_at = [i for i, token in enumerate(tokens) if _is_drug(token)]
    doses_at = [i for i, token in enumerate(tokens) if _is_dose(token)]
    if not drugs_at or not doses_at:
        return Counter((tokens[i], _next_to_one(tokens, i)) for i in doses_at)
    dose_first = doses_at[0] < drugs_at[0]
    out: Counter[tuple[str, str]] = Counter()
    for i in doses_at:
        side = [j for j in drugs_at if j > i][:1] if dose_first else [j for j in drugs_at if j < i][-1:]
        out[tokens[i], tokens[side[0]] if side else ""] += 1
    return out


def _next_to_one(tokens: Tokens, i: int) -> str:
    """The word before a dose of something that is not in the tables."""
    return tokens[i - 1] if i else ""


def _under_headings(tokens: Tokens) -> dict[str, Counter[str]]:
    """The drugs after *allergies*, *medications* and the like, up to the next of them: their order is free.

    Nothing where there is no such list beside another: *he takes aspirin, his only medication* is no heading.
    """
    out: dict[str, Counter[str]] = {}
    if len(words.HEADINGS & set(tokens)) < 2:
        return out
    heading = ""
    for token in tokens:
        if token in words.HEADINGS:
            heading = token
        elif _is_drug(token):
            out.setdefault(heading, Counter())[token] += 1
    return out
