"""LoRA adapters on one frozen base: an optimizer for each, and the files that engines and people load.

Two players in the memory of one: base weights are held once, and each role's adapter has its own
DeepSpeed engine over the same module, so that an update of one leaves the other's bytes as they are.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from openrlhf_medical import devices
from openrlhf_medical.learner.reply_actor import ReplyActor
from openrlhf_medical.rollout.engines import ADAPTER_CONFIG, ADAPTER_WEIGHTS

devices.prepare_process()

from openrlhf.models import Actor  # noqa: E402  (after prepare_process)
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402


@dataclass(frozen=True, slots=True)
class Trainee:
    """What one adapter learns with. ``peft_name`` is its name inside the model."""

    peft_name: str
    actor: Actor
    trainer: ActorPPOTrainer


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter on its way to an engine: peft's configuration (JSON) and weights (safetensors)."""

    config: str
    weights: bytes


class AdaptersOff:
    """The policy's workers seen as a KL reference: upstream's experience maker asks it as it asks a group."""

    def __init__(self, policy: RayActorGroup) -> None:
        self._policy = policy

    def async_run_method_batch(self, method_name: str, **inputs: Any) -> list[Any]:
        assert method_name == "forward", method_name
        return self._policy.async_run_method_batch("reference_log_probs", **inputs)

    def async_run_method(self, method_name: str) -> list[Any]:
        return self._policy.async_run_method(method_name)


def add_adapter(name: str, first: Actor, tokenizer: Any, strategy: Any, max_steps: int | None) -> Trainee:
    """A further adapter on the base of ``first``, with an optimizer and a schedule of its own.

    DeepSpeed keeps the other adapter's parameters as they are: it only flattens those that it is given,
    which are those that need a gradient now.
    """
    module = first.model.module
    module.add_adapter(name, module.peft_config["default"])
    module.set_adapter(name)
    actor = Actor(module)
    actor.temperature, actor.packing_samples, actor.is_vlm = first.temperature, first.packing_samples, False
    actor = ReplyActor.of(actor)
    args = strategy.args
    options = vars(args.actor)
    settings = {key: options[key] for key in ("optim", "lr_scheduler", "lr_warmup_ratio", "min_lr_ratio", "max_norm")}
    settings |= {"muon": vars(args.actor.muon), "adam": vars(args.actor.adam), "scheduler_steps": max_steps}
    actor, optimizer, scheduler = strategy.prepare((actor, settings))
    trainer = ActorPPOTrainer(
        strategy,
        actor,
        ema_model=None,
        actor_optim=optimizer,
        actor_scheduler=scheduler,
        micro_train_batch_size=args.train.micro_batch_size,
        tokenizer=tokenizer,
        eps_clip=args.actor.eps_clip,
    )
    return Trainee(name, actor, trainer)


def adapter_files(module: Any, peft_name: str, base: str) -> AdapterFiles | None:
    """One adapter of a peft model; all ranks must call it, the first gets the files and the others None."""
    import deepspeed
    from peft import get_peft_model_state_dict

    own = [p for p in module.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(own, enabled=any(hasattr(p, "ds_id") for p in own)):
        if torch.distributed.get_rank() != 0:
            return None
        tensors = get_peft_model_state_dict(module, adapter_name=peft_name)
        weights = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    config = module.peft_config[peft_name]
    config.base_model_name_or_path, config.inference_mode = base, True
    with tempfile.TemporaryDirectory() as folder:  # only peft knows how its configuration is written
        config.save_pretrained(folder)
        text = (Path(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8")
    config.inference_mode = False
    return AdapterFiles(text, safetensors.torch.save(weights, {"format": "pt"}))


def save_adapter(module: Any, peft_name: str, base: str, tokenizer: Any, folder: str) -> None:
    """A folder that ``peft``, ``transformers`` and vLLM open beside the base that it names."""
    files = adapter_files(module, peft_name, base)
    if files is not None:
        write_adapter(files, Path(folder))
        tokenizer.save_pretrained(folder)


def write_adapter(files: AdapterFiles, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(files.config, encoding="utf-8")
    (folder / ADAPTER_WEIGHTS).write_bytes(files.weights)


def merge(module: Any, tokenizer: Any, folder: str) -> None:
    """The base with the active adapter folded in, as a plain model folder. Changes the module for good."""
    if torch.distributed.get_rank() == 0:
        merged = module.merge_and_unload()
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
