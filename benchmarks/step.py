"""A whole step of self-play against the sum of its phases' limits, and with a slow judge against an instant one.

    python benchmarks/step.py             # SmolLM2-135M as configs/quickstart.yaml trains it
    python benchmarks/step.py --quick     # models/tiny

One start of everything that ``train`` starts; then, in turn, a step with an instant judge, one with a judge that takes
1 s, and the bare work of the first one's phases (``step_limits.py``). Steps are ``SelfPlayTrainer.step``: games, both
policies' log-probabilities and update, weight sync. Both judges are judge servers whose backend knows nothing and takes
0 or 1 s for whatever waits, one batch after another, as a model on a GPU would: a query waits 1 to 2 s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from judge_load import start as start_judge
from measure import Result, compare, parser

HERE = Path(__file__).resolve().parent
JUDGE_S = 1.0

# Ray's workers and vLLM's import what is measured here.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])

from step_limits import BareReceiver, Limits  # noqa: E402  (after PYTHONPATH)

from openrlhf_medical import assembly, casting, cluster, commands, layout  # noqa: E402
from openrlhf_medical.config import RunConfig, dump_config, load_config  # noqa: E402
from openrlhf_medical.console import Console  # noqa: E402
from openrlhf_medical.data.prepare import prepare_data  # noqa: E402
from openrlhf_medical.game.manager import MedicalDialogueGameManager  # noqa: E402
from openrlhf_medical.game.players import Role  # noqa: E402
from openrlhf_medical.health import HealthLimits, HealthMonitor  # noqa: E402
from openrlhf_medical.judge.client import JudgeClient  # noqa: E402
from openrlhf_medical.learner.policy import Learner  # noqa: E402
from openrlhf_medical.rollout.opponents import League  # noqa: E402
from openrlhf_medical.rollout.trajectories import trajectories_of  # noqa: E402
from openrlhf_medical.run_directory import RunDirectory  # noqa: E402
from openrlhf_medical.trainer import SelfPlayTrainer  # noqa: E402

SEEDS = 8
"""A step's; half of the quickstart's, so that five alternations fit in nine minutes on 2 cores."""
PHASES = ("games", "log_probs", "update", "sync")


def configuration(folder: Path, *, quick: bool) -> RunConfig:
    """The quickstart's, on the embedded corpus, without held-out games."""
    prepare_data("synthetic", folder / "data", None, 0.9, 0)
    words = ["--run.name", "step", "--run.dir", str(folder), "--run.eval_games", "0", "--run.steps", "100",
             "--rollout.batch_size", str(SEEDS),
             "--data.train", str(folder / "data" / "train.jsonl"), "--data.val", str(folder / "data" / "val.jsonl"),
             "--actor.model_name_or_path", str(HERE.parent / "models" / ("tiny" if quick else "smollm2-135m")),
             ]  # fmt: skip
    if quick:
        words += ["--rollout.max_new_tokens", "24"]
    return load_config(HERE.parent / "configs" / "quickstart.yaml", words)


def trainer_of(config: RunConfig, name: str, learners: list[Learner], judge: JudgeClient) -> SelfPlayTrainer:
    """As ``train`` makes it. Several may share the learners: they take turns."""
    tokenizer = assembly.load_tokenizer(config)
    seeds = commands._stream(config, config.data.train)
    cast = casting.cast_of(config, learners, {}, tokenizer)
    manager = MedicalDialogueGameManager(
        cast[Role.ATTACKER], cast[Role.ASSESSOR], judge, config.rules(),
        max_concurrent=layout.turns_at_once(config), schedule=config.rollout.schedule,
    )  # fmt: skip
    directory = RunDirectory(config.run.dir / name)
    directory.create(dump_config(config))
    league = League({}, layout.policy_names(config), None)
    monitor = HealthMonitor(HealthLimits(), config.trained_roles)
    console = Console(config.run.steps, directory.log_file)
    return SelfPlayTrainer(config, learners, league, manager, judge, seeds, None, monitor, directory, console)


@contextlib.contextmanager
def everything(config: RunConfig, folder: Path) -> Iterator[tuple[list[Learner], dict[str, SelfPlayTrainer]]]:
    """Judges, Ray, learners, and a trainer for each judge, which share them."""
    with contextlib.ExitStack() as stack:
        judges = {}
        for name, seconds in (("instant", 0.0), ("slow", JUDGE_S)):
            server = stack.enter_context(start_judge("sleep", seconds, 1024, folder / f"judge-{name}.log"))
            judges[name] = stack.enter_context(JudgeClient([server.url], max_wait_s=config.judge.max_wait_s))
            judges[name].wait_ready(60)
        stack.enter_context(cluster.session(layout.bundles_needed(config)))
        starts = dict.fromkeys(Role, layout.model_of(config))
        spec = dataclasses.replace(
            casting.engine_spec(config), worker_extension=f"{BareReceiver.__module__}.{BareReceiver.__name__}"
        )
        pad_token_id = assembly.load_tokenizer(config).pad_token_id
        learners = assembly.start_learners(config, starts, pad_token_id, spec)
        trainers = {name: trainer_of(config, name, learners, judge) for name, judge in judges.items()}
        try:
            yield learners, trainers
        finally:
            for trainer in trainers.values():
                trainer.close()


def measure(config: RunConfig, folder: Path, runs: int) -> list[dict[str, dict[str, float]]]:
    """Of each alternation: seconds of phases and whole of both steps, and of the limits."""
    found = []
    with everything(config, folder) as (learners, trainers):
        limits = Limits(learners, layout.model_of(config), config.actor.adam.lr)
        for number in range(-1, runs):  # the first to warm up, with an instant judge alone
            row: dict[str, dict[str, float]] = {}
            # The same seeds on both sides; whoever begins takes turns.
            for name in sorted(trainers, reverse=bool(number % 2)) if number >= 0 else ["instant"]:
                games, metrics = trainers[name].step(max(0, number))
                row[name] = {phase: metrics[f"time/{phase}_s"] for phase in (*PHASES, "step")}
                row[name]["tokens"] = metrics["throughput/tokens_per_s"] * metrics["time/games_s"]
                if name == "instant":
                    row["limit"] = limits.of(games, trajectories_of(games), metrics)
            if number >= 0:
                found.append(row)
                print({name: {key: round(value, 2) for key, value in own.items()} for name, own in row.items()})
    return found


def main() -> None:
    words = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="step-") as name:
        folder = Path(name)
        found = measure(configuration(folder, quick=words.quick), folder, 1 if words.quick else words.runs)
    instant, slow = ([row[name]["step"] for row in found] for name in ("instant", "slow"))
    limits = [sum(row["limit"].values()) for row in found]
    rows = [
        compare("whole step against the sum of its phases' limits", instant, limits, 0.80, "higher"),
        compare("whole step with a judge of 1 s a query against an instant judge", slow, instant, 1.10, "lower"),
    ]
    result = Result("step", rows, {"alternations": found})
    result.report(None) if words.quick else result.report()


if __name__ == "__main__":
    main()
