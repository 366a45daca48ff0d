"""How a run ended, from what its job, its watcher and the run itself say. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from openrlhf_medical.sweep.folder import State
from openrlhf_medical.sweep.submitters import JobState, Seen

STOPPED_CODES = tuple(128 + number for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM))
"""Of a run that saved its state because it was told to."""


def outcome(
    seen: Seen, ended: Mapping[str, Any] | None, status: Mapping[str, Any], last_words: str
) -> tuple[State, str | None]:
    """(state, reason) of a run whose job is no more.

    Args:
        seen: what the place that ran it says.
        ended: what ``sweep.job`` wrote, {"code", "stopped"}: the surest.
        status: the run's own status.json, {"state", "reason", …}; empty for a command that writes none.
        last_words: the last line of its log, for what says nothing better.
    """
    code = ended["code"] if ended else seen.code
    reason = str(status.get("reason") or "") or last_words
    if code == 0:
        return State.FINISHED, None
    if (ended and ended["stopped"]) or code in STOPPED_CODES:
        return State.INTERRUPTED, "it was stopped"
    if code is not None:
        state = State.INTERRUPTED if status.get("state") == "interrupted" else State.FAILED
        return state, f"exit code {code}" + (f": {reason}" if reason else "")
    told = status.get("state")
    if told == "finished":
        return State.FINISHED, None
    if told == "failed":
        return State.FAILED, reason or "it failed"
    how = "ended without a word" if seen.state is JobState.ENDED else "is gone"
    return State.INTERRUPTED, f"its job {how}" + (f"; its last: {reason}" if reason else "")
