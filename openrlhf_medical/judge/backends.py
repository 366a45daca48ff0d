"""Who decides what is true of a note: backends, by name.

``reference`` compares the note with its clean reference by rules (``judge.rules``), with no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
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


BACKENDS: dict[str, Callable[[], Backend]] = {"reference": ReferenceBackend}


def make_backend(name: str, *, model: str | None = None, device: str | None = None) -> Backend:
    """A backend by name, not loaded yet.

    Raises:
        UserError: an unknown name; a model or device for a backend that has none.
    """
    if name not in BACKENDS:
        raise UserError(f"unknown judge backend {name!r}; allowed: {', '.join(BACKENDS)}")
    for option, value in (("--model", model), ("--device", device)):
        if value is not None:
            raise UserError(f"the backend {name!r} runs no model, so {option} {value} has no meaning; leave it out")
    return BACKENDS[name]()
