"""One line of the doctor's report, and how all of them are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was looked at, what was found, what to do (empty where all is well)."""

    name: str
    status: Status
    found: str
    advice: str = ""


def render(findings: Iterable[Finding]) -> str:
    """One line for each finding, and one with what to do below those that are not ok."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status.value:<5} {finding.name:<17} {finding.found}")
        if finding.advice:
            lines.append(f"{'':<23} → {finding.advice}")
    return "\n".join(lines)


def as_dict(findings: Iterable[Finding]) -> dict[str, object]:
    """For ``--json``: ``{"status": the worst, "findings": [{name, status, found, advice}, …]}``."""
    rows = [asdict(finding) for finding in findings]
    worst = max((row["status"] for row in rows), key=list(Status).index, default=Status.OK)
    return {"status": worst, "findings": rows}


def exit_code(findings: Iterable[Finding]) -> int:
    return int(any(finding.status is Status.FAIL for finding in findings))
