"""Self-play: the loop on one page, and the two commands that run it.

seeds ─► games (engines, judge) ─► trajectories by role ─► each policy: log-probabilities,
  ▲                                                         role-wise advantages, update
  └───────────────── verified weight sync ◄─────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from openrlhf_medical import assembly, cluster
from openrlhf_medical.config import RunConfig, dump_config
from openrlhf_medical.console import Console
from openrlhf_medical.data.seed_files import read_seeds
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import RunError, UserError
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.metrics import game_metrics
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game, GameStatus
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.rollout.trajectories import Trajectory, trajectories_of
from openrlhf_medical.run_directory import MetricsLog, RunDirectory

PARITY_LIMIT = 1.0
"""Mean |log-probability difference| per token between engine and policy above which they are not the
same policy. bf16 noise is about 0.02; a stale output head was measured at several nats (facts)."""

BEFORE = -1
"""Step number of the held-out games before training; those after it carry the number of steps."""


class SelfPlayTrainer:
    """Plays, updates, syncs. Everything it works with is handed in."""

    def __init__(
        self,
        config: RunConfig,
        learners: list[Learner],
        manager: MedicalDialogueGameManager,
        judge: JudgeClient,
        seeds: SeedStream,
        held_out: SeedStream | None,
        directory: RunDirectory,
        console: Console,
    ):
        self.config, self.learners, self.manager, self.judge = config, learners, manager, judge
        self.seeds, self.held_out = seeds, held_out
        self.directory, self.console = directory, console
        self.metrics_log = MetricsLog(config, directory)

    def fit(self) -> None:
        """All steps, held-out games before and after, checkpoints, and the closing table."""
        before = self.evaluate("before training", BEFORE)
        self.console.training_begins()
        for step in range(self.config.run.steps):
            metrics = self.step(step)
            self.metrics_log.write(step, metrics)
            self.console.step_done(metrics)
            if self.config.ckpt.save_steps > 0 and (step + 1) % self.config.ckpt.save_steps == 0:
                self.save(f"step_{step + 1}")
        self.save("final")
        after = self.evaluate("after training", self.config.run.steps)
        self.console.summary(before, after, self.directory.folder)

    def step(self, step: int) -> dict[str, float]:
        """One step: games, then one update and one sync of every policy. Returns the step's metrics."""
        started = time.monotonic()
        for learner in self.learners:
            learner.check_engines()
        games, metrics = self.play(self.seeds.step(step, self.config.rollout.batch_size), step, "playing")
        self.directory.add_games(games)
        self._refuse_failing(games)
        trajectories = trajectories_of(games)
        self.console.phase("learning")
        # Each policy has workers of its own: they learn side by side, and the slowest one's time counts.
        with ThreadPoolExecutor(len(self.learners)) as pool:
            for learned in pool.map(lambda learner: self.learn(learner, trajectories, step), self.learners):
                for name, value in learned.items():
                    metrics[name] = max(value, metrics.get(name, value))
        metrics["time/step_s"] = time.monotonic() - started
        return metrics

    def play(self, seeds: list[Seed], step: int, doing: str) -> tuple[list[Game], dict[str, float]]:
        """Games on these seeds and what they say."""
        self.console.playing(doing, len(seeds) * self.manager.rules.attacks_per_seed
                             * self.manager.rules.assessments_per_note)  # fmt: skip
        started = time.monotonic()
        games = asyncio.run(self.manager.play(seeds, step=step, on_game=self.console.game_done))
        seconds = time.monotonic() - started
        metrics = game_metrics(games)
        tokens = sum(len(t.reply.token_ids) for g in games for t in (g.attacker, g.assessor) if t is not None)
        metrics |= {"time/games_s": seconds, "throughput/games_per_s": len(games) / seconds,
                    "throughput/tokens_per_s": tokens / seconds}  # fmt: skip
        if "latency_s" in (judge := self.judge.snapshot()):
            metrics["judge/latency_s"] = judge["latency_s"]
        return games, metrics

    def learn(self, learner: Learner, trajectories: list[Trajectory], step: int) -> dict[str, float]:
        """Log-probabilities, advantages, update and sync of one policy on its own roles' samples."""
        own = [t for t in trajectories if t.role in learner.roles]
        if not own:
            self.console.warn(f"step {step}: no game trains policy {learner.name}; its weights stay as they are")
            return {f"policy/{role}/samples": 0.0 for role in learner.roles}
        marks = [time.monotonic()]
        prepared = learner.prepare(own)
        if not prepared.metrics["sync/logprob_mean_diff"] <= PARITY_LIMIT:  # NaN is no agreement either
            raise RunError(f"the engines of policy {learner.name} do not play its weights: log-probabilities differ by "
                           f"{prepared.metrics['sync/logprob_mean_diff']:.2f} per token on average")  # fmt: skip
        marks.append(time.monotonic())
        updated = learner.update(prepared, seed=self.config.train.seed + step)
        marks.append(time.monotonic())
        learner.sync()
        marks.append(time.monotonic())
        phases = ("log_probs", "update", "sync")
        seconds = {f"time/{phase}_s": b - a for phase, (a, b) in zip(phases, itertools.pairwise(marks), strict=True)}
        return prepared.metrics | updated | seconds

    def evaluate(self, when: str, step: int) -> dict[str, float] | None:
        """Held-out games with the current weights; None where the configuration asks for none."""
        if self.held_out is None:
            return None
        games, metrics = self.play(self.held_out.step(0, self.config.run.eval_games), step, f"held-out games {when}")
        self.directory.add_games(games)
        self.metrics_log.write(step, {f"eval/{name}": value for name, value in metrics.items()})
        return metrics

    def save(self, name: str) -> None:
        """``checkpoints/<name>/<policy>``: folders that transformers and vLLM open."""
        self.console.phase("saving")
        folder = self.directory.checkpoints / name
        folder.mkdir()
        for learner in self.learners:
            learner.save(folder / learner.name)

    def _refuse_failing(self, games: list[Game]) -> None:
        failed = [game for game in games if game.status is GameStatus.ERROR]
        limit = self.config.judge.max_failed_fraction
        if len(failed) > limit * len(games):
            self.save("interrupted")
            raise RunError(f"{len(failed)} of {len(games)} games failed, more than judge.max_failed_fraction "
                           f"({limit:g}) allows; weights are in {self.directory.checkpoints / 'interrupted'}. "
                           f"The first failure: {failed[0].reason}")  # fmt: skip


# ── The commands ──


def train(config: RunConfig) -> None:
    """``openrlhf-medical train``: start everything, train, stop everything."""
    directory = RunDirectory(config.run.folder.resolve())  # workers have working directories of their own
    mix = {Category(name): share for name, share in config.game.mix.model_dump().items()}
    seeds = SeedStream(read_seeds(config.data.train), mix, config.train.seed, str(config.data.train))
    held_out = None
    if config.run.eval_games:
        held_out = SeedStream(read_seeds(config.data.val), mix, config.train.seed, str(config.data.val))
    tokenizer = assembly.load_tokenizer(config)
    checked = seeds.all_seeds() + (held_out.all_seeds() if held_out else [])
    assembly.check_prompts_fit(config, checked, tokenizer)
    directory.create(dump_config(config))
    try:
        _train(config, seeds, held_out, tokenizer, directory)
    except UserError:
        directory.discard_if_unused()  # so that the same command works once the mistake is mended
        raise


def _train(
    config: RunConfig, seeds: SeedStream, held_out: SeedStream | None, tokenizer: Any, directory: RunDirectory
) -> None:
    console = Console(config.run.steps, directory.log_file)
    with (
        console,
        assembly.judge_of(config, directory.folder) as judge,
        cluster.session(assembly.bundles_needed(config)),
    ):
        console.phase("starting workers (about a minute)")
        learners = assembly.start_learners(config, tokenizer.pad_token_id, assembly.engine_spec(config))
        pools = {role: learner.engines for learner in learners for role in learner.roles}
        players = assembly.players_of(config, pools, tokenizer)
        manager = MedicalDialogueGameManager(players[Role.ATTACKER], players[Role.ASSESSOR], judge, config.rules())
        trainer = SelfPlayTrainer(config, learners, manager, judge, seeds, held_out, directory, console)
        try:
            trainer.fit()
        finally:
            trainer.metrics_log.close()
            directory.close()


def play(config: RunConfig, *, num_samples: int, num_episodes: int, output: Path) -> None:
    """``openrlhf-medical play``: one model plays both roles; games and rewards, no updates.

    Writes one line a game to ``output``, which must not exist yet.
    """
    if output.exists():
        raise UserError(f"{output} exists already: give another --output, or move that file away")
    mix = {Category(name): share for name, share in config.game.mix.model_dump().items()}
    seeds = SeedStream(read_seeds(config.data.train), mix, config.train.seed, str(config.data.train))
    tokenizer = assembly.load_tokenizer(config)
    assembly.check_prompts_fit(config, seeds.all_seeds(), tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(num_episodes, output.with_suffix(".log"))
    with console, assembly.judge_of(config, output.parent) as judge, cluster.session(
        config.vllm.num_engines * config.vllm.tensor_parallel_size
    ):  # fmt: skip
        console.phase("starting engines (about half a minute)")
        engines = assembly.start_engine_pool(config)
        players = assembly.players_of(config, dict.fromkeys(Role, engines), tokenizer)
        manager = MedicalDialogueGameManager(players[Role.ATTACKER], players[Role.ASSESSOR], judge, config.rules())
        everything: list[Game] = []
        console.training_begins()
        with output.open("x", encoding="utf-8") as file:
            for episode in range(num_episodes):
                drawn = seeds.step(0, num_samples)
                console.playing("playing", len(drawn) * manager.rules.attacks_per_seed
                                * manager.rules.assessments_per_note)  # fmt: skip
                games = asyncio.run(manager.play(drawn, step=episode, on_game=console.game_done))
                file.writelines(json.dumps(game.to_json(), ensure_ascii=False) + "\n" for game in games)
                everything += games
                console.step_done(game_metrics(games))
        console.play_summary(game_metrics(everything), output)
