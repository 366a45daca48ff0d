"""From a configuration to running learners, players and a judge: who is started, where, in which order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather, reserve
from openrlhf_medical.config import RunConfig, upstream_options
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import STOP
from openrlhf_medical.game.players import Player, Role
from openrlhf_medical.game.prompts import assessor_prompt_of, attacker_prompt
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import start_judge_process
from openrlhf_medical.judge.token_file import read_token
from openrlhf_medical.learner.adapters import AdaptersOff
from openrlhf_medical.learner.critic import CriticWorker
from openrlhf_medical.learner.policy import Deadlines, Learner, Supervision, Workers
from openrlhf_medical.learner.supervised import SupervisedExamples
from openrlhf_medical.learner.workers import PolicyWorker, ReferenceWorker, SelfPlayStrategy
from openrlhf_medical.rollout.engines import EnginePlayer, EngineSpec, Sampling, prompt_ids, start_engines
from openrlhf_medical.rollout.opponents import Meetings, Opponent, Side

devices.prepare_process()

from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402  (after prepare_process)

SHARED_GPU = 0.2
"""GPUs that each of several workers on one bundle asks for; upstream's figure."""

WEIGHT_BUCKET_BYTES = 64 << 20


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
    return layout_of(config).bundles * len(bases_of(config)) + opponent_engines(config)


def optimizer_steps_planned(config: RunConfig, roles: Collection[Role]) -> int:
    """Optimizer steps of a whole run if every game trains its roles: what a learning-rate schedule spans."""
    game = config.game
    attacks = config.rollout.batch_size * game.attacks_per_seed
    vanilla = sum(share for name, share in game.mix.model_dump().items() if name.startswith("vanilla"))
    generating = 1.0 if game.vanilla_turn == "generate" else 1.0 - vanilla
    of_role = {Role.ATTACKER: math.ceil(attacks * generating), Role.ASSESSOR: attacks * game.assessments_per_note}
    samples = max(1, sum(of_role[role] for role in roles))
    return config.run.steps * config.train.max_epochs * math.ceil(samples / config.train.batch_size)


def strategy_of(config: RunConfig, adapters: tuple[str, ...] = (), *, warm_start: bool = False) -> SelfPlayStrategy:
    """Upstream's strategy with its namespace of options; for a warm start with the supervised learning rate."""
    args = _namespace(upstream_options(config))
    if warm_start:
        args.actor.adam.lr, args.actor.lr_scheduler, args.actor.lr_warmup_ratio = config.train.sft_lr, "linear", 0.1
        args.train.enable_ema = False
        args.algo.advantage.estimator = "reinforce"  # pupils play no games and have no critic
    return SelfPlayStrategy(
        seed=args.train.seed,
        full_determinism=args.train.full_determinism_enable,
        max_norm=args.actor.max_norm,
        micro_train_batch_size=args.train.micro_batch_size,
        train_batch_size=args.train.batch_size,
        zero_stage=args.ds.zero_stage,
        args=args,
        policies=len(bases_of(config)) * (2 if args.algo.advantage.estimator == "gae" else 1),
        adapters=adapters,
    )


def _namespace(tree: Any) -> Any:
    return SimpleNamespace(**{k: _namespace(v) for k, v in tree.items()}) if isinstance(tree, dict) else tree


def model_of(config: RunConfig) -> str:
    """The model's name, or its folder as seen from any working directory."""
    folder = Path(config.actor.model_name_or_path)
    return str(folder.resolve()) if folder.exists() else config.actor.model_name_or_path


def load_tokenizer(config: RunConfig) -> Any:
    """With a pad token, as upstream's workers give it one: Llama has none."""
    tokenizer = AutoTokenizer.from_pretrained(
        config.actor.model_name_or_path, use_fast=not config.data.disable_fast_tokenizer, trust_remote_code=True
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_prompts_fit(config: RunConfig, seeds: Iterable[Seed], tokenizer: Any) -> None:
    """Raise UserError where a seed's prompts leave no room for a whole reply within ``data.max_len``."""
    rules, room = config.rules(), config.data.max_len - config.rollout.max_new_tokens
    for seed in seeds:
        prompts = [assessor_prompt_of(seed.seed_note, rules)]
        if rules.attacker_generates(seed.category):
            prompts.append(attacker_prompt(seed, rules))
        longest = max(len(prompt_ids(tokenizer, prompt)) for prompt in prompts)
        if longest > room:
            raise UserError(
                f"seed {seed.seed_id}: its prompt has {longest} tokens, but data.max_len {config.data.max_len} less "
                f"rollout.max_new_tokens {config.rollout.max_new_tokens} leaves {room}: raise data.max_len to at least "
                f"{longest + config.rollout.max_new_tokens}, or take the note out"
            )


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
        max_num_seqs=1 if config.run.deterministic else None,
        dtype={"bf16": "bfloat16", "fp16": "float16"}[config.ds.param_dtype],
    )


def start_engine_pool(config: RunConfig, model: str, purpose: str) -> list[Any]:
    """Engines only: what ``play`` and frozen opponents need."""
    vllm, timeout_s = config.vllm, config.run.placement_timeout_s
    place = reserve(vllm.num_engines * vllm.tensor_parallel_size, timeout_s, purpose)
    return start_engines(engine_spec(config, model), vllm.num_engines, place, 1.0)


def wait_for_engines(config: RunConfig, engines: Mapping[str, list[Any]]) -> None:
    waiting = {
        f"{name} engine {i}": e.weight_stamp.remote() for name, own in engines.items() for i, e in enumerate(own)
    }
    gather(waiting, config.run.start_timeout_s, "starting engines")


def start_learners(
    config: RunConfig,
    starts: Mapping[Role, str],
    pad_token_id: int,
    spec: EngineSpec | None,
    examples: SupervisedExamples | None = None,
) -> list[Learner]:
    """Start every worker of every policy side by side, then send each policy's weights to its engines.

    Policy, KL reference and engines all load the folder that ``starts`` names for the policy's roles; the
    first sync makes the engines' weights the policy's by construction and gives them their first stamp.
    With ``spec`` None there are workers only.

    Raises:
        UserError: no room in the cluster. StuckError: a worker did not come up.
    """
    starting: dict[str, Any] = {}
    learners = [
        learner
        for policies in bases_of(config)
        for learner in _start_base(config, policies, starts, pad_token_id, spec, examples, starting)
    ]
    gather(starting, config.run.start_timeout_s, "starting workers")
    for learner in learners:
        if spec is not None:
            learner.join_engines(
                config.vllm.tensor_parallel_size, WEIGHT_BUCKET_BYTES, shares_gpu=config.train.colocate_all
            )
            learner.sync()
    return learners


def start_pupils(
    config: RunConfig, roles: Collection[Role], pad_token_id: int, examples: SupervisedExamples
) -> list[Learner]:
    """Workers alone, for the supervised warm start: as many policies as there will be different starts."""
    one_start = config.roles.policy in ("shared", "adapters")
    groups = {"base": tuple(Role)} if one_start else {role.value: (role,) for role in Role if role in roles}
    starting: dict[str, Any] = {}
    pupils = []
    for name, own in groups.items():
        adapters = ("warm_start",) if config.ds.lora.rank else ()
        strategy = strategy_of(config, adapters, warm_start=True)
        strategy.policies = len(groups)
        place = reserve(layout_of(config).policy, config.run.placement_timeout_s, f"warm start of {name}")
        policy = _workers(config, config.actor, PolicyWorker, place, 1.0)
        waiting = policy.async_init_model_from_pretrained(
            strategy, model_of(config), config.train.sft_warmup_steps, None
        )
        starting |= {f"{name} warm start rank {i}": ref for i, ref in enumerate(waiting)}
        pupils.append(
            Learner(
                name,
                own,
                strategy,
                Workers(policy, places=(place,)),
                [],
                pad_token_id,
                _deadlines(config),
                adapter=adapters[0] if adapters else "",
                supervision=Supervision(examples, config.train.sft_batch_size, 1.0),
            )
        )
    gather(starting, config.run.start_timeout_s, "starting workers")
    return pupils


def _start_base(
    config: RunConfig,
    policies: dict[str, tuple[Role, ...]],
    starts: Mapping[Role, str],
    pad_token_id: int,
    spec: EngineSpec | None,
    examples: SupervisedExamples | None,
    starting: dict[str, Any],
) -> list[Learner]:
    """Create one base's actors, note in ``starting`` what to wait for, and make its policies' learners."""
    layout, run, has_adapters = layout_of(config), config.run, bool(config.ds.lora.rank)
    title = "+".join(policies)
    strategy = strategy_of(config, tuple(policies) if has_adapters else ())
    start = starts[next(iter(policies.values()))[0]]
    place = reserve(layout.policy, run.placement_timeout_s, f"policy {title}")
    places = [place]

    def started(kind: str, group: RayActorGroup, *arguments: Any) -> RayActorGroup:
        for i, ref in enumerate(group.async_init_model_from_pretrained(strategy, start, *arguments)):
            starting[f"{title} {kind} rank {i}"] = ref
        return group

    def bundles(count: int, purpose: str) -> tuple[Any, float]:
        """Bundles of its own and a whole GPU of each, or the policy's and a share of each."""
        if not count:
            return place, SHARED_GPU
        places.append(reserve(count, run.placement_timeout_s, f"{purpose} of {title}"))
        return places[-1], 1.0

    has_critic, has_reference = config.algo.advantage.estimator == "gae", needs_reference(config)
    shares = not layout.engines or (has_reference and not layout.reference) or (has_critic and not layout.critic)
    steps = max(optimizer_steps_planned(config, roles) for roles in policies.values())
    policy = started("policy", _workers(config, config.actor, PolicyWorker, place, SHARED_GPU if shares else 1.0),
                     steps, None)  # fmt: skip
    reference = critic = None
    if has_reference:
        reference = started("reference", _workers(config, config.ref, ReferenceWorker,
                                                  *bundles(layout.reference, "reference")))  # fmt: skip
    elif config.algo.kl.init_coef > 0:
        reference = AdaptersOff(policy)
    if has_critic:
        critic = _workers(config, config.critic, CriticWorker, *bundles(layout.critic, "critic"))
        folder = critic_model(config, start)
        for i, ref in enumerate(critic.async_init_model_from_pretrained(strategy, folder, steps)):
            starting[f"{title} critic rank {i}"] = ref
    engines = []
    if spec is not None:
        own, share = bundles(layout.engines, "engines")
        spec = replace(spec, model=start, adapters=adapters_at_once(config, policies), adapter_rank=config.ds.lora.rank)
        engines = start_engines(spec, config.vllm.num_engines, own, share)
        starting |= {f"{title} engine {i}": engine.weight_stamp.remote() for i, engine in enumerate(engines)}
    train = config.train
    limit = (config.rollout.max_tokens_per_gpu or train.max_tokens_per_gpu, train.max_tokens_per_gpu)
    return [
        Learner(
            name,
            roles,
            strategy,
            Workers(policy, reference, critic, tuple(places) if n == 0 else ()),
            engines,
            pad_token_id,
            _deadlines(config),
            adapter=name if has_adapters else "",
            max_tokens=limit if train.dynamic_batch_enable else (None, None),
            supervision=Supervision(examples, train.sft_batch_size, train.sft_coef) if examples else None,
            staleness=int(train.async_enable),
        )
        for n, (name, roles) in enumerate(policies.items())
    ]


def critic_model(config: RunConfig, start: str) -> str:
    """The folder that the critic starts from: its own, or the policy's start."""
    return config.critic.model_name_or_path or start


def _deadlines(config: RunConfig) -> Deadlines:
    return Deadlines(update_s=config.run.update_timeout_s, sync_s=config.run.sync_timeout_s)


def _workers(config: RunConfig, size: Any, kind: Any, place: Any, gpus_per_worker: float) -> RayActorGroup:
    return RayActorGroup(
        size.num_nodes,
        size.num_gpus_per_node,
        kind,
        pg=place,
        num_gpus_per_actor=gpus_per_worker,
        duplicate_actors=config.ds.ring_attn_size * config.ds.tensor_parallel_size,
    )


def player_of(config: RunConfig, engines: list[Any], tokenizer: Any, **who: Any) -> EnginePlayer:
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


@contextlib.contextmanager
def judge_of(config: RunConfig, log_folder: Path) -> Iterator[JudgeClient]:
    """A client of the named judges, or of one that is started here and stopped at the end."""
    judge = config.judge
    token = read_token(judge.token_file) if judge.token_file else None
    with contextlib.ExitStack() as stack:
        urls = list(judge.urls)
        if not urls:
            process = stack.enter_context(start_judge_process(log_file=log_folder / "judge.log"))
            urls = [process.url]
        client = stack.enter_context(
            JudgeClient(urls, batch_size=judge.batch_size, max_wait_s=judge.max_wait_s, timeout_s=judge.timeout_s,
                        token=token)
        )  # fmt: skip
        client.wait_ready(judge.timeout_s)
        yield client
