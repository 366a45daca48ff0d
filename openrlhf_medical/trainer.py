"""Self-play: the loop on one page.

seeds ─► games (engines, judge) ─► trajectories by role ─► each policy: log-probabilities,
  ▲                                                         role-wise advantages, update
  └───────────────── verified weight sync ◄─────────────────────────────┘

With ``train.async_enable`` the next step's games are played while the update runs; they are over before
new weights land, so no reply has tokens of two versions.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from openrlhf_medical.checkpoints import Checkpoints, Stateful
from openrlhf_medical.config import RunConfig
from openrlhf_medical.console import Console
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import Interrupted, RunError
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
from openrlhf_medical.learner.together import side_by_side
from openrlhf_medical.rollout.fleet import Fleets
from openrlhf_medical.rollout.frozen_matches import FrozenMatch
from openrlhf_medical.rollout.opponents import League, Opponent
from openrlhf_medical.rollout.trajectories import Trajectory, trajectories_of
from openrlhf_medical.run_directory import MetricsLog, RunDirectory
from openrlhf_medical.state_store import State
from openrlhf_medical.stop_signals import StopSignals
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
        stop: StopSignals | None = None,
        start: State | None = None,
        yardstick: Yardstick | None = None,
        matches: Sequence[FrozenMatch] = (),
    ):
        """``start``: the state that the run goes on from, else it begins."""
        self.config, self.learners, self.league, self.manager, self.judge = config, learners, league, manager, judge
        self.seeds, self.held_out, self.monitor = seeds, held_out, monitor
        self.directory, self.console, self.gold = directory, console, gold
        players: list[Learner | Opponent | FrozenMatch] = [*learners, *league.opponents.values(), *matches]
        self.fleets = Fleets((each.engines for each in players), console.warn)
        self.stop, self._start = stop or StopSignals(), start
        self.yardstick, self.matches = yardstick or Yardstick(0), matches
        self._measured: dict[str, float] | None = None
        self.metrics_log = MetricsLog(config, directory, start.steps_done if start else 0)
        self._games = Stoppable()
        self.recovery = Recovery(
            judge,
            lambda games: self._games.run(manager.judge_again(games)),
            max_failed_fraction=config.judge.max_failed_fraction,
            timeout_s=config.judge.recovery_timeout_s,
            tell=console.warn,
            sleep=self._games.pause,
        )
        self._ahead = ThreadPoolExecutor(1, "ahead")
        self._next: Future[Played] | None = None
        self.steps_done, self._rollbacks = 0, 0
        self._before: dict[str, float] | None = None
        self._logs: dict[str, int] = {}
        """Bytes of each log that belong to the steps done; empty until the first step may begin."""
        # What has a memory is named here, or in Checkpoints: a resumed run has nothing else.
        parts: dict[str, Stateful] = {"trainer": self, "yardstick": self.yardstick, **({"gold": gold} if gold else {})}
        self.checkpoints = Checkpoints(config, learners, league, monitor, directory, console, parts)

    def fit(self) -> None:
        """Train; where a signal asks to end, the judge is gone for good, or players fail, save what was learned.

        Raises:
            RunError: the run cannot go on. Interrupted: it was asked to end.
        """
        self.stop.defer()
        try:
            self.train()
        except TooManyFailed as error:
            self.keep_state()
            raise RunError(f"{error}; weights are in {self.checkpoints.save('interrupted')}") from None
        except Interrupted as signal:
            raise Interrupted(signal.number, self.keep_state()) from None

    def train(self) -> None:
        """All steps, held-out games before, between and after, checkpoints, and the closing table."""
        if self._start is not None:
            self.resume(self._start)
        else:
            self.keep(0)
            self._before = self.measure(0)
        self._logs = self.directory.log_sizes()
        self.console.training_begins(self.steps_done)
        for step in range(self.steps_done, self.config.run.steps):
            if self.enough(step):
                break
            if self.gold is not None:
                self.gold.begin(step)
            games, metrics = self.step(step)
            if self.gold is not None:
                metrics |= self.gold.finished()
            findings = self.monitor.check(step, games, metrics)
            self.metrics_log.write(step, metrics)
            self.console.step_done(metrics)
            self.heed(step, findings)
            self.keep(step + 1)
        self.checkpoints.save("final")
        after = self.measure(self.steps_done)
        self.console.summary(self._before, after, self.directory.folder)

    def step(self, step: int) -> Played:
        """One step: games, then one update and one sync of every policy."""
        started = time.monotonic()
        with self.stop.stopping(self._games.stop):
            games, metrics = self._next.result() if self._next else self.play_step(step)
        self._next = None
        self.directory.add_games(games)
        self._logs = self.directory.log_sizes()  # before the next step's games, which are written if they fail
        if self.config.train.async_enable and step + 1 < self.config.run.steps:
            self._next = self._ahead.submit(self.play_step, step + 1)
        trajectories = trajectories_of(games)
        self.console.phase("learning")
        for learned in side_by_side(self.learners, lambda learner: self.learn(learner, trajectories, step)):
            for name, value in learned.items():  # the slowest, the largest difference
                metrics[name] = _largest(value, metrics.get(name, value))
        if self._next is not None:
            self._next.exception()  # drained: it is raised where the games are needed
        began = time.monotonic()
        side_by_side(self.learners, Learner.sync)
        metrics |= {"time/sync_s": time.monotonic() - began, "time/step_s": time.monotonic() - started}
        metrics |= self.fleets.finish_step()
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
        self.fleets.check()
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

    def enough(self, steps_done: int) -> bool:
        """Held-out games where they are due. True: training ends early."""
        failed = self._next is not None and self._next.exception()  # the next step tells
        if self.yardstick.due(steps_done) and not failed:
            self.measure(steps_done)
        if self.yardstick.exhausted:
            self.console.warn(self.yardstick.why())
        return self.yardstick.exhausted

    def measure(self, steps_done: int) -> dict[str, float] | None:
        """Held-out games after so many steps; weights that were measured already are not measured again."""
        if self.yardstick.measured != steps_done and self.held_out is not None:
            steps = self.config.run.steps
            when = {0: "before training", steps: "after training"}.get(steps_done, f"after {steps_done} steps")
            self._measured = self.evaluate(when, steps_done, self.held_out)
            if self._logs:
                self._logs = self.directory.log_sizes()
        return self._measured

    def evaluate(self, when: str, steps_done: int, held_out: SeedStream) -> dict[str, float]:
        """Held-out games with the current weights, and what follows from their figures."""
        step, doing = games_step(steps_done, self.config.run.steps), f"held-out games {when}"
        seeds = held_out.step(0, self.config.run.eval_games)
        with self.stop.stopping(self._games.stop):
            self.league.prepare(steps_done)
            games, metrics = self.play(seeds, step, doing)
        self.directory.add_games(games)
        figures = {f"{HELD_OUT}{name}": value for name, value in metrics.items()}
        for match in self.matches:
            with self.stop.stopping(self._games.stop):
                match.prepare()
                games, found = self.play(match.seeds(seeds), step, f"{doing}, frozen {match.frozen}", match.manager)
            self.directory.add_frozen_games(games)
            figures |= match.figures(found)
        is_best = self.yardstick.note(steps_done, figures)
        if is_best and (best := self.yardstick.best):
            row = {"steps_done": best.steps_done, "metric": self.yardstick.metric, "value": best.value}
            self.checkpoints.save("best", row)
        self.metrics_log.write(steps_done or BEFORE, figures)
        self.console.measured(steps_done, figures, self.yardstick.metric, is_best=is_best)
        return metrics

    # ── What is kept, and what is gone back to ──

    def keep(self, steps_done: int) -> None:
        """Whatever of the run is to be kept after so many steps."""
        self.steps_done = steps_done
        if self._logs:  # games.jsonl may have grown by what was played ahead, and failed
            metrics = self.directory.metrics_file.name
            self._logs[metrics] = self.directory.log_sizes()[metrics]
        self.checkpoints.keep(steps_done, self._logs, self._played_ahead())

    def keep_state(self) -> str:
        """Write all that training goes on from, as it was after the last whole step. Returns what to tell of it."""
        if not self._logs:
            return "nothing was trained yet"
        folder = self.checkpoints.keep_state(self.steps_done, self._logs, self._played_ahead())
        return f"{self.steps_done} of {self.config.run.steps} steps are done; their state is in {folder}"

    def resume(self, state: State) -> None:
        """Go on where ``state`` was kept, with the games that had been played ahead."""
        played = self.checkpoints.resume(state)
        self.steps_done = state.steps_done
        if played is not None:
            self._next = Future()
            self._next.set_result(played)

    def _played_ahead(self) -> Played | None:
        """The next step's games, where they were played before this step's weights landed."""
        return self._next.result() if self._next is not None and not self._next.exception() else None

    def state(self) -> dict[str, Any]:
        return {"before": self._before, "measured": self._measured, "rollbacks": self._rollbacks}

    def load(self, state: Mapping[str, Any]) -> None:
        self._before, self._measured, self._rollbacks = state["before"], state["measured"], state["rollbacks"]

    def heed(self, step: int, findings: Sequence[Finding]) -> None:
        """Say what the health checks found, and do what ``run.on_collapse`` asks for."""
        for finding in findings:
            self.console.warn(f"step {step}: {finding.kind} ({finding.role or 'run'}): {finding.evidence}")
        action = self.config.run.on_collapse
        if not findings or action == "warn":
            return
        if action == "stop" or self._rollbacks == MAX_ROLLBACKS:
            folder = self.checkpoints.save("collapsed")
            raise RunError(f"stopped at step {step} (run.on_collapse {action}, {self._rollbacks} rollbacks): "
                           f"{findings[0].evidence}; weights are in {folder}")  # fmt: skip
        self._rollbacks += 1
        self._next = None  # games of the weights that are given up
        self.checkpoints.roll_back()
        self.console.warn(f"step {step}: back to the last good state ({self._rollbacks} of {MAX_ROLLBACKS} times)")

    def close(self) -> None:
        """Ends what is under way: nobody will learn from games that are played ahead."""
        self._games.stop()
        self.fleets.close()
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
