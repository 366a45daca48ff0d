"""vLLM engines as Ray actors."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from openrlhf_medical import devices
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Reply
from openrlhf_medical.rollout.weights import WeightPlan, WeightStamp

devices.prepare_process()

from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402  (after prepare_process)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is started with."""

    model: str
    max_model_len: int
    tensor_parallel_size: int = 1
    seed: int = 0
    enable_prefix_caching: bool = False
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.9
    enable_sleep: bool = False
    max_num_seqs: int | None = None
    dtype: str = "bfloat16"
    adapters: int = 0
    """LoRA adapters that may play at the same time; 0 for none."""
    adapter_rank: int = 0
    worker_extension: str = "openrlhf_medical.rollout.weights.WeightReceiver"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of upstream's RolloutRayActor, most of which go on to vLLM's engine."""
        arguments = {
            "model": self.model,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "distributed_executor_backend": "uni" if self.tensor_parallel_size == 1 else "ray",
            "seed": self.seed,
            "enable_prefix_caching": self.enable_prefix_caching,
            "enforce_eager": self.enforce_eager,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_sleep_mode": self.enable_sleep,
            "dtype": self.dtype,
            "trust_remote_code": True,
            "worker_extension_cls": self.worker_extension,
            # The log-probabilities of the distribution that was sampled from, temperature included.
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": 1,
        }
        if self.adapters:
            arguments |= {
                "enable_lora": True,
                "max_loras": self.adapters,
                "max_lora_rank": engine_rank(self.adapter_rank),
            }
        if self.max_num_seqs is not None:
            arguments["max_num_seqs"] = self.max_num_seqs
        return arguments


ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""peft's names, which vLLM and transformers look for."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A loaded adapter: vLLM's LoRARequest, and which version it is."""

    request: Any
    stamp: WeightStamp


ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM has kernels for."""


def engine_rank(rank: int) -> int:
    """The smallest rank that vLLM has room for and that holds ``rank``.

    Raises:
        UserError: none does.
    """
    found = next((known for known in ENGINE_RANKS if known >= rank), None)
    if found is None:
        raise UserError(f"ds.lora.rank is {rank}; vLLM takes at most {ENGINE_RANKS[-1]}")
    return found


def adapter_checksum(config: str, weights: bytes) -> str:
    return hashlib.blake2b(config.encode() + weights, digest_size=16).hexdigest()


class _Engine(RolloutRayActor.__ray_metadata__.modified_class):
    """Upstream's engine actor, with replies cut down to what a trajectory needs, and packed weight sync."""

    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        # What depends on the machine depends on this one, not on the driver's.
        os.environ.update(devices.engine_environment(kwargs.get("tensor_parallel_size", 1)))
        await super().__init__(*args, **{**kwargs, **devices.engine_arguments()})
        await self.llm.collective_rpc("end_with", args=(os.getpid(),))
        self._stamp: WeightStamp | None = None
        self._adapters: dict[str, Adapter] = {}
        self._adapter_count = 0
        self._adapter_folder = tempfile.TemporaryDirectory(prefix="adapters-")

    async def reply(self, prompt_ids: list[int], sampling: dict[str, Any], adapter: str = "") -> Reply:
        """One turn: token ids in, token ids out. ``adapter`` "" is the base, or the whole model."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        loaded = self._adapters[adapter] if adapter else None
        stamp = self._stamp_of(adapter)
        stream = self.llm.generate(
            TokensPrompt(prompt_token_ids=prompt_ids),
            # Nobody reads what is half written; to make that for every token took a tenth of a core from the engine.
            SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY),
            request_id=uuid.uuid4().hex,
            lora_request=loaded.request if loaded else None,
        )
        async for output in stream:  # the last one alone
            completion = output.outputs[0]
        if self._stamp_of(adapter) is not stamp:
            raise RuntimeError("new weights arrived in the middle of a reply: its tokens have no one version")
        return Reply(
            text=completion.text,
            truncated=completion.finish_reason == "length",
            prompt_ids=tuple(prompt_ids),
            token_ids=tuple(completion.token_ids),
            logprobs=tuple(
                step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
            ),
            policy_version=stamp.version if stamp else -1,
        )

    def _stamp_of(self, adapter: str) -> WeightStamp | None:
        return self._adapters[adapter].stamp if adapter else self._stamp

    async def load_adapter(self, name: str, version: int, config: str, weights: bytes) -> WeightStamp:
        """Let ``name`` stand for this adapter from now on.

        vLLM keeps what it once loaded under an id: every version gets a new id and a new name, and the
        old one is taken out.
        """
        from vllm.lora.request import LoRARequest

        self._adapter_count += 1
        folder = Path(self._adapter_folder.name) / f"{name}-{self._adapter_count}"
        folder.mkdir()
        (folder / ADAPTER_CONFIG).write_text(config, encoding="utf-8")
        (folder / ADAPTER_WEIGHTS).write_bytes(weights)
        old = self._adapters.pop(name, None)
        if old is not None:
            if not await self.llm.remove_lora(old.request.lora_int_id):
                raise RuntimeError(f"vLLM did not know adapter {old.request.lora_name}, which was to be replaced")
            shutil.rmtree(old.request.lora_path)
        request = LoRARequest(f"{name}-{self._adapter_count}", self._adapter_count, str(folder))
        if not await self.llm.add_lora(request):
            raise RuntimeError(f"vLLM did not take adapter {request.lora_name}")
        if await self.llm.reset_prefix_cache() is False:
            raise RuntimeError("vLLM refused to drop cached prefixes: a reply was still running during weight sync")
        self._adapters[name] = Adapter(request, WeightStamp(version, adapter_checksum(config, weights)))
        return self._adapters[name].stamp

    async def loaded_adapters(self) -> set[int]:
        """Ids of the adapters that vLLM holds: for tests and audits."""
        return await self.llm.list_loras()

    async def load_folder(self, folder: str, version: int) -> WeightStamp:
        """Play with the weights of a model folder from now on."""
        self._stamp = None
        return await self._took_over(await self.llm.collective_rpc("load_folder", args=(folder, version)))

    async def join_weight_group(
        self, address: str, port: int, rank_offset: int, world_size: int, shares_gpu: bool
    ) -> None:
        await self.llm.collective_rpc("join_weight_group", args=(address, port, rank_offset, world_size, shares_gpu))

    async def receive_weights(self, plan: WeightPlan) -> WeightStamp:
        """Take over new weights, then drop every cached prefix: it was computed with the old ones."""
        self._stamp = None
        return await self._took_over(await self.llm.collective_rpc("receive_weights", args=(pickle.dumps(plan),)))

    async def _took_over(self, held: list[tuple[int, str]]) -> WeightStamp:
        stamps = {WeightStamp(*stamp) for stamp in held}
        if len(stamps) != 1:
            raise RuntimeError(f"tensor-parallel workers received different weights: {stamps}")
        if await self.llm.reset_prefix_cache() is False:
            raise RuntimeError("vLLM refused to drop cached prefixes: a reply was still running during weight sync")
        self._stamp = stamps.pop()
        return self._stamp

    async def weight_stamp(self, adapter: str = "") -> WeightStamp | None:
        """The stamp that every worker of this engine holds, or None where they disagree or have none; with
        ``adapter``, that adapter's, if vLLM still has it."""
        if adapter:
            own = self._adapters.get(adapter)
            return own.stamp if own and own.request.lora_int_id in await self.llm.list_loras() else None
        held = {WeightStamp(*stamp) if stamp else None for stamp in await self.llm.collective_rpc("weight_stamp")}
        return self._stamp if held == {self._stamp} else None


Engine = ray.remote(_Engine)


def start_engine(spec: EngineSpec, index: int, placement: PlacementGroup, gpus_per_engine: float) -> Any:
    """Start engine number ``index`` of a pool on its bundles of ``placement``. Returns at once: an engine that
    answers ``weight_stamp`` is up."""
    from openrlhf.trainer.ray.utils import get_bundle_indices

    bundle, bundles = index, None
    if spec.tensor_parallel_size > 1:
        bundles = get_bundle_indices(placement, index, spec.tensor_parallel_size)
        bundle = bundles[0]
    arguments = {**spec.arguments(), "seed": spec.seed + index, "bundle_indices": bundles, "num_gpus": gpus_per_engine}
    return Engine.options(
        num_cpus=gpus_per_engine,
        num_gpus=gpus_per_engine if spec.tensor_parallel_size == 1 else 0,
        max_concurrency=4096,
        scheduling_strategy=PlacementGroupSchedulingStrategy(
            placement_group=placement,
            placement_group_capture_child_tasks=True,
            placement_group_bundle_index=bundle,
        ),
    ).remote(**arguments)
