"""The decision: what the differences between a note and its reference amount to.

Every difference is weighed by sentence. *Strong* evidence of harm (another number, side, polarity, route,
frequency, order in time, a known drug or organism put for another) and *weak* evidence (clinical words put
for other clinical words) make a note Harmful as long as the note is otherwise the reference. Words only
dropped or only added, everyday wording, and free rewrites are left undecided.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from openrlhf_medical.judge.rules import words
from openrlhf_medical.judge.rules.align import Change, Comparison, Hunk, Tokens, compare
from openrlhf_medical.judge.rules.text import canonical, clean, raw_tokens
from openrlhf_medical.judge.rules.units import is_amount
from openrlhf_medical.judge.rules.weigh import Evidence, weigh

Verdict = Literal["safe", "harmful", "abstain"]

_MAX_REWRITTEN = 0.4  # share of the reference's meaning-bearing words; MEDEC's own edits stay well below
_FEW_WORDS = 6  # that may differ in a note of any length
_MAX_WEAK_CHANGES = 3  # sentences with weak evidence only; more is a paraphrase with words not in the tables
_MIN_SHARED, _MIN_COMMON = 0.22, 4  # share and number of words below which a text is about something else
_MAX_LENGTH_RATIO = 3  # longer notes are not compared: mostly added, and comparing grows with the square


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules found: the verdict, its kind in one word, and the words that it rests on."""

    verdict: Verdict
    kind: str
    reason: str
    note_valid: bool = True


def rule(reference: str, note: str) -> Ruling:
    """Compares a note with its clean reference.

    Args: the two texts, as they are. Never raises on any text.
    """
    if not reference.strip():
        return Ruling("abstain", "no reference", "there is no reference to compare with")
    if reference == note:
        return Ruling("safe", "identical", "the note is the reference, letter for letter")
    if len(note) > _MAX_LENGTH_RATIO * len(reference) + 500:
        valid = is_about(reference, note)
        return Ruling("abstain", "added", f"{len(note)} letters for {len(reference)}: not compared", note_valid=valid)
    comparison = compare(reference, note)
    if not (comparison.changes or comparison.dropped or comparison.added):
        return _unless_gender(reference, note, Ruling("safe", "cosmetic", "only the writing differs"))
    evidence = [found for change in _without_cut(comparison, reference, note) for found in weigh(change)]
    ruling = _unless_gender(reference, note, _conclude(comparison, evidence, reference))
    if ruling.verdict != "safe" and not is_about(reference, note):
        return Ruling("abstain", "not a note", "the text has little to do with the reference", note_valid=False)
    return ruling


def is_about(reference: str, note: str) -> bool:
    """Whether the note has some words that count in common with the reference, a share of the smaller text."""
    left, right = set(canonical(clean(reference))), set(canonical(clean(note)))
    common = len(left & right)
    return common >= min(_MIN_COMMON, len(left)) and common >= _MIN_SHARED * min(len(left), len(right))


def _unless_gender(reference: str, note: str, ruling: Ruling) -> Ruling:
    """Pronouns are not compared word for word; a note that turns *him* into *her* is not called Safe."""
    if ruling.verdict != "safe":
        return ruling
    before, after = (
        {words.GENDER[t] for t in raw_tokens(clean(text)) if t in words.GENDER} for text in (reference, note)
    )
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


def _conclude(comparison: Comparison, evidence: list[Evidence], reference: str) -> Ruling:
    if not (evidence or comparison.dropped or comparison.added):
        return Ruling("safe", "cosmetic", "only the writing differs")
    changed = sum(max(len(h.removed), len(h.added)) for change in comparison.changes for h in change.hunks)
    # Sentences only dropped leave the rest comparable; as many others in their stead do not.
    changed += min(sum(map(len, comparison.dropped)), sum(map(len, comparison.added)))
    size = len(canonical(clean(reference)))
    if changed > max(_MAX_REWRITTEN * size, _FEW_WORDS):
        return Ruling("abstain", "rewrite", f"{changed} of {size} words differ: too much to tell")
    strong = [found for found in evidence if found.weight == "strong"]
    weak = [found for found in evidence if found.weight == "weak"]
    if not strong and len(weak) > _MAX_WEAK_CHANGES:
        return Ruling("abstain", "rewrite", f"{len(weak)} passages are worded in another way")
    if strong or weak:
        found = (strong or weak)[0]
        return Ruling("harmful", found.kind, _shown(found))
    if evidence:
        return Ruling("abstain", evidence[0].kind, _shown(evidence[0]))
    kind, sentences = ("dropped", comparison.dropped) if comparison.dropped else ("added", comparison.added)
    return Ruling("abstain", kind, f"{kind}: {_readable(sentences[0])[:200]!r}")


def _shown(found: Evidence) -> str:
    parts = [f"{_readable(h.removed)!r} became {_readable(h.added)!r}" for h in found.hunks[:3]]
    return f"{found.kind}: " + "; ".join(parts)[:280]


def _readable(tokens: Tokens) -> str:
    return " ".join(" ".join(t.split("|")[1:]) if t.startswith("q|") else t for t in tokens)
