"""Games on real engines: against vLLM's offline ``generate``, and the pipelined schedule against lockstep.

    python benchmarks/games.py [--data MEDEC.csv] [--runs N] [--quick]

Both on one shared engine pool, as ``train`` and ``play`` make it, with ``configs/quickstart.yaml``; 32 games a run, and
every run begins with an empty prefix cache, as every step does after new weights.

  games on real engines         The manager, engine player, fleet, engine actor and a reference judge play freely. Then
                                vLLM's ``LLM`` in a process of its own writes as many tokens after each of the same
                                prompts, in one call that has them all from the start: it never waits for an attacker,
                                nor for a judge. The same model, cache, prefix caching and log-probabilities; in all
                                else it is vLLM as it comes.
  pipelined against lockstep    The manager's two schedules on the same seeds. A turn has the same number of tokens in
                                both, dealt from those of real replies (``lengths.json``: 5 to 767 tokens), and every
                                reply counts as well formed, so that every attack is assessed.

Without ``--data`` the notes are those of the embedded corpus. No note leaves the temporary folder.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import ray
from measure import RESULTS, Result, Row, alternate, compare, parser
from offline import Offline
from turn_work import deal_lengths, requests_of, turns_in, well_formed

from openrlhf_medical import assembly, casting, cluster, devices, layout
from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.data.prepare import SYNTHETIC, prepare_data
from openrlhf_medical.data.seed_files import read_seeds
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.game.manager import SCHEDULES, MedicalDialogueGameManager
from openrlhf_medical.game.players import Player, Prompt, Reply, Role, TurnKey
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.rollout.engine_player import EnginePlayer, Sampling
from openrlhf_medical.rollout.engines import EngineSpec
from openrlhf_medical.rollout.fleet import Fleet

ROOT = Path(__file__).resolve().parents[1]
GAMES, QUICK_GAMES = 32, 4
QUICK_SHORTER = 24


class FixedLength(EnginePlayer):
    """Writes as many tokens as are drawn for a turn, whatever they say; what comes back is well formed, so that two
    schedules have the same prompts and the same work."""

    def __init__(self, *args: Any, lengths: Mapping[tuple[Role, int], int]) -> None:
        super().__init__(*args)
        self._lengths = lengths

    def sampling_for(self, key: TurnKey, room: int) -> dict[str, Any]:
        length = min(self._lengths[key.role, key.game_idx], room)
        return super().sampling_for(key, room) | {"max_tokens": length, "ignore_eos": True, "stop": None}

    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply:
        return replace(await super().reply(prompt, key), text=well_formed(prompt, key.role), truncated=False)


@dataclass(slots=True)
class Table:
    """Where games are played: one engine pool, which both roles share."""

    config: RunConfig
    engines: Fleet
    tokenizer: Any
    judge: JudgeClient
    seeds: list[Seed]

    def free_player(self) -> Player:
        return casting.player_of(self.config, self.engines, self.tokenizer)

    def fixed_player(self, draw: int, shorter: int) -> Player:
        lengths = deal_lengths(turns_in(self.seeds, self.config.rules()), draw, shorter)
        sampling, limit_s = Sampling(temperature=self.config.rollout.temperature), self.config.run.generate_timeout_s
        return FixedLength(self.engines, self.tokenizer, sampling, self.config.data.max_len, limit_s, lengths=lengths)

    def play(self, player: Player, edit: str, schedule: str, step: int = 0) -> tuple[float, list[Game]]:
        """Seconds and games, with ``player`` in both roles.

        Raises:
            RuntimeError: a game was not played as it should be.
        """
        ray.get([engine.reset_prefix_cache.remote() for engine in self.engines], timeout=60)
        manager = MedicalDialogueGameManager(
            player, player, self.judge, replace(self.config.rules(), edit=edit),
            max_concurrent=layout.turns_at_once(self.config), schedule=schedule,
        )  # fmt: skip
        began = perf_counter()
        games = asyncio.run(manager.play(self.seeds, step=step))
        took = perf_counter() - began
        if failed := [game for game in games if game.status.value == "error"]:
            raise RuntimeError(f"{len(failed)} of {len(games)} games failed: {failed[0].reason}")
        return took, games


def offline_like(spec: EngineSpec, temperature: float) -> Offline:
    """The same model, types, cache and log-probabilities; everything else is as vLLM's ``LLM`` has it."""
    ours = ("worker_extension_cls", "max_num_seqs")
    engine = {name: value for name, value in spec.arguments().items() if name not in ours}
    sampling = {"temperature": temperature, "logprobs": 0}
    return Offline(engine | devices.engine_arguments(), sampling, devices.worker_environment())


def against_offline(table: Table, offline: Offline, runs: int) -> tuple[Row, dict[str, Any]]:
    """Seconds for each token; each run of ``generate`` writes what the games just before it wrote."""
    edit = table.config.game.edit
    samples: dict[str, list[float]] = defaultdict(list)
    for number in range(-1, runs):
        took, games = table.play(table.free_player(), edit, "pipelined", step=number + 1)
        requests = list(itertools.chain.from_iterable(requests_of(games).values()))
        bound = offline.seconds(requests)
        if number < 0:
            continue
        tokens = sum(request.new_tokens for request in requests)
        found = {"tokens": tokens, "games_s": took, "offline_s": bound}
        for name, value in found.items():
            samples[name].append(value)
        print(f"  games {number + 1}/{runs}: {found}", file=sys.stderr, flush=True)
    tokens_of = samples["tokens"]
    ours, other = ([s / n for s, n in zip(samples[k], tokens_of, strict=True)] for k in ("games_s", "offline_s"))
    note = "the last assessors start when their attackers end; the bound has all prompts at once"
    return compare("games on real engines", ours, other, 0.90, "higher", note), samples


def against_lockstep(table: Table, runs: int, shorter: int) -> tuple[Row, dict[str, Any]]:
    draws = {schedule: itertools.count() for schedule in SCHEDULES}

    def side(schedule: str) -> float:
        player = table.fixed_player(next(draws[schedule]), shorter)
        took, games = table.play(player, "note", schedule)
        if short := [game for game in games if game.assessor is None]:
            raise RuntimeError(f"{len(short)} games were not assessed: {short[0].reason}")
        return took

    seconds = alternate({schedule: partial(side, schedule) for schedule in SCHEDULES}, runs)
    name = "pipelined against lockstep on real engines, one shared pool"
    row = compare(name, seconds["pipelined"], seconds["lockstep"], 1.15, "higher")
    return row, {f"{schedule}_s": took for schedule, took in seconds.items()}


def read_table(config: RunConfig, games: int, judge: JudgeClient) -> Table:
    """With engines that start at once, but need not be up yet."""
    mix = {Category(name): share for name, share in config.game.mix.model_dump().items()}
    seeds = SeedStream(read_seeds(config.data.train), mix, config.train.seed, "the data").step(0, games)
    tokenizer = assembly.load_tokenizer(config)
    assembly.check_prompts_fit(config, seeds, tokenizer)
    engines = casting.start_engine_pool(config, layout.model_of(config), "games")
    return Table(config, engines, tokenizer, judge, seeds)


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--data", type=Path, help="a MEDEC CSV, or a folder of them (default: the embedded corpus)")
    options = words.parse_args()
    runs, games, shorter = (1, QUICK_GAMES, QUICK_SHORTER) if options.quick else (options.runs, GAMES, 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="games-")))
        prepare_data(str(options.data or SYNTHETIC), folder)
        model = ROOT / "models" / ("tiny" if options.quick else "smollm2-135m")
        config = load_config(ROOT / "configs" / "quickstart.yaml", [
            "--actor.model_name_or_path", str(model), "--roles.policy", "shared", "--data.max_len", "1536",
            "--data.train", str(folder / "train.jsonl"), "--data.val", str(folder / "val.jsonl"),
        ])  # fmt: skip
        judge = stack.enter_context(assembly.judge_of(config, folder))
        stack.enter_context(cluster.session(layout.bundles_needed(config)))
        with offline_like(casting.engine_spec(config), config.rollout.temperature) as offline:
            table = read_table(config, games, judge)
            casting.wait_for_engines(config, {"games": table.engines})
            bound, samples = against_offline(table, offline, runs)
        schedules, more = against_lockstep(table, runs, shorter)
    notes = "MEDEC" if options.data else "the embedded corpus"
    caching = config.vllm.enable_prefix_caching
    settings = {"notes": notes, "games": games, "prefix_caching": caching}
    Result("games", [bound, schedules], settings | samples | more).report(None if options.quick else RESULTS)


if __name__ == "__main__":
    main()
