"""A learner: one policy with its DeepSpeed workers, its KL reference and its engines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.batches import Item, plan_update
from openrlhf_medical.learner.experience import SelfPlayExperienceMaker, data_parallel_ranks
from openrlhf_medical.rollout.trajectories import Trajectory, masked_experience
from openrlhf_medical.rollout.weights import WeightStamp

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import (  # noqa: E402  (after prepare_process)
    Experience,
    make_experience_batch,
    split_experience_batch,
)
from openrlhf.trainer.ppo_utils.kl_controller import AdaptiveKLController, FixedKLController  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that each phase may take before the run stops and names who is stuck."""

    update_s: float
    sync_s: float


@dataclass(slots=True)
class Prepared:
    """A step's samples with log-probabilities and advantages, one Experience each, in trajectory order."""

    trajectories: list[Trajectory]
    experiences: list[Experience]
    metrics: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0
    """Mean k1 estimate over all action tokens, for the KL controller."""


class Learner:
    """One policy: prepares samples, updates, sends its weights to its engines, saves itself.

    ``roles`` are those that it plays and trains: both for a shared policy. ``strategy`` is upstream's,
    with a namespace of upstream's options; all methods block until every worker has answered.
    """

    def __init__(
        self,
        name: str,
        roles: Sequence[Role],
        strategy: Any,
        policy: RayActorGroup,
        reference: RayActorGroup | None,
        engines: list[Any],
        pad_token_id: int,
        deadlines: Deadlines,
        places: list[PlacementGroup],
    ):
        self.name, self.roles, self.engines = name, tuple(roles), engines
        self.version = -1
        self.stamp: WeightStamp | None = None
        self._args: SimpleNamespace = strategy.args
        self._policy, self._reference, self._deadlines = policy, reference, deadlines
        self._pad_token_id, self._places = pad_token_id, places
        kl = self._args.algo.kl
        self._kl = AdaptiveKLController(kl.init_coef, kl.target, kl.horizon) if kl.target else FixedKLController(
            kl.init_coef
        )  # fmt: skip
        self._maker = SelfPlayExperienceMaker(
            policy, None, None, reference, self._kl, strategy, pad_token_id=pad_token_id
        )

    # ── From games to updates ──

    def prepare(self, trajectories: list[Trajectory]) -> Prepared:
        """Log-probabilities under policy and reference, and role-wise advantages. Metrics by role:
        ``kl`` (k1, per token), ``entropy`` (−mean log-probability of the sampled tokens, an unbiased
        estimate at temperature 1 and top_p 1), and ``sync/logprob_max_diff`` between engine and policy."""
        stray = {t.role for t in trajectories} - set(self.roles)
        if stray:
            raise ValueError(f"policy {self.name} trains {self.roles}, but was given samples of {stray}")
        stale = {t.policy_version for t in trajectories} - {self.version}
        if stale:
            raise RuntimeError(f"samples of policy {self.name} come from versions {stale}, it is at {self.version}")
        experiences = self._maker.prepare(trajectories)
        metrics = self._sample_metrics(trajectories, experiences)
        tokens = sum(int(e.action_mask.sum()) for e in experiences)
        kl = sum(_kl_of(e) for e in experiences) / tokens
        return Prepared(trajectories, experiences, metrics, kl)

    def update(self, prepared: Prepared, seed: int) -> dict[str, float]:
        """One update on all samples. ``seed`` decides which samples share an optimizer step."""
        items = [Item(t.role.value, t.length) for t in prepared.trajectories]
        train, ranks = self._args.train, data_parallel_ranks(self._args)
        rng = random.Random(seed)
        steps = [
            step
            for _ in range(train.max_epochs)
            for step in plan_update(items, train.batch_size, train.micro_batch_size, ranks, rng)
        ]
        masked = self._masked_like(prepared.experiences[0])

        def batch(indices: tuple[int, ...]) -> tuple[str, Experience]:
            chosen = [prepared.experiences[i] for i in indices]
            role = prepared.trajectories[indices[0]].role.value if indices else ""
            return role, make_experience_batch(chosen or [masked])

        work = [ray.put([[batch(indices) for indices in step[rank]] for step in steps]) for rank in range(ranks)]
        copies = len(self._policy._actor_handlers) // ranks
        references = {
            f"{self.name} policy rank {i}": actor.update.remote(work[i // copies], self._kl.value)
            for i, actor in enumerate(self._policy._actor_handlers)
        }
        results = list(gather(references, self._deadlines.update_s, "update").values())[::copies]
        metrics = _merge_ranks(results)
        self._kl.update(prepared.kl, len(prepared.trajectories))
        return _named(metrics | {"/optimizer_steps": float(len(steps))}, self.roles)

    def _masked_like(self, example: Experience) -> Experience:
        """The masked sample with the tensors that trained samples have, all zero."""
        masked = masked_experience(self._pad_token_id)
        for name in ("action_log_probs", "base_action_log_probs", "values", "returns", "advantages"):
            if getattr(example, name) is not None:
                setattr(masked, name, torch.zeros(1, 1))
        masked.info = {key: torch.zeros(1) for key in example.info}
        return split_experience_batch(masked)[0]

    def _sample_metrics(self, trajectories: list[Trajectory], experiences: list[Experience]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        gaps = torch.cat([(e.action_log_probs - e.rollout_log_probs)[e.action_mask.bool()].abs() for e in experiences])
        metrics["sync/logprob_max_diff"] = gaps.max().item()
        metrics["sync/logprob_mean_diff"] = gaps.mean().item()
        for role in self.roles:
            own = [e for t, e in zip(trajectories, experiences, strict=True) if t.role is role]
            tokens = sum(int(e.action_mask.sum()) for e in own)
            if not tokens:
                continue
            log_probs = sum(float((e.action_log_probs * e.action_mask).sum()) for e in own)
            metrics[f"policy/{role}/entropy"] = -log_probs / tokens
            metrics[f"policy/{role}/tokens"] = float(tokens)
            metrics[f"policy/{role}/samples"] = float(len(own))
            if self._reference is not None:
                kl = sum(_kl_of(e) for e in own)
                metrics[f"policy/{role}/kl"] = kl / tokens
        return metrics

    # ── Weights ──

    def join_engines(self, engine_tensor_parallel_size: int, bucket_bytes: int, *, shares_gpu: bool) -> None:
        """Form the group through which weights travel. Once, after policy and engines are up."""
        references = {
            f"{self.name} policy rank {i}": actor.join_weight_group.remote(
                self.engines, engine_tensor_parallel_size, bucket_bytes, shares_gpu
            )
            for i, actor in enumerate(self._policy._actor_handlers)
        }
        gather(references, self._deadlines.sync_s, "joining policy and engines")

    def sync(self) -> WeightStamp:
        """Send the weights as the next version; every engine must report the same bytes."""
        self.version += 1
        references = {
            f"{self.name} policy rank {i}": actor.send_weights.remote(self.version)
            for i, actor in enumerate(self._policy._actor_handlers)
        }
        stamps = [s for s in gather(references, self._deadlines.sync_s, "weight sync").values() if s is not None]
        self.stamp = stamps[0]
        return self.stamp

    def check_engines(self) -> None:
        """Raises RuntimeError naming every engine that does not hold this policy's current weights."""
        references = {f"{self.name} engine {i}": e.weight_stamp.remote() for i, e in enumerate(self.engines)}
        held = gather(references, self._deadlines.sync_s, "asking engines for their version")
        wrong = {name: stamp for name, stamp in held.items() if stamp != self.stamp}
        if wrong:
            raise RuntimeError(f"engines without the current weights {self.stamp}: {wrong}")

    def save(self, folder: Path) -> None:
        """A folder that transformers and vLLM open. Written beside its place, then renamed."""
        partial = folder.with_name(folder.name + ".partial")
        references = {
            f"{self.name} policy rank {i}": actor.save_to.remote(str(partial))
            for i, actor in enumerate(self._policy._actor_handlers)
        }
        gather(references, self._deadlines.update_s, "saving the policy")
        partial.rename(folder)

    def stop(self) -> None:
        """End every worker and engine of this policy and give their places back."""
        workers = [*self._policy._actor_handlers, *(self._reference._actor_handlers if self._reference else [])]
        for actor in [*workers, *self.engines]:
            ray.kill(actor)
        for place in self._places:
            remove_placement_group(place)

    def each_rank(self, method: str, *args: Any) -> list[Any]:
        """Call a worker method on all ranks: for tests and audits."""
        references = {f"{self.name} policy rank {i}": getattr(actor, method).remote(*args)
                      for i, actor in enumerate(self._policy._actor_handlers)}  # fmt: skip
        return list(gather(references, self._deadlines.update_s, method).values())


def _kl_of(experience: Experience) -> float:
    """Sum over action tokens of the k1 estimate. With KL as a loss upstream leaves ``info["kl"]`` at zero
    and keeps the reference's log-probabilities instead."""
    if experience.base_action_log_probs is not None:
        gap = experience.action_log_probs - experience.base_action_log_probs
        return float((gap * experience.action_mask).sum())
    return float(experience.info["kl"]) * int(experience.action_mask.sum())


def _merge_ranks(results: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """``{"role/metric": value}``: token-weighted means over ranks; role "" is equal on all."""
    merged = {f"/{name}": value for name, value in results[0][""].items()}
    for role in {role for result in results for role in result} - {""}:
        own = [result[role] for result in results if role in result]
        tokens = sum(part["tokens"] for part in own)
        for name in own[0]:
            if name != "tokens":
                merged[f"{role}/{name}"] = sum(part[name] * part["tokens"] for part in own) / tokens
    return merged


def _named(merged: dict[str, float], roles: Sequence[Role]) -> dict[str, float]:
    """``policy/<role>/<metric>`` for every role of the policy. The gradient is the policy's: with a shared
    policy both roles show the same norm."""
    named: dict[str, float] = {}
    for key, value in merged.items():
        owner, metric = key.split("/", 1)
        named |= {f"policy/{role}/{metric}": value for role in roles if owner in ("", role.value)}
    return named
