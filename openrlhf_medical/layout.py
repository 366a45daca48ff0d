"""Who is there in a run, and how many places each needs: pure functions of the configuration."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.config import RunConfig
from openrlhf_medical.game.players import Role

TURNS_OF_ENGINE = 256
"""As many as vLLM's engine works on at the same time (its ``max_num_seqs``) on the machines that we know."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Bundles of {1 GPU, 1 CPU} of one learner, and who shares them."""

    policy: int
    reference: int
    critic: int
    engines: int

    @property
    def bundles(self) -> int:
        return self.policy + self.reference + self.critic + self.engines


def policies_of(config: RunConfig) -> dict[str, tuple[Role, ...]]:
    """Name of each policy that learns, and the roles that it learns."""
    trained = tuple(role for role in Role if role in config.trained_roles)
    if config.roles.policy == "shared":
        return {"shared": trained}
    return {role.value: (role,) for role in trained}


def policy_names(config: RunConfig) -> dict[Role, str]:
    """The policy that plays each role, whether or not it learns."""
    return {role: "shared" if config.roles.policy == "shared" else role.value for role in Role}


def bases_of(config: RunConfig) -> list[dict[str, tuple[Role, ...]]]:
    """The policies on each set of workers: with adapters all on one base, else each on its own."""
    policies = policies_of(config)
    return [policies] if config.roles.policy == "adapters" else [{name: roles} for name, roles in policies.items()]


def frozen_roles(config: RunConfig) -> tuple[Role, ...]:
    """Roles that a frozen opponent plays, in some games at least."""
    if config.roles.met == "pool" and config.roles.train == "both":
        return tuple(Role)
    if config.roles.met == "current":
        return ()
    return tuple(role for role in Role if role not in config.trained_roles)


def plays_as_adapter(config: RunConfig, role: Role) -> bool:
    """Whether a frozen player of this role needs no engine of its own: it is an adapter, or none, on the
    base that a learner's engines hold."""
    on_that_base = config.roles.policy != "separate" or role in config.trained_roles
    return config.ds.lora.rank > 0 and on_that_base


def opponent_engines(config: RunConfig) -> int:
    """Engines of frozen opponents, in bundles."""
    each = config.vllm.num_engines * config.vllm.tensor_parallel_size
    return each * sum(not plays_as_adapter(config, role) for role in frozen_roles(config))


def measured_against(config: RunConfig) -> tuple[Role, ...]:
    """Roles that the start plays in held-out games (``run.eval_frozen``): those whom a trained role meets."""
    if not config.run.eval_frozen:
        return ()
    return tuple(role for role in Role if any(trained is not role for trained in config.trained_roles))


def measuring_engines(config: RunConfig) -> int:
    """Engines that hold the start for held-out games, in bundles: one pool, whichever role it plays."""
    apart = any(not plays_as_adapter(config, role) for role in measured_against(config))
    return config.vllm.num_engines * config.vllm.tensor_parallel_size if apart else 0


def adapters_at_once(config: RunConfig, policies: Mapping[str, tuple[Role, ...]]) -> int:
    """Adapters that the engines of one base hold: its policies', and those of opponents."""
    if not config.ds.lora.rank:
        return 0
    roles = {role for own in policies.values() for role in own} if config.roles.policy == "separate" else set(Role)
    frozen = [role for role in frozen_roles(config) if role in roles and plays_as_adapter(config, role)]
    return len(policies) + (len(frozen) if config.roles.met != "base" else 0)


def layout_of(config: RunConfig) -> Layout:
    """A count of 0 means: on the policy's own bundles, or not there."""
    actor, ref, vllm, critic = config.actor, config.ref, config.vllm, config.critic
    apart = not (config.train.colocate_all or config.train.colocate_actor_ref) and needs_reference(config)
    has_critic = config.algo.advantage.estimator == "gae" and not config.train.colocate_all
    return Layout(
        policy=actor.num_nodes * actor.num_gpus_per_node,
        reference=ref.num_nodes * ref.num_gpus_per_node if apart else 0,
        critic=critic.num_nodes * critic.num_gpus_per_node if has_critic else 0,
        engines=0 if config.train.colocate_all else vllm.num_engines * vllm.tensor_parallel_size,
    )


def needs_reference(config: RunConfig) -> bool:
    """Whether KL is measured against workers of its own: of an adapter the base is the reference."""
    return config.algo.kl.init_coef > 0 and not config.ds.lora.rank


def bundles_needed(config: RunConfig) -> int:
    learners = layout_of(config).bundles * len(bases_of(config))
    return learners + opponent_engines(config) + measuring_engines(config)


def turns_at_once(config: RunConfig) -> int:
    """Turns in flight that keep every engine full: an attack has one at a time, on one engine pool or the other."""
    each = config.vllm.num_engines * config.vllm.tensor_parallel_size
    pools = len(bases_of(config)) + opponent_engines(config) // each
    return TURNS_OF_ENGINE * config.vllm.num_engines * pools


def optimizer_steps_planned(config: RunConfig, roles: Collection[Role]) -> int:
    """Optimizer steps of a whole run if every game trains its roles: what a learning-rate schedule spans."""
    game = config.game
    attacks = config.rollout.batch_size * game.attacks_per_seed
    vanilla = sum(share for name, share in game.mix.model_dump().items() if name.startswith("vanilla"))
    generating = 1.0 if game.vanilla_turn == "generate" else 1.0 - vanilla
    of_role = {Role.ATTACKER: math.ceil(attacks * generating), Role.ASSESSOR: attacks * game.assessments_per_note}
    samples = max(1, sum(of_role[role] for role in roles))
    return config.run.steps * config.train.max_epochs * math.ceil(samples / config.train.batch_size)


def model_of(config: RunConfig) -> str:
    """The model's name, or its folder as seen from any working directory."""
    folder = Path(config.actor.model_name_or_path)
    return str(folder.resolve()) if folder.exists() else config.actor.model_name_or_path
