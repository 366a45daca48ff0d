"""What keys demand of each other and of the hardware: one clear sentence for each mistake."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.yardstick import FROZEN

if TYPE_CHECKING:
    from openrlhf_medical.config.run_config import RunConfig


def contradictions(config: RunConfig) -> Iterator[str]:
    """Sentences about keys that do not go together."""
    yield from _idle_keys(config)
    yield from _players(config)
    yield from _estimators(config)
    yield from _adapters(config)
    yield from _lengths_and_sampling(config)
    yield from _deepspeed(config)
    yield from _workers(config)
    yield from _sharing(config)
    yield from _held_out(config)


def _idle_keys(config: RunConfig) -> Iterator[str]:
    """Keys that would do nothing beside the others."""
    kl, actor, clip = config.algo.kl, config.actor, config.reward.clip_range
    for names, read, why in _read_only_with(config):
        for name in names:
            if not read and _value(config, name) != _default(config, name):
                yield f"{name} is set, but it is read only with {why}: set that, or remove {name}"
    if kl.target is not None and kl.init_coef == 0:
        yield "algo.kl.target adapts a penalty that algo.kl.init_coef 0 switches off: set init_coef or remove target"
    if kl.use_loss and kl.estimator == "k1" and not kl.unbiased_gradient:
        yield (
            "algo.kl.use_loss with algo.kl.estimator k1 has a gradient of zero on average: set estimator to k2 or k3, "
            "or unbiased_gradient to true"
        )
    if actor.policy_loss_type == "gspo" and config.algo.advantage.is_correction_level == "token":
        yield "actor.policy_loss_type gspo weighs whole replies: set algo.advantage.is_correction_level to seq or off"
    if clip[0] >= clip[1]:
        yield f"reward.clip_range is {list(clip)}: LOW must be below HIGH"


def _read_only_with(config: RunConfig) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    """(keys, whether anything reads them, what would)."""
    train, roles, advantage, kl, actor = config.train, config.roles, config.algo.advantage, config.algo.kl, config.actor
    supervised = train.sft_warmup_steps > 0 or train.sft_coef > 0
    correcting = advantage.is_correction_level != "off"
    details = ("mode", "gating", "threshold")
    yield ("algo.kl.unbiased_gradient",), kl.use_loss, "algo.kl.use_loss"
    yield ("algo.kl.horizon",), kl.target is not None, "algo.kl.target"
    yield (
        tuple(f"algo.advantage.is_correction_{name}" for name in details),
        correcting,
        ("algo.advantage.is_correction_level token or seq"),
    )
    yield ("algo.advantage.lambd", "critic"), advantage.estimator == "gae", "algo.advantage.estimator gae"
    yield ("actor.muon",), actor.optim == "muon", "actor.optim muon"
    yield (
        ("actor.gradient_checkpointing_reentrant",),
        actor.gradient_checkpointing_enable,
        ("actor.gradient_checkpointing_enable"),
    )
    yield ("train.ema_beta",), train.enable_ema, "train.enable_ema"
    yield (
        ("train.max_tokens_per_gpu", "rollout.max_tokens_per_gpu"),
        train.dynamic_batch_enable,
        ("train.dynamic_batch_enable"),
    )
    yield ("train.sft_lr",), train.sft_warmup_steps > 0, "train.sft_warmup_steps"
    yield ("train.sft_note_steps",), train.sft_warmup_steps > 0, "train.sft_warmup_steps"
    yield (
        ("train.sft_batch_size", "train.sft_thoughts", "data.sft"),
        supervised,
        "train.sft_warmup_steps or train.sft_coef",
    )
    yield ("run.good_every",), config.run.on_collapse == "rollback", "run.on_collapse rollback"
    yield ("run.eval_every", "run.eval_frozen"), config.run.eval_games > 0, "run.eval_games above 0"
    yield ("run.best_metric",), config.run.eval_every > 0, "run.eval_every above 0"
    yield ("run.early_stop_patience",), config.run.best_metric is not None, "run.best_metric"
    yield ("judge.probe_count", "judge.probe_alarm"), config.judge.probe_every > 0, "judge.probe_every above 0"
    yield ("roles.pool",), roles.met == "pool", "roles.opponent pool"
    yield ("roles.pool.share",), roles.met != "pool" or roles.train == "both", "roles.train both"
    yield ("judge.token_file",), bool(config.judge.urls), "judge.urls (a judge that the run starts asks for none)"
    yield (
        ("ds.lora.alpha", "ds.lora.target_modules", "ds.lora.dropout", "ds.load_in_4bit"),
        config.ds.lora.rank > 0,
        ("ds.lora.rank above 0"),
    )


def _value(config: Any, dotted: str) -> Any:
    return functools.reduce(getattr, dotted.split("."), config)


def _default(config: Any, dotted: str) -> Any:
    """The default of a key, or of a whole group of keys."""
    section, _, name = dotted.rpartition(".")
    owner = _value(config, section) if section else config
    return type(owner).model_fields[name].get_default(call_default_factory=True)


def _players(config: RunConfig) -> Iterator[str]:
    """Who learns, and against whom."""
    roles, met = config.roles, config.roles.met
    alone = roles.train != "both"
    if not alone and met in ("base", "checkpoint"):
        yield (
            f"roles.opponent {met} needs a side that does not learn, but roles.train is both: set roles.train to "
            "attacker or assessor, or roles.opponent to current or pool"
        )
    if alone and met in ("current", "pool") and roles.policy != "shared":
        yield (
            f"roles.opponent {met} with roles.train {roles.train} and roles.policy {roles.policy}: the other side's "
            "policy never changes; set roles.opponent to base or checkpoint, or roles.policy to shared"
        )
    if (roles.checkpoint is not None) != (met == "checkpoint"):
        yield "roles.checkpoint and roles.opponent checkpoint go together: set both or neither"
    if met == "pool" and not alone and roles.pool.share == 0:
        yield "roles.pool.share 0 never meets the pool: raise it, or set roles.opponent to current"
    train = config.train
    two_roles = (roles.policy == "shared" and not alone) or (roles.policy != "separate" and train.sft_warmup_steps)
    if (train.sft_coef or train.sft_warmup_steps) and two_roles and train.sft_batch_size < 2:
        yield "train.sft_batch_size 1 has no room for examples of both roles, which one policy learns: set at least 2"
    if (train.sft_coef > 0 or train.sft_warmup_steps) and config.ds.ring_attn_size > 1:
        yield "train.sft_coef and train.sft_warmup_steps do not split sequences: set ds.ring_attn_size 1"
    if train.async_enable and train.colocate_all:
        yield (
            "train.async_enable plays games while the policy learns, and train.colocate_all has both on the same "
            "GPUs: remove one of them"
        )
    if train.async_enable and config.algo.advantage.is_correction_level == "off":
        yield (
            "train.async_enable learns from games of the version before: set algo.advantage.is_correction_level to "
            "token or seq, which corrects for it"
        )


def _estimators(config: RunConfig) -> Iterator[str]:
    advantage, game = config.algo.advantage, config.game
    name, groups = advantage.estimator, {"attacker": game.attacks_per_seed, "assessor": game.assessments_per_note}
    keys = {"attacker": "game.attacks_per_seed", "assessor": "game.assessments_per_note"}
    if name in ("reinforce_baseline", "rloo", "group_norm"):
        for role in sorted(config.trained_roles):
            if groups[role] < 2:
                yield (
                    f"algo.advantage.estimator {name} compares within a group, but {keys[role]} is {groups[role]}: "
                    "set it to at least 2"
                )
    if name not in ("reinforce", "gae") and advantage.gamma != 1:
        yield f"algo.advantage.gamma is {advantage.gamma:g}, but {name} knows no discount: set it to 1"


def _adapters(config: RunConfig) -> Iterator[str]:
    ds, roles, train = config.ds, config.roles, config.train
    if train.enable_ema and (roles.met == "pool" or config.run.on_collapse == "rollback"):
        yield (
            "train.enable_ema saves averaged weights: they are not what roles.opponent pool and run.on_collapse "
            "rollback go back to; remove one of them"
        )
    if ds.lora.rank == 0:
        if roles.policy == "adapters":
            yield "roles.policy adapters needs ds.lora.rank above 0 (16 is usual)"
        return
    if train.sft_warmup_steps and roles.met == "checkpoint" and roles.policy != "separate":
        yield (
            "roles.opponent checkpoint with ds.lora.rank above 0 plays an adapter on this run's base, which "
            "train.sft_warmup_steps makes another than it was trained on: remove one of them, or set roles.policy "
            "to separate and roles.checkpoint to a whole model"
        )
    if ds.zero_stage == 3 and roles.policy == "adapters":
        yield "roles.policy adapters has two optimizers on one frozen base, which ds.zero_stage 3 cannot split: set 2"
    if ds.zero_stage == 3 and train.sft_warmup_steps:
        yield "train.sft_warmup_steps folds its adapter into a whole base, which ds.zero_stage 3 has nowhere: set 2"
    if train.enable_ema:
        yield "train.enable_ema averages all weights: it does not go with ds.lora.rank above 0"
    if config.algo.advantage.estimator == "gae":
        yield "estimator gae would freeze a random value head under ds.lora.rank above 0: choose another estimator"
    if ds.load_in_4bit:
        if ds.param_dtype != "bf16" or ds.zero_stage == 3:
            yield "ds.load_in_4bit needs ds.param_dtype bf16 and ds.zero_stage 2 or less"
        if train.sft_warmup_steps:
            yield "train.sft_warmup_steps folds its adapter into the base, and ds.load_in_4bit rounds it: remove one"


def _lengths_and_sampling(config: RunConfig) -> Iterator[str]:
    rollout, advantage = config.rollout, config.algo.advantage
    if rollout.max_new_tokens >= config.data.max_len:
        yield (
            f"rollout.max_new_tokens is {rollout.max_new_tokens} and data.max_len {config.data.max_len}: "
            "no room for a prompt; raise data.max_len or lower rollout.max_new_tokens"
        )
    if advantage.is_correction_level == "off":
        return
    threshold, gating = advantage.is_correction_threshold, advantage.is_correction_gating
    if rollout.top_p != 1:
        yield (
            f"algo.advantage.is_correction_level {advantage.is_correction_level} compares log-probabilities over "
            f"the whole vocabulary, but rollout.top_p is {rollout.top_p:g}: set rollout.top_p to 1"
        )
    if advantage.is_correction_mode == "clip" and (advantage.is_correction_level == "seq" or gating != "ratio"):
        yield "algo.advantage.is_correction_mode clip needs is_correction_level token and is_correction_gating ratio"
    if len(threshold) == 2 and threshold[0] >= threshold[1]:
        yield f"algo.advantage.is_correction_threshold is {list(threshold)}: LOW must be below HIGH"
    if gating != "ratio" and len(threshold) == 2 and threshold[0] > 0:
        yield (
            f"algo.advantage.is_correction_gating {gating} is bounded from above only: "
            "set is_correction_threshold to one number"
        )


def _deepspeed(config: RunConfig) -> Iterator[str]:
    ds = config.ds
    if config.train.dynamic_batch_enable and not ds.packing_samples:
        yield "train.dynamic_batch_enable counts tokens without padding: set ds.packing_samples true"
    if ds.packing_samples and ds.attn_implementation != "auto" and "flash" not in ds.attn_implementation:
        yield (
            f"ds.packing_samples needs FlashAttention, but ds.attn_implementation is {ds.attn_implementation}: "
            "set it to auto or flash_attention_2"
        )
    if ds.ring_attn_size > 1 and not ds.packing_samples:
        yield f"ds.ring_attn_size {ds.ring_attn_size} needs ds.packing_samples true"
    if ds.tensor_parallel_size > 1:
        yield (
            f"ds.tensor_parallel_size is {ds.tensor_parallel_size}: weight sync does not gather tensor-parallel "
            "layers in this version; set it to 1 and shard with ds.zero_stage 3"
        )
    if ds.tensor_parallel_size > 1 and ds.param_dtype != "bf16":
        yield f"ds.tensor_parallel_size {ds.tensor_parallel_size} needs ds.param_dtype bf16"
    if ds.zpg > 1 and ds.zero_stage != 3:
        yield f"ds.zpg {ds.zpg} needs ds.zero_stage 3, found {ds.zero_stage}"


def _workers(config: RunConfig) -> Iterator[str]:
    workers = config.actor.num_nodes * config.actor.num_gpus_per_node
    critics = config.critic.num_nodes * config.critic.num_gpus_per_node
    if config.algo.advantage.estimator == "gae" and critics != workers:
        yield (
            f"the critic learns from the policy's batches, but critic.num_nodes * critic.num_gpus_per_node is "
            f"{critics} and actor.num_nodes * actor.num_gpus_per_node is {workers}: make them equal"
        )
    per_sample = config.ds.ring_attn_size * config.ds.tensor_parallel_size
    if workers % per_sample:
        yield (
            f"actor.num_nodes * actor.num_gpus_per_node is {workers}, which ds.ring_attn_size * "
            f"ds.tensor_parallel_size ({per_sample}) does not divide"
        )


def _sharing(config: RunConfig) -> Iterator[str]:
    train, actor, ref, vllm = config.train, config.actor, config.ref, config.vllm
    for name, asleep in (("vllm.enable_sleep", vllm.enable_sleep), ("ds.enable_sleep", config.ds.enable_sleep)):
        if asleep:
            yield (
                f"{name}: sleep modes are not in this version; to share a GPU set train.colocate_all true and "
                "vllm.gpu_memory_utilization low enough for all that share it"
            )
    if actor.aux_loss_coef > 0:
        yield "actor.aux_loss_coef: the balancing loss would be summed over micro-batches; set it to 0 in this version"
    same_size = (actor.num_nodes, actor.num_gpus_per_node) == (ref.num_nodes, ref.num_gpus_per_node)
    if (train.colocate_all or train.colocate_actor_ref) and config.algo.kl.init_coef > 0 and not same_size:
        yield (
            "train.colocate_all and train.colocate_actor_ref need the same num_nodes and num_gpus_per_node for "
            f"actor ({actor.num_nodes} * {actor.num_gpus_per_node}) and ref ({ref.num_nodes} * {ref.num_gpus_per_node})"
        )
    gpus, engine_gpus = actor.num_nodes * actor.num_gpus_per_node, vllm.num_engines * vllm.tensor_parallel_size
    if train.colocate_all and gpus != engine_gpus:
        yield (
            f"train.colocate_all needs as many GPUs for engines as for the policy, but vllm.num_engines * "
            f"vllm.tensor_parallel_size is {engine_gpus} and actor.num_nodes * actor.num_gpus_per_node is {gpus}"
        )


def _held_out(config: RunConfig) -> Iterator[str]:
    """What is measured while training."""
    run, roles = config.run, config.roles
    if run.eval_frozen and roles.train != "both" and roles.met in ("base", "checkpoint"):
        yield (
            f"run.eval_frozen: with roles.train {roles.train} and roles.opponent {roles.met} the held-out games "
            "already meet a player that never changes: remove it"
        )
    name = run.best_metric or ""
    if name.startswith(FROZEN) and not run.eval_frozen:
        yield f"run.best_metric {name} is measured only with run.eval_frozen true"
    role = next((role for role in Role if f"/{role}/" in name), None)
    if role is not None and role not in config.trained_roles:
        yield f"run.best_metric {name} is a figure of the {role}, which roles.train {roles.train} does not train"


def check_hardware(config: RunConfig, has_gpu: bool) -> None:
    """Refuse what this machine cannot do, with the reason.

    Raises:
        UserError: without a GPU, for every key that needs one.
    """
    if has_gpu:
        return
    ds = config.ds
    needs_gpu = {
        "ds.packing_samples": (ds.packing_samples, "it needs FlashAttention"),
        "ds.ring_attn_size": (ds.ring_attn_size > 1, "it needs FlashAttention"),
        "ds.attn_implementation": ("flash" in ds.attn_implementation, "FlashAttention runs on NVIDIA GPUs only"),
        "train.dynamic_batch_enable": (config.train.dynamic_batch_enable, "it needs FlashAttention"),
        "train.enable_ema": (config.train.enable_ema, "upstream keeps the average on the device cuda"),
        "ds.load_in_4bit": (ds.load_in_4bit, "bitsandbytes quantises on NVIDIA GPUs"),
        "ds.use_liger_kernel": (ds.use_liger_kernel, "Liger's kernels are Triton code for GPUs"),
    }
    found = [f"{key} ({reason})" for key, (asked, reason) in needs_gpu.items() if asked]
    if found:
        raise UserError(f"this machine has no GPU, which {', '.join(found)} would need: remove what is named")
