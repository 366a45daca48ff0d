"""The command line. Heavy modules are imported inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from openrlhf_medical import cli_arena, cli_diversity, cli_evaluate, cli_report, cli_submit, cli_sweep
from openrlhf_medical.cli_judge import serve_judge
from openrlhf_medical.errors import Interrupted, RunError, UserError
from openrlhf_medical.judge.audit.command_line import judge_audit

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig

EXIT_RUN_ERROR = 1
EXIT_USER_ERROR = 2
EXIT_SIGNALS = 128  # plus the signal's number, as shells have it
EXIT_INTERRUPTED = EXIT_SIGNALS + signal.SIGINT


class _Commands(TyperGroup):
    """Tells a user's mistake and Ctrl-C in one line each, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _tell(f"error: {error}")
            raise typer.Exit(EXIT_USER_ERROR) from None
        except RunError as error:
            _tell(f"error: {error}")
            raise typer.Exit(EXIT_RUN_ERROR) from None
        except Interrupted as error:
            words = shlex.join(_without_resume(sys.argv[1:]))
            _tell(f"interrupted by {error.number.name}: {error}; go on with: openrlhf-medical {words} --resume auto")
            raise typer.Exit(EXIT_SIGNALS + error.number) from None
        except KeyboardInterrupt:
            _tell("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Self-play training of a medical attacker and an assessor on clinical notes.\n\n\b\n"
    "A first session:\n"
    "  openrlhf-medical doctor\n"
    "  openrlhf-medical prepare-data --source synthetic --output-dir data\n"
    "  openrlhf-medical serve-judge --port 8000 &\n"
    "  openrlhf-medical play --model models/smollm2-135m --num-samples 4\n"
    "  openrlhf-medical train --config configs/quickstart.yaml",
)

_TAKES_DOTTED = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command("prepare-data")
def prepare_data(
    source: Annotated[str, typer.Option(help="synthetic, a MEDEC CSV, or a folder of them.")] = "synthetic",
    output_dir: Annotated[Path, typer.Option(help="Folder for train.jsonl and val.jsonl.")] = Path("data"),
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="Seeds of both files together; as many as balance by default.")
    ] = None,
    train_ratio: Annotated[float, typer.Option(help="Share of seeds, and of vignettes, for training.")] = 0.9,
    seed: Annotated[int, typer.Option(help="The same seed writes the same bytes.")] = 0,
    families: Annotated[
        str, typer.Option(help="Parts of the embedded corpus, e.g. cardiac,gastro; all by default.")
    ] = "",
    vignettes: Annotated[
        int | None,
        typer.Option(min=1, help="Vignettes of the embedded corpus for training; 20 a condition by default."),
    ] = None,
    wording: Annotated[
        str, typer.Option(help="Ways of saying things in the embedded corpus's training notes: all, first or second.")
    ] = "all",
    download: Annotated[bool, typer.Option("--download", help="Fetch MEDEC's public files and use them.")] = False,
) -> None:
    """Write balanced train.jsonl and val.jsonl.

    \b
    Examples:
      openrlhf-medical prepare-data --source synthetic --num-samples 200
      openrlhf-medical prepare-data --source path/to/MEDEC --output-dir data/medec
      openrlhf-medical prepare-data --download --output-dir data/medec
    """
    from openrlhf_medical.data.prepare import PUBLIC_URL
    from openrlhf_medical.data.prepare import prepare_data as prepare

    wanted = [name.strip() for name in families.split(",") if name.strip()]
    address = PUBLIC_URL if download else None
    summary = prepare(source, output_dir, num_samples, train_ratio, seed, address, wanted, vignettes, wording)
    typer.echo(summary.render())


app.command("serve-judge")(serve_judge)


@app.command("play", context_settings=_TAKES_DOTTED)
def play(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Plays both roles: a Hugging Face folder or name.")] = None,
    attacker: Annotated[str | None, typer.Option(help="Plays the attacker instead.")] = None,
    assessor: Annotated[str | None, typer.Option(help="Plays the assessor instead.")] = None,
    judge_url: Annotated[
        list[str] | None, typer.Option(help="Judge server, once or more; else one is started.")
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Seeds to play on, in each episode.")] = 16,
    num_episodes: Annotated[int, typer.Option(min=1, help="How many times the seeds are played.")] = 1,
    data: Annotated[Path | None, typer.Option(help="Seeds (JSON Lines).")] = None,
    output: Annotated[Path | None, typer.Option(help="Games go here, one a line; else the run's games.jsonl.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the seeds drawn and of the replies.")] = None,
    config: Annotated[Path | None, typer.Option(help="Start from this configuration instead of defaults.")] = None,
) -> None:
    """Play games and count rewards; no model is changed. Options of train are taken too.

    \b
    Examples:
      openrlhf-medical play --model models/smollm2-135m --judge-url http://127.0.0.1:8000 --num-samples 8
      openrlhf-medical play --config configs/quickstart.yaml --game.cot false --output games.jsonl
    """
    from openrlhf_medical.config import load_config
    from openrlhf_medical.game.players import Role

    model = model or (None if config else attacker or assessor)
    if config is None and model is None:
        raise UserError("play needs to know who plays: give --model FOLDER, or --config FILE")
    words: list[str] = [] if config else ["--run.name", "play"]
    for option, value in (("actor.model_name_or_path", model), ("data.train", data), ("train.seed", seed)):
        words += [f"--{option}={value}"] if value is not None else []
    words += ["--judge.urls", *judge_url] if judge_url else []
    settings = load_config(config, [*words, *context.args])
    both = settings.actor.model_name_or_path
    models = {Role.ATTACKER: attacker or both, Role.ASSESSOR: assessor or both}
    _stop_at(_problems(settings, models=models.values()))
    from openrlhf_medical import commands

    games = output or settings.run.folder / "games.jsonl"
    commands.play(settings, models=models, num_samples=num_samples, num_episodes=num_episodes, output=games)


@app.command("train", context_settings=_TAKES_DOTTED)
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Option(help="Configuration, YAML or JSON.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan, start nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with the run: auto (from its newest good state), or the folder of one of its states."),
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="With --dry-run: plan for other hardware, e.g. 1x48GB, 8x80GB or 4x8x80GB.")
    ] = None,
    judge_gpus: Annotated[
        int, typer.Option(min=0, help="With --on: GPUs of its last machine that a model judge holds.")
    ] = 0,
) -> None:
    """Train by self-play.

    Every key of the configuration is an option, by OpenRLHF's dotted name where it has one.

    SIGTERM, SIGUSR1 and Ctrl-C save the run's state and end it; a second Ctrl-C ends it at once.

    \b
    Examples:
      openrlhf-medical train --config configs/quickstart.yaml
      openrlhf-medical train --config configs/quickstart.yaml --run.name lr3 --actor.adam.lr 3e-5
      openrlhf-medical train --config configs/quickstart.yaml --game.cot false --dry-run
      openrlhf-medical train --config configs/quickstart.yaml --resume auto
      openrlhf-medical train --config configs/selfplay_8b_multinode.yaml --dry-run --on 4x8x80GB
    """
    from openrlhf_medical.config import dump_config, load_config
    from openrlhf_medical.plan import command_line as plans

    settings = load_config(config, context.args)
    if dry_run:
        typer.echo(dump_config(settings), nl=False)
    elif on is not None:
        raise UserError("--on plans for hardware that is not here: add --dry-run, or leave it out")
    if on is None:  # elsewhere are other GPUs, and models and data with them
        _stop_at(_problems(settings))
    _stop_at(plans.tell(plans.plan_of(settings, on, judge_gpus), whole=dry_run))
    if dry_run:
        looked_at = "keys and plan" if on is not None else "keys, hardware, model and data"
        _tell(f"ok: {looked_at} fit together; nothing was started")
        return
    from openrlhf_medical import cluster, layout

    with cluster.coming_up(layout.bundles_needed(settings)):
        from openrlhf_medical import commands

        commands.train(settings, resume)


app.command("submit", context_settings=_TAKES_DOTTED)(cli_submit.submit)
app.add_typer(cli_sweep.sweep_app, name="sweep")
app.command("evaluate", context_settings=_TAKES_DOTTED)(cli_evaluate.evaluate)
app.command("arena", context_settings=_TAKES_DOTTED)(cli_arena.arena)
app.command("diversity")(cli_diversity.diversity)
app.command("report")(cli_report.report)
app.command("judge-audit")(judge_audit)


@app.command("doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    judge_url: Annotated[list[str] | None, typer.Option(help="Judge server to ask, once or more.")] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Model for serve-judge --backend vllm: whether it can be had.")
    ] = None,
) -> None:
    """Find what would make a run fail here.

    Every line says what was found, and what to do where it is not ok.

    Exit code 1 where something must be mended first, 0 otherwise.

    \b
    Examples:
      openrlhf-medical doctor
      openrlhf-medical doctor --json
      openrlhf-medical doctor --judge-url http://127.0.0.1:8000
      openrlhf-medical doctor --judge-model google/medgemma-4b-it
    """
    import json

    from openrlhf_medical import doctor as checks

    findings = checks.diagnose(judge_url or [], judge_model)
    typer.echo(json.dumps(checks.as_dict(findings), indent=2) if as_json else checks.render(findings))
    raise typer.Exit(checks.exit_code(findings))


def _problems(config: RunConfig, models: Iterable[str] = ()) -> list[str]:
    """Mistakes that can be seen without torch or Ray, and would otherwise show minutes later in a worker.

    With ``models`` games are only played, between these.
    """
    from openrlhf_medical import devices
    from openrlhf_medical.config import check_hardware
    from openrlhf_medical.data.seed_files import read_seeds
    from openrlhf_medical.models import check_model_folder
    from openrlhf_medical.submit import refuse_lost_folder

    # Inside a cluster the driver's machine is not where the work is done.
    checks: list[Callable[[], Any]] = [lambda: check_hardware(config, devices.has_gpu() or "RAY_ADDRESS" in os.environ)]
    plays_only = bool(models)
    for model in sorted(set(models) or {config.actor.model_name_or_path}):
        checks.append(lambda model=model: check_model_folder(model))  # type: ignore[misc]
    if not plays_only and config.critic.model_name_or_path:
        checks.append(lambda: check_model_folder(str(config.critic.model_name_or_path)))
    if not plays_only and config.roles.checkpoint:
        adapter = config.ds.lora.rank > 0 and config.roles.policy != "separate"
        checks.append(lambda: check_model_folder(str(config.roles.checkpoint), adapter=adapter))
    checks.append(lambda: refuse_lost_folder(config.run.dir, Path.cwd()))
    checks.append(lambda: read_seeds(config.data.train))
    if config.data.sft and not plays_only:
        checks.append(lambda: read_seeds(config.data.sft))  # type: ignore[arg-type]
    if config.run.eval_games and not plays_only:
        checks.append(lambda: read_seeds(config.data.val))
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def _stop_at(problems: list[str]) -> None:
    if problems:
        raise UserError("; ".join(problems))


def _without_resume(words: list[str]) -> list[str]:
    """A command line without ``--resume X`` or ``--resume=X``."""
    kept = [word for word in words if not word.startswith("--resume=")]
    if "--resume" in kept:
        place = kept.index("--resume")
        del kept[place : place + 2]
    return kept


def _tell(message: str) -> None:
    typer.echo(" ".join(message.splitlines()), err=True)


def main() -> None:
    """Entry point of ``openrlhf-medical`` and ``python -m openrlhf_medical``."""
    try:
        app(prog_name="openrlhf-medical")
    except KeyboardInterrupt:  # before a command began
        _tell("interrupted")
        sys.exit(EXIT_INTERRUPTED)
