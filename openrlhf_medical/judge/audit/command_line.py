"""The options of ``openrlhf-medical judge-audit``. Light: what does the work is imported when it begins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def judge_audit(
    judge_url: Annotated[
        list[str] | None, typer.Option(help="Judge server, once or more; else one is started.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Of the judge that is started.")] = "reference",
    model: Annotated[str | None, typer.Option(help="Model of that backend, where it has one.")] = None,
    medec: Annotated[Path | None, typer.Option(help="MEDEC CSV or folder; else the embedded corpus.")] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Error notes and clean notes to draw, each; all by default.")
    ] = None,
    games: Annotated[Path | None, typer.Option(help="A run's games.jsonl: ask about its attacker's notes too.")] = None,
    last_steps: Annotated[
        int | None, typer.Option(min=1, help="Of --games, only so many of the latest steps; all by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write everything here as JSON.")] = None,
    show_misses: Annotated[
        bool, typer.Option("--show-misses", help="Show what differs in missed pairs. Clinical text is sensitive.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Queries under way at the same time.")] = 16,
    timeout_s: Annotated[float, typer.Option(help="Deadline of one query, all retries included.")] = 120.0,
    start_timeout_s: Annotated[float, typer.Option(help="How long the judge may take to be ready.")] = 60.0,
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token that the judge asks for.")] = None,
    seed: Annotated[int, typer.Option(help="Of the notes drawn.")] = 0,
) -> None:
    """Measure a judge on pairs whose truth is known.

    Gold pairs (an error note and its correction: Harmful), cosmetic rewrites (Safe), identical pairs, and the
    hard pairs that come with the program; each beside judges that read nothing.

    \b
    Examples:
      openrlhf-medical judge-audit --output audit.json
      openrlhf-medical judge-audit --judge-url http://127.0.0.1:8000 --medec path/to/MEDEC
      openrlhf-medical judge-audit --games runs/quickstart/games.jsonl
    """
    from openrlhf_medical.judge.audit.audit import AuditPlan, audit

    plan = AuditPlan(
        urls=tuple(url.rstrip("/") for url in judge_url or []),
        backend=backend,
        model=model,
        medec=medec,
        num_samples=num_samples,
        games=games,
        last_steps=last_steps,
        output=output,
        show_misses=show_misses,
        concurrency=concurrency,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
        token_file=token_file,
        seed=seed,
    )
    typer.echo(audit(plan, command=sys.argv))
