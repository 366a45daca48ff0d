"""Who answers for each role: engines, players on them, and frozen opponents."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.util.placement_group import PlacementGroup

from openrlhf_medical import layout
from openrlhf_medical.cluster import gather, reserve
from openrlhf_medical.config import RunConfig
from openrlhf_medical.game.cot import STOP
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Judge, Player, Role
from openrlhf_medical.layout import frozen_roles, model_of, plays_as_adapter
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.rollout.engine_player import EnginePlayer, Sampling
from openrlhf_medical.rollout.engines import EngineSpec, start_engine
from openrlhf_medical.rollout.fleet import Fleet
from openrlhf_medical.rollout.frozen_matches import FrozenMatch
from openrlhf_medical.rollout.opponents import Meetings, Opponent, Side


def player_of(config: RunConfig, engines: Fleet, tokenizer: Any, **who: Any) -> EnginePlayer:
    """A player on these engines; ``who`` says its ``name``, ``adapter`` and whether it is ``frozen``."""
    sampling = Sampling(
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
        stop=(STOP,),
        seed=config.train.seed,
        deterministic=config.run.deterministic,
    )
    return EnginePlayer(engines, tokenizer, sampling, config.data.max_len, config.run.generate_timeout_s, **who)


def start_engine_pool(config: RunConfig, model: str, purpose: str) -> Fleet:
    """Engines only: what ``play`` and frozen opponents need."""
    vllm, timeout_s = config.vllm, config.run.placement_timeout_s
    place = reserve(vllm.num_engines * vllm.tensor_parallel_size, timeout_s, purpose)
    return start_fleet(config, engine_spec(config, model), purpose, place, 1.0)


def start_fleet(
    config: RunConfig, spec: EngineSpec, title: str, place: PlacementGroup, gpus_per_engine: float
) -> Fleet:
    """Returns at once. Equipping a replacement may have to wait for an update to end, and then sends weights."""
    run = config.run
    start = partial(start_engine, spec, placement=place, gpus_per_engine=gpus_per_engine)
    return Fleet(
        title,
        start,
        config.vllm.num_engines,
        start_timeout_s=run.start_timeout_s,
        equip_timeout_s=run.update_timeout_s + 2 * run.sync_timeout_s,
    )


def wait_for_engines(config: RunConfig, engines: Mapping[str, Fleet]) -> None:
    waiting = {
        f"{name} engine {i}": e.weight_stamp.remote() for name, own in engines.items() for i, e in enumerate(own)
    }
    gather(waiting, config.run.start_timeout_s, "starting engines")


def engine_spec(config: RunConfig, model: str | None = None) -> EngineSpec:
    """``model``: the folder to load, else the configuration's."""
    vllm = config.vllm
    return EngineSpec(
        model=model or model_of(config),
        max_model_len=config.data.max_len,
        tensor_parallel_size=vllm.tensor_parallel_size,
        seed=config.train.seed,
        enable_prefix_caching=vllm.enable_prefix_caching and not config.run.deterministic,
        enforce_eager=vllm.enforce_eager,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enable_sleep=vllm.enable_sleep,
        max_num_seqs=1 if config.run.deterministic else layout.TURNS_OF_ENGINE,
        dtype={"bf16": "bfloat16", "fp16": "float16"}[config.ds.param_dtype],
    )


def start_opponents(
    config: RunConfig, starts: Mapping[Role, str], learners: list[Learner], tokenizer: Any
) -> dict[Role, Opponent]:
    """The frozen side, where there is one: on engines of its own, or as an adapter on the learners'."""
    checkpoint, timeout_s = config.roles.checkpoint, config.run.sync_timeout_s
    names = {"base": "base", "pool": "pool", "checkpoint": f"checkpoint/{checkpoint.name if checkpoint else ''}"}
    hosts = {role: learner for learner in learners for role in learner.roles}
    opponents = {}
    for role in frozen_roles(config):
        if plays_as_adapter(config, role):
            engines = hosts.get(role, learners[0]).engines
            adapter = "" if config.roles.met == "base" else f"frozen-{role}"
        else:
            folder = str(checkpoint.resolve()) if checkpoint else starts[role]
            engines, adapter = start_engine_pool(config, folder, f"the frozen {role}"), ""
        player = player_of(config, engines, tokenizer, name=names[config.roles.met], adapter=adapter, frozen=True)
        opponents[role] = Opponent(role, player, engines, timeout_s, adapter=adapter)
    wait_for_engines(config, {f"frozen {role}": o.engines for role, o in opponents.items()})
    for opponent in opponents.values():
        if opponent.adapter and checkpoint:
            opponent.load(str(checkpoint.resolve()), version=0)
    return opponents


def start_matches(
    config: RunConfig,
    starts: Mapping[Role, str],
    learners: list[Learner],
    tokenizer: Any,
    live: Mapping[Role, Player],
    judge: Judge,
) -> list[FrozenMatch]:
    """Held-out games of each trained role against the model that training starts from, where ``run.eval_frozen``
    asks for them: on one engine pool for both roles, or on the base that the learners' engines hold."""
    roles, timeout_s = layout.measured_against(config), config.run.sync_timeout_s
    hosts = {role: learner for learner in learners for role in learner.roles}
    apart = [role for role in roles if not layout.plays_as_adapter(config, role)]
    pool = start_engine_pool(config, starts[apart[0]], "held-out games against the start") if apart else Fleet.none()
    wait_for_engines(config, {"frozen start": pool})
    matches = []
    for role in roles:
        engines = pool if role in apart else hosts.get(role, learners[0]).engines
        player = player_of(config, engines, tokenizer, name="start", frozen=True)
        sides = {**live, role: player}
        manager = MedicalDialogueGameManager(
            sides[Role.ATTACKER], sides[Role.ASSESSOR], judge, config.rules(),
            max_concurrent=layout.turns_at_once(config), schedule=config.rollout.schedule,
        )  # fmt: skip
        shares_pool = len({starts[one] for one in apart}) > 1 and role in apart
        start = Opponent(role, player, engines, timeout_s) if shares_pool else None
        matches.append(FrozenMatch(role, manager, start, starts[role], engines))
    return matches


def cast_of(
    config: RunConfig, learners: list[Learner], opponents: Mapping[Role, Opponent], tokenizer: Any
) -> dict[Role, Player]:
    """Who answers for each role: the policy that learns it (or the shared one), its opponent, or both in turn."""
    policies = {role: learner for learner in learners for role in learner.roles}
    if config.roles.policy == "shared":
        policies = dict.fromkeys(Role, learners[0])
    live = {
        role: player_of(config, learner.engines, tokenizer, name=learner.name, adapter=learner.adapter)
        for role, learner in policies.items()
    }
    games = config.game.attacks_per_seed * config.game.assessments_per_note
    meetings = Meetings(config.roles.pool.share, games, config.run.steps, config.train.seed)
    cast: dict[Role, Player] = {}
    for role in Role:
        opponent = opponents.get(role)
        if opponent is None:
            cast[role] = live[role]
        elif role in config.trained_roles:
            cast[role] = Side(role, live[role], opponent.player, meetings)
        else:
            cast[role] = opponent.player
    return cast
