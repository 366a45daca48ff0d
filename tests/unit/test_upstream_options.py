"""Upstream's options do what they say: from a key of ours, through ``upstream_options``, into upstream's own code.

One test for each option that a run passes through, and one for each refusal of what cannot work together.
Upstream's trainer and worker run as they are; only what needs processes or a GPU is replaced. Numbers are
derived by hand.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf_medical import assembly, devices
from openrlhf_medical.config import check_hardware, load_config, upstream_options
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.batches import Item, plan_micro_batches
from openrlhf_medical.learner.experience import SelfPlayExperienceMaker
from openrlhf_medical.learner.workers import SelfPlayStrategy, _PolicyWorker
from openrlhf_medical.rollout.trajectories import Trajectory

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray import ppo_actor  # noqa: E402

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"
WORKER = ppo_actor.PolicyModelActor.__ray_metadata__.modified_class
"""Upstream's class under Ray's decorator."""


def configure(*words: str) -> Any:
    return load_config(None, ["--run.name", "t", "--actor.model_name_or_path", str(TINY), *words])


def args_of(*words: str) -> Any:
    """Upstream's ``strategy.args``."""
    return assembly._namespace(upstream_options(configure(*words)))


# ── What reaches upstream's loss: its trainer's own training step on two tokens ──


class Policy(torch.nn.Module):
    """Stands in for upstream's Actor: log-probabilities -1, an entropy of 2 for each of two tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.log_probs = torch.nn.Parameter(torch.full((1, 2), -1.0))

    def forward(self, *inputs: Any, return_entropy: bool, **options: Any) -> Any:
        return self.log_probs, SimpleNamespace(entropy=torch.full((1, 2), 2.0) if return_entropy else None)


class Strategy:
    """Notes what upstream's trainer does with the loss."""

    ring_attn_group = None

    def __init__(self, args: Any) -> None:
        self.args = args
        self.loss = math.nan
        self.averaged: list[tuple[Any, float]] = []

    def backward(self, loss: torch.Tensor, model: Any, optimizer: Any) -> None:
        self.loss = loss.item()
        loss.backward()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...

    def get_grad_norm(self, model: Any) -> float:
        return 0.0

    def moving_average(self, model: Any, averaged: Any, beta: float, device: str) -> None:
        self.averaged.append((averaged, beta))


def sample() -> Experience:
    return Experience(
        sequences=torch.ones(1, 3, dtype=torch.long),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        action_mask=torch.ones(1, 2, dtype=torch.long),
        action_log_probs=torch.full((1, 2), -1.0),
        base_action_log_probs=torch.full((1, 2), -3.0),
        rollout_log_probs=torch.tensor([[-1.0, -1.0 - math.log(10)]]),
        advantages=torch.ones(1, 2),
        info={},
    )


def training_step(monkeypatch: pytest.MonkeyPatch, *words: str, averaged: Any = None) -> tuple[Strategy, Policy]:
    """One call of upstream's ``ActorPPOTrainer.training_step``: advantages 1, policy as before (ratio 1), engine's
    log-probabilities -1 and -1 - ln 10 (trainer over engine: 1 and 10), reference's -3, KL coefficient 0.1."""
    monkeypatch.setattr(ppo_actor, "torch_dist_barrier_and_cuda_sync", lambda: None)
    strategy, policy = Strategy(args_of(*words)), Policy()
    trainer = ppo_actor.ActorPPOTrainer(
        strategy, policy, averaged, None, SimpleNamespace(get_last_lr=lambda: [0.0]),
        ema_beta=strategy.args.train.ema_beta,
    )  # fmt: skip
    trainer.training_step(sample(), 0.1, 0, {})
    return strategy, policy


def test_the_entropy_that_is_told_is_that_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's is a micro-batch's share of the step's mean; every token of ours has an entropy of 2."""
    monkeypatch.setattr(ppo_actor, "torch_dist_barrier_and_cuda_sync", lambda: None)
    args, policy = args_of("--actor.entropy_coef", "0.01"), Policy()
    policy.model = SimpleNamespace(set_gradient_accumulation_boundary=lambda last: None)
    worker: Any = object.__new__(_PolicyWorker)
    worker.strategy, worker.actor = Strategy(args), policy
    worker.actor_scheduler = SimpleNamespace(get_last_lr=lambda: [0.0])
    worker.trainer = ppo_actor.ActorPPOTrainer(worker.strategy, policy, None, None, worker.actor_scheduler)
    masked = sample()
    masked.action_mask = torch.zeros_like(masked.action_mask)
    steps = [[("attacker", sample()) for _ in range(3)] + [("assessor", sample()), ("", masked)] for _ in range(2)]
    metrics = worker.update(steps, 0.1)
    assert set(metrics) == {"attacker", "assessor", ""}
    assert metrics["attacker"]["token_entropy"] == metrics["assessor"]["token_entropy"] == pytest.approx(2.0)
    assert (metrics["attacker"]["tokens"], metrics["assessor"]["tokens"]) == (12, 4)


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        (["off"], -1.0),  # mean of -1, -1
        (["token"], -0.5),  # 10 is above 5: that token is dropped
        (["token", "--algo.advantage.is_correction_mode", "clip"], -3.0),  # -1 and -5
        (["token", "--algo.advantage.is_correction_threshold", "20"], -5.5),  # an upper bound alone: -1 and -10
        (["seq"], -5.5),  # the reply's mean ratio is √10, within bounds
        (["seq", "--algo.advantage.is_correction_threshold", "0.5", "3"], 0.0),  # and without: the whole reply goes
        # p = e^-1 / 10 for the engine, q = e^-1 for the trainer: |p - q| = 0.33 for one token, 0 for the other
        (["token", "--algo.advantage.is_correction_gating=tv", "--algo.advantage.is_correction_threshold=0.3"], -0.5),
    ],
)
def test_importance_sampling(words: list[str], loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, _ = training_step(monkeypatch, "--algo.advantage.is_correction_level", *words)
    assert strategy.loss == pytest.approx(loss)


@pytest.mark.parametrize(
    ("words", "loss", "gradient"),
    [
        ([], -1.0, -0.5),  # KL is in the reward, so in no loss: -1/2 from each of two tokens
        # log π/π_ref = 2. k2 = 2 with gradient 2; k3 = e^-2 - 1 + 2 with gradient 1 - e^-2
        (["--algo.kl.use_loss", "--algo.kl.estimator", "k2"], -1 + 0.1 * 2, -0.5 + 0.05 * 2),
        (
            ["--algo.kl.use_loss", "--algo.kl.estimator", "k3"],
            -1 + 0.1 * (1 + math.exp(-2)),
            -0.5 + 0.05 * (1 - math.exp(-2)),
        ),
        # the value of k1 = 2, whose own gradient is 1, with the gradient of k2
        (["--algo.kl.use_loss", "--algo.kl.unbiased_gradient"], -1 + 0.1 * 2, -0.5 + 0.05 * 2),
    ],
)
def test_kl_as_a_loss(words: list[str], loss: float, gradient: float, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, policy = training_step(monkeypatch, *words)
    assert strategy.loss == pytest.approx(loss)
    assert policy.log_probs.grad is not None
    assert policy.log_probs.grad[0].tolist() == pytest.approx([gradient, gradient])


def test_entropy_bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropy 2, weighted by 0.1 and taken off the loss."""
    strategy, _ = training_step(monkeypatch, "--actor.entropy_coef", "0.1")
    assert strategy.loss == pytest.approx(-1 - 0.2)


# ── ZeRO: a rank that is alone shards nothing ──


@pytest.mark.parametrize(
    ("ranks", "words", "stage"),
    [(1, [], 1), (2, [], 2), (1, ["--ds.zero_stage", "3"], 3), (1, ["--ds.adam_offload", "true"], 2)],
)
def test_one_rank_adds_gradients_up_in_place(ranks: int, words: list[str], stage: int) -> None:
    strategy = assembly.strategy_of(configure(*words))
    strategy.world_size = ranks
    assert strategy.get_ds_train_config()["zero_optimization"]["stage"] == stage


# ── KL in the reward: upstream's experience maker ──


class Group:
    """Stands in for a group of workers: the same log-probability for every token."""

    def __init__(self, log_prob: float) -> None:
        self._log_prob = log_prob

    def answer(self, inputs: dict[str, Any]) -> list[torch.Tensor]:
        return [mask * self._log_prob for mask in inputs["action_mask"]]


class OfflineMaker(SelfPlayExperienceMaker):
    def _share_cores(self) -> bool:
        return False

    def _dispatch_forward(self, group: Any, sync_condition: bool, **inputs: Any) -> list[Any]:
        return group.answer(inputs)

    def _flatten_results(self, references: list[Any], duplicate_factor: int) -> list[Any]:
        return references if isinstance(references, list) else [None] * len(self._trajectories)


@pytest.mark.parametrize(
    ("words", "total"),
    [
        ([], 1 - 0.1 * 2 * 0.5),  # k1: log π/π_ref = 0.5 on each of two tokens
        (["--algo.kl.estimator", "k2"], 1 - 0.1 * 2 * 0.125),  # its half square
        (["--algo.kl.use_loss", "--algo.kl.estimator", "k2"], 1.0),  # nothing twice
    ],
)
def test_kl_in_the_reward(words: list[str], total: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import openrlhf.trainer.ppo_utils.experience_maker as upstream

    monkeypatch.setattr(upstream.ray, "put", lambda value: SimpleNamespace(held=value))
    args = args_of("--rollout.micro_batch_size", "1", *words)
    maker = OfflineMaker(
        Group(-1.0), None, None, Group(-1.5), SimpleNamespace(value=0.1), SimpleNamespace(args=args),
        pad_token_id=0, timeout_s=1.0,
    )  # fmt: skip
    sample = Trajectory(Role.ASSESSOR, 0, "g", "vanilla_benign", (5, 6), (7, 8), (-1.0, -1.0), 1.0)
    [experience] = maker.prepare([sample])
    assert float(experience.info["return"]) == pytest.approx(total)


# ── Moving average ──


class Engine(torch.nn.Module):
    """A weight inside what DeepSpeed wraps; ``boundary``: whether this micro-batch completes a gradient."""

    def __init__(self, weight: float, boundary: bool = True) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.model.weight, weight)
        self.model.is_gradient_accumulation_boundary = lambda: boundary  # type: ignore[assignment]


def test_moving_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's trainer asks for it after every micro-batch, with our decay; it happens once for each optimizer
    step: 0.9 * 1 + 0.1 * 5 = 1.4."""
    words = ["--train.enable_ema", "--train.ema_beta", "0.9"]
    averaged = Engine(1.0)
    strategy, _ = training_step(monkeypatch, *words, averaged=averaged)
    assert strategy.averaged == [(averaged, 0.9)]

    own = assembly.strategy_of(configure(*words))
    assert isinstance(own, SelfPlayStrategy)
    own.accumulated_gradient = 1  # what setup_distributed says
    for boundary in (False, False, True):
        own.moving_average(Engine(5.0, boundary), averaged, 0.9, "cpu")
    assert averaged.model.weight.item() == pytest.approx(1.4)


# ── What upstream's worker builds ──


class Built(Exception):
    """Ends the worker's start where DeepSpeed would begin."""


def worker_models(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Any]:
    """The models that upstream's policy worker makes of these options: the policy, and what follows it."""
    assert (TINY / "config.json").exists(), "models/tiny is missing: run ./launch/setup.sh --dev"
    models: list[Any] = []
    make = ppo_actor.Actor

    def build(*args: Any, **options: Any) -> Any:
        models.append(make(*args, **options))
        return models[-1]

    def prepare(*args: Any) -> None:
        raise Built

    monkeypatch.setattr(ppo_actor, "Actor", build)
    args = args_of("--ds.attn_implementation", "sdpa", *words)
    strategy = SimpleNamespace(
        args=args, prepare=prepare, print=lambda *a: None, get_ds_train_config=lambda: None,
        get_ds_eval_config=lambda offload: None,
    )  # fmt: skip
    worker = object.__new__(WORKER)
    worker._setup_distributed = lambda strategy: None
    with pytest.raises(Built):
        worker.init_model_from_pretrained(strategy, str(TINY), 10, None)
    return models


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--ds.lora.rank", "8", "--ds.lora.alpha", "32", "--ds.lora.dropout", "0.25"]
    [policy] = worker_models(monkeypatch, *words, "--ds.lora.target_modules", "[q_proj, v_proj]")
    learned = trainable(policy)
    assert learned and all("lora_" in name for name in learned)
    assert {p.shape[0] for name, p in learned.items() if "lora_A" in name} == {8}
    assert all("q_proj" in name or "v_proj" in name for name in learned)
    settings = policy.model.peft_config["default"]
    assert (settings.lora_alpha, settings.lora_dropout) == (32, 0.25)
    [whole] = worker_models(monkeypatch)
    assert not any("lora_" in name for name in trainable(whole))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(monkeypatch: pytest.MonkeyPatch, reentrant: bool) -> None:
    words = [
        "--actor.gradient_checkpointing_enable",
        "--actor.gradient_checkpointing_reentrant",
        str(reentrant).lower(),
    ]
    [policy] = worker_models(monkeypatch, *words)
    assert policy.model.is_gradient_checkpointing
    found = {m._gradient_checkpointing_func.keywords["use_reentrant"] for m in policy.modules()
             if getattr(m, "gradient_checkpointing", False)}  # fmt: skip
    assert found == {reentrant}
    [plain] = worker_models(monkeypatch)
    assert not plain.model.is_gradient_checkpointing


def test_a_second_model_for_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(worker_models(monkeypatch, "--train.enable_ema")) == 2
    assert len(worker_models(monkeypatch)) == 1


def test_4bit_packing_and_liger_are_read_by_upstreams_worker() -> None:
    """GPU only, so by its source."""
    source = inspect.getsource(WORKER.init_model_from_pretrained)
    for place in ("ds.load_in_4bit", "ds.packing_samples", "ds.use_liger_kernel"):
        assert f"strategy.args.{place}" in source


# ── Dynamic batches: planned here, because upstream's own plan reads a replay buffer that we do not fill ──


def test_dynamic_batches_respect_the_number_of_tokens() -> None:
    lengths = [90, 60, 40, 30, 30, 20, 10]
    items = [Item("assessor", n) for n in lengths]
    [plan] = plan_micro_batches(items, range(len(items)), 1, 1, max_tokens=100)
    assert sorted(i for batch in plan for i in batch) == list(range(len(items)))
    assert all(sum(lengths[i] for i in batch) <= 100 for batch in plan)
    assert len(plan) == 3, "280 tokens in three batches of 100"
    assert plan_micro_batches([Item("assessor", 500)], [0], 1, 1, max_tokens=100) == [[(0,)]], "alone, but not lost"


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ([], (None, None)),
        (["--train.dynamic_batch_enable", "--ds.packing_samples"], (5000, 5000)),
        (
            ["--train.dynamic_batch_enable", "--ds.packing_samples", "--rollout.max_tokens_per_gpu", "9000"],
            (9000, 5000),
        ),
    ],
)
def test_dynamic_batches_reach_the_learner(
    words: list[str], limits: tuple[int | None, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As (forward passes, training); upstream is told nothing of it."""
    made: list[dict[str, Any]] = []
    group = SimpleNamespace(async_init_model_from_pretrained=lambda *a: [])
    monkeypatch.setattr(assembly, "reserve", lambda *a: None)
    monkeypatch.setattr(assembly, "_workers", lambda *a: group)
    monkeypatch.setattr(assembly, "Learner", lambda *a, **kw: made.append(kw))
    limit = ["--train.max_tokens_per_gpu", "5000"] if words else []
    config = configure("--roles.policy", "shared", *limit, *words)
    assembly._start_base(config, {"shared": tuple(Role)}, dict.fromkeys(Role, "m"), 0, None, None, {})
    assert [own["max_tokens"] for own in made] == [limits]
    assert upstream_options(config)["train"]["dynamic_batch_enable"] is False


# ── What cannot work together ──

ONE_SIDE = ["--roles.train", "assessor"]
LORA = ["--ds.lora.rank", "8"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # who learns, and against whom
        (["--roles.opponent", "base"], ["roles.opponent base", "roles.train is both", "attacker or assessor"]),
        ([*ONE_SIDE, "--roles.opponent", "pool"], ["roles.policy separate", "roles.policy to shared"]),
        ([*ONE_SIDE, "--roles.opponent", "current"], ["roles.policy separate", "base or checkpoint"]),
        ([*ONE_SIDE, "--roles.opponent", "checkpoint"], ["roles.checkpoint", "set both or neither"]),
        ([*ONE_SIDE, "--roles.checkpoint", "f"], ["roles.checkpoint", "set both or neither"]),
        (["--judge.probe_count", "8"], ["judge.probe_count is set", "only with judge.probe_every above 0"]),
        (["--judge.probe_alarm", "0.7"], ["judge.probe_alarm is set", "only with judge.probe_every above 0"]),
        (
            [*ONE_SIDE, "--roles.policy=shared", "--roles.opponent=pool", "--roles.pool.share=0.9"],
            ["roles.pool.share is set", "only with roles.train both"],
        ),
        (["--judge.token_file", "f"], ["judge.token_file is set", "only with judge.urls"]),
        (
            ["--train.sft_coef=1", "--train.sft_batch_size=1", "--roles.policy=shared"],
            ["train.sft_batch_size 1", "both roles", "at least 2"],
        ),
        (
            [*ONE_SIDE, *LORA, "--roles.policy=adapters", "--roles.opponent=checkpoint", "--roles.checkpoint=f",
             "--train.sft_warmup_steps=5"],
            ["roles.opponent checkpoint", "another than it was trained on", "train.sft_warmup_steps"],
        ),
        # health
        (["--run.health.entropy_nats", "0"], ["run.health.entropy_nats is 0", "above 0"]),
        (["--run.health.one_sided_share", "0.6"], ["run.health.one_sided_share (0.6)", "more than 1"]),
        (["--run.health.able_share", "0.6"], ["run.health.able_share is 0.6", "run.health.violation_share (0.5)"]),
        (["--roles.pool.size", "6"], ["roles.pool is set", "only with roles.opponent pool", "remove roles.pool"]),
        (["--roles.opponent", "pool", "--roles.pool.share", "0"], ["roles.pool.share 0", "roles.opponent to current"]),
        (
            ["--train.sft_coef=1", "--ds.ring_attn_size=2", "--ds.packing_samples", "--actor.num_gpus_per_node=2"],
            ["train.sft_coef and train.sft_warmup_steps", "set ds.ring_attn_size 1"],
        ),
        # games of the version before
        (
            ["--train.async_enable", "--train.colocate_all", "--algo.advantage.is_correction_level=token"],
            ["train.async_enable", "train.colocate_all", "remove one of them"],
        ),
        (["--train.async_enable"], ["train.async_enable", "is_correction_level to token or seq"]),
        # estimators
        (["--algo.advantage.estimator=rloo"], ["game.attacks_per_seed is 1", "game.assessments_per_note is 1",
                                               "at least 2"]),
        (["--algo.advantage.estimator=group_norm", *ONE_SIDE], ["game.assessments_per_note is 1", "at least 2"]),
        (
            ["--algo.advantage.estimator=rloo", *ONE_SIDE, "--game.assessments_per_note=2",
             "--algo.advantage.gamma=0.9"],
            ["algo.advantage.gamma is 0.9", "rloo", "set it to 1"],
        ),
        (["--algo.advantage.lambd", "0.9"], ["algo.advantage.lambd", "estimator gae", "remove"]),
        (["--critic.value_clip", "0.1"], ["critic is set", "only with algo.advantage.estimator gae", "remove critic"]),
        (
            ["--algo.advantage.estimator=gae", "--critic.num_gpus_per_node=2"],
            ["critic.num_gpus_per_node is 2", "actor.num_gpus_per_node is 1", "make them equal"],
        ),
        # adapters
        (["--roles.policy", "adapters"], ["roles.policy adapters", "ds.lora.rank above 0"]),
        (["--ds.load_in_4bit"], ["ds.load_in_4bit", "only with ds.lora.rank above 0"]),
        (["--ds.lora.alpha", "8"], ["ds.lora.alpha is set", "only with ds.lora.rank above 0"]),
        ([*LORA, "--roles.policy=adapters", "--ds.zero_stage=3"], ["ds.zero_stage 3", "set 2"]),
        ([*LORA, "--train.enable_ema"], ["train.enable_ema", "ds.lora.rank above 0"]),
        ([*LORA, "--algo.advantage.estimator=gae"], ["estimator gae", "ds.lora.rank", "another estimator"]),
        # kernels and sizes
        (["--train.dynamic_batch_enable"], ["train.dynamic_batch_enable", "set ds.packing_samples true"]),
        (["--algo.kl.use_loss"], ["algo.kl.use_loss", "estimator k1", "k2 or k3"]),
        (["--ds.enable_sleep"], ["ds.enable_sleep", "set train.colocate_all true"]),
        (["--actor.aux_loss_coef", "0.1"], ["actor.aux_loss_coef", "set it to 0"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else None,
)  # fmt: skip
def test_refused_with_what_to_change(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        configure(*words)
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def test_one_side_needs_groups_of_its_own_only() -> None:
    configure("--algo.advantage.estimator=rloo", *ONE_SIDE, "--game.assessments_per_note=2")


@pytest.mark.parametrize(
    ("words", "key", "reason"),
    [
        (["--train.dynamic_batch_enable", "--ds.packing_samples"], "train.dynamic_batch_enable", "FlashAttention"),
        (["--train.enable_ema"], "train.enable_ema", "the device cuda"),
        (["--ds.load_in_4bit", *LORA], "ds.load_in_4bit", "bitsandbytes"),
        (["--ds.packing_samples", "--ds.ring_attn_size=2", "--actor.num_gpus_per_node=2"], "ds.ring_attn_size",
         "FlashAttention"),
    ],
)  # fmt: skip
def test_refused_without_a_gpu_only(words: list[str], key: str, reason: str) -> None:
    config = configure(*words)
    check_hardware(config, has_gpu=True)
    with pytest.raises(UserError, match=rf"no GPU.*{key} \([^)]*{reason}.*remove what is named"):
        check_hardware(config, has_gpu=False)
