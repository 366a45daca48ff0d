"""Who decides what is true of a note: what a backend is, and the one that needs no model.

``reference`` compares the note with its clean reference by rules (``judge.rules``). Models: ``judge.chat``; which
backends there are by name: ``judge.build``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge import rules
from openrlhf_medical.judge.findings import BlindPair, Finding
from openrlhf_medical.judge.rules.decide import Ruling, rule


class Backend(Protocol):
    """Decides on blind pairs. ``load`` and ``judge`` are called on one thread, never at the same time.

    A backend may also have ``close()``, called once when the server stops, from another thread and maybe while
    ``judge`` is at work, which may then raise; and ``own_process = True``, to be served in a process of its own
    (then it must be picklable before ``load``).
    """

    @property
    def model_name(self) -> str:
        """What answers give as ``model``."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that its findings depend on besides the pair, as JSON has it: what they are cached by. Once loaded."""
        ...

    def load(self) -> None:
        """Makes ready to judge; may take minutes. Raises what keeps it from being ready."""
        ...

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        """One finding for each pair, in the same order."""
        ...


class ReferenceBackend:
    """Rules against the clean reference (``judge.rules``): deterministic, and silent where it cannot tell."""

    model_name = "reference"
    own_process = True  # rules in Python: see judge.own_process

    @cached_property
    def identity(self) -> dict[str, Any]:
        """By the text of the rules themselves: nobody has to remember to raise a number."""
        sources = sorted(Path(str(rules.__file__)).parent.glob("*.py"))
        digest = hashlib.blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8)
        return {"backend": "reference", "rules": digest.hexdigest()}

    def load(self) -> None:
        rule("No fever.", "no fever")  # the tables are read on first use

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        return [_finding(rule(pair.original_note, pair.medical_note)) for pair in pairs]


_TRUTH = {"safe": Truth.SAFE, "harmful": Truth.HARMFUL}


def _finding(ruling: Ruling) -> Finding:
    truth = _TRUTH.get(ruling.verdict)
    return Finding(
        status="abstain" if truth is None else "ok",
        actual_harm=truth,
        kind=ruling.kind,
        reasoning=ruling.reason,
        note_valid=ruling.note_valid,
    )
