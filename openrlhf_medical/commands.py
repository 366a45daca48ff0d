"""``openrlhf-medical train`` and ``play``: start everything, run, stop everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from openrlhf_medical import assembly, casting, cluster, layout
from openrlhf_medical.config import RunConfig, dump_config
from openrlhf_medical.console import Console, say
from openrlhf_medical.data.seed_files import known_from, read_seeds
from openrlhf_medical.data.sft import note_examples, sft_set
from openrlhf_medical.data.stream import SeedStream
from openrlhf_medical.errors import RunError, StuckError, UserError, WorkerDied
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.metrics import game_metrics
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.health import HealthLimits, HealthMonitor
from openrlhf_medical.judge.audit.disguise import disguise_warning
from openrlhf_medical.judge.audit.gold_watch import GoldWatch
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.learner.supervised import SupervisedExamples
from openrlhf_medical.report.after_run import report_of
from openrlhf_medical.resuming import starting_point
from openrlhf_medical.rollout.fleet import Fleets
from openrlhf_medical.rollout.opponents import League
from openrlhf_medical.rollout.pool import OpponentPool
from openrlhf_medical.run_directory import RunDirectory
from openrlhf_medical.state_store import State
from openrlhf_medical.stop_signals import StopSignals
from openrlhf_medical.trainer import SelfPlayTrainer
from openrlhf_medical.warm_start import warm_start
from openrlhf_medical.yardstick import Yardstick


def train(config: RunConfig, resume: str | None = None) -> None:
    """``openrlhf-medical train``: start everything, train, stop everything.

    ``resume``: ``auto``, or the folder of a state to go on from.

    Raises:
        Interrupted: a signal asked the run to end, and its state is saved.
    """
    # Workers have working directories of their own.
    directory = RunDirectory(config.run.folder.resolve(), resume=resume is not None)
    start: State | None = None
    if resume is not None:
        start, finished = starting_point(config, directory, resume, say)
        if finished:
            say(f"{directory.folder} is finished already: {config.run.steps} steps")
            return
    with StopSignals(lambda: directory.status.ended("interrupted", "ended at once by a second Ctrl-C")) as stop:
        _prepare_and_train(config, directory, start, stop)


def _prepare_and_train(config: RunConfig, directory: RunDirectory, start: State | None, stop: StopSignals) -> None:
    seeds, held_out = _stream(config, config.data.train), None
    if config.run.eval_games:
        held_out = _stream(config, config.data.val)
    tokenizer = assembly.load_tokenizer(config)
    checked = seeds.all_seeds() + (held_out.all_seeds() if held_out else [])
    assembly.check_prompts_fit(config, checked, tokenizer)
    console = Console(config.run.steps, directory.log_file)
    taught = read_seeds(config.data.sft) if config.data.sft else seeds.all_seeds()
    examples = _examples(config, taught, tokenizer, console)
    if held_out is not None:
        _warn_of_known(config, held_out.all_seeds(), seeds.all_seeds(), taught if examples else [], console)
    directory.create(dump_config(config))
    try:
        with directory.status_of_run(start.steps_done if start else 0, config.run.steps):
            if start is None:
                directory.start_anew()
            _train(config, seeds, taught, held_out, tokenizer, examples, directory, console, stop, start)
    except UserError:
        directory.discard_if_unused()  # so that the same command works once the mistake is mended
        raise
    except RunError:
        report_of(directory.folder, console.warn)
        raise
    finally:
        directory.release()
    report_of(directory.folder, console.warn)


def _train(
    config: RunConfig,
    seeds: SeedStream,
    taught: list[Seed],
    held_out: SeedStream | None,
    tokenizer: Any,
    examples: SupervisedExamples | None,
    directory: RunDirectory,
    console: Console,
    stop: StopSignals,
    start: State | None,
) -> None:
    with console, contextlib.ExitStack() as stack:
        judges: list[JudgeClient] = []

        def find_judge() -> None:
            if not judges:
                judges.append(stack.enter_context(assembly.judge_of(config, directory.folder)))
                _warn_of_disguise(config, judges[0], console)

        if config.judge.urls or config.train.sft_warmup_steps:  # one that is missing is told before the work begins
            find_judge()
        stack.enter_context(cluster.session(layout.bundles_needed(config)))
        stop.listen()  # again: Ray has its own idea of SIGTERM
        starts = dict.fromkeys(Role, layout.model_of(config))
        if config.train.sft_warmup_steps and examples is not None:
            notes = SupervisedExamples(
                dict.fromkeys(Role, note_examples(taught)), tokenizer, config.data.max_len, config.train.seed
            )
            starts = warm_start(config, tokenizer.pad_token_id, notes, examples, directory, console)
        console.phase("starting workers (about a minute)")
        learners = assembly.start_learners(
            config, starts, tokenizer.pad_token_id, casting.engine_spec(config),
            examples if config.train.sft_coef else None, meanwhile=find_judge,
        )  # fmt: skip
        judge = judges[0]
        gold = _gold_watch(config, judge, seeds)
        opponents = casting.start_opponents(config, starts, learners, tokenizer)
        cast = casting.cast_of(config, learners, opponents, tokenizer)
        manager = MedicalDialogueGameManager(
            cast[Role.ATTACKER], cast[Role.ASSESSOR], judge, config.rules(),
            max_concurrent=layout.turns_at_once(config), schedule=config.rollout.schedule,
        )  # fmt: skip
        league = League(opponents, layout.policy_names(config), _pool(config))
        monitor = HealthMonitor(_health_limits(config), config.trained_roles)
        trainer = SelfPlayTrainer(
            config, learners, league, manager, judge, seeds, held_out, monitor, directory, console, gold, stop, start,
            Yardstick(config.run.eval_every, config.run.best_metric, config.run.early_stop_patience),
            casting.start_matches(config, starts, learners, tokenizer, cast, judge),
        )  # fmt: skip
        try:
            trainer.fit()
        except (StuckError, WorkerDied) as error:
            raise RunError(f"{error}. The same command with --resume auto goes on from the last checkpoint") from None
        finally:
            trainer.close()


def _health_limits(config: RunConfig) -> HealthLimits:
    return HealthLimits(**config.run.health.model_dump(), gold_accuracy_share=config.judge.probe_alarm)


def _gold_watch(config: RunConfig, judge: JudgeClient, seeds: SeedStream) -> GoldWatch | None:
    settings = config.judge
    if not settings.probe_every:
        return None
    return GoldWatch(
        judge, seeds.all_seeds(), every=settings.probe_every, count=settings.probe_count, seed=config.train.seed
    )


def _warn_of_disguise(config: RunConfig, judge: JudgeClient, console: Console) -> None:
    if warning := disguise_warning(config.game.benign_goal, config.game.mix.adversarial_benign, judge.health()):
        console.warn(warning)


def _warn_of_known(
    config: RunConfig, held_out: list[Seed], played: list[Seed], taught: list[Seed], console: Console
) -> None:
    """Files of one prepare-data call share nothing; those of several may."""
    for key, seeds in (("data.train", played), ("data.sft", taught if config.data.sft else [])):
        if count := known_from(held_out, seeds):
            console.warn(
                f"{count} of the {len(held_out)} seeds of data.val are known from {key}, by their vignette or their "
                "text: held-out figures will be too good; take the files of one prepare-data call"
            )


def _pool(config: RunConfig) -> OpponentPool | None:
    pool = config.roles.pool
    return OpponentPool(pool.size, pool.every, pool.sampling, config.train.seed) if config.roles.met == "pool" else None


def _stream(config: RunConfig, path: Path) -> SeedStream:
    mix = {Category(name): share for name, share in config.game.mix.model_dump().items()}
    return SeedStream(read_seeds(path), mix, config.train.seed, str(path))


def _examples(config: RunConfig, taught: list[Seed], tokenizer: Any, console: Console) -> SupervisedExamples | None:
    """Supervised examples of these seeds, where the configuration wants any."""
    if not config.train.sft_warmup_steps and not config.train.sft_coef:
        return None
    found = sft_set(taught, config.rules(), config.train.sft_thoughts)
    for reason, count in sorted(found.skipped.items()):
        console.warn(f"no supervised example from {count} seeds: {reason}")
    for role, own in found.examples.items():
        if not own:
            raise UserError(
                f"{config.data.sft or config.data.train} gives no supervised example for the {role}: set "
                "train.sft_warmup_steps and train.sft_coef to 0, or take seeds with annotated errors"
            )
    examples = SupervisedExamples(found.examples, tokenizer, config.data.max_len, config.train.seed)
    for role in Role:
        if share := examples.share_longer_than(role, config.rollout.max_new_tokens):
            console.warn(
                f"{share:.0%} of the {role}'s supervised replies are longer than rollout.max_new_tokens "
                f"({config.rollout.max_new_tokens}): in games they would be cut, and count as bad form"
            )
    return examples


def play(config: RunConfig, *, models: dict[Role, str], num_samples: int, num_episodes: int, output: Path) -> None:
    """``openrlhf-medical play``: games and rewards, no updates; one line a game in ``output``, which must not
    exist yet. ``models``: the folder that plays each role; the same one for both is loaded once.

    Raises:
        UserError: ``output`` exists, or a prompt does not fit.
    """
    if output.exists():
        raise UserError(f"{output} exists already: give another --output, or move that file away")
    seeds = _stream(config, config.data.train)
    tokenizer = assembly.load_tokenizer(config)
    assembly.check_prompts_fit(config, seeds.all_seeds(), tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    console = Console(num_episodes, output.with_suffix(".log"))
    each = config.vllm.num_engines * config.vllm.tensor_parallel_size
    with console, assembly.judge_of(config, output.parent) as judge, cluster.session(each * len(set(models.values()))):
        _warn_of_disguise(config, judge, console)
        console.phase("starting engines (about half a minute)")
        engines = {model: casting.start_engine_pool(config, model, model) for model in sorted(set(models.values()))}
        casting.wait_for_engines(config, engines)
        fleets = Fleets(engines.values(), console.warn)
        attacker, assessor = (
            casting.player_of(config, engines[models[role]], tokenizer, name=Path(models[role]).name) for role in Role
        )
        manager = MedicalDialogueGameManager(
            attacker, assessor, judge, config.rules(),
            max_concurrent=layout.TURNS_OF_ENGINE * config.vllm.num_engines * len(engines),
            schedule=config.rollout.schedule,
        )  # fmt: skip
        everything: list[Game] = []
        console.training_begins()
        with output.open("x", encoding="utf-8") as file:
            for episode in range(num_episodes):
                drawn = seeds.step(0, num_samples)
                console.playing("playing", len(drawn) * manager.rules.attacks_per_seed
                                * manager.rules.assessments_per_note)  # fmt: skip
                games = asyncio.run(manager.play(drawn, step=episode, on_game=console.game_done))
                fleets.check()
                file.writelines(json.dumps(game.to_json(), ensure_ascii=False) + "\n" for game in games)
                everything += games
                console.step_done(game_metrics(games) | fleets.finish_step())
        # Figures are of one play call for each step number.
        console.play_summary(game_metrics(everything), output)
