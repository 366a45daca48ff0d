"""Proof of learning: does self-play on two CPU cores make the players better than their warm start?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openrlhf_medical.errors import RunError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=f"{__doc__}\n\n\b\n"
    "From plan to report:\n"
    "  python benchmarks/learning.py plan --config configs/learn_cpu.yaml\n"
    "  python benchmarks/learning.py data --output-dir data/learning --families cardiac,gastro,respiratory\n"
    "  openrlhf-medical train --config configs/learn_cpu.yaml --run.name learn-1 --train.seed 1\n"
    "  python benchmarks/learning.py measure --run runs/learn-1 --data data/learning\n"
    "  python benchmarks/learning.py report --run runs/learn-1 --run runs/learn-2",
)

CONFIG = Path("configs/learn_cpu.yaml")
TRAIN = Path("data/learning/train.jsonl")
VIGNETTES, ATTACKED = 160, 80  # of each part: 320 notes and 160 attacks


@app.command()
def plan(
    config: Annotated[Path, typer.Option(help="Configuration of the run.")] = CONFIG,
    vignettes: Annotated[int, typer.Option(min=1, help="Held-out vignettes of each part.")] = VIGNETTES,
    attacked: Annotated[int, typer.Option(min=0, help="How many of them are attacked.")] = ATTACKED,
) -> None:
    """Tokens, minutes and the smallest difference that could be shown. Runs nothing."""
    from learning_plan import plan as reckon
    from learning_plan import token_counter

    from openrlhf_medical.config import load_config
    from openrlhf_medical.data.seed_files import read_seeds

    settings = load_config(config, ["--run.name", "plan"])
    seeds = read_seeds(settings.data.sft or settings.data.train)[:200]  # enough for a mean
    typer.echo(reckon(settings, seeds, token_counter(settings), 2 * vignettes, 2 * attacked))


@app.command()
def data(
    output_dir: Annotated[Path, typer.Option(help="Folder for the held-out seeds.")],
    train: Annotated[Path, typer.Option(help="Training seeds, to hold the two apart.")] = TRAIN,
    vignettes: Annotated[int, typer.Option(min=1, help="Vignettes of each part, both twins each.")] = VIGNETTES,
    attacked: Annotated[int, typer.Option(min=1, help="How many of them are attacked.")] = ATTACKED,
    seed: Annotated[int | None, typer.Option(help="Generates other notes.")] = None,
    families: Annotated[str, typer.Option(help="Those that the training notes are from; all by default.")] = "",
) -> None:
    """Write unseen_renderings.jsonl and unseen_conditions.jsonl."""
    from learning_data import GENERATED_FROM, write_held_out

    from openrlhf_medical.data.seed_files import read_seeds

    generated_from = GENERATED_FROM if seed is None else seed
    wanted = [name.strip() for name in families.split(",") if name.strip()]
    files = write_held_out(output_dir, read_seeds(train), vignettes, attacked, generated_from, wanted)
    for path, seeds in files.items():
        vanilla = sum(s.category.is_vanilla for s in seeds)
        typer.echo(f"{path}: {vanilla} notes and {len(seeds) - vanilla} attacks; none is in {train}")


@app.command()
def measure(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    data: Annotated[Path, typer.Option(help="Folder that `data` wrote.")],
    seed: Annotated[int, typer.Option(help="Of the replies; the same for all matches.")] = 0,
    match_timeout_s: Annotated[float, typer.Option(min=1, help="Deadline of one match.")] = 2 * 3600,
) -> None:
    """Play the matches that are not played yet."""
    from learning_matches import measure as play

    play(run, data, seed, match_timeout_s, say=lambda line: print(line, flush=True))


@app.command()
def report(
    run: Annotated[list[Path], typer.Option(help="Folder of a measured run, once or more.")],
    output: Annotated[Path, typer.Option(help="Markdown; plots go beside it.")] = Path(
        "benchmarks/results/learning.md"
    ),
    config: Annotated[Path, typer.Option(help="The configuration that the runs were started with.")] = CONFIG,
) -> None:
    """Write the report and its plots."""
    from learning_report import write_report

    for path in write_report(run, output, config):
        typer.echo(f"wrote {path}")


def main() -> None:
    try:
        app(standalone_mode=True)
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


if __name__ == "__main__":
    main()
