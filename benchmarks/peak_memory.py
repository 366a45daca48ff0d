"""Peak memory of a run with two policies against what nobody could do without.

    python benchmarks/peak_memory.py             # two steps of configs/quickstart.yaml with SmolLM2-135M
    python benchmarks/peak_memory.py --quick     # models/tiny

Peak: the summed PSS of all processes of ``train``. What it is compared with is a sum of

    weights        of each policy, reference and engine, in the format that each holds them in
    gradients      of each policy, bf16
    optimizer      of each policy: fp32 weights and Adam's two moments
    KV cache       of each engine
    bare imports   PSS of as many processes of each kind that only imported what that kind imports, all at once so that
                   shared pages count alike: driver, Ray, workers, engines, their vLLM processes, judge

Activations, logits, buffers and what an allocator keeps are what is left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Result, Row, parser
from memory import peak_of, usage

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
GIB = 2**30
DEADLINE_S = 300.0

TRAINER = ("openrlhf_medical.learner.workers", "transformers.models.llama.modeling_llama",
           "deepspeed.runtime.zero.stage_1_and_2", "vllm.distributed.utils")  # fmt: skip
ENGINE = ("openrlhf_medical.rollout.engines", "vllm.v1.engine.async_llm")
ENGINE_CORE = ("vllm.v1.engine.core", "vllm.v1.worker.cpu_worker", "vllm.model_executor.models.llama",
               "vllm.v1.attention.backends.cpu_attn", "openrlhf_medical.rollout.weights")  # fmt: skip


def configured(words: list[str]) -> Any:
    from openrlhf_medical.config import load_config

    return load_config(ROOT / "configs/quickstart.yaml", words)


def least_bytes(config: Any) -> dict[str, int]:
    """What the models of a run take by arithmetic, by what it is for."""
    from openrlhf_medical import devices, layout
    from openrlhf_medical.plan.shapes import shape_of

    shape = shape_of(layout.model_of(config))
    policies, engines = len(layout.bases_of(config)), len(layout.bases_of(config)) * config.vllm.num_engines
    references = policies * layout.needs_reference(config)
    engine = devices.engine_arguments()
    held = 4 if engine.get("dtype") == "float32" else 2
    return {
        "weights": shape.parameters * (2 * (policies + references) + held * engines),
        "gradients": 2 * shape.parameters * policies,
        "optimizer": 12 * shape.parameters * policies,
        "KV cache": engine["kv_cache_memory_bytes"] * engines,
    }


def bare_imports() -> None:
    """In a process of its own: starts what imports and does nothing else; prints ``usage`` as JSON."""
    import ray

    from openrlhf_medical import cluster, layout
    from openrlhf_medical.judge.process import kept_running

    importlib.import_module("openrlhf_medical.commands")
    config = configured(sys.argv[2:])
    policies = len(layout.bases_of(config))

    @ray.remote(num_cpus=0)
    class Importer:
        def take(self, modules: tuple[str, ...], child: tuple[str, ...] = ()) -> None:
            code = f"import importlib, sys; [importlib.import_module(m) for m in {child!r}]; print(flush=True)"
            if child:  # as vLLM's engine process is one of the actor's
                words = [sys.executable, "-c", f"{code}; sys.stdin.read()"]
                self.child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for module in modules:
                importlib.import_module(module)
            if child:
                self.child.stdout.readline()  # type: ignore[union-attr]

    with tempfile.TemporaryDirectory() as folder, kept_running(Path(folder) / "judge.log"), cluster.session(1):
        trainers = policies * (1 + layout.needs_reference(config))
        kinds = [(TRAINER, ())] * trainers + [(ENGINE, ENGINE_CORE)] * policies * config.vllm.num_engines
        actors = [Importer.remote() for _ in kinds]
        ray.get([actor.take.remote(*kind) for actor, kind in zip(actors, kinds, strict=True)], timeout=DEADLINE_S)
        print(json.dumps(usage(os.getpid())))


def main() -> None:
    if sys.argv[1:2] == ["imports"]:
        return bare_imports()
    options: argparse.Namespace = parser(__doc__).parse_args()
    from openrlhf_medical.data.prepare import prepare_data

    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        prepare_data("synthetic", folder / "data", None, 0.9, 0)
        words = ["--run.name", "memory", "--run.dir", str(folder), "--run.steps", "2", "--run.eval_games", "0",
                 "--roles.policy", "separate", "--data.train", str(folder / "data/train.jsonl"),
                 "--data.val", str(folder / "data/val.jsonl"), "--actor.model_name_or_path",
                 str(ROOT / "models" / ("tiny" if options.quick else "smollm2-135m"))]  # fmt: skip
        least = least_bytes(configured(words))
        answer = subprocess.run([sys.executable, __file__, "imports", *words], cwd=ROOT, stdout=subprocess.PIPE,
                                check=True, timeout=DEADLINE_S)  # fmt: skip
        imports = json.loads(answer.stdout.splitlines()[-1])
        train = [sys.executable, "-m", "openrlhf_medical", "train", "--config", str(ROOT / "configs/quickstart.yaml")]
        code, peak_gib, peak = peak_of([*train, *words])
        if code:
            sys.exit(f"the run ended with {code}")
    least["bare imports"] = sum(size for _, size in imports)
    for heading, rows in (("bare imports", imports), ("at the peak", peak)):
        print(heading, *(f"{size / 2**20:8.0f} MiB  {name}" for name, size in rows if size > 20 << 20), sep="\n")
    note = f"{peak_gib:.1f} GiB; " + ", ".join(f"{name} {size / GIB:.1f}" for name, size in least.items())
    row = Row("peak memory of a separate run", peak_gib * GIB / sum(least.values()), 1.25, "lower", note=note)
    print(note)
    samples = {"least_bytes": least, "imports": imports, "peak": peak, "peak_gib": peak_gib}
    result = Result("peak_memory", [row], samples)
    result.report(None) if options.quick else result.report()


if __name__ == "__main__":
    main()
