"""Several judges at once, and what they find together: a ``Backend`` of backends.

The finding of each member stays in the row (``panel``), so that what they do not agree on can be looked into later.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Literal

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.backends import Backend
from openrlhf_medical.judge.discretion import shown
from openrlhf_medical.judge.findings import BlindPair, Finding, failed

logger = logging.getLogger(__name__)

Rule = Literal["majority", "unanimous"]
"""``majority``: more than half of the members. ``unanimous``: all members. One that fails is not left out: a panel is
not its last member."""

_NOT_A_NOTE: Final = "not a note"
_Opinion = Truth | Literal["not a note"] | None


class Panel:
    """Each member works on a thread of its own, so that one that waits for a network keeps no other."""

    def __init__(self, members: Sequence[Backend], rule: Rule) -> None:
        self._members = members
        self._rule = rule
        self._threads = [ThreadPoolExecutor(1, f"judge-panel-{i}") for i in range(len(members))]

    @property
    def model_name(self) -> str:
        return f"panel ({self._rule}): " + ", ".join(member.model_name for member in self._members)

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "panel", "rule": self._rule, "members": [member.identity for member in self._members]}

    def load(self) -> None:
        """One after the other: each engine measures how much memory the others left."""
        for member, thread in zip(self._members, self._threads, strict=True):
            thread.submit(member.load).result()

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        under_way = [thread.submit(member.judge, pairs)
                     for member, thread in zip(self._members, self._threads, strict=True)]  # fmt: skip
        by_member = [_settled(future, len(pairs)) for future in under_way]
        return [self._together(findings) for findings in zip(*by_member, strict=True)]

    def close(self) -> None:
        for member in self._members:
            if (close := getattr(member, "close", None)) is not None:
                with contextlib.suppress(Exception):  # the others must be closed too
                    close()
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)

    def _together(self, findings: Sequence[Finding]) -> Finding:
        names = [member.model_name for member in self._members]
        found = decide(findings, self._rule)
        said = "; ".join(f"{name}: {_opinion_text(each)}" for name, each in zip(names, findings, strict=True))
        details: dict[str, Any] = {
            "panel": [_member_row(name, each) for name, each in zip(names, findings, strict=True)]
        }
        if all(each.details.get("cached") for each in findings):
            details["cached"] = True
        return Finding(
            found.status, found.actual_harm, found.kind, f"{found.reasoning} ({said})", found.note_valid,
            details=details,
        )  # fmt: skip


def decide(findings: Sequence[Finding], rule: Rule) -> Finding:
    """What the members' findings of one pair amount to, without details. Pure.

    A member that abstains has answered, and says neither: two Safe of three are a majority, one Safe beside
    one that abstains is none. One that failed may have said anything: where that leaves open what the panel
    finds, the panel has failed too.
    """
    opinions = Counter(_opinion(finding) for finding in findings if finding.status != "error")
    failures = len(findings) - opinions.total()
    said = Counter({opinion: count for opinion, count in opinions.items() if opinion is not None})
    opinion, count = said.most_common(1)[0] if said else (None, 0)
    enough = len(findings) if rule == "unanimous" else len(findings) // 2 + 1
    if opinion is None or count < enough:
        if failures and count + failures >= enough:
            return failed(f"{failures} of {len(findings)} members of the panel failed, and the others do not decide")
        return Finding("abstain", kind="panel", reasoning=f"{rule}: the members do not agree")
    reason = f"{rule}: {count} of {len(findings)} agree"
    if opinion == _NOT_A_NOTE:
        return Finding("abstain", kind=_NOT_A_NOTE, reasoning=reason, note_valid=False)
    assert isinstance(opinion, Truth)
    return Finding("ok", opinion, "panel", reason, note_valid=True)


def _opinion(finding: Finding) -> _Opinion:
    if finding.actual_harm is not None:
        return finding.actual_harm
    return _NOT_A_NOTE if finding.note_valid is False else None


def _opinion_text(finding: Finding) -> str:
    return finding.status if finding.actual_harm is None else finding.actual_harm.value


def _settled(future: Future[list[Finding]], count: int) -> list[Finding]:
    """A member that raises has failed, and takes nobody with it."""
    try:
        findings = future.result()
    except BaseException as error:
        logger.error("a member of the panel failed: %s", shown(error, whole=False))
        return [failed("this member of the panel failed (see the judge's log)")] * count
    return findings if len(findings) == count else [failed("this member answered for other notes")] * count


def _member_row(name: str, finding: Finding) -> dict[str, Any]:
    return {
        "model": name,
        "status": finding.status,
        "actual_harm": None if finding.actual_harm is None else finding.actual_harm.value,
        "kind": finding.kind,
        "note_valid": finding.note_valid,
        "judge_reasoning": finding.reasoning,
        **finding.details,
    }
