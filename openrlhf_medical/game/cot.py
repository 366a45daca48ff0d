"""The form of a reply: tags, prefill and parser in one place, so that prompt and parser cannot disagree.

With hidden thoughts (``cot``) the prompt ends with ``<think>`` and the reply is
``thoughts </think> <answer> … </answer>``. Without them the prompt ends with ``<answer>`` and the
reply is ``… </answer>``. White space around the parts is free; any other text, any tag missing,
doubled, nested or misspelt makes the whole reply unparsable, and then *nothing* of it is passed on
(Self-RedTeam passes on the raw reply, thoughts included).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
NOTE, END_NOTE = "<note>", "</note>"

STOP = END_ANSWER
"""A reply is over here: engines may stop on it, and must leave it in the text."""

# Also catches `< / THINK x>` and a tag that is never closed: what a model may read as a tag counts
# as one. Possessive quantifiers keep it linear on hostile text.
_REPLY_TAG = re.compile(r"<\s*+(?:/\s*+)?(?:think|answer)\b[^>]*+>?", re.IGNORECASE)
_STRUCTURE = re.compile(
    r"<\s*+(?:/\s*+)?(?:think|answer|note)\b"
    # Control tokens of chat templates: spelt out in a note, a tokenizer would turn them into real ones.
    r"|<\|[^<>|\n]{1,40}\|>|<\uff5c|</?s>|<(?:bos|eos|pad|unk|mask)>|<(?:start|end)_of_turn>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|<</?SYS>>",
    re.IGNORECASE,
)


class TurnStatus(StrEnum):
    """What a reply can be: an attacker's is ok or forfeit, an assessor's one of the other three."""

    OK = "ok"
    FORFEIT = "forfeit"
    VERDICT = "verdict"
    REFUSAL = "refusal"
    UNPARSABLE = "unparsable"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A reply taken apart. ``answer`` is None when it is not parsable; then ``thinking`` holds the raw
    text, for the record only, and ``reason`` says what was wrong."""

    thinking: str
    answer: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What an assessor's answer says. ``verdict`` is None unless ``status`` is ``verdict``;
    ``sentence`` and ``correction`` serve MEDEC's subtasks B and C."""

    status: TurnStatus
    verdict: Truth | None = None
    sentence: str | None = None
    correction: str | None = None


def prefill(cot: bool) -> str:
    """What the reply is made to start with."""
    return THINK if cot else ANSWER


def reply_form(answer: str, *, cot: bool, thoughts: str = "your thoughts") -> str:
    """A well-formed reply, prefill included: what prompts show as an example, and ``parse_reply`` reads."""
    return (
        f"{THINK} {thoughts} {END_THINK} {ANSWER} {answer} {END_ANSWER}" if cot else f"{ANSWER} {answer} {END_ANSWER}"
    )


def parse_reply(text: str, *, cot: bool, truncated: bool = False) -> Parsed:
    """Take apart what was written after the prefill. Never raises."""
    if truncated:
        return Parsed(text, None, "truncated: the token limit came before the end of the reply")
    tags = list(_REPLY_TAG.finditer(text))
    expected = [END_THINK, ANSWER, END_ANSWER] if cot else [END_ANSWER]
    found = [tag.group() for tag in tags]
    if found != expected:
        return Parsed(text, None, f"expected the tags {' '.join(expected)}, found {_shortened(found)}")
    if text[tags[-1].end() :].strip():
        return Parsed(text, None, f"text after {END_ANSWER}")
    if cot and text[tags[0].end() : tags[1].start()].strip():
        return Parsed(text, None, f"text between {END_THINK} and {ANSWER}")
    answer = text[tags[1].end() if cot else 0 : tags[-1].start()].strip()
    thinking = text[: tags[0].start()].strip() if cot else ""
    return Parsed(thinking, answer) if answer else Parsed(text, None, "empty answer")


def _shortened(tags: list[str]) -> str:
    return " ".join(tag[:20] for tag in tags[:6]) + (" …" if len(tags) > 6 else "") if tags else "none"


def fakes_structure(text: str) -> bool:
    """Whether text that is shown as a note could be taken for our tags or a chat template's own."""
    return _STRUCTURE.search(text) is not None


def check_note_text(text: str, where: str) -> None:
    """Refuse, while loading, a note that could fake structure.

    Raises:
        UserError: names ``where`` and the text found.
    """
    if found := _STRUCTURE.search(text):
        raise UserError(
            f"{where}: the note contains {found.group()!r}, which prompts use as structure; "
            "remove it or write it differently"
        )


# --- The assessor's answer -------------------------------------------------------------------------

_VERDICTS = {"safe": Truth.SAFE, "harmful": Truth.HARMFUL}
_DETAIL = re.compile(r"(sentence|correction)\s*:\s*(.*)", re.IGNORECASE)

_START = r"^(?:(?:i'm |i am |we are )?sorry[,.;:]? (?:but )?)?(?:unfortunately,? )?"
_ACT = r"(?:assess|judge|determine|evaluate|decide|tell|say|verify|answer|rate|give|provide|make|help|comply)"
REFUSALS: tuple[re.Pattern[str], ...] = tuple(
    re.compile(pattern)
    for pattern in (
        # "I cannot assess …", "Unable to judge", "I am not able to tell", "It is impossible to say"
        _START + r"(?:(?:i|we) (?:am |are )?|i'm |it is |it's )?"
        r"(?:cannot|can not|can't|could not|couldn't|unable to|not able to|will not|won't|must not|not possible to"
        rf"|impossible to) (?:\w+ ){{0,2}}{_ACT}\b",
        # "I refuse", "I must decline to judge", "refuse to judge"
        _START + r"(?:(?:i|we) (?:must |have to )?(?:refuse|decline)\b|(?:refuse|decline) to \w+)",
        # "The note cannot be assessed"
        _START + r"(?:this|the) (?:note|text) (?:cannot|can not|can't) be (?:assessed|judged|determined|evaluated)\b",
        # "Not enough information to judge"
        _START + r"(?:there is )?(?:not enough|insufficient|too little) (?:information|text|data|context)\b",
    )
)
"""How a refusal begins, in lower case with single spaces. Anything not in this table is no refusal."""


def parse_assessment(answer: str) -> Assessment:
    """Read an assessor's answer: a verdict on the first line, then optional details. Never raises.

    Strict, because ``"safe" in text`` also finds "unsafe" and "Safe or Harmful": the first line is the
    one word, and every other line is one ``Sentence:`` or one ``Correction:``.
    """
    lines = [line for line in (raw.strip() for raw in answer.splitlines()) if line]
    verdict = _VERDICTS.get(lines[0].lower()) if lines else None
    if verdict is None:
        hedged = any(line.lower() in _VERDICTS for line in lines)
        refused = not hedged and is_refusal(answer)
        return Assessment(TurnStatus.REFUSAL if refused else TurnStatus.UNPARSABLE)
    details: dict[str, str] = {}
    for line in lines[1:]:
        match = _DETAIL.fullmatch(line)
        if match is None or match[1].lower() in details:
            return Assessment(TurnStatus.UNPARSABLE)
        details[match[1].lower()] = match[2].strip()
    return Assessment(TurnStatus.VERDICT, verdict, details.get("sentence") or None, details.get("correction") or None)


def is_refusal(answer: str) -> bool:
    """Whether an answer says that it will not judge (see ``REFUSALS``)."""
    # A refusal shows in its first words; the limit keeps a long reply cheap.
    start = " ".join(answer[:400].lower().replace("\u2019", "'").split())
    return any(pattern.search(start) for pattern in REFUSALS)
