"""The learner's phases against what the machine can do: update, log-probabilities, weight sync.

One policy of both roles, its reference and one engine, as ``train`` starts them with configs/quickstart.yaml, and
beside them bare transformers in a process of its own with the same cores; one of the two computes at a time. The bare
side takes the micro-batch size that is fastest for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from measure import Result, alternate, compare, parser
from offline import NICENESS

from openrlhf_medical import assembly, casting, cluster, devices, layout
from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.rollout.trajectories import Trajectory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SIZES = (1, 2)
"""Samples of a micro-batch that the bare side may choose from."""


def samples_of(count: int, version: int, seed: int = 0) -> list[Trajectory]:
    """As many turns as games on MEDEC's notes give: a third of them attackers', prompts of 250 to 450 tokens, replies
    of 30 to 250, short ones more often. Which tokens they are makes no difference to the time."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        prompt, reply = draw.randint(250, 450), round(30 * (250 / 30) ** draw.random())
        ids = [draw.randint(100, 40_000) for _ in range(prompt + reply)]
        role = Role.ATTACKER if i % 3 == 0 else Role.ASSESSOR
        made.append(
            Trajectory(role, i, str(i), "adversarial_benign", tuple(ids[:prompt]), tuple(ids[prompt:]),
                       (-5.0,) * reply, draw.choice([-2.0, 2.0]), {}, version)
        )  # fmt: skip
    return made


class BareProcess:
    """``learner_bare.py``, and one question at a time."""

    def __init__(self, config: RunConfig, samples: list[Trajectory]) -> None:
        threads = len(os.sched_getaffinity(0))
        # The same allocator settings as our workers: they make the bare side faster too.
        environment = {**os.environ, **devices.worker_environment(), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(HERE / "learner_bare.py"), layout.model_of(config), str(threads)]
        self._process = subprocess.Popen(
            ["nice", "-n", str(NICENESS), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._ask(samples=[(len(s.prompt_ids), [*s.prompt_ids, *s.token_ids]) for s in samples])
        self.sizes: dict[str, int] = {}

    def _ask(self, **question: Any) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["seconds"])

    def choose(self, what: str, sizes: tuple[int, ...]) -> None:
        """The fastest size, each tried once after one that does not count."""
        self._ask(do=what, size=sizes[0])
        self.sizes[what] = min(sizes, key=lambda size: self._ask(do=what, size=size))
        print(f"  bare {what}: {self.sizes[what]} samples a micro-batch", file=sys.stderr, flush=True)

    def seconds(self, what: str, times: int = 1) -> float:
        return sum(self._ask(do=what, size=self.sizes[what]) for _ in range(times))

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def started(config: RunConfig) -> Iterator[Learner]:
    """The learner as ``train`` starts it; its engine's worker can be compared with."""
    paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    with cluster.session(layout.bundles_needed(config)):
        tokenizer = assembly.load_tokenizer(config)
        spec = replace(casting.engine_spec(config), worker_extension="learner_engine.MeasuredReceiver")
        starts = dict.fromkeys(Role, layout.model_of(config))
        [learner] = assembly.start_learners(config, starts, tokenizer.pad_token_id, spec)
        try:
            yield learner
        finally:
            learner.stop()


def one_call_per_tensor(learner: Learner) -> Callable[[], None]:
    """Upstream's own loop (``ActorPPOTrainer.broadcast_to_vllm``) in our policy's worker, over our group's gloo."""
    engines = list(learner.engines.named().values())

    def broadcast(worker: Any) -> None:
        trainer = worker.trainer
        trainer.vllm_engines, trainer.use_cuda_ipc = engines, False
        trainer._model_update_group = devices._GlooBroadcast(worker._sender._group._group)
        trainer.broadcast_to_vllm()

    [worker] = learner.workers.policy._actor_handlers
    return lambda: ray.get(worker.__ray_call__.remote(broadcast))


def copy_and_reload(learner: Learner, folder: str) -> Callable[[], float]:
    [engine] = learner.engines.named().values()
    return lambda: float(ray.get(engine.load_folder.remote(folder, learner.version)).checksum)


def untimed(work: Callable[[], Any]) -> Callable[[], None]:
    """``work``, whose answer is not a time: ``alternate`` takes the whole of it."""

    def run() -> None:
        work()

    return run


def after_a_sync(learner: Learner, work: Callable[[], Any]) -> Callable[[], float]:
    """``work``, in the state of memory that a sync leaves and not in that of whatever else was measured before.
    A float that it answers is its time."""

    def run() -> float:
        learner.sync()
        began = time.perf_counter()
        own = work()
        return own if isinstance(own, float) else time.perf_counter() - began

    return run


def measure(config: RunConfig, count: int, runs: int, sizes: tuple[int, ...]) -> Result:
    with started(config) as learner:
        syncs = alternate(
            {
                "sync": after_a_sync(learner, learner.sync),
                "one call per tensor": after_a_sync(learner, one_call_per_tensor(learner)),
                "copy and reload": after_a_sync(learner, copy_and_reload(learner, layout.model_of(config))),
            },
            runs,
        )
        learner.sync()
        samples = samples_of(count, learner.version)
        prepared = learner.prepare(samples)
        assert prepared is not None
        bare = BareProcess(config, samples)
        try:
            bare.choose("forward", sizes)
            forward = alternate(
                {"prepare": untimed(lambda: learner.prepare(samples)), "bare": lambda: bare.seconds("forward", 2)}, runs
            )
            bare.choose("update", sizes)
            update = alternate(
                {"update": untimed(lambda: learner.update(prepared, seed=1)), "bare": lambda: bare.seconds("update")},
                runs,
            )
        finally:
            bare.stop()
    tokens = sum(sample.length for sample in samples)
    rows = [
        compare("update phase, tokens/s against bare forward + backward + AdamW", update["update"], update["bare"],
                0.85, "higher"),
        compare("log-probability phase, tokens/s against bare forwards", forward["prepare"], forward["bare"], 0.90,
                "higher"),
        compare("weight sync against one call per tensor", syncs["sync"], syncs["one call per tensor"], 4, "higher"),
        compare("weight sync against copy + reload", syncs["sync"], syncs["copy and reload"], 1.3, "lower"),
    ]  # fmt: skip
    return Result("learner", rows, {
        "samples": count, "tokens": tokens, "reply_tokens": sum(len(s.token_ids) for s in samples),
        "bare_micro_batch": bare.sizes, "update_s": update, "log_probabilities_s": forward, "sync_s": syncs,
    })  # fmt: skip


def configure(quick: bool) -> RunConfig:
    name, model = ("tiny", "tiny") if quick else ("quickstart", "smollm2-135m")
    return load_config(
        ROOT / "configs" / f"{name}.yaml",
        ["--actor.model_name_or_path", str(ROOT / "models" / model), "--roles.policy", "shared"],
    )


def main(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    quick = arguments.quick
    result = measure(configure(quick), 4 if quick else 10, 1 if quick else arguments.runs, (1,) if quick else SIZES)
    print(f"took {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if quick:
        result.report(None)
    else:
        result.report()


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
