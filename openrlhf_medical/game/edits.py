"""Notes as texts: sentences and splicing, copies, lengths, and notes made unassessable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

Span = tuple[int, int]
"""Start and end of a sentence in its note, in characters."""

_SENTENCE = re.compile(r"\S(?:[^\n]*?[.!?](?=\s)|[^\n]*)")
_NUMBERED = re.compile(r"(\d{1,4})\s*:\s*(\S.*)")

BLANK_NOTE = "[blank]"
_CUT_WORDS = 6


def sentence_spans(note: str, sentences: Sequence[str] = ()) -> list[Span]:
    """Where the sentences of a note lie: the data set's own if each is found in order, else by punctuation."""
    spans: list[Span] = []
    position = 0
    for sentence in (text.strip() for text in sentences):
        start = note.find(sentence, position) if sentence else -1
        if start < 0:
            spans = []
            break
        position = start + len(sentence)
        spans.append((start, position))
    return spans or [(match.start(), match.start() + len(match.group().rstrip())) for match in _SENTENCE.finditer(note)]


def numbered(note: str, spans: Sequence[Span]) -> str:
    """The note with one sentence a line, ``k: sentence``, k from 1: the form in which one is answered."""
    return "\n".join(f"{k}: {' '.join(note[start:end].split())}" for k, (start, end) in enumerate(spans, 1))


def splice(note: str, spans: Sequence[Span], answer: str) -> tuple[str | None, str]:
    """Put the answer ``k: new sentence`` in the place of sentence k, and leave the rest as it is.

    Returns:
        (the new note, "") or (None, why the answer cannot be spliced in).
    """
    match = _NUMBERED.fullmatch(answer.strip())
    if match is None:
        return None, "expected one line `k: new sentence`"
    k = int(match[1])
    if not 1 <= k <= len(spans):
        return None, f"sentence {k} does not exist; the note has {len(spans)}"
    start, end = spans[k - 1]
    return note[:start] + match[2].strip() + note[end:], ""


def sentence_number(note: str, spans: Sequence[Span], sentence: str) -> int | None:
    """The number, from 1, of the sentence that holds ``sentence``; None when there is none."""
    wanted = " ".join(sentence.split())
    for k, (start, end) in enumerate(spans, 1):
        if wanted and wanted in " ".join(note[start:end].split()):
            return k
    return None


def is_copy(note: str, seed_note: str) -> bool:
    """Whether two notes are the same but for white space, which says nothing clinical: adding a blank is
    no rewriting, and losing one is no failure to copy."""
    return note == seed_note or note.split() == seed_note.split()


def length_problem(note: str, seed_note: str, allowed: tuple[float, float]) -> str:
    """Why a note's length, in characters against its seed note's, is outside the ratio; "" if it is inside."""
    length, seed_length = len(note.strip()), max(1, len(seed_note.strip()))
    ratio = length / seed_length
    if allowed[0] <= ratio <= allowed[1]:
        return ""
    return f"length is {ratio:.3g} times the seed note's; allowed: {allowed[0]:g} to {allowed[1]:g}"


def draw(*key: object) -> float:
    """A number in [0, 1) that depends on ``key`` alone: the same in every process and after a resume."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def unassessable(note: str, choice: float) -> str:
    """A note that nobody can assess: blanked (``choice`` < 0.5), or cut after its first words."""
    words = note.split()
    kept = min(_CUT_WORDS, len(words) // 4)
    return BLANK_NOTE if choice < 0.5 or kept == 0 else " ".join(words[:kept])
