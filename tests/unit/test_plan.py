"""The resource plan: shipped configurations on the hardware that their headers name, and what does not fit."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.errors import UserError
from openrlhf_medical.layout import bundles_needed, places_of, warm_start_places
from openrlhf_medical.plan.hardware import Gpu, Hardware, Node, written
from openrlhf_medical.plan.memory import GIB
from openrlhf_medical.plan.planning import FITS, SHORT, TIGHT, UNKNOWN, Plan, Row, make_plan
from openrlhf_medical.plan.render import WIDTH, line, show
from openrlhf_medical.plan.shapes import ModelShape, shape_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))
ON_A_CPU = [CONFIGS / "quickstart.yaml", CONFIGS / "learn_cpu.yaml", CONFIGS / "tiny.yaml"]
SHIPPED = {"selfplay_4b_single_gpu": "1x48GB", "selfplay_8b_single_node": "8x80GB", "selfplay_8b_multinode": "4x8x80GB"}


def plan_of(name: str, on: str | Hardware, *words: str) -> Plan:
    config = load_config(CONFIGS / f"{name}.yaml", words)
    return make_plan(config, written(on) if isinstance(on, str) else on)


def made_here(model: str) -> ModelShape:
    """Dimensions of the folders that launch/setup.sh makes, which need not be there."""
    small = shape_of("HuggingFaceTB/SmolLM2-135M")
    tiny = replace(small, hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=128)
    return tiny if model == "models/tiny" else small


def printed(plan: Plan) -> str:
    file = io.StringIO()
    show(plan, file)
    return file.getvalue()


def row(plan: Plan, purpose: str) -> Row:
    return next(row for row in plan.rows if row.place.purpose == purpose)


@pytest.mark.parametrize(("name", "on"), SHIPPED.items())
def test_shipped_configurations_fit_the_hardware_that_they_are_for(name: str, on: str) -> None:
    plan = plan_of(name, on)
    assert not plan.problems()
    verdicts = {check.what: check.verdict for check in plan.checks}
    assert verdicts["GPUs"] == FITS
    memory = [verdict for what, verdict in verdicts.items() if what.startswith("GPU memory")]
    assert memory and set(memory) == {FITS}, "no shipped configuration is within a hair of what a GPU has"


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablations_fit_the_gpus_of_their_headers(path: Path) -> None:
    [(count, size)] = re.findall(r"^# Needs: (\d+) GPUs? of (\d+) GB", path.read_text(), re.MULTILINE)
    plan = make_plan(load_config(path), written(f"{count}x{size}GB"))
    assert not plan.problems()


def test_what_is_only_large_for_samples_that_may_never_come_is_not_refused() -> None:
    """The tiny model's logits for four samples of data.max_len tokens are most of what it would need."""
    config = load_config(CONFIGS / "tiny.yaml")
    node = Node("m", (Gpu(None),) * 6, cpus=6, host_bytes=12 * GIB)
    [host] = [
        check
        for check in make_plan(config, Hardware((node,), "m", has_gpus=False), made_here).checks
        if check.what == "host memory"
    ]
    assert host.verdict == TIGHT


@pytest.mark.parametrize("path", ON_A_CPU, ids=lambda path: path.stem)
def test_configurations_of_a_laptop_fit_16_gib_without_a_gpu(path: Path) -> None:
    config = load_config(path)
    places = (Gpu(None),) * bundles_needed(config)
    laptop = Hardware((Node("laptop", places, cpus=len(places), host_bytes=int(15.5 * GIB)),), "laptop", has_gpus=False)
    assert not make_plan(config, laptop, made_here).problems()


def test_single_gpu_plan_in_figures() -> None:
    """Engine: 0.4 of 48 GB and its graphs; policy: base, two adapters with optimizers, one sample's logits."""
    plan = plan_of("selfplay_4b_single_gpu", "1x48GB")
    [only] = plan.rows
    assert (only.place.workers, only.place.gpus_of_each, only.nodes) == (("policy", "engine"), 0.2, (1,))
    assert only.needs is not None
    engine, policy = only.needs.workers["engine"], only.needs.workers["policy"]
    assert engine.device_bytes == pytest.approx(0.4 * 48e9 + GIB, rel=1e-6)
    assert policy.device["weights"] == pytest.approx(2 * 4.02e9, rel=0.05)
    assert 3072 * 151_936 * 10 < policy.device["passes"] < 1.6 * 3072 * 151_936 * 10
    assert only.needs.sequences and only.needs.sequences >= 16


def test_multinode_plan_in_figures() -> None:
    plan = plan_of("selfplay_8b_multinode", "4x8x80GB")
    policy, engines = plan.rows
    assert (policy.place.bundles, policy.nodes) == (16, (8, 8, 0, 0))
    assert (engines.place.bundles, engines.nodes) == (8, (0, 0, 8, 0))
    assert policy.needs is not None
    assert policy.needs.workers["policy"].device["optimizer"] == pytest.approx(12 * 8.03e9 / 16, rel=1e-3)
    text = printed(plan)
    assert "node 1: 8, node 2: 8" in text and "32 there, 8 idle" in text


def test_the_hyper_parameters_of_both_8b_configurations_are_the_same() -> None:
    one, several = (load_config(CONFIGS / f"selfplay_8b_{name}.yaml") for name in ("single_node", "multinode"))
    placing = {"run", "actor", "ref", "vllm", "rollout"}
    assert one.model_dump(exclude=placing) == several.model_dump(exclude=placing)
    assert one.actor.model_dump(exclude={"num_nodes", "num_gpus_per_node"}) == several.actor.model_dump(
        exclude={"num_nodes", "num_gpus_per_node"}
    )
    assert one.rollout.model_dump(exclude={"micro_batch_size"}) == several.rollout.model_dump(
        exclude={"micro_batch_size"}
    )


@pytest.mark.parametrize(
    ("name", "on", "words", "short", "key"),
    [
        ("selfplay_8b_multinode", "8x80GB", [], "GPUs: 24 needed, 8 there", "vllm.num_engines"),
        ("selfplay_8b_single_node", "8x24GB", [], "GPU memory, policy shared", "ds.adam_offload true"),
        ("selfplay_8b_single_node", "8x16GB", [], "cache, engines of shared", "vllm.gpu_memory_utilization (higher)"),
        ("selfplay_4b_single_gpu", "1x48GB", ["--vllm.gpu_memory_utilization", "0.8"],
         "GPU memory, policy attacker+assessor", "vllm.gpu_memory_utilization (lower)"),
        ("selfplay_4b_single_gpu", "1x48GB", ["--train.micro_batch_size", "8"],
         "GPU memory, policy attacker+assessor", "train.micro_batch_size 1"),
        ("selfplay_8b_single_node", "8x80GB", ["--ds.zero_stage", "0"], "GPU memory, policy", "ds.zero_stage 2 or 3"),
    ],
)  # fmt: skip
def test_shortfalls_name_what_is_missing_and_the_keys_that_help(
    name: str, on: str, words: list[str], short: str, key: str
) -> None:
    plan = plan_of(name, on, *words)
    [problem] = plan.problems()
    assert short in problem and key in problem
    marked = [line for line in printed(plan).splitlines() if SHORT in line]
    assert any(line.strip().startswith(short.split(":")[0]) for line in marked), "a row of the table is marked"


def test_room_that_is_there_but_not_together() -> None:
    """Eight GPUs and eight CPUs, of which no machine has enough of both."""
    nodes = (Node("a", (Gpu(80 * GIB),) * 8, cpus=2), Node("b", (), cpus=6))
    plan = plan_of("selfplay_8b_single_node", Hardware(nodes, "odd machines"))
    assert "room for policy shared: 4 bundles" in plan.problems()[0]
    assert "no room" in printed(plan)


def test_what_others_have_taken_of_a_gpu_counts() -> None:
    def with_used(used: int) -> Plan:
        node = Node("m", (Gpu(48 * GIB, used),), cpus=8, host_bytes=256 * GIB)
        return plan_of("selfplay_4b_single_gpu", Hardware((node,), "m"))

    assert not with_used(0).problems()
    assert "GPU memory" in with_used(20 * GIB).problems()[0]


def test_a_gpu_that_is_nearly_full_is_tight_and_not_refused() -> None:
    base = plan_of("selfplay_4b_single_gpu", "1x48GB").rows[0].needs
    assert base is not None
    node = Node("m", (Gpu(int(48e9), int(48e9) - int(base.device_bytes / 0.97)),), cpus=8)
    plan = plan_of("selfplay_4b_single_gpu", Hardware((node,), "m"))
    [memory] = [check for check in plan.checks if check.what.startswith("GPU memory")]
    assert (memory.verdict, plan.problems()) == (TIGHT, [])
    assert "tight: GPU memory" in line(plan)


def test_the_smallest_gpu_counts() -> None:
    node = Node("m", (Gpu(80 * GIB), Gpu(24 * GIB)), cpus=8)
    assert "GPU memory" in plan_of("selfplay_4b_single_gpu", Hardware((node,), "m")).problems()[0]


def test_engines_that_would_span_machines_are_told() -> None:
    words = ["--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "4"]
    whole = plan_of("selfplay_8b_multinode", "4x8x80GB", *words)
    torn = plan_of("selfplay_8b_multinode", "5x6x80GB", *words)
    assert not any("span machines" in note for note in whole.notes)
    assert any("an engine of 4 GPUs would span machines" in note for note in torn.notes)


def test_memory_that_is_not_known_is_said_and_stops_nothing() -> None:
    plan = plan_of("selfplay_8b_single_node", "8x80GB", "--actor.model_name_or_path", "nobody/unheard-of")
    assert not plan.problems()
    assert any(note.startswith("memory not estimated: nobody/unheard-of") for note in plan.notes)
    assert {check.verdict for check in plan.checks if "memory" in check.what} == {UNKNOWN}
    unknown = Hardware((Node("m", (Gpu(None),) * 8, cpus=64),), "m")
    assert not plan_of("selfplay_8b_single_node", unknown).problems()


def test_host_memory_is_refused_only_beyond_its_error() -> None:
    def with_host(host: float) -> str:
        config = load_config(CONFIGS / "quickstart.yaml", ["--actor.model_name_or_path", "HuggingFaceTB/SmolLM2-135M"])
        node = Node("m", (Gpu(None),) * 6, cpus=6, host_bytes=int(host))
        plan = make_plan(config, Hardware((node,), "m", has_gpus=False))
        return next(check.verdict for check in plan.checks if check.what.startswith("host memory"))

    assert [with_host(gib * GIB) for gib in (64, 14.5, 8)] == [FITS, TIGHT, SHORT]


MODEL = "--actor.model_name_or_path HuggingFaceTB/SmolLM2-135M"


def config_of(words: str) -> RunConfig:
    return load_config(None, ["--run.name", "x", *MODEL.split(), *words.split()])


@pytest.mark.parametrize(
    ("words", "places"),
    [
        ("", ["policy attacker: policy", "reference of attacker: reference", "engines of attacker: engine",
              "policy assessor: policy", "reference of assessor: reference", "engines of assessor: engine"]),
        ("--roles.policy shared --train.colocate_actor_ref true",
         ["policy shared: policy+reference", "engines of shared: engine"]),
        ("--roles.policy shared --train.colocate_all true --algo.advantage.estimator gae",
         ["policy shared: policy+reference+critic+engine"]),
        ("--roles.policy shared --algo.kl.init_coef 0 --algo.advantage.estimator gae",
         ["policy shared: policy", "critic of shared: critic", "engines of shared: engine"]),
        ("--roles.policy adapters --ds.lora.rank 16", ["policy attacker+assessor: policy",
                                                       "engines of attacker+assessor: engine"]),
        ("--roles.train assessor --algo.kl.init_coef 0",
         ["policy assessor: policy", "engines of assessor: engine", "the frozen attacker: engine"]),
        ("--roles.policy shared --roles.opponent pool --algo.kl.init_coef 0",
         ["policy shared: policy", "engines of shared: engine", "the frozen attacker: engine",
          "the frozen assessor: engine"]),
    ],
)  # fmt: skip
def test_places_of_every_layout(words: str, places: list[str]) -> None:
    config = config_of(words)
    assert [f"{place.purpose}: {'+'.join(place.workers)}" for place in places_of(config)] == places
    assert sum(place.bundles for place in places_of(config)) == bundles_needed(config)


def test_a_frozen_checkpoint_has_its_own_dimensions(tmp_path: Path) -> None:
    seen: list[str] = []

    def read(model: str) -> ModelShape:
        seen.append(model)
        return shape_of("HuggingFaceTB/SmolLM2-135M")

    config = config_of(f"--roles.train assessor --roles.opponent checkpoint --roles.checkpoint {tmp_path}")
    make_plan(config, written("4x24GB"), read)
    assert seen == ["HuggingFaceTB/SmolLM2-135M", str(tmp_path)]


def test_a_warm_start_that_needs_more_places_than_the_run_itself() -> None:
    words = "--roles.train assessor --algo.kl.init_coef 0 --actor.num_gpus_per_node 4 --train.sft_warmup_steps 2"
    config = config_of(words)
    assert [place.bundles for place in warm_start_places(config)] == [4, 4]
    assert bundles_needed(config) == 6
    assert "GPUs: 8 needed, 6 there" in make_plan(config, written("6x24GB")).problems()[0]
    assert not make_plan(config, written("8x24GB")).problems()


def test_the_judge_is_shown_where_it_is() -> None:
    assert "reference judge, beside train" in printed(plan_of("selfplay_4b_single_gpu", "1x48GB"))
    outside = plan_of("selfplay_8b_single_node", written("9x80GB", judge_gpus=1), "--judge.urls", "http://judge:8000")
    assert outside.hardware.gpus == 8 and not outside.problems()
    assert "http://judge:8000" in printed(outside) and "1 of them the judge's" in printed(outside)


@pytest.mark.parametrize(("name", "on"), SHIPPED.items())
def test_tables_are_readable_at_100_columns(name: str, on: str) -> None:
    lines = printed(plan_of(name, on)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not any("…" in line for line in lines), "nothing is cut"


def test_a_plan_in_one_line() -> None:
    assert line(plan_of("selfplay_8b_multinode", "4x8x80GB")).startswith("plan: 24 of 32 GPUs on 4 machines of 8 x 80")


@pytest.mark.parametrize(
    ("text", "counts", "size"),
    [("8x80GB", [8], 80e9), ("4x8x80GB", [8] * 4, 80e9), ("1x48gb", [1], 48e9), ("2x79.6GiB", [2], 79.6 * GIB)],
)
def test_hardware_as_written(text: str, counts: list[int], size: float) -> None:
    found = written(text)
    assert [len(node.gpus) for node in found.nodes] == counts
    assert {gpu.total for node in found.nodes for gpu in node.gpus} == {int(size)}


@pytest.mark.parametrize("text", ["80GB", "8x80", "0x80GB", "0x8x80GB", "8x0GB", "8xH100", ""])
def test_hardware_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="8x80GB, 4x8x80GB or 1x48GB"):
        written(text)


def test_a_judge_cannot_have_every_gpu() -> None:
    with pytest.raises(UserError, match="leaves nothing"):
        written("1x48GB", judge_gpus=1)
