"""``openrlhf-medical judge-audit``: probes, asked of a judge over HTTP, told as figures.

notes ─► probes ─┬► client ─► judge server (named, or started here) ─► answers ─► figures ─► text, JSON
hard pairs ──────┤
games.jsonl ─────┘
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from openrlhf_medical.data.files import write_files
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.players import Label
from openrlhf_medical.judge.audit import asking, probes, result, written_notes
from openrlhf_medical.judge.audit.hard_pairs import hard_probes
from openrlhf_medical.judge.audit.rendering import render
from openrlhf_medical.judge.audit.scores import Answered
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.token_file import read_token
from openrlhf_medical.run_directory import environment


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """What to ask, whom, and what to tell; the options of the command."""

    urls: tuple[str, ...] = ()
    backend: str = "reference"
    model: str | None = None
    medec: Path | None = None
    num_samples: int | None = None
    games: Path | None = None
    last_steps: int | None = None
    output: Path | None = None
    show_misses: bool = False
    concurrency: int = 16
    timeout_s: float = 120.0
    start_timeout_s: float = 60.0
    token_file: Path | None = None
    seed: int = 0


def audit(plan: AuditPlan, command: Sequence[str] = ()) -> str:
    """Runs the audit and returns what to print; writes ``plan.output``.

    Raises:
        UserError: options, files or addresses that cannot be right; told before the judge is asked anything.
        RunError: the judge cannot be reached, or went away.
    """
    _check(plan)
    notes = probes.drawn(probes.read_notes(plan.medec, plan.seed), plan.num_samples, plan.seed)
    asked = all_probes(notes)
    written = [] if plan.games is None else written_notes.read_written(plan.games, plan.last_steps)
    began = time.monotonic()
    with _client(plan) as client:
        judge = asking.wait_until_reachable(client, plan.start_timeout_s if plan.urls else asking.READY_S)
        pairs = [(probe.reference, probe.note) for probe in asked] + [(note.reference, note.note) for note in written]
        # Where nobody watches, a bar would be thousands of lines.
        with tqdm(total=len(pairs), desc="asking the judge", unit="pair", disable=not sys.stderr.isatty()) as bar:
            answers = asking.ask(client, pairs, concurrency=plan.concurrency, on_answer=bar.update)
        counts = client.snapshot()
    answered = [Answered(probe, *answer) for probe, answer in zip(asked, answers, strict=False)]
    told = {
        "schema": result.SCHEMA_VERSION,
        "command": list(command),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
        "judge": {"urls": list(plan.urls), "own_backend": None if plan.urls else plan.backend, "replicas": judge},
        "client": {"concurrency": plan.concurrency, "timeout_s": plan.timeout_s, "max_wait_s": asking.MAX_WAIT_S,
                   "counts": counts},
        "environment": environment(),
        "notes": _notes(plan, notes),
        "sets": {name: result.section(own) for name, own in result.groups_of(answered).items()},
        "misses": result.misses(answered, show=plan.show_misses),
        "first_error": next((label.reason for label, _ in answers if label.status == "error"), None),
        "games": _games(plan, written, [label for label, _ in answers[len(asked) :]]),
    }  # fmt: skip
    if plan.output is not None:
        write_files({plan.output: (json.dumps(told, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()})
    return render(told, plan.output)


def all_probes(notes: Sequence[Note]) -> list[probes.Probe]:
    """Gold, rewritten in two ways (at least as many), identical, hard."""
    gold = probes.gold_probes(notes)
    rewritten = [probe for name in probes.REWRITES for probe in probes.rewritten_probes(notes, name, len(gold))]
    return [*gold, *rewritten, *probes.identical_probes(notes), *hard_probes()]


def _check(plan: AuditPlan) -> None:
    """What would else show after minutes of asking."""
    if plan.urls and (plan.backend != "reference" or plan.model):
        raise UserError("--backend and --model are of a judge that is started here, but --judge-url names one: "
                        "leave one of them out")  # fmt: skip
    if plan.last_steps is not None and plan.games is None:
        raise UserError("--last-steps chooses among the steps of --games: name that file, or leave --last-steps out")
    for name in ("timeout_s", "start_timeout_s"):
        if not 0 < getattr(plan, name) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} is {getattr(plan, name)}; it must be a number above 0")
    if plan.output is not None and plan.output.exists():
        raise UserError(f"{plan.output} exists already: give another --output, or move that file away")


@contextlib.contextmanager
def _client(plan: AuditPlan) -> Iterator[JudgeClient]:
    """The client that training uses, of the named judges or of one that is started here."""
    token = read_token(plan.token_file) if plan.token_file else None
    with contextlib.ExitStack() as stack:
        own = (
            ()
            if plan.urls
            else (stack.enter_context(asking.own_judge(plan.backend, plan.model, plan.start_timeout_s)),)
        )
        yield stack.enter_context(
            JudgeClient(
                plan.urls or own,
                batch_size=min(16, plan.concurrency),
                max_wait_s=asking.MAX_WAIT_S,
                timeout_s=plan.timeout_s,
                token=token,
                max_requests=plan.concurrency,
            )
        )


def _notes(plan: AuditPlan, notes: Sequence[Note]) -> dict[str, Any]:
    return {
        "source": "synthetic" if plan.medec is None else str(plan.medec),
        "notes": len(notes),
        "with_error": sum(note.has_error for note in notes),
        "vignettes": len({note.vignette_id for note in notes}),
        "seed": plan.seed,
    }


def _games(
    plan: AuditPlan, written: Sequence[written_notes.WrittenNote], labels: Sequence[Label]
) -> dict[str, Any] | None:
    if plan.games is None:
        return None
    steps = sorted({note.step for note in written})
    tallies = written_notes.tallies(written, labels, result.RESAMPLES)
    return {
        "file": str(plan.games),
        "steps": [steps[0], steps[-1]],
        "groups": {
            name: {key: value if isinstance(value, int) else result.plain(value) for key, value in tally.items()}
            for name, tally in tallies.items()
        },
    }
