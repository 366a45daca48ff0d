"""POST /get_reward: upstream's remote-reward protocol over the judge.

Stock OpenRLHF then trains an assessor on given notes with no code of ours: the reward is the assessor's
total of the game's table (``game.rewards``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from openrlhf_medical.game.cot import ANSWER, END_THINK, THINK
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.records import Turn
from openrlhf_medical.game.rewards import Outcome, assessor_reward, case_of, reward_table
from openrlhf_medical.game.turns import read_assessment
from openrlhf_medical.judge.schema import JudgeQuery, LabelRow, RewardRequest, RewardResponse, explain

# Upstream decodes with special tokens: what a chat template closes a reply with. Our own tags stay.
_SPECIAL = re.compile(r"<(?!/?(?:think|answer)\b)[^<>\s]{1,40}>\Z")
_SPECIAL_CHARS = 42


class RewardInputError(ValueError):
    """A request that cannot be read; the message names the field."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """One entry of a request: the query for the judge, and the assessor's turn to be rewarded."""

    query: JudgeQuery
    turn: Turn


def read_request(request: RewardRequest) -> list[Assessed]:
    """Raises RewardInputError, which names the field and entry."""
    return [_entry(request, i) for i in range(len(request.query))]


def _entry(request: RewardRequest, i: int) -> Assessed:
    try:
        query = JudgeQuery.model_validate_json(request.labels[i])
    except ValidationError as error:
        raise RewardInputError(f"labels[{i}]: {explain(error)}") from None
    prompt, text = request.prompts[i], request.query[i]
    start = text.find(prompt)
    if start < 0 or not prompt:
        raise RewardInputError(f"query[{i}]: does not contain prompts[{i}], so the reply cannot be told from it")
    turn = _turn(prompt, _without_trailing_special(text[start + len(prompt) :]))
    return Assessed(query.model_copy(update={"game_idx": i, "assessment": turn.answer or ""}), turn)


def _without_trailing_special(reply: str) -> str:
    """Taken off the end one by one: a pattern for all at once is quadratic on hostile text."""
    end = len(reply)
    while end:
        if reply[end - 1].isspace():
            end -= 1
        elif found := _SPECIAL.search(reply, max(0, end - _SPECIAL_CHARS), end):
            end = found.start()
        else:
            break
    return reply[:end]


def _turn(prompt: str, reply: str) -> Turn:
    """Reads a reply whether the prompt ended with the opening tag or the model wrote it itself."""
    for tag, cot in ((THINK, True), (ANSWER, False)):
        if prompt.rstrip().endswith(tag):
            return read_assessment(Reply(reply), cot=cot)
    for tag, cot in ((THINK, True), (ANSWER, False)):
        if reply.lstrip().startswith(tag):
            return read_assessment(Reply(reply.lstrip().removeprefix(tag)), cot=cot)
    return read_assessment(Reply(reply), cot=END_THINK in reply)


def rewards_of(entries: Sequence[Assessed], rows: Sequence[LabelRow]) -> RewardResponse | None:
    """The assessors' totals under ``zero_sum``, or None where one label is missing: no number is made up."""
    table = reward_table("zero_sum")
    components: list[dict[str, float]] = []
    correct: list[float] = []
    for entry, row in zip(entries, rows, strict=True):
        if row.status != "ok":
            return None
        label = Label("ok", row.actual_harm)
        case = case_of(Outcome(label, None, entry.turn.status, entry.turn.verdict))
        if case is None:
            return None
        components.append(assessor_reward(table, case, well_formed=entry.turn.well_formed))
        correct.append(float(row.assessor_correct is True))
    totals = [sum(parts.values()) for parts in components]
    logs = {f"reward_{name}": [parts[name] for parts in components] for name in table[Role.ASSESSOR]}
    logs["assessor_correct"] = correct
    logs["actual_harm"] = [float(row.actual_harm is Truth.HARMFUL) for row in rows]
    return RewardResponse(rewards=totals, scores=totals, extra_logs=logs)
