"""What a worker takes: dimensions against counted parameters, formulas against numbers derived by hand or published."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openrlhf_medical.config import load_config
from openrlhf_medical.layout import PIECE_ELEMENTS
from openrlhf_medical.plan import needs
from openrlhf_medical.plan.hardware import Gpu, Hardware, Node
from openrlhf_medical.plan.known_models import KNOWN_MODELS
from openrlhf_medical.plan.memory import (
    BF16,
    BUCKET_ELEMENTS,
    CUDA_GRAPHS,
    CUDA_PROCESS,
    GIB,
    LIVE_ELEMENTS,
    Serving,
    Training,
    cache_bytes_per_token,
    engine_need,
    layer_bytes,
    policy_need,
    reference_need,
)
from openrlhf_medical.plan.planning import HOST_ERROR, make_plan
from openrlhf_medical.plan.shapes import UnknownShape, count_parameters, shape_from, shape_of

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ADAPTERS = ["--roles.policy", "adapters", "--ds.lora.rank", "16"]
SMALL = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
    "intermediate_size": 16, "vocab_size": 100, "tie_word_embeddings": True,
}  # fmt: skip
# Per layer: q 8·8, k and v 8·4, o 8·8, three of 8·16 in the MLP, two norms of 8; then the embedding and a last norm.
SMALL_PARAMETERS = 2 * (64 + 32 + 32 + 64 + 3 * 128 + 16) + 800 + 8
TRAINING = Training(ranks=4, zero_stage=2, tokens=10, forward_tokens=10)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Qwen/Qwen3-4B-Instruct-2507", 4_022_468_096),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
    ],
)
def test_known_models_have_their_published_number_of_parameters(name: str, published: int) -> None:
    assert shape_from(KNOWN_MODELS[name]).parameters == published


def test_parameters_of_a_small_model_by_hand() -> None:
    assert shape_from(SMALL).parameters == SMALL_PARAMETERS
    assert shape_from({**SMALL, "tie_word_embeddings": False}).parameters == SMALL_PARAMETERS + 800
    assert shape_from({**SMALL, "model_type": "qwen2"}).parameters == SMALL_PARAMETERS + 2 * (8 + 4 + 4)
    assert shape_from(SMALL).adapter_parameters(2) == 2 * 2 * (16 + 12 + 12 + 16 + 3 * 24)


def write_model(folder: Path, config: dict[str, Any], tensors: dict[str, list[int]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    entries = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def test_a_folders_parameters_are_counted_in_its_files(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", SMALL, {"a": [3, 4], "b": [5]})
    assert count_parameters(folder) == shape_of(str(folder)).parameters == 17
    assert shape_of(str(folder)).parameters_by_formula == SMALL_PARAMETERS
    (folder / "model.safetensors").unlink()
    assert shape_of(str(folder)).parameters == SMALL_PARAMETERS


def test_the_text_part_of_an_image_model_is_read(tmp_path: Path) -> None:
    assert shape_from({"model_type": "gemma3", "text_config": SMALL}).hidden == 8


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({**SMALL, "num_local_experts": 8}, "mixture of 8 experts"),
        ({"hidden_size": 8}, "does not say num_hidden_layers, num_attention_heads, vocab_size"),
    ],
)
def test_what_cannot_be_estimated_says_why(tmp_path: Path, config: dict[str, Any], part: str) -> None:
    with pytest.raises(UnknownShape, match=part):
        shape_of(str(write_model(tmp_path / "m", config, {"a": [1]})))


def test_models_that_are_nowhere_and_broken_files_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(UnknownShape, match="neither on this machine nor known"):
        shape_of("nobody/no-such-model")
    folder = write_model(tmp_path / "m", SMALL, {"a": [1]})
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UnknownShape, match=r"model\.safetensors"):
        shape_of(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(UnknownShape, match="cannot be read"):
        shape_of(str(folder))


@pytest.mark.parametrize(("stage", "published_gb"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_model_states_are_those_of_the_zero_paper(stage: int, published_gb: float) -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, 64 GPUs, Adam; weights, gradients, optimizer."""
    shape = replace(shape_from(SMALL), counted=7_500_000_000)
    device = policy_need(shape, replace(TRAINING, ranks=64, zero_stage=stage)).device
    states = device["weights"] + device["gradients"] + device["optimizer"]
    if stage == 3:
        states -= BF16 * LIVE_ELEMENTS  # gathered parts in use, which the paper leaves out
    assert states / 1e9 == pytest.approx(published_gb, abs=0.05)


def test_passes_by_hand() -> None:
    shape = shape_from(SMALL)
    # Of a block and token, bf16: inputs of q/k/v, of o and of the MLP's halves (3·8), q, k, v twice over with
    # attention's output (2·(2+1)·4), the norm's input (8) and 4·16 in the MLP; and two norms in fp32.
    assert layer_bytes(shape, 1) == 2 * (24 + 24 + 8 + 64) + 2 * 4 * 8 == 304
    logits = 10 * 100 * (4 + 4 + 2)
    need = policy_need(shape, TRAINING)
    assert need.device["passes"] == 2 * BUCKET_ELEMENTS + 2 * 10 * 304 + logits
    kept = policy_need(shape, replace(TRAINING, checkpointing=True)).device["passes"]
    assert kept == 2 * BUCKET_ELEMENTS + 10 * 304 + 2 * 10 * 8 * 2 + logits
    assert reference_need(shape, TRAINING).device["passes"] == 10 * 304 + 10 * 100 * (2 + 4)


def test_a_lone_worker_handles_gradients_in_pieces() -> None:
    shape = replace(shape_from(SMALL), counted=100_000_000)
    few = replace(TRAINING, ranks=1, tokens=1, forward_tokens=1)
    alone = policy_need(shape, few).device["passes"]
    assert alone == 4 * PIECE_ELEMENTS, "DeepSpeed's fp32 copy of one piece"
    assert policy_need(shape, replace(few, muon=True)).device["passes"] == 4 * 100_000_000, "all at once"
    assert policy_need(shape, replace(few, adam_offload=True)).device["passes"] > 2 * BUCKET_ELEMENTS
    large = replace(shape, vocabulary=2_000_000)
    assert policy_need(large, few).device["passes"] >= 4 * 2_000_000 * 8, "an embedding is a piece of its own"


def test_a_critic_has_no_logits_and_no_head() -> None:
    untied = shape_from({**SMALL, "tie_word_embeddings": False})
    policy, critic = policy_need(untied, TRAINING), policy_need(untied, TRAINING, vocabulary=0)
    assert policy.device["weights"] - critic.device["weights"] == 2 * 800
    assert policy.device["passes"] - critic.device["passes"] == 10 * 100 * 10


def test_offloaded_optimizer_is_in_host_memory() -> None:
    shape = replace(shape_from(SMALL), counted=8_000_000_000)
    here, away = (policy_need(shape, replace(TRAINING, adam_offload=off)) for off in (False, True))
    assert here.device["optimizer"] == 12 * 2_000_000_000
    assert away.device["optimizer"] == 0
    assert away.host["optimizer"] == (12 + 4 + 2) * 2_000_000_000
    assert away.device_bytes < here.device_bytes


def test_adapters_are_trained_on_a_frozen_base() -> None:
    shape = shape_from(KNOWN_MODELS["Qwen/Qwen3-4B-Instruct-2507"])
    adapters = replace(TRAINING, ranks=1, adapters=2, adapter_rank=32)
    trained = 2 * shape.adapter_parameters(32)
    need = policy_need(shape, adapters)
    assert need.device["optimizer"] == 12 * trained
    assert need.device["weights"] == 2 * shape.parameters + 2 * trained
    four_bit = policy_need(shape, replace(adapters, four_bit=True))
    assert 0.25 < four_bit.device["weights"] / need.device["weights"] < 0.45  # embeddings stay in bf16


def test_a_reference_is_offloaded_under_zero_3_only() -> None:
    shape = replace(shape_from(SMALL), counted=8_000_000_000)
    stage3 = replace(TRAINING, zero_stage=3, reference_offload=True)
    assert reference_need(shape, stage3).host["weights"] == 2 * 2_000_000_000
    assert "weights" not in reference_need(shape, replace(stage3, zero_stage=2)).host


def test_an_average_of_the_weights_is_another_copy() -> None:
    shape = replace(shape_from(SMALL), counted=8_000_000_000)
    assert policy_need(shape, replace(TRAINING, average=True)).device["average"] == 16_000_000_000
    assert policy_need(shape, replace(TRAINING, average=True, zero_stage=3)).host["average"] == 4_000_000_000


def test_cache_of_an_engine() -> None:
    llama = shape_from(KNOWN_MODELS["meta-llama/Llama-3.1-8B-Instruct"])
    assert cache_bytes_per_token(llama) == 131_072  # 128 KiB: 2 · 32 layers · 8 heads · 128 · 2 bytes
    assert cache_bytes_per_token(llama, tensor_parallel_size=2) == 65_536
    assert cache_bytes_per_token(llama, tensor_parallel_size=16) == 131_072 // 8, "one head is not split"
    serving = Serving(max_len=4096, share=0.9)
    need, sequences = engine_need(llama, serving, 80 * GIB)
    assert need.device_bytes == pytest.approx(72 * GIB + CUDA_GRAPHS, abs=8)
    assert sequences == need.device["cache"] // (131_072 * 4096) == 110
    assert engine_need(llama, replace(serving, eager=True), 80 * GIB)[0].device_bytes == pytest.approx(72 * GIB, abs=8)
    assert engine_need(llama, serving, 16 * GIB)[1] == 0, "its weights leave no room for a cache"
    halves = engine_need(llama, replace(serving, tensor_parallel_size=2), 80 * GIB)[0]
    assert halves.device["weights"] == need.device["weights"] // 2


def test_a_process_on_a_gpu_costs_its_context() -> None:
    assert policy_need(shape_from(SMALL), TRAINING).device["process"] == CUDA_PROCESS


@pytest.mark.parametrize(
    ("words", "measured_gib"), [(["--roles.policy", "separate"], 14.71), (ADAPTERS, 6.04)], ids=["separate", "adapters"]
)
def test_estimates_without_a_gpu_are_within_their_error_of_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, words: list[str], measured_gib: float
) -> None:
    """benchmarks/results/memory.md: the quickstart on a CPU, peak of all processes together, with notes much shorter
    than the data.max_len that the estimate is for, and engines that held bf16."""
    monkeypatch.setattr(needs, "cpu_has_fast_bf16", lambda: True)
    config = load_config(QUICKSTART, ["--actor.model_name_or_path", "HuggingFaceTB/SmolLM2-135M", *words])
    here = Hardware((Node("m", (Gpu(None),) * 8, cpus=8, host_bytes=64 * GIB),), "m", has_gpus=False)
    [host] = [check for check in make_plan(config, here).checks if check.what == "host memory"]
    estimated = float(host.needed.split()[1])
    assert abs(estimated / measured_gib - 1) < HOST_ERROR
