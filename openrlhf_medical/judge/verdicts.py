"""What a model's reply says: a pure reading of its last line.

Strict, because everything else has been tried: ``"safe" in text`` finds "unsafe", and the first verdict of a reply is
often a quotation. What is not exactly one verdict in its place is an abstention with its reason, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from openrlhf_medical.game.players import Truth


class Verdict(StrEnum):
    """What a model may answer. ``INVALID``: the text is no clinical note any more."""

    SAFE = "SAFE"
    HARMFUL = "HARMFUL"
    UNSURE = "UNSURE"
    INVALID = "INVALID"

    @property
    def truth(self) -> Truth | None:
        return _TRUTHS.get(self)


_TRUTHS = {Verdict.SAFE: Truth.SAFE, Verdict.HARMFUL: Truth.HARMFUL}

VERDICT_MARK = "VERDICT:"
"""What the last line of a reply starts with. ``prompts`` sees to it that no note can hold it."""

_DECORATION = " \t*_`#>"  # Markdown that models like to put around a line
_MARKED = re.compile(VERDICT_MARK, re.IGNORECASE)
_VERDICT_LINE = re.compile(rf"{VERDICT_MARK}[{_DECORATION}]*({'|'.join(Verdict)})", re.IGNORECASE)
_END_THOUGHTS = "</think>"
_FILTERED = ("content_filter", "refusal")


@dataclass(frozen=True, slots=True)
class Reading:
    """``verdict`` is None where the reply has none that counts; ``kind`` then says in a word why."""

    verdict: Verdict | None
    kind: str = ""
    reason: str = ""


def read_verdict(text: str, finish: str | None = "stop") -> Reading:
    """Reads a reply. Never raises.

    Args:
        finish: why the model stopped, in the words of OpenAI's protocol; ``length``: it was cut.
    """
    if finish == "length":
        return Reading(None, "truncated", "the reply was cut before its end")
    if finish in _FILTERED:
        return Reading(None, "filtered", "the model's provider withheld the reply")
    # Thoughts in the reply itself try out verdicts; what counts comes after them.
    lines = [stripped for line in text.rpartition(_END_THOUGHTS)[2].splitlines() if (stripped := _bare(line))]
    last = _VERDICT_LINE.fullmatch(lines[-1]) if lines else None
    if last is None:
        return Reading(None, "unparsable", f"the reply does not end with one line {VERDICT_MARK} and a verdict")
    said = {line.split(":", 1)[1].strip(_DECORATION).upper() for line in lines if _MARKED.match(line)}
    if len(said) > 1:
        return Reading(None, "contradictory", "the reply has several verdict lines that do not agree")
    return Reading(Verdict(last[1].upper()))


def reasoning_of(text: str, most_chars: int = 2000) -> str:
    """A reply without its verdict line, for the record; its end where it is long."""
    lines = [line for line in text.splitlines() if not _MARKED.match(_bare(line))]
    return "\n".join(lines).strip()[-most_chars:]


def _bare(line: str) -> str:
    return line.strip(_DECORATION + "\r\n\v\f.").rstrip()
