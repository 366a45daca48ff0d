"""A learner: one policy with its DeepSpeed workers, its KL reference and its engines."""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather
from openrlhf_medical.errors import RunError
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.adapters import AdapterFiles
from openrlhf_medical.learner.batches import Item, plan_micro_batches, plan_update
from openrlhf_medical.learner.experience import (
    SelfPlayExperienceMaker,
    data_parallel_ranks,
    drop_thinned,
    equal_reward_shares,
)
from openrlhf_medical.learner.measures import kl_of, merge_ranks, named_by_role, sample_metrics
from openrlhf_medical.learner.supervised import SupervisedExamples
from openrlhf_medical.learner.workers import SUPERVISED, RoleBatch, rank_file
from openrlhf_medical.rollout.engines import adapter_checksum
from openrlhf_medical.rollout.fleet import Fleet
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


INNER = 0.9
"""Share of a sync's deadline that a worker itself waits for engines: it knows which one it waits for."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The Ray actors of one policy. With adapters two learners share them, and the reference is the policy
    with its adapters off; ``places`` are then the first one's alone."""

    policy: RayActorGroup
    reference: Any = None
    critic: RayActorGroup | None = None
    places: tuple[PlacementGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class Supervision:
    """Supervised examples beside the games: ``batch_size`` of them in every optimizer step, their mean
    cross-entropy weighted by ``coefficient``."""

    examples: SupervisedExamples
    batch_size: int
    coefficient: float


@dataclass(slots=True)
class Prepared:
    """A step's samples with log-probabilities and advantages, one Experience each, in trajectory order."""

    trajectories: list[Trajectory]
    experiences: list[Experience]
    metrics: dict[str, float] = field(default_factory=dict)
    kl: float = 0.0
    """Mean k1 estimate over all action tokens, for the KL controller."""


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """One call of the workers at a time: a replaced engine gets its weights from a thread of its own, and two
    collective calls that reach the ranks in different order would wait for each other for ever."""

    @functools.wraps(method)
    def locked(learner: Learner, *args: Any, **options: Any) -> Any:
        with learner._workers_free:
            return method(learner, *args, **options)

    return locked


class Learner:
    """One policy: prepares samples, updates, sends its weights to its engines, saves itself.

    ``roles`` are those that it trains: both for a shared policy. ``strategy`` is upstream's, with a
    namespace of upstream's options. ``adapter``: the policy is this LoRA adapter on its workers' base.
    ``staleness``: how many versions old a sample may be. All methods block until every worker has answered.

    An engine that is replaced while an update runs waits for its end, and gets what the next sync will send, under
    that version.
    """

    def __init__(
        self,
        name: str,
        roles: Sequence[Role],
        strategy: Any,
        workers: Workers,
        engines: Fleet | None,
        pad_token_id: int,
        deadlines: Deadlines,
        *,
        adapter: str = "",
        max_tokens: tuple[int | None, int | None] = (None, None),
        supervision: Supervision | None = None,
        staleness: int = 0,
    ):
        """``max_tokens``: of a micro-batch in (forward passes, training); None counts samples instead."""
        self.name, self.roles, self.adapter = name, tuple(roles), adapter
        self.engines = Fleet.none() if engines is None else engines
        self.engines.equip_with(self._equip)
        self.workers, self.supervision = workers, supervision
        self._workers_free = threading.RLock()
        self._moved = False  # the weights are no longer those of the last sync
        self._sent_early: WeightStamp | None = None  # to a replaced engine, of what the next sync will send
        self._in_group: list[Any] = []
        self._group_options: tuple[int, int, bool] | None = None
        self._sent: AdapterFiles | None = None
        self.version = -1
        self.stamp: WeightStamp | None = None
        self._args: SimpleNamespace = strategy.args
        self._deadlines, self._pad_token_id, self._staleness = deadlines, pad_token_id, staleness
        self._max_tokens = max_tokens[1]
        kl = self._args.algo.kl
        self._kl = AdaptiveKLController(kl.init_coef, kl.target, kl.horizon) if kl.target else FixedKLController(
            kl.init_coef
        )  # fmt: skip
        self._maker = SelfPlayExperienceMaker(
            workers.policy, workers.critic, None, workers.reference, self._kl, strategy, pad_token_id=pad_token_id,
            max_tokens=max_tokens[0], timeout_s=deadlines.update_s, policy=name,
        )  # fmt: skip

    # ── From games to updates ──

    @_alone
    def prepare(self, trajectories: list[Trajectory]) -> Prepared | None:
        """Log-probabilities under policy and reference, and role-wise advantages; None where the estimator
        can learn from none of the samples.

        Metrics by role: ``kl`` (k1, per token), ``entropy`` (−mean log-probability of the sampled tokens, an
        unbiased estimate at temperature 1 and top_p 1), ``equal_reward_share``, ``dropped_thinned``; and
        ``sync/logprob_max_diff`` between engine and policy."""
        stray = {t.role for t in trajectories} - set(self.roles)
        if stray:
            raise ValueError(f"policy {self.name} trains {self.roles}, but was given samples of {stray}")
        stale = {t.policy_version for t in trajectories} - set(range(self.version - self._staleness, self.version + 1))
        if stale:
            raise RuntimeError(f"samples of policy {self.name} come from versions {stale}, it is at {self.version}")
        kept, dropped = drop_thinned(trajectories, self._args.algo.advantage.estimator)
        if not kept:
            return None
        self._select()
        experiences = self._maker.prepare(kept)
        metrics = sample_metrics(self.roles, kept, experiences, has_reference=self.workers.reference is not None)
        shares = equal_reward_shares(kept, self._args.algo.advantage.estimator)
        metrics |= {f"policy/{role}/equal_reward_share": share for role, share in shares.items()}
        metrics |= {f"policy/{role}/dropped_thinned": float(count) for role, count in dropped.items()}
        tokens = sum(int(e.action_mask.sum()) for e in experiences)
        return Prepared(kept, experiences, metrics, sum(map(kl_of, experiences)) / tokens)

    @_alone
    def update(self, prepared: Prepared, seed: int, step: int = 0) -> dict[str, float]:
        """One update on all samples. ``seed`` decides which samples share an optimizer step; ``step`` which
        supervised examples are mixed in."""
        self._moved = True
        self._select()
        own = prepared.trajectories
        items = [Item(t.role.value, t.length, prompt) for t, prompt in zip(own, self._maker.prompts(own), strict=True)]
        train, ranks = self._args.train, data_parallel_ranks(self._args)
        rng = random.Random(seed)
        plan = [
            optimizer_step
            for _ in range(train.max_epochs)
            for optimizer_step in plan_update(
                items, train.batch_size, train.micro_batch_size, ranks, rng, self._max_tokens
            )
        ]
        masked = self._masked_like(prepared.experiences[0])

        def batch(indices: tuple[int, ...]) -> RoleBatch:
            chosen = [prepared.experiences[i] for i in indices]
            role = prepared.trajectories[indices[0]].role.value if indices else ""
            return role, make_experience_batch(chosen or [masked])

        games = [[[batch(indices) for indices in own] for own in optimizer_step] for optimizer_step in plan]
        mixed = games
        if self.supervision is not None and self.supervision.coefficient:
            # Before the games' micro-batches: the last one of a step is then always a game's.
            mixed = [
                [examples + own for examples, own in zip(self._supervised(step * len(games) + i), batches, strict=True)]
                for i, batches in enumerate(games)
            ]
        metrics = self._train(mixed, games if self.workers.critic else None)
        self._kl.update(prepared.kl, len(prepared.trajectories))
        return named_by_role(metrics | {"/optimizer_steps": float(len(plan))}, self.roles)

    def supervise(self, steps: Sequence[int]) -> dict[str, float]:
        """Optimizer steps on supervised examples alone: the batches numbered ``steps``."""
        self._select()
        return named_by_role(self._train([self._supervised(step) for step in steps], None), self.roles)

    def _supervised(self, number: int) -> list[list[RoleBatch]]:
        """[rank][i]: the micro-batches of the supervised batch of that number."""
        assert self.supervision is not None
        chosen = self.supervision.examples.draw(self.roles, number, self.supervision.batch_size)
        items = [Item(role.value, len(e.sequences)) for role, e in chosen]
        masked = split_experience_batch(masked_experience(self._pad_token_id))[0]
        plan = plan_micro_batches(
            items, range(len(items)), self._args.train.micro_batch_size, data_parallel_ranks(self._args)
        )
        return [
            [
                (f"{SUPERVISED}{items[indices[0]].kind if indices else ''}",
                 make_experience_batch([chosen[i][1] for i in indices] or [masked]))
                for indices in own
            ]
            for own in plan
        ]  # fmt: skip

    def _train(
        self, steps: list[list[list[RoleBatch]]], for_critic: list[list[list[RoleBatch]]] | None
    ) -> dict[str, float]:
        """Policy, and critic where there is one, on [optimizer step][rank][micro-batch], side by side."""
        weight = self.supervision.coefficient if self.supervision else 0.0
        waiting = self._on_ranks(self.workers.policy, "policy", steps, self._kl.value, weight or 1.0)
        if for_critic is not None:
            waiting |= self._on_ranks(self.workers.critic, "critic", for_critic)
        results = gather(waiting, self._deadlines.update_s, "update")
        copies = self._args.ds.ring_attn_size * self._args.ds.tensor_parallel_size
        metrics: dict[str, float] = {}
        for kind in ("policy", "critic"):
            own = [result for name, result in results.items() if name.split()[1] == kind][::copies]
            metrics |= merge_ranks(own) if own else {}
        return metrics

    def _on_ranks(self, group: Any, kind: str, steps: list[list[list[RoleBatch]]], *arguments: Any) -> dict[str, Any]:
        ranks = data_parallel_ranks(self._args)
        work = [ray.put([step[rank] for step in steps]) for rank in range(ranks)]
        copies = len(group._actor_handlers) // ranks
        return {
            f"{self.name} {kind} rank {i}": actor.update.remote(work[i // copies], *arguments)
            for i, actor in enumerate(group._actor_handlers)
        }

    def _masked_like(self, example: Experience) -> Experience:
        """The masked sample with the tensors that trained samples have, all zero."""
        masked = masked_experience(self._pad_token_id)
        for name in ("action_log_probs", "base_action_log_probs", "values", "returns", "advantages"):
            if getattr(example, name) is not None:
                setattr(masked, name, torch.zeros(1, 1))
        masked.info = {key: torch.zeros(1) for key in example.info}
        return split_experience_batch(masked)[0]

    def _select(self) -> None:
        if self.adapter:
            self.each_rank("select", self.adapter)

    # ── Weights ──

    def join_engines(self, engine_tensor_parallel_size: int, bucket_bytes: int, *, shares_gpu: bool) -> None:
        """Form the group through which weights travel, after policy and engines are up."""
        self._group_options = (engine_tensor_parallel_size, bucket_bytes, shares_gpu)
        if not self.adapter:  # adapters are small: they travel as files through Ray
            self._join(self.engines.named())

    @_alone
    def _join(self, engines: dict[str, Any]) -> None:
        """A group cannot grow or shrink: these engines, and nobody else, get what is sent from now on."""
        assert self._group_options is not None, "join_engines comes first"
        self.each_rank("join_weight_group", engines, *self._group_options, INNER * self._deadlines.sync_s,
                       timeout_s=self._deadlines.sync_s)  # fmt: skip
        self._in_group = list(engines.values())

    def sync(self) -> WeightStamp:
        """Send the weights as the next version; every engine must report the same bytes. Dead engines are replaced
        first."""
        self.engines.stamps(self.adapter, timeout_s=self._deadlines.sync_s)
        return self._send_to_all()

    @_alone
    def _send_to_all(self) -> WeightStamp:
        engines = self.engines.named()
        if not self.adapter and self._in_group != list(engines.values()):
            self._join(engines)
        self.version += 1
        self.stamp = self._send_adapter() if self.adapter else self._send_weights(self.version)
        self._moved, self._sent_early = False, None
        return self.stamp

    def _send_weights(self, version: int) -> WeightStamp:
        stamps = self.each_rank("send_weights", version, INNER * self._deadlines.sync_s,
                                timeout_s=self._deadlines.sync_s)  # fmt: skip
        return next(stamp for stamp in stamps if stamp is not None)

    def _equip(self, engine: Any, name: str) -> None:
        """Give a new engine the weights that it has to play with: those that the others hold, or, where an update
        has moved them since, those of the next version."""
        if self.stamp is None:
            return  # nobody has any yet
        if self.adapter:
            self._load_adapter({name: engine}, self.stamp)
        else:
            self._send_alone(engine, name)

    @_alone
    def _send_alone(self, engine: Any, name: str) -> None:
        assert self.stamp is not None
        self._join({name: engine})
        sent = self._send_weights(self.version + self._moved)
        if self._moved:
            self._sent_early = sent
        elif sent != self.stamp:
            raise RuntimeError(f"{name} was sent {sent}, the other engines hold {self.stamp}")

    def _send_adapter(self) -> WeightStamp:
        self._select()
        found = self.each_rank("adapter_files", timeout_s=self._deadlines.sync_s)
        # Kept, small as they are: a replaced engine gets the version of the others whatever the workers are at.
        self._sent = next(files for files in found if files is not None)
        sent = WeightStamp(self.version, adapter_checksum(self._sent.config, self._sent.weights))
        self._load_adapter(self.engines.named(), sent)
        return sent

    def _load_adapter(self, engines: dict[str, Any], stamp: WeightStamp) -> None:
        """The adapter that was sent last, ``stamp``, to these engines."""
        assert self._sent is not None
        config, weights = self._sent.config, ray.put(self._sent.weights)
        loading = {
            name: engine.load_adapter.remote(self.adapter, stamp.version, config, weights)
            for name, engine in engines.items()
        }
        held = gather(loading, self._deadlines.sync_s, "loading the adapter")
        if wrong := {name: own for name, own in held.items() if own != stamp}:
            raise RuntimeError(f"adapter sync: {wrong}, the policy sent {stamp}")

    def check_engines(self) -> None:
        """Raises RuntimeError naming every engine that does not hold this policy's current weights. Dead ones are
        replaced."""
        held = self.engines.stamps(self.adapter, timeout_s=self._deadlines.sync_s)
        right = {self.stamp, self._sent_early or self.stamp}
        wrong = {name: stamp for name, stamp in held.items() if stamp not in right}
        if wrong:
            raise RuntimeError(f"engines without the current weights {self.stamp}: {wrong}")

    @_alone
    def save(self, folder: Path, *, merged: bool = False) -> None:
        """A folder that transformers and vLLM open: a model, or an adapter beside the base that it names.
        Written beside its place, then renamed. ``merged``: see the worker; for the last call only."""
        self._select()
        partial = folder.with_name(folder.name + ".partial")
        self.each_rank("save_to", str(partial), merged)
        partial.rename(folder)

    @_alone
    def save_state(self, folder: Path) -> None:
        """Everything that training goes on from: weights, optimizer, schedule, for policy and critic."""
        self._select()
        self.each_rank("save_state", str(folder / "policy"))
        ranks = range(len(self.workers.policy._actor_handlers))
        if missing := [rank for rank in ranks if not (folder / "policy" / rank_file(rank)).exists()]:
            raise RunError(f"what ranks {missing} of policy {self.name} saved is not in {folder}: the run's folder "
                           "must be on a file system that all machines share")  # fmt: skip
        if self.workers.critic:
            self._each(self.workers.critic, "critic", "save_state", str(folder / "critic"))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the workers' own state, as JSON."""
        return {"version": self.version, "kl_coefficient": float(self._kl.value)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a learner with this ``state`` was. The next ``sync`` gives its weights the version they had."""
        self.version, self._kl.value = state["version"] - 1, state["kl_coefficient"]

    @_alone
    def load_state(self, folder: Path) -> None:
        """Back to a saved state; the engines get it with the next ``sync``."""
        self._moved = True
        self._select()
        self.each_rank("load_state", str(folder / "policy"))
        if self.workers.critic:
            self._each(self.workers.critic, "critic", "load_state", str(folder / "critic"))

    def stop(self) -> None:
        """End every worker and engine of this policy and give their places back."""
        groups = [self.workers.policy, self.workers.critic, *([] if self.adapter else [self.workers.reference])]
        self.engines.stop()
        for actor in [a for group in groups if group for a in group._actor_handlers]:
            ray.kill(actor)
        for place in self.workers.places:
            remove_placement_group(place)

    def each_rank(self, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        """Call a method of the policy's worker on all ranks; the deadline is an update's unless given."""
        return self._each(self.workers.policy, "policy", method, *args, timeout_s=timeout_s)

    def _each(self, group: Any, kind: str, method: str, *args: Any, timeout_s: float | None = None) -> list[Any]:
        references = {f"{self.name} {kind} rank {i}": getattr(actor, method).remote(*args)
                      for i, actor in enumerate(group._actor_handlers)}  # fmt: skip
        return list(gather(references, timeout_s or self._deadlines.update_s, method).values())
