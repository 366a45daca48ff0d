"""Self-play: the loop on one page.

seeds ─► games (engines, judge) ─► trajectories by role ─► each policy: log-probabilities,
  ▲                                                         role-wise advantages, update
  └───────────────── verified weight sync ◄─────────────────────────────┘

With ``train.async_enable`` the next step's games are played while the update runs; they are over before
new weights land, so no reply has tokens of two versions.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from openrlhf_medical.config import RunConfig
from openrlhf_medical.console import Console
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import RunError
from openrlhf_medical.evaluation.diversity import training_figures as diversity
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.metrics import game_metrics
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game, turns_of
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.health import Finding, HealthMonitor
from openrlhf_medical.judge.audit.gold_watch import GoldWatch
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.recovery import Recovery, TooManyFailed
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.rollout.frozen_matches import FrozenMatch
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.rollout.trajectories import Trajectory, trajectories_of
from openrlhf_medical.run_directory import MetricsLog, RunDirectory
from openrlhf_medical.stoppable import Stoppable
from openrlhf_medical.yardstick import HELD_OUT, Yardstick

PARITY_LIMIT = 1.0
"""Mean |log-probability difference| per token between engine and policy above which they are not the
same policy. bf16 noise is about 0.02; a stale output head was measured at several nats (facts)."""

BEFORE = -1
"""Step number of the held-out games before training (see ``games_step``), and of their figures; later figures carry
the number of steps that were done."""

MAX_ROLLBACKS = 3
"""A run that collapses again and again needs another configuration, not another try."""

Played = tuple[list[Game], dict[str, float]]
T = TypeVar("T")


class SelfPlayTrainer:
    """Plays, updates, syncs. Everything it works with is handed in."""

    def __init__(
        self,
        config: RunConfig,
        learners: list[Learner],
        league: League,
        manager: MedicalDialogueGameManager,
        judge: JudgeClient,
        seeds: SeedStream,
        held_out: SeedStream | None,
        monitor: HealthMonitor,
        directory: RunDirectory,
        console: Console,
        gold: GoldWatch | None = None,
        yardstick: Yardstick | None = None,
        matches: Sequence[FrozenMatch] = (),
    ):
        self.config, self.learners, self.league, self.manager, self.judge = config, learners, league, manager, judge
        self.seeds, self.held_out, self.monitor = seeds, held_out, monitor
        self.directory, self.console, self.gold = directory, console, gold
        self.yardstick, self.matches = yardstick or Yardstick(0), matches
        self._measured: tuple[int, dict[str, float] | None] = (BEFORE, None)
        self.metrics_log = MetricsLog(config, directory)
        self._games = Stoppable()
        self.recovery = Recovery(
            judge,
            lambda games: self._games.run(manager.judge_again(games)),
            max_failed_fraction=config.judge.max_failed_fraction,
            timeout_s=config.judge.recovery_timeout_s,
            tell=console.warn,
            sleep=self._games.pause,
        )
        self._ahead = ThreadPoolExecutor(1)
        self._next: Future[Played] | None = None
        self._rollbacks, self._good_health = 0, monitor.state()

    def fit(self) -> None:
        """Train; where the judge is gone for good, or players fail, save what was learned and say so.

        Raises:
            RunError: the run cannot go on.
        """
        try:
            self.train()
        except TooManyFailed as error:
            raise RunError(f"{error}; weights are in {self.save('interrupted')}") from None

    def train(self) -> None:
        """All steps, held-out games before, between and after, checkpoints, and the closing table."""
        self.keep(0)
        before = self.measure(0)
        self.console.training_begins()
        for step in range(self.config.run.steps):
            if self.gold is not None:
                self.gold.begin(step)
            games, metrics = self.step(step)
            if self.gold is not None:
                metrics |= self.gold.finished()
            findings = self.monitor.check(step, games, metrics)
            self.metrics_log.write(step, metrics)
            self.console.step_done(metrics)
            self.heed(step, findings)
            if self.yardstick.due(step + 1) and step + 1 < self.config.run.steps:
                self.measure(step + 1)
            self.keep(step + 1)
            if self.yardstick.exhausted:
                self.console.warn(self.yardstick.why())
                break
        self.save("final")
        after = self.measure(step + 1)
        self.console.summary(before, after, self.directory.folder)

    def step(self, step: int) -> Played:
        """One step: games, then one update and one sync of every policy."""
        started = time.monotonic()
        games, metrics = self._next.result() if self._next else self.play_step(step)
        self.directory.add_games(games)
        if self.config.train.async_enable and step + 1 < self.config.run.steps:
            self._next = self._ahead.submit(self.play_step, step + 1)
        trajectories = trajectories_of(games)
        self.console.phase("learning")
        for learned in self._side_by_side(lambda learner: self.learn(learner, trajectories, step)):
            for name, value in learned.items():  # the slowest, the largest difference
                metrics[name] = _largest(value, metrics.get(name, value))
        if self._next is not None:
            self._next.exception()  # drained: it is raised where the games are needed
        began = time.monotonic()
        self._side_by_side(Learner.sync)
        metrics |= {"time/sync_s": time.monotonic() - began, "time/step_s": time.monotonic() - started}
        return games, metrics

    def play_step(self, step: int) -> Played:
        """A step's games, with the weights that the engines hold now."""
        self.league.prepare(step)
        for learner in self.learners:
            learner.check_engines()
        for opponent in self.league.opponents.values():
            opponent.check_engines()
        games, metrics = self.play(self.seeds.step(step, self.config.rollout.batch_size), step, "playing")
        return games, metrics | self.league.record(games) | diversity(games)

    def play(
        self, seeds: list[Seed], step: int, doing: str, manager: MedicalDialogueGameManager | None = None
    ) -> Played:
        """Games on these seeds and what they say; with ``manager`` between other players than those of training."""
        self.console.playing(doing, len(seeds) * self.manager.rules.attacks_per_seed
                             * self.manager.rules.assessments_per_note)  # fmt: skip
        started = time.monotonic()
        games = self._games.run((manager or self.manager).play(seeds, step=step, on_game=self.console.game_done))
        seconds = time.monotonic() - started
        games, paused_s = self.settle(games)
        metrics = game_metrics(games)
        tokens = sum(len(turn.reply.token_ids) for role in Role for _, turn in turns_of(games, role))
        metrics |= {"time/games_s": seconds, "throughput/games_per_s": len(games) / seconds,
                    "throughput/tokens_per_s": tokens / seconds}  # fmt: skip
        if "latency_s" in (judge := self.judge.snapshot()):
            metrics["judge/latency_s"] = judge["latency_s"]
        if paused_s:
            metrics["judge/paused_s"] = paused_s
        return games, metrics

    def settle(self, games: list[Game]) -> tuple[list[Game], float]:
        """The games with as many labels as ``judge.max_failed_fraction`` asks for, and the seconds that waiting
        for the judge took. May raise TooManyFailed."""
        began = time.monotonic()
        try:
            settled = self.recovery.settle(games)
        except BaseException:  # Ctrl-C during the wait is one: what was played is kept
            self.directory.add_games(games)
            raise
        return settled, 0.0 if settled is games else time.monotonic() - began

    def learn(self, learner: Learner, trajectories: list[Trajectory], step: int) -> dict[str, float]:
        """Log-probabilities, advantages and update of one policy on its own roles' samples."""
        own = [t for t in trajectories if t.role in learner.roles]
        marks = [time.monotonic()]
        prepared = learner.prepare(own) if own else None
        if prepared is None:
            self.console.warn(f"step {step}: no game trains policy {learner.name}; its weights stay as they are")
            alone = Counter(t.role for t in own)  # all were, where there were any
            return {f"policy/{role}/samples": 0.0 for role in learner.roles} | {
                f"policy/{role}/dropped_thinned": float(count) for role, count in alone.items()
            }
        if not prepared.metrics["sync/logprob_mean_diff"] <= PARITY_LIMIT:  # NaN is no agreement either
            raise RunError(f"the engines of policy {learner.name} do not play its weights: log-probabilities differ by "
                           f"{prepared.metrics['sync/logprob_mean_diff']:.2f} per token on average")  # fmt: skip
        marks.append(time.monotonic())
        updated = learner.update(prepared, seed=self.config.train.seed + step, step=step)
        marks.append(time.monotonic())
        phases = ("log_probs", "update")
        seconds = {f"time/{phase}_s": b - a for phase, (a, b) in zip(phases, itertools.pairwise(marks), strict=True)}
        return prepared.metrics | updated | seconds

    def measure(self, steps_done: int) -> dict[str, float] | None:
        """Held-out games after so many steps; weights that were measured already are not measured again."""
        if self._measured[0] != steps_done:
            steps = self.config.run.steps
            when = {0: "before training", steps: "after training"}.get(steps_done, f"after {steps_done} steps")
            self._measured = steps_done, self.evaluate(when, steps_done)
        return self._measured[1]

    def evaluate(self, when: str, steps_done: int) -> dict[str, float] | None:
        """Held-out games with the current weights; None where the configuration asks for none."""
        if self.held_out is None:
            return None
        self.league.prepare(steps_done)
        step, doing = games_step(steps_done, self.config.run.steps), f"held-out games {when}"
        seeds = self.held_out.step(0, self.config.run.eval_games)
        games, metrics = self.play(seeds, step, doing)
        self.directory.add_games(games)
        figures = {f"{HELD_OUT}{name}": value for name, value in metrics.items()}
        for match in self.matches:
            match.prepare()
            games, found = self.play(match.seeds(seeds), step, f"{doing}, frozen {match.frozen}", match.manager)
            self.directory.add_frozen_games(games)
            figures |= match.figures(found)
        is_best = self.yardstick.note(steps_done, figures)
        if is_best:
            self.directory.replace(self.directory.checkpoints / "best", self._save_best)
        self.metrics_log.write(steps_done or BEFORE, figures)
        self.console.measured(steps_done, figures, self.yardstick.metric, is_best=is_best)
        return metrics

    # ── What is kept, and what is gone back to ──

    def keep(self, steps_done: int) -> None:
        """Checkpoints, members of the pool, and states to go back to, as far as each is due now."""
        every = self.config.ckpt.save_steps
        if steps_done and every > 0 and steps_done % every == 0:
            self.save(f"step_{steps_done}")
        if self.league.wants(steps_done):
            self.league.add(steps_done, self.save(f"pool/step_{steps_done}"))
        healthy = not self.monitor.suspicious and steps_done % self.config.run.good_every == 0
        if self.config.run.on_collapse == "rollback" and healthy:
            self.directory.replace(self.directory.good_state, self._save_states)
            self._good_health = self.monitor.state()

    def save(self, name: str) -> str:
        """``checkpoints/<name>/<policy>``: folders that transformers and vLLM open. Returns the folder."""
        self.console.phase("saving")
        folder = self.directory.checkpoints / name
        folder.mkdir(parents=True)
        for learner in self.learners:
            learner.save(folder / learner.name)
        return str(folder)

    def heed(self, step: int, findings: Sequence[Finding]) -> None:
        """Say what the health checks found, and do what ``run.on_collapse`` asks for."""
        for finding in findings:
            self.console.warn(f"step {step}: {finding.kind} ({finding.role or 'run'}): {finding.evidence}")
        action = self.config.run.on_collapse
        if not findings or action == "warn":
            return
        if action == "stop" or self._rollbacks == MAX_ROLLBACKS:
            folder = self.save("collapsed")
            raise RunError(f"stopped at step {step} (run.on_collapse {action}, {self._rollbacks} rollbacks): "
                           f"{findings[0].evidence}; weights are in {folder}")  # fmt: skip
        self._rollbacks += 1
        self._next = None  # games of the weights that are given up
        self._side_by_side(lambda learner: learner.load_state(self.directory.good_state / learner.name))
        self._side_by_side(Learner.sync)
        self.monitor.load(self._good_health)
        self.console.warn(f"step {step}: back to the last good state ({self._rollbacks} of {MAX_ROLLBACKS} times)")

    def _save_best(self, folder: Path) -> None:
        """``checkpoints/best``: the policies, and in best.json which evaluation chose them."""
        folder.mkdir()
        for learner in self.learners:
            learner.save(folder / learner.name)
        best = self.yardstick.best
        assert best is not None
        row = {"steps_done": best.steps_done, "metric": self.yardstick.metric, "value": best.value}
        (folder / "best.json").write_text(json.dumps(row) + "\n", encoding="utf-8")

    def _save_states(self, folder: Path) -> None:
        self._side_by_side(lambda learner: learner.save_state(folder / learner.name))

    def _side_by_side(self, work: Callable[[Learner], T]) -> list[T]:
        """``work`` on every policy: those with workers of their own at the same time, adapters on the same
        base one after another, in the same order on all ranks."""
        bases: dict[int, list[Learner]] = {}
        for learner in self.learners:
            bases.setdefault(id(learner.workers.policy), []).append(learner)
        with ThreadPoolExecutor(len(bases)) as pool:
            results = pool.map(lambda own: [work(learner) for learner in own], bases.values())
            return [result for own in results for result in own]

    def close(self) -> None:
        """Ends what is under way: nobody will learn from games that are played ahead."""
        self._games.stop()
        self._ahead.shutdown(cancel_futures=True)
        self.metrics_log.close()
        self.directory.close()


def games_step(steps_done: int, steps: int) -> int:
    """Step number of held-out games: none that training plays. Before training -1, after all steps their count, and
    in between -1 - steps_done."""
    return steps if steps_done == steps else BEFORE - steps_done


def _largest(a: float, b: float) -> float:
    """The larger one, or NaN where either is: a comparison alone would lose it."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
