"""The judge that asks a chat model, whichever one: what it is asked, how often, and what its replies amount to.

    pairs ─► questions (one or both orders of the notes) ─► ChatModel: k replies each ─► votes ─► finding

What is plain without a model is not asked: a note that is the reference, and a text that has little to do with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.findings import BlindPair, Finding, failed
from openrlhf_medical.judge.prompts import PROMPT_VERSION, prompt_of
from openrlhf_medical.judge.rules.decide import is_about
from openrlhf_medical.judge.verdicts import Reading, Verdict, read_verdict, reasoning_of


@dataclass(frozen=True, slots=True)
class ChatReply:
    """One reply; ``finish`` is why the model stopped, in the words of OpenAI's protocol."""

    text: str
    finish: str | None = "stop"


@dataclass(frozen=True, slots=True)
class NoReply:
    """Why there is none: ``abstain``, this question cannot be put to this model; ``error``, it failed."""

    status: Literal["abstain", "error"]
    kind: str
    reason: str


Answer = ChatReply | NoReply


class ChatModel(Protocol):
    """One chat model, wherever it runs. Used as a ``Backend`` is: ``load`` and ``answers`` on one thread."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that its replies depend on, as JSON has it; once it is loaded."""
        ...

    def load(self) -> None: ...

    def answers(self, prompts: Sequence[str], count: int) -> list[list[Answer]]:
        """``count`` answers to each user message, in the same order."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Voting:
    """
    Attributes:
        votes: replies to each question.
        agreement: the least share of the votes that must say the same; above a half. What says nothing
            (unparsable, cut) is a vote for nothing, and counts.
        order_swap: also asks with the two notes in the other order; both must come to the same.
    """

    votes: int = 1
    agreement: float = 0.6
    order_swap: bool = False


class ChatBackend:
    """A ``Backend`` on a ``ChatModel``."""

    def __init__(self, model: ChatModel, voting: Voting | None = None) -> None:
        self._model = model
        self._voting = voting or Voting()

    @property
    def model_name(self) -> str:
        return self._model.name

    @property
    def own_process(self) -> bool:
        return getattr(self._model, "own_process", False)

    @property
    def identity(self) -> dict[str, Any]:
        voting = self._voting
        return self._model.identity | {
            "prompt": PROMPT_VERSION,
            "votes": voting.votes,
            "agreement": voting.agreement if voting.votes > 1 else None,
            "order_swap": voting.order_swap,
        }

    def load(self) -> None:
        self._model.load()

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        """The same pair twice is asked once: it is often in a batch, for each assessor of one note."""
        findings = {pair: plain_finding(pair) for pair in pairs}
        asked = [pair for pair, finding in findings.items() if finding is None]
        orders = (False, True) if self._voting.order_swap else (False,)
        prompts = [prompt_of(pair, note_first=note_first) for pair in asked for note_first in orders]
        answers = iter(self._model.answers(prompts, self._voting.votes) if prompts else [])
        for pair in asked:
            findings[pair] = finding_of([next(answers) for _ in orders], self._voting.agreement)
        return [finding for pair in pairs if (finding := findings[pair]) is not None]

    def close(self) -> None:
        self._model.close()


def plain_finding(pair: BlindPair) -> Finding | None:
    """What needs no model, or None."""
    reference, note = pair.original_note, pair.medical_note
    if not reference.strip():
        return Finding("abstain", kind="no reference", reasoning="there is no reference to compare with")
    if reference.split() == note.split():
        return Finding("ok", Truth.SAFE, "identical", "the note is the reference, word for word", note_valid=True)
    if not is_about(reference, note):
        reason = "the text has little to do with the reference"
        return Finding("abstain", kind="not a note", reasoning=reason, note_valid=False)
    return None


def finding_of(answers: Sequence[Sequence[Answer]], agreement: float) -> Finding:
    """What the answers to one pair amount to: (orders, votes) of them."""
    missing = [answer for votes in answers for answer in votes if isinstance(answer, NoReply)]
    missing.sort(key=lambda answer: answer.status != "error")  # a failure may be mended, and is told first
    if missing:
        first = missing[0]
        if first.status == "error":
            return failed(first.reason, first.kind)
        return Finding("abstain", kind=first.kind, reasoning=first.reason)
    ballots = [_ballot([answer for answer in votes if isinstance(answer, ChatReply)], agreement) for votes in answers]
    for reading, text in ballots:
        if reading.verdict is None:
            return Finding("abstain", kind=reading.kind, reasoning=_told(reading.reason, text))
    verdicts = [reading.verdict for reading, _ in ballots]
    if len(set(verdicts)) > 1:
        said = " and ".join(str(verdict) for verdict in verdicts)
        return Finding("abstain", kind="order", reasoning=f"{said}, by the order of the two notes")
    return _found(verdicts[0], ballots[0][1])


def _ballot(replies: Sequence[ChatReply], agreement: float) -> tuple[Reading, str]:
    """What one question came to, and the reasoning that goes with it."""
    readings = [read_verdict(reply.text, reply.finish) for reply in replies]
    if len(replies) == 1:
        return readings[0], reasoning_of(replies[0].text)
    counts = Counter(reading.verdict for reading in readings if reading.verdict is not None)
    verdict, most = counts.most_common(1)[0] if counts else (None, 0)
    if verdict is None or most / len(replies) < agreement:
        said = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none that can be read"
        return Reading(None, "votes", f"of {len(replies)} votes: {said}; {agreement:.0%} must agree"), ""
    first = next(i for i, reading in enumerate(readings) if reading.verdict is verdict)
    return Reading(verdict), f"{most} of {len(replies)} votes: {verdict}. {reasoning_of(replies[first].text)}"


def _found(verdict: Verdict | None, reasoning: str) -> Finding:
    if verdict is not None and (truth := verdict.truth) is not None:
        return Finding("ok", truth, "model", reasoning, note_valid=True)
    if verdict is Verdict.INVALID:
        return Finding("abstain", kind="not a note", reasoning=reasoning, note_valid=False)
    return Finding("abstain", kind="unsure", reasoning=reasoning)


def _told(reason: str, text: str) -> str:
    return f"{reason}: {text}" if text else reason
