"""Who is there in a run, and how many places each needs: pure functions of the configuration."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from openrlhf_medical.config import RunConfig
from openrlhf_medical.game.players import Role

TURNS_OF_ENGINE = 256
"""As many as an engine works on at the same time: its ``max_num_seqs``, where vLLM would choose 128 for an engine that
is asked turn by turn."""


SHARED_GPU = 0.2
"""GPUs that each of several workers on one bundle asks for; upstream's figure."""

WEIGHT_BUCKET_BYTES = 128 << 20
"""Of one packet of a weight sync; a larger tensor is a packet of its own."""

PIECE_ELEMENTS = 8_000_000
"""That a rank on its own handles at a time, of gradients and in the optimizer; a larger tensor is a piece of its own.
Saved states are cut like this: another figure is another ``state_store.FORMAT``."""


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


@dataclass(frozen=True, slots=True)
class Place:
    """A placement group: bundles of {1 GPU, 1 CPU} that Ray gives or refuses together."""

    purpose: str
    bundles: int
    workers: tuple[str, ...]
    """Kinds of workers, each of them once on every bundle: policy, reference, critic, engine."""
    trained_adapters: int = 0
    """LoRA adapters with an optimizer that each policy worker holds."""
    played_adapters: int = 0
    """LoRA adapters that each engine has room for."""
    frozen: bool = False
    """Of an opponent that does not learn."""

    @property
    def gpus_of_each(self) -> float:
        """GPUs that one worker asks Ray for."""
        return SHARED_GPU if len(self.workers) > 1 else 1.0


def places_of(config: RunConfig) -> list[Place]:
    """Every placement group of a run, in the order in which they are asked for."""
    places, layout = [], layout_of(config)
    kinds = (
        ("reference", needs_reference(config), layout.reference),
        ("critic", config.algo.advantage.estimator == "gae", layout.critic),
        ("engine", True, layout.engines),
    )
    for policies in bases_of(config):
        title, trained = "+".join(policies), len(policies) if config.ds.lora.rank else 0
        own = functools.partial(Place, trained_adapters=trained, played_adapters=adapters_at_once(config, policies))
        together = ("policy", *(kind for kind, there, bundles in kinds if there and not bundles))
        places.append(own(f"policy {title}", layout.policy, together))
        for kind, _, bundles in kinds:
            if bundles:
                places.append(own(f"{kind}{'s' * (kind == 'engine')} of {title}", bundles, (kind,)))
    each = config.vllm.num_engines * config.vllm.tensor_parallel_size
    frozen = [role for role in frozen_roles(config) if not plays_as_adapter(config, role)]
    return places + [Place(f"the frozen {role}", each, ("engine",), frozen=True) for role in frozen]


def pupils_of(config: RunConfig) -> dict[str, tuple[Role, ...]]:
    """Name and roles of each policy of the supervised warm start: as many as there will be different starts."""
    if config.roles.policy != "separate":
        return {"shared" if config.roles.policy == "shared" else "base": tuple(Role)}
    roles = set(config.trained_roles) | (set(frozen_roles(config)) if config.roles.met == "base" else set())
    return {role.value: (role,) for role in Role if role in roles}


def warm_start_places(config: RunConfig) -> list[Place]:
    """Placement groups of the warm start, all given back before those of ``places_of`` are asked for."""
    if not config.train.sft_warmup_steps:
        return []
    bundles, adapters = layout_of(config).policy, int(config.ds.lora.rank > 0)
    return [
        Place(f"warm start of {name}", bundles, ("policy",), trained_adapters=adapters) for name in pupils_of(config)
    ]


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
