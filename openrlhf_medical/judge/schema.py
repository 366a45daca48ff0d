"""The judge's contract on the wire: what POST /judge takes and answers.

Rows are keyed by ``game_idx``, in any order. Light to import: no torch, no server.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, model_validator

from openrlhf_medical.game.players import LabelStatus, Truth

MAX_QUERIES = 1024
"""Queries in one request."""
MAX_TEXT_CHARS = 100_000
"""Characters in one text: far above any note, far below what would keep a server busy for long."""
MAX_BODY_BYTES = 8 * 2**20
"""Bytes of one request: twice what the longest batch of ordinary notes needs."""
MAX_ANSWER_BYTES = 32 * 2**20
"""Bytes of one answer that a client reads."""

TIMEOUT_HEADER = "X-Request-Timeout-S"
"""With it a client says how many seconds it will wait; the server then waits no longer than that."""

EXPIRED, STOPPED = "expired", "stopped"
"""Kinds of rows with status ``error`` that no backend has seen: the time was over, or the server was ended. To ask
again may bring a label."""
BACKEND = "backend"
"""Kind of rows with status ``error`` on which the backend failed: once more, or another replica's, may not."""

Text = Annotated[StrictStr, Field(max_length=MAX_TEXT_CHARS)]
# A prompt with a note in it and a reply; or two notes as JSON, escapes and all.
_RewardText = Annotated[StrictStr, Field(max_length=4 * MAX_TEXT_CHARS)]


class JudgeQuery(BaseModel):
    """One question. ``original_note`` is the clean reference, ``medical_note`` what the assessor saw.

    ``assessment`` is the assessor's answer without its thoughts; it, ``error_type`` and ``game_category``
    never reach the model.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    game_idx: StrictInt
    original_note: Text
    medical_note: Text
    assessment: Text = ""
    error_type: StrictStr | None = Field(default=None, max_length=200)
    game_category: StrictStr = Field(default="", max_length=200)


class JudgeRequest(BaseModel):
    queries: list[JudgeQuery] = Field(max_length=MAX_QUERIES)
    score_key: Literal["labels"] = "labels"

    @model_validator(mode="after")
    def _unique(self) -> Self:
        seen: set[int] = set()
        for query in self.queries:
            if query.game_idx in seen:
                raise ValueError(f"game_idx {query.game_idx} comes twice: answers are keyed by it")
            seen.add(query.game_idx)
        return self


class LabelRow(BaseModel):
    """One answer. ``actual_harm`` and ``error_present`` are null exactly when ``status`` is not ok.

    ``error_detected``: an error is present and the assessor said Harmful; null without a verdict or a truth,
    as is ``assessor_correct``. ``note_valid`` false: the text has nothing to do with the reference.
    ``kind`` names in a word what the finding rests on; of status ``error`` it is ``expired`` (not judged in
    time), ``stopped`` (the server went away) or ``backend`` (it failed). Other keys are kept: ``cached`` true (found
    before), ``panel`` (the finding of each member, in the order of the members).
    """

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    game_idx: StrictInt
    status: LabelStatus
    actual_harm: Truth | None
    error_present: StrictBool | None = None
    error_detected: StrictBool | None = None
    assessor_correct: StrictBool | None = None
    error_realistic: StrictBool | None = None
    note_valid: StrictBool | None = None
    is_parsing_error: StrictBool = False
    judge_reasoning: StrictStr = ""
    kind: StrictStr = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.actual_harm is None) == (self.status == "ok"):
            raise ValueError(f"status {self.status} with actual_harm {self.actual_harm}")
        if self.error_present is not None and self.status != "ok":
            raise ValueError(f"status {self.status} with error_present {self.error_present}")
        if self.error_present is not None and self.error_present != (self.actual_harm is Truth.HARMFUL):
            raise ValueError(f"actual_harm {self.actual_harm} with error_present {self.error_present}")
        return self


class JudgeResponse(BaseModel):
    labels: list[LabelRow]
    model: str


class Problem(BaseModel):
    """What every refusal and failure answers. ``detail`` names the field where there is one."""

    detail: str


class Health(BaseModel):
    """GET /health, when all is well."""

    status: Literal["ok"]
    model: str


class EvaluateResponse(BaseModel):
    """POST /evaluate: one query, one row."""

    label: LabelRow
    model: str


class RewardRequest(BaseModel):
    """Upstream's remote-reward call (openrlhf.utils.agent.SingleTurnAgentExecutor).

    ``query[i]`` is prompt and reply in one text, special tokens included; ``labels[i]`` a JSON object with
    the fields of a ``JudgeQuery``, its assessment aside.
    """

    query: list[_RewardText] = Field(max_length=MAX_QUERIES)
    prompts: list[_RewardText] = Field(max_length=MAX_QUERIES)
    labels: list[_RewardText] = Field(max_length=MAX_QUERIES)

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        if not len(self.query) == len(self.prompts) == len(self.labels):
            raise ValueError(
                f"query, prompts and labels have {len(self.query)}, {len(self.prompts)} and {len(self.labels)} entries"
            )
        return self


class RewardResponse(BaseModel):
    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


def explain(error: ValidationError) -> str:
    """What is wrong with a body, by field; never the text that was sent."""
    parts = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False)[:5]:
        where = ".".join(map(str, problem["loc"])) or "body"
        parts.append(f"{where}: {problem['msg']}")
    return "; ".join(parts)
