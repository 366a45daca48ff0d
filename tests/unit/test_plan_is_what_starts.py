"""The plan's placement groups are those that starting a run asks for: same order, sizes, workers and GPU shares."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_medical import assembly, casting, layout
from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout.fleet import Fleet

LAYOUTS = (
    "",
    "--roles.policy shared --train.colocate_actor_ref true --actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2",
    "--roles.policy shared --train.colocate_all true --algo.advantage.estimator gae",
    "--roles.policy shared --algo.advantage.estimator gae --vllm.num_engines 2 --vllm.tensor_parallel_size 2",
    "--roles.policy adapters --ds.lora.rank 16",
    "--roles.policy adapters --ds.lora.rank 16 --train.colocate_all true --roles.opponent pool",
    "--roles.train assessor --roles.opponent base --vllm.num_engines 3",
    "--roles.policy shared --roles.opponent pool --algo.kl.init_coef 0",
)


class Started:
    """Stands in for Ray: notes every placement group, and who was put on it with which share of a GPU."""

    def __init__(self) -> None:
        self.groups: list[SimpleNamespace] = []

    def reserve(self, bundles: int, timeout_s: float, purpose: str) -> SimpleNamespace:
        self.groups.append(SimpleNamespace(purpose=purpose, bundles=bundles, workers={}, adapters=0))
        return self.groups[-1]

    def workers(self, nodes: int, per_node: int, kind: Any, *, pg: Any, num_gpus_per_actor: float, **_: Any) -> Any:
        name = {assembly.PolicyWorker: "policy", assembly.ReferenceWorker: "reference"}.get(kind, "critic")
        pg.workers[name] = (num_gpus_per_actor, nodes * per_node)
        return SimpleNamespace(async_init_model_from_pretrained=lambda *_: [])

    def fleet(self, config: RunConfig, spec: Any, title: str, place: Any, gpus_per_engine: float) -> Fleet:
        place.workers["engine"] = (gpus_per_engine, config.vllm.num_engines * spec.tensor_parallel_size)
        place.adapters = spec.adapters
        engine = SimpleNamespace(weight_stamp=SimpleNamespace(remote=lambda: None))
        return Fleet(title, lambda index: engine, 1, start_timeout_s=0, equip_timeout_s=0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    for module in (assembly, casting):
        monkeypatch.setattr(module, "reserve", started.reserve)
        monkeypatch.setattr(module, "gather", lambda *_: {})
    monkeypatch.setattr(casting, "start_fleet", started.fleet)
    monkeypatch.setattr(assembly, "RayActorGroup", started.workers)
    return started


def config_of(words: str) -> RunConfig:
    return load_config(None, ["--run.name", "x", "--actor.model_name_or_path", "a/b", *words.split()])


def planned(places: list[layout.Place]) -> list[tuple[Any, ...]]:
    return [
        (place.purpose, place.bundles, dict.fromkeys(place.workers, (place.gpus_of_each, place.bundles)))
        for place in places
    ]


@pytest.mark.parametrize("words", LAYOUTS, ids=lambda words: words.replace("--", "") or "defaults")
def test_places(started: Started, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    config = config_of(words)
    learner = SimpleNamespace(
        join_engines=lambda *_, **__: None, sync=lambda: None, roles=tuple(Role), engines=Fleet.none(),
        workers=SimpleNamespace(policy=None),
    )  # fmt: skip
    monkeypatch.setattr(assembly, "Learner", lambda *_, **__: learner)
    starts = dict.fromkeys(Role, "a/b")
    assembly.start_learners(config, starts, 0, casting.engine_spec(config))
    monkeypatch.setattr(casting, "player_of", lambda *_, **__: None)
    casting.start_opponents(config, starts, [learner], None)  # type: ignore[list-item]
    places = layout.places_of(config)
    assert [(group.purpose, group.bundles, group.workers) for group in started.groups] == planned(places)
    held = [group.adapters for group in started.groups if "engine" in group.workers]
    assert held == [place.played_adapters for place in places if "engine" in place.workers]


@pytest.mark.parametrize(
    "words",
    [
        "--roles.policy separate",
        "--roles.policy shared --actor.num_gpus_per_node 2",
        "--roles.policy adapters --ds.lora.rank 8",
        "--roles.train assessor",
        "--roles.train assessor --roles.opponent checkpoint --roles.checkpoint a",
    ],
)
def test_places_of_a_warm_start(started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str) -> None:
    from openrlhf_medical import warm_start

    config = config_of(f"{words} --train.sft_warmup_steps 2")
    monkeypatch.setattr(assembly, "Learner", lambda *_, **__: None)

    def start(config: RunConfig, roles: Any, pad: int) -> Any:
        assembly_start(config, roles, pad)
        raise KeyboardInterrupt  # only the places are of interest

    assembly_start = assembly.start_pupils
    monkeypatch.setattr(assembly, "start_pupils", start)
    silent: Any = SimpleNamespace(phase=lambda _: None, checkpoints=tmp_path, starts_file=tmp_path / "starts.json")
    with pytest.raises(KeyboardInterrupt):
        warm_start.warm_start(config, 0, silent, silent, silent, silent)
    assert [(group.purpose, group.bundles, group.workers) for group in started.groups] == planned(
        layout.warm_start_places(config)
    )


def test_adapter_ranks_of_the_plan_are_the_engines() -> None:
    from openrlhf_medical.plan import needs
    from openrlhf_medical.rollout import engines

    assert needs.ENGINE_RANKS == engines.ENGINE_RANKS


def test_numbers_of_an_engine_without_a_gpu_are_as_wide_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_medical import devices
    from openrlhf_medical.bf16_linear import has_fast_bf16
    from openrlhf_medical.plan.hardware import cpu_has_fast_bf16
    from openrlhf_medical.plan.needs import serving_of
    from openrlhf_medical.plan.shapes import shape_of

    assert cpu_has_fast_bf16() == has_fast_bf16()
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    config, shape = config_of(""), shape_of("HuggingFaceTB/SmolLM2-135M")
    arguments = devices.engine_arguments(0)
    serving = serving_of(config, layout.places_of(config)[-1], shape)
    assert serving.cpu_cache == arguments["kv_cache_memory_bytes"]
    assert serving.cpu_bytes == (4 if arguments.get("dtype") == "float32" else 2)
