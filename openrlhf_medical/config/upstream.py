"""From our configuration to the nested options that OpenRLHF's workers read as ``strategy.args``.

Upstream's parser and its checks live under ``if __name__ == "__main__"`` and cannot be called. A unit
test reads that parser's source and compares every name and default with the tables below.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from openrlhf_medical.config.run_config import RunConfig
from openrlhf_medical.errors import UserError


class NotOffered(NamedTuple):
    """An upstream option that a run of ours would not read, or that another key decides."""

    default: Any
    why: str


_CRITIC = "the critic of estimator gae learns with Adam, beside the policy, and is no result of a run"
_REWARD_MODEL = "the truth comes from judge.urls and the rewards from game.rewards"
_DATASET = "games are played on the seeds in data.train, made by openrlhf-medical prepare-data"
_EVAL = "held-out games are set by run.eval_games"
_ASYNC = "asynchronous games are at most one version old and never split over two"
_SYNC = "weight sync is ours and chooses by the hardware"
_FILTER = "a game without a result is dropped (game.ties); there is no other filter"
_IMAGES = "notes are text"
_IGNORED = "DeepSpeed ignores it"
_CHECKPOINTS = "every checkpoint is a Hugging Face folder and is kept"
_RUN_FOLDER = "a run's files lie in <run.dir>/<run.name>"

NOT_OFFERED: dict[str, NotOffered] = {
    "reward.num_nodes": NotOffered(1, _REWARD_MODEL),
    "reward.num_gpus_per_node": NotOffered(8, _REWARD_MODEL),
    "reward.normalize_enable": NotOffered(False, _REWARD_MODEL),
    "reward.overlong_buffer_len": NotOffered(None, "a truncated reply is a forfeit or unparsable; see game.rewards"),
    "reward.overlong_penalty_factor": NotOffered(1, "a truncated reply is a forfeit or unparsable; see game.rewards"),
    "reward.stop_properly_penalty_coef": NotOffered(
        None, "a truncated reply is a forfeit or unparsable; see game.rewards"
    ),
    "reward.model_name_or_path": NotOffered(None, _REWARD_MODEL),
    "reward.remote_url": NotOffered(None, _REWARD_MODEL),
    "reward.offload": NotOffered(False, _REWARD_MODEL),
    "critic.freezing_steps": NotOffered(-1, _CRITIC),
    "critic.save_value_network": NotOffered(False, _CRITIC),
    "critic.optim": NotOffered("adam", _CRITIC),
    "critic.muon.lr": NotOffered(0.02, _CRITIC),
    "critic.muon.momentum": NotOffered(0.95, _CRITIC),
    "critic.muon.ns_steps": NotOffered(5, _CRITIC),
    "critic.muon.nesterov": NotOffered(True, _CRITIC),
    "train.colocate_critic_reward": NotOffered(False, _CRITIC),
    "ds.value_head_prefix": NotOffered("score", _CRITIC),
    "actor.muon.ns_steps": NotOffered(5, _IGNORED),
    "actor.muon.nesterov": NotOffered(True, _IGNORED),
    "actor.freeze_visual_encoder": NotOffered(False, _IMAGES),
    "data.image_key": NotOffered("images", _IMAGES),
    "data.max_images_per_prompt": NotOffered(0, _IMAGES),
    "vllm.sync_backend": NotOffered("nccl", _SYNC),
    "vllm.sync_with_ray": NotOffered(False, _SYNC),
    "train.async_queue_size": NotOffered(1, _ASYNC),
    "train.partial_rollout_enable": NotOffered(False, _ASYNC),
    "algo.advantage.no_std_norm": NotOffered(False, "each role's advantages are always whitened"),
    "train.num_episodes": NotOffered(1, "a run's length is run.steps"),
    "train.full_determinism_enable": NotOffered(False, "run.deterministic does this and more"),
    "train.agent_func_path": NotOffered(None, "our own manager plays the games"),
    "rollout.n_samples_per_prompt": NotOffered(1, "groups are game.attacks_per_seed and game.assessments_per_note"),
    "rollout.vllm_generate_batch_size": NotOffered(None, "each game runs on its own, as fast as it can"),
    "algo.dynamic_filtering_enable": NotOffered(False, _FILTER),
    "algo.dynamic_filtering_range": NotOffered((0, 1), _FILTER),
    "eval.steps": NotOffered(-1, _EVAL),
    "eval.dataset": NotOffered(None, _EVAL),
    "eval.split": NotOffered("train", _EVAL),
    "eval.temperature": NotOffered(0.6, _EVAL),
    "eval.n_samples_per_prompt": NotOffered(4, _EVAL),
    "ckpt.path": NotOffered("./ckpt/checkpoints_ppo_ray", _RUN_FOLDER),
    "ckpt.output_dir": NotOffered("./ckpt", _RUN_FOLDER),
    "ckpt.save_hf": NotOffered(False, _CHECKPOINTS),
    "ckpt.disable_ds": NotOffered(False, _CHECKPOINTS),
    "ckpt.max_mem": NotOffered(float("inf"), "ckpt.max_num says how many states are kept"),
    "ckpt.load_enable": NotOffered(False, "openrlhf-medical train --resume auto goes on with a run"),
    "ckpt.best_metric_key": NotOffered("", "which checkpoint is best is not decided during a run"),
    "ds.use_universal_ckpt": NotOffered(False, "a run resumes on as many workers as it had"),
    "data.dataloader_num_workers": NotOffered(0, _DATASET),
    "data.max_samples": NotOffered(int(1e8), _DATASET),
    "data.prompt_dataset": NotOffered(None, _DATASET),
    "data.prompt_probs": NotOffered(None, _DATASET),
    "data.prompt_split": NotOffered("train", _DATASET),
    "data.input_key": NotOffered("input", _DATASET),
    "data.label_key": NotOffered(None, _DATASET),
    "data.input_template": NotOffered(None, _DATASET),
    "data.apply_chat_template": NotOffered(False, "the tokenizer's chat template is always used"),
    "logger.logging_steps": NotOffered(1, "metrics.jsonl has one line for every step"),
    "logger.wandb.key": NotOffered(None, "a key in a configuration ends up in the run's folder: logger.wandb.key_file"),
    "logger.wandb.run_name": NotOffered(None, "it is run.name"),
    "local_rank": NotOffered(-1, "Ray places the workers"),
    "use_ms": NotOffered(False, "give actor.model_name_or_path a folder instead of a ModelScope name"),
}
"""Every upstream option that is no key of ours, with upstream's default."""

OURS = (
    *("run.", "roles.", "game.", "judge.", "data.train", "data.sft", "data.val", "logger.wandb.key_file"),
    *("rollout.schedule", "train.sft_", "ckpt.resume_steps"),
)
"""Beginnings of keys that upstream does not have."""


_SFT = ("sft_warmup_steps", "sft_note_steps", "sft_thoughts", "sft_lr", "sft_batch_size", "sft_coef")


def upstream_options(config: RunConfig) -> dict[str, Any]:
    """All upstream options as one nested dict: ours where we offer them, upstream's defaults elsewhere.

    Done as upstream's ``__main__`` does after parsing: two-sided clip range, two-sided threshold.
    ``ds.attn_implementation`` may still be ``auto``: ask ``devices.attention``.

    Raises:
        UserError: ``logger.wandb.key_file`` cannot be read.
    """
    options: dict[str, Any] = {}
    for key, entry in NOT_OFFERED.items():
        _put(options, key, entry.default)
    for section, values in config.model_dump().items():
        if not any(beginning == section + "." for beginning in OURS):
            _merge(options.setdefault(section, {}), values)
    _settle(options, config)
    return options


def _settle(options: dict[str, Any], config: RunConfig) -> None:
    """Values that follow from others, and the ones that our keys decide."""
    for section, names in (("data", ("train", "sft", "val")), ("rollout", ("schedule",)), ("train", _SFT),
                           ("ckpt", ("resume_steps",))):  # fmt: skip
        for name in names:
            del options[section][name]
    actor, advantage = options["actor"], options["algo"]["advantage"]
    options["critic"]["model_name_or_path"] = config.critic.model_name_or_path or config.actor.model_name_or_path
    # Micro-batches by tokens are planned by us: upstream's own reads its replay buffer, which we do not fill.
    options["train"]["dynamic_batch_enable"] = False
    actor["eps_clip_low_high"] = list(actor["eps_clip_low_high"] or (actor["eps_clip"],) * 2)
    threshold = list(advantage["is_correction_threshold"])
    advantage["is_correction_threshold"] = threshold if len(threshold) == 2 else [0.0, *threshold]
    options["rollout"]["vllm_generate_batch_size"] = config.rollout.batch_size
    options["train"]["full_determinism_enable"] = config.run.deterministic
    options["train"]["num_episodes"] = config.run.steps
    checkpoints = str(config.run.folder / "checkpoints")
    options["ckpt"] |= {"path": checkpoints, "output_dir": checkpoints}
    logger, wandb = options["logger"], options["logger"]["wandb"]
    logger["tensorboard_dir"] = str(logger["tensorboard_dir"]) if logger["tensorboard_dir"] else None
    wandb["run_name"] = config.run.name
    wandb["key"] = _read_key(config)
    del wandb["key_file"]


def _read_key(config: RunConfig) -> str | None:
    path = config.logger.wandb.key_file
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise UserError(f"logger.wandb.key_file {path} cannot be read: {error.strerror}") from None


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value
