"""``openrlhf-medical arena``: engines and a judge for an arena, and what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from openrlhf_medical import assembly, cluster, layout
from openrlhf_medical.config import RunConfig
from openrlhf_medical.console import Console
from openrlhf_medical.data.seed_files import read_seeds
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation.arena import Field, GamesFile, keep_plan, play_all, seeds_print
from openrlhf_medical.evaluation.arena_players import Entrant, fingerprint
from openrlhf_medical.evaluation.arena_result import result_of, show
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.recovery import Recovery
from openrlhf_medical.seats import Seat, tokenizer_of

TABLE_WIDTH = 160


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """What the command line asks for. ``publish``: where else arena.json is written, for a run's report."""

    attackers: list[Entrant]
    assessors: list[Entrant]
    num_samples: int
    seed: int
    output: Path
    publish: Path | None = None


class View(Console):
    """A bar of games, where somebody watches; else a line at every tenth."""

    def __enter__(self) -> View:
        super().__enter__()
        self._bar.unit = "game"
        return self

    def progress(self, doing: str, done: int, total: int, seconds: float, figure: str) -> None:
        if self._bar.disable:
            super().progress(doing, done, total, seconds, figure)
        else:
            self._bar.set_description_str(figure)
            self._bar.update()


def run_arena(config: RunConfig, plan: ArenaPlan) -> dict[str, Any]:
    """Play what is left to play, write ``arena.json``, show the tables.

    Raises:
        UserError: the output holds an arena of something else; seeds, prompts or places that do not fit.
        RunError: the judge or the players are gone; finished pairs are kept.
    """
    rules = replace(config.rules(), attacks_per_seed=1, assessments_per_note=1)  # groups are for training
    seeds, alone = seeds_of(config, rules, plan.num_samples, plan.seed)
    field = Field(_names(plan.attackers), _names(plan.assessors), tuple(seeds), tuple(alone))
    keep_plan(plan.output / "plan.json", plan_of(config, plan, field))
    games = GamesFile(plan.output / "games.jsonl", lambda pair: len(field.seeds_of(pair)))
    left = [pair for pair in field.pairs() if pair not in games.finished]
    if left:
        for one in {tokenizer_of(one): one for one in (*plan.attackers, *plan.assessors)}.values():
            assembly.check_prompts_fit(config, [*seeds, *alone], tokenizer_of(one))
        _play(config, plan, rules, field, games, left)
    result = result_of(games.rows, field.attackers, field.assessors)
    _write(result | {"seeds": len(seeds)}, plan.output / "arena.json")
    if plan.publish is not None:
        shutil.copyfile(plan.output / "arena.json", plan.publish)
    terminal = RichConsole()
    show(result, terminal if terminal.is_terminal else RichConsole(width=TABLE_WIDTH))
    print(f"The arena is in {plan.output}")
    return result


def seeds_of(config: RunConfig, rules: GameRules, count: int, seed: int) -> tuple[list[Seed], list[Seed]]:
    """(seeds that an attacker writes on, seeds whose notes are passed on as they are): held-out ones, by the shares
    of ``game.mix``. UserError where no category of the mix has an attacker who writes."""
    mix = {Category(name): share for name, share in config.game.mix.model_dump().items()}
    writing = {c: share for c, share in mix.items() if share and rules.attacker_generates(c)}
    passing = {c: share for c, share in mix.items() if share and c not in writing}
    if not writing:
        raise UserError("game.mix has no category in which the attacker writes: there is nothing to win; "
                        "give adversarial_harmful or adversarial_benign a share")  # fmt: skip

    def drawn(shares: dict[Category, float], most: int) -> list[Seed]:
        whole = {c: share / sum(shares.values()) for c, share in shares.items()}
        return SeedStream(held_out, whole, seed, str(config.data.val)).step(0, most)

    held_out = read_seeds(config.data.val)
    there = sum(one.category in passing for one in held_out)
    return drawn(writing, count), drawn(passing, min(count, there)) if there else []


def plan_of(config: RunConfig, plan: ArenaPlan, field: Field) -> dict[str, Any]:
    """All that a game's outcome depends on. Judges are named by address: two with one name may judge differently."""
    rollout = config.rollout
    return {
        "players": {f"{one.role}/{one.name}": fingerprint(one) for one in (*plan.attackers, *plan.assessors)},
        "seeds": seeds_print(field.seeds),
        "alone": seeds_print(field.alone),
        "game": config.game.model_dump(mode="json", exclude={"mix", "attacks_per_seed", "assessments_per_note"}),
        "sampling": {"temperature": rollout.temperature, "top_p": rollout.top_p,
                     "max_new_tokens": rollout.max_new_tokens, "max_len": config.data.max_len},
        "deterministic": config.run.deterministic,
        "judge": sorted(config.judge.urls) or ["reference"],
    }  # fmt: skip


def _play(
    config: RunConfig, plan: ArenaPlan, rules: GameRules, field: Field, games: GamesFile, left: Sequence[Any]
) -> None:
    vllm = config.vllm
    places = len(Role) * vllm.num_engines * vllm.tensor_parallel_size
    view = View(sum(map(games.size_of, left)), plan.output / "arena.log")
    with view, assembly.judge_of(config, plan.output) as judge, cluster.session(places):
        if len(left) < len(field.pairs()):
            view.warn(f"{len(games.finished)} pairs are in {games.path} already; {len(left)} are left to play")
        view.phase("starting engines (about half a minute)")
        seats = {role: Seat(config, role) for role in Role}
        entrants = {(one.role, one.name): one for one in (*plan.attackers, *plan.assessors)}
        for role, name in zip(Role, _first(left), strict=True):  # side by side: starting takes long
            if name is not None:
                seats[role].take(entrants[role, name])
        for seat in seats.values():
            seat.wait()

        def manager_of(attacker: str | None, assessor: str) -> MedicalDialogueGameManager:
            for role, name in zip(Role, (attacker, assessor), strict=True):
                if name is not None:
                    seats[role].take(entrants[role, name])
                    seats[role].wait()
            second = seats[Role.ASSESSOR].player()
            first = seats[Role.ATTACKER].player() if attacker is not None else second  # has no turn
            return MedicalDialogueGameManager(
                first, second, judge, rules, max_concurrent=layout.TURNS_OF_ENGINE * vllm.num_engines * len(Role),
                schedule=config.rollout.schedule,
            )  # fmt: skip

        view.training_begins()
        play_all(field, games, manager_of, _settle_with(config, judge, view), view)


def _first(left: Sequence[tuple[str | None, str]]) -> tuple[str | None, str]:
    """The first player of each role among the pairs that are left."""
    return next((attacker for attacker, _ in left if attacker is not None), None), left[0][1]


def _settle_with(config: RunConfig, judge: JudgeClient, view: Console) -> Any:
    def settle(manager: MedicalDialogueGameManager, games: list[Game]) -> list[Game]:
        recovery = Recovery(
            judge,
            lambda unlabelled: asyncio.run(manager.judge_again(unlabelled)),
            max_failed_fraction=config.judge.max_failed_fraction,
            timeout_s=config.judge.recovery_timeout_s,
            tell=view.warn,
        )
        return recovery.settle(games)

    return settle


def _names(entrants: Sequence[Entrant]) -> tuple[str, ...]:
    return tuple(one.name for one in entrants)


def _write(result: dict[str, Any], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    partial.rename(path)
