"""Keys that carry OpenRLHF's dotted names, with its defaults unless the description says "Upstream: …".

Only what a run of ours really reads is here. Every other upstream option is in ``upstream.NOT_OFFERED``
with the reason, so that nobody sets a key that does nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from openrlhf_medical.config.base import Count, NotNegative, Positive, Section, Share


class Muon(Section):
    lr: Positive = Field(default=0.02, description="learning rate of Muon's group of 2D weights")
    momentum: Share = Field(default=0.95, description="momentum of that group")


class Adam(Section):
    lr: Positive = Field(default=1e-6, description="learning rate; bf16 weights of a small model barely move at 1e-6")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.95), description="decay of the two moments")
    eps: Positive = Field(default=1e-8, description="added to the denominator")
    weight_decay: NotNegative = Field(default=0.0, description="decay of weights, biases and norms excepted")


class CriticAdam(Adam):
    lr: Positive = Field(default=9e-6, description="learning rate of the critic")


class Actor(Section):
    """The policy, or each of the two policies."""

    model_name_or_path: str = Field(min_length=1, description="Hugging Face folder or name that training starts from")
    num_nodes: Count = Field(default=1, description="machines of one policy's workers")
    num_gpus_per_node: Count = Field(
        default=1, description="workers per machine, one GPU each (Upstream: 8; one lets a laptop start)"
    )
    gradient_checkpointing_enable: bool = Field(default=False, description="recompute activations: less memory, slower")
    gradient_checkpointing_reentrant: bool = Field(default=False, description="the reentrant form of that")
    eps_clip: Positive = Field(default=0.2, description="PPO clip range")
    eps_clip_low_high: tuple[Positive, Positive] | None = Field(
        default=None, description="its two sides, where they differ"
    )
    dual_clip: float | None = Field(default=None, gt=1, description="dual-clip PPO (arXiv 1912.09729)")
    policy_loss_type: Literal["ppo", "gspo"] = Field(default="ppo", description="policy loss")
    loss_agg_mode: Literal["token-mean", "seq-mean-token-mean"] = Field(
        default="token-mean", description="every token weighs the same, or every reply"
    )
    aux_loss_coef: NotNegative = Field(default=0.0, description="balancing loss of mixture-of-experts models")
    entropy_coef: Positive | None = Field(default=None, description="entropy bonus in the loss; null gives none")
    optim: Literal["adam", "muon"] = Field(default="adam", description="optimizer")
    muon: Muon = Muon()
    adam: Adam = Adam()
    lr_scheduler: str = Field(
        default="cosine_with_min_lr", description="name of a transformers learning-rate scheduler"
    )
    lr_warmup_ratio: Share = Field(default=0.03, description="share of all optimizer steps spent warming up")
    min_lr_ratio: Share = Field(default=0.1, description="last learning rate, as a share of the highest")
    max_norm: NotNegative = Field(default=1.0, description="gradients are clipped to this norm; 0 switches it off")


class Critic(Section):
    """The value model of estimator gae; not started by any other."""

    model_name_or_path: str | None = Field(default=None, description="what it starts from; null: as the policy")
    num_nodes: Count = Field(default=1, description="machines of the critic workers")
    num_gpus_per_node: Count = Field(
        default=1, description="workers per machine (Upstream: 8; one lets a laptop start)"
    )
    value_clip: Positive = Field(default=0.5, description="clip range of the value loss")
    adam: CriticAdam = CriticAdam()
    lr_scheduler: str = Field(
        default="cosine_with_min_lr", description="name of a transformers learning-rate scheduler"
    )
    lr_warmup_ratio: Share = Field(default=0.03, description="share of all optimizer steps spent warming up")
    min_lr_ratio: Share = Field(default=0.1, description="last learning rate, as a share of the highest")
    max_norm: NotNegative = Field(default=1.0, description="gradients are clipped to this norm; 0 switches it off")


class Ref(Section):
    """The frozen model that KL is measured against; not started when algo.kl.init_coef is 0."""

    num_nodes: Count = Field(default=1, description="machines of the reference workers")
    num_gpus_per_node: Count = Field(
        default=1, description="workers per machine (Upstream: 8; one lets a laptop start)"
    )
    offload: bool = Field(default=False, description="keep the reference weights in CPU memory")


class Vllm(Section):
    num_engines: Count = Field(
        default=1, description="engines of each policy (Upstream: null, which asks for a number)"
    )
    tensor_parallel_size: Count = Field(default=1, description="GPUs of one engine")
    enable_prefix_caching: bool = Field(default=False, description="reuse the cache of shared prompt beginnings")
    enforce_eager: bool = Field(default=False, description="no CUDA graphs; always so without a GPU")
    enable_sleep: bool = Field(
        default=False, description="give GPU memory back between phases (with train.colocate_all)"
    )
    gpu_memory_utilization: float = Field(
        default=0.95, gt=0, le=1, description="share of GPU memory that an engine takes"
    )


class Kl(Section):
    init_coef: NotNegative = Field(default=0.01, description="KL penalty; 0 starts no reference model")
    target: Positive | None = Field(
        default=None, description="the penalty adapts to keep KL here; null keeps it constant"
    )
    horizon: Count = Field(default=10000, description="samples over which it adapts")
    estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1", description="KL estimator: k1 in the reward, k2 or k3 as a loss"
    )
    use_loss: bool = Field(default=False, description="KL as a loss instead of inside the reward")
    unbiased_gradient: bool = Field(default=False, description="with use_loss: the true reverse-KL gradient")


class Advantage(Section):
    estimator: Literal["reinforce", "reinforce_baseline", "rloo", "group_norm", "gae"] = Field(
        default="reinforce",
        description="reinforce is REINFORCE++; the next three compare within a group; gae has a critic (Upstream: gae)",
    )
    gamma: Share = Field(default=1.0, description="discount per token (reinforce and gae)")
    lambd: Share = Field(default=1.0, description="lambda of gae")
    is_correction_level: Literal["off", "token", "seq"] = Field(
        default="off",
        description="correct for engine and trainer disagreeing on log-probabilities: per token or per reply",
    )
    is_correction_mode: Literal["mask", "clip"] = Field(
        default="mask", description="drop what is out of bounds, or clamp it"
    )
    is_correction_gating: Literal["ratio", "binary_kl", "tv"] = Field(
        default="ratio", description="statistic that is bounded"
    )
    is_correction_threshold: tuple[NotNegative, Positive] | tuple[Positive] = Field(
        default=(0.5, 5.0), description="LOW HIGH, or HIGH alone"
    )


class Algo(Section):
    kl: Kl = Kl()
    advantage: Advantage = Advantage()


class Lora(Section):
    """Low-rank adapters instead of all weights; needed by roles.policy adapters."""

    rank: int = Field(default=0, ge=0, description="rank of the adapters; 0 trains all weights")
    alpha: Count = Field(default=16, description="scale of an adapter: alpha over rank")
    target_modules: str | tuple[str, ...] = Field(default="all-linear", description="layers that get one")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout inside the adapters")


class Ds(Section):
    """DeepSpeed, and how models are loaded for training."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2, description="what ZeRO shards: nothing, optimizer, gradients, weights"
    )
    deepcompile: bool = Field(default=False, description="DeepSpeed's compiler")
    param_dtype: Literal["bf16", "fp16"] = Field(default="bf16", description="number format of the weights")
    lora: Lora = Lora()
    load_in_4bit: bool = Field(default=False, description="frozen base in 4 bits (with ds.lora.rank above 0; GPU only)")
    zpg: Count = Field(default=1, description="ZeRO++ partition size (with zero_stage 3)")
    adam_offload: bool = Field(default=False, description="optimizer states in CPU memory")
    attn_implementation: str = Field(
        default="auto",
        description="attention kernel; auto is flash_attention_2 on a GPU and sdpa without "
        "(Upstream: flash_attention_2)",
    )
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm", "deepgemm"] | None = Field(
        default=None, description="how mixture-of-experts layers are computed; null lets transformers choose"
    )
    use_liger_kernel: bool = Field(default=False, description="Liger's fused Triton kernels")
    grad_accum_dtype: Literal["fp32", "fp16", "bf16"] | None = Field(
        default=None, description="number format in which gradients are summed"
    )
    overlap_comm: bool = Field(default=False, description="communicate during the backward pass")
    tensor_parallel_size: Count = Field(default=1, description="GPUs that share one layer in training")
    packing_samples: bool = Field(default=False, description="no padding between samples (needs FlashAttention)")
    ring_attn_size: Count = Field(default=1, description="GPUs that share one long sequence (with packing_samples)")
    ring_attn_head_stride: Count = Field(default=1, description="attention heads per round of the ring")
    enable_sleep: bool = Field(
        default=False, description="give GPU memory back between phases (with train.colocate_all)"
    )


class Reward(Section):
    """Rewards come from game.rewards; this bounds what a learner makes of them."""

    clip_range: tuple[float, float] = Field(
        default=(-10.0, 10.0), description="a trajectory's reward is cut to LOW HIGH"
    )


class Rollout(Section):
    batch_size: Count = Field(
        default=128,
        description="SEEDS per step; each gives game.attacks_per_seed * game.assessments_per_note games "
        "(Upstream: 1024 prompts)",
    )
    micro_batch_size: Count = Field(
        default=1, description="samples per forward pass for log-probabilities, on each worker"
    )
    max_tokens_per_gpu: Count | None = Field(
        default=None, description="with train.dynamic_batch_enable: tokens per forward pass; null: as in training"
    )
    schedule: Literal["pipelined", "lockstep"] = Field(
        default="pipelined",
        description="each game as fast as it can, or all attacks, then all assessments, then one judge call (ours)",
    )
    max_new_tokens: Count = Field(
        default=1024,
        description="longest reply of either role, thoughts included (Upstream: null, whatever still fits)",
    )
    temperature: Positive = Field(default=1.0, description="sampling temperature of both roles")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling of both roles")


class Train(Section):
    batch_size: Count = Field(
        default=128, description="samples per optimizer step, at most: splits a step's samples, whatever their number"
    )
    micro_batch_size: Count = Field(default=1, description="samples per backward pass, on each worker")
    max_epochs: Count = Field(default=1, description="passes over a step's samples")
    seed: int = Field(default=42, ge=0, description="of everything that is drawn: seeds, replies, shuffles")
    dynamic_batch_enable: bool = Field(
        default=False, description="micro-batches of so many tokens instead of samples (with ds.packing_samples)"
    )
    max_tokens_per_gpu: Count = Field(default=16192, description="tokens of such a micro-batch")
    enable_ema: bool = Field(
        default=False,
        description="checkpoints hold a moving average of the weights instead of the last ones (GPU only)",
    )
    ema_beta: Share = Field(default=0.992, description="its decay per optimizer step")
    async_enable: bool = Field(
        default=False, description="play the next games while the update runs: weights are one version older"
    )
    sft_warmup_steps: int = Field(
        default=0, ge=0, description="supervised optimizer steps before self-play, on the seeds' annotations (ours)"
    )
    sft_note_steps: int = Field(
        default=0, ge=0, description="supervised steps before these on writing right notes: knowledge first (ours)"
    )
    sft_thoughts: Literal["name", "recite"] = Field(
        default="name",
        description="the assessor's thoughts: the wrong words and the right ones, or the note as it should read (ours)",
    )
    sft_lr: Positive = Field(
        default=1e-5, description="learning rate of these, after a tenth of them as warm-up (ours)"
    )
    sft_batch_size: Count = Field(default=16, description="examples per supervised optimizer step (ours)")
    sft_coef: NotNegative = Field(
        default=0.0, description="weight of a supervised batch mixed into every optimizer step; 0 mixes none (ours)"
    )
    colocate_actor_ref: bool = Field(default=False, description="policy and reference share GPUs")
    colocate_all: bool = Field(default=False, description="policy, reference and engines share GPUs")


class Ckpt(Section):
    """In <run.dir>/<run.name>/checkpoints: Hugging Face folders, and states that a killed run resumes from."""

    save_steps: int = Field(default=-1, ge=-1, description="save every so many steps; -1 saves at the end only")
    resume_steps: int = Field(
        default=10,
        ge=0,
        description="steps between two states for train --resume; 0: only when a signal or a judge that is gone stops "
        "the run (ours)",
    )
    max_num: Count = Field(default=2, description="such states kept (Upstream: 3)")


class DataFiles(Section):
    train: Path = Field(
        default=Path("data/train.jsonl"), description="seeds to play on (ours; openrlhf-medical prepare-data)"
    )
    sft: Path | None = Field(
        default=None, description="annotated seeds for the warm start and for mixing; null: those of data.train (ours)"
    )
    val: Path = Field(default=Path("data/val.jsonl"), description="held-out seeds for run.eval_games (ours)")
    max_len: Count = Field(default=2048, description="longest prompt and reply together, in tokens")
    disable_fast_tokenizer: bool = Field(default=False, description="use the slow tokenizer")


class Wandb(Section):
    key_file: Path | None = Field(
        default=None,
        description="file with the Weights & Biases key; null logs nothing there (ours, for logger.wandb.key)",
    )
    org: str | None = Field(default=None, description="entity")
    group: str | None = Field(default=None, description="group of runs")
    project: str = Field(default="openrlhf_medical", description="project (Upstream: openrlhf_train_ppo)")


class Logger(Section):
    """Beside metrics.jsonl, which is always written."""

    wandb: Wandb = Wandb()
    tensorboard_dir: Path | None = Field(default=None, description="folder for TensorBoard; null writes none")
