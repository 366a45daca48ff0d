"""``openrlhf-medical arena``: its options, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openrlhf_medical.errors import UserError

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig
    from openrlhf_medical.evaluation.arena_players import Entrant


def arena(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run: all its checkpoints and the model it started from enter.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="With --run: these checkpoints alone, e.g. base,step_10,pool/step_4,final.")
    ] = "",
    player: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, plays both roles; once or more.")] = None,
    attacker: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, plays the attacker; once or more.")] = None,
    assessor: Annotated[list[str] | None, typer.Option(help="NAME=FOLDER, plays the assessor; once or more.")] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Games of each pair, all pairs on the same seeds.")] = 64,
    seed: Annotated[int, typer.Option(help="Which held-out seeds are drawn.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Held-out seeds (JSON Lines); else data.val.")] = None,
    judge_url: Annotated[
        list[str] | None, typer.Option(help="Judge server, once or more; else as configured, or one is started.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Rules, sampling, engines; else the run's, or defaults.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for games.jsonl and arena.json; else the run's arena/, or arena/.")
    ] = None,
) -> None:
    """Let attackers play assessors: who beats whom, ratings, circles.

    Every attacker meets every assessor on the same held-out seeds, under the rules of training. The same command
    again goes on where it was ended; new players may be added. Two engine pools play, whatever the number of models;
    options of train are taken too (--run.deterministic true, --vllm.num_engines 4).

    \b
    Examples:
      openrlhf-medical arena --run runs/quickstart
      openrlhf-medical arena --run runs/a --only base,final --num-samples 200
      openrlhf-medical arena --player a=runs/a/checkpoints/final/shared --player b=models/b --data data/val.jsonl
    """
    from openrlhf_medical.evaluation.arena_players import check_names

    settings = _settings(run, config, data, judge_url, [*(player or []), *(attacker or []), *(assessor or [])],
                         context.args)  # fmt: skip
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    if wanted and run is None:
        raise UserError("--only names checkpoints of a run: give --run, or name the folders with --player")
    attackers, assessors = check_names(_entrants(settings, run, wanted, player, attacker, assessor))
    _check(settings, [*attackers, *assessors])
    from openrlhf_medical.arena_run import ArenaPlan, run_arena

    folder = output or (run / "arena" if run else Path("arena"))
    publish = run / "arena.json" if run else None
    run_arena(settings, ArenaPlan(attackers, assessors, num_samples, seed, folder.resolve(), publish))


def _settings(
    run: Path | None, config: Path | None, data: Path | None, urls: list[str] | None, given: list[str], words: list[str]
) -> RunConfig:
    """The run's configuration or the named one, else defaults around the first player."""
    from openrlhf_medical.config import load_config
    from openrlhf_medical.evaluation.arena_players import named

    if run is not None and config is None:
        config = run / "config.yaml"
        if not config.exists():
            raise UserError(f"{run} is no run: it has no config.yaml. Give the folder that train wrote")
    own: list[str] = []
    if config is None:
        if not given:
            raise UserError("an arena needs players: give --run FOLDER, or --player NAME=FOLDER twice")
        own = ["--run.name", "arena", f"--actor.model_name_or_path={named(given[0])[1]}"]
    own += [f"--data.val={data}"] if data else []
    own += ["--judge.urls", *urls] if urls else []
    return load_config(config, [*own, *words])


def _entrants(
    settings: RunConfig,
    run: Path | None,
    only: list[str],
    both: list[str] | None,
    attackers: list[str] | None,
    assessors: list[str] | None,
) -> list[Entrant]:
    from openrlhf_medical.evaluation.arena_players import entrant, named, of_run
    from openrlhf_medical.game.players import Role

    base = settings.actor.model_name_or_path
    found = of_run(run, base, only) if run else []
    sides = ((tuple(Role), both), ((Role.ATTACKER,), attackers), ((Role.ASSESSOR,), assessors))
    for roles, words in sides:
        for word in words or []:
            name, folder = named(word)
            found += [entrant(name, role, folder, base if base != folder else None) for role in roles]
    return found


def _check(settings: RunConfig, entrants: list[Entrant]) -> None:
    """Mistakes that can be seen without torch or Ray."""
    import os

    from openrlhf_medical import devices
    from openrlhf_medical.config import check_hardware
    from openrlhf_medical.models import check_model_folder

    problems = []
    try:
        check_hardware(settings, devices.has_gpu() or "RAY_ADDRESS" in os.environ)
    except UserError as error:
        problems.append(str(error))
    for folder in sorted({one.base or one.folder for one in entrants}):
        try:
            check_model_folder(folder)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
