"""From a configuration to running learners, players and a judge: who is started, where, in which order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from openrlhf_medical import casting, devices
from openrlhf_medical.cluster import gather, reserve, within
from openrlhf_medical.config import RunConfig, upstream_options
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.prompts import assessor_prompt_of, attacker_prompt
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import kept_running
from openrlhf_medical.judge.token_file import read_token
from openrlhf_medical.layout import (
    SHARED_GPU,
    WEIGHT_BUCKET_BYTES,
    adapters_at_once,
    bases_of,
    layout_of,
    model_of,
    needs_reference,
    optimizer_steps_planned,
)
from openrlhf_medical.learner.adapters import AdaptersOff
from openrlhf_medical.learner.critic import CriticWorker
from openrlhf_medical.learner.policy import Deadlines, Learner, Supervision, Workers
from openrlhf_medical.learner.supervised import SupervisedExamples
from openrlhf_medical.learner.together import side_by_side
from openrlhf_medical.learner.workers import PolicyWorker, ReferenceWorker, SelfPlayStrategy
from openrlhf_medical.rollout.engine_player import prompt_ids
from openrlhf_medical.rollout.engines import EngineSpec
from openrlhf_medical.rollout.fleet import Fleet

devices.prepare_process()

from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402  (after prepare_process)


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


def start_learners(
    config: RunConfig,
    starts: Mapping[Role, str],
    pad_token_id: int,
    spec: EngineSpec | None,
    examples: SupervisedExamples | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Learner]:
    """Start every worker of every policy side by side, then send each policy's weights to its engines.

    Policy, KL reference and engines all load the folder that ``starts`` names for the policy's roles; the
    first sync makes the engines' weights the policy's by construction and gives them their first stamp.
    With ``spec`` None there are workers only. ``meanwhile``: called while they come up.

    Raises:
        UserError: no room in the cluster. StuckError: a worker did not come up.
    """
    starting: dict[str, Any] = {}
    learners = [
        learner
        for policies in bases_of(config)
        for learner in _start_base(config, policies, starts, pad_token_id, spec, examples, starting)
    ]
    meanwhile()
    gather(starting, config.run.start_timeout_s, "starting workers")

    def first_sync(learner: Learner) -> None:
        learner.join_engines(
            config.vllm.tensor_parallel_size, WEIGHT_BUCKET_BYTES, shares_gpu=config.train.colocate_all
        )
        learner.sync()

    if spec is not None:
        side_by_side(learners, first_sync)
    return learners


def start_pupils(config: RunConfig, roles: Collection[Role], pad_token_id: int) -> list[Learner]:
    """Workers alone, for the supervised warm start: as many policies as there will be different starts."""
    groups: dict[str, tuple[Role, ...]]
    if config.roles.policy == "separate":
        groups = {role.value: (role,) for role in Role if role in roles}
    else:
        groups = {"shared" if config.roles.policy == "shared" else "base": tuple(Role)}
    starting: dict[str, Any] = {}
    pupils = []
    for name, own in groups.items():
        adapters = ("warm_start",) if config.ds.lora.rank else ()
        strategy = strategy_of(config, adapters, warm_start=True)
        strategy.policies = len(groups)
        place = reserve(layout_of(config).policy, config.run.placement_timeout_s, f"warm start of {name}")
        policy = _workers(config, config.actor, PolicyWorker, place, 1.0)
        steps = config.train.sft_note_steps + config.train.sft_warmup_steps
        waiting = policy.async_init_model_from_pretrained(strategy, model_of(config), steps, None)
        starting |= {f"{name} warm start rank {i}": ref for i, ref in enumerate(waiting)}
        pupils.append(
            Learner(
                name,
                own,
                strategy,
                Workers(policy, places=(place,)),
                None,
                pad_token_id,
                _deadlines(config),
                adapter=adapters[0] if adapters else "",
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
    engines: Fleet | None = None
    if spec is not None:
        own, share = bundles(layout.engines, "engines")
        spec = replace(spec, model=start, adapters=adapters_at_once(config, policies), adapter_rank=config.ds.lora.rank)
        engines = casting.start_fleet(config, spec, title, own, share)
        starting |= {name: engine.weight_stamp.remote() for name, engine in engines.named().items()}
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
    """Upstream asks the first worker for its address, and would wait for it for ever."""
    return within(
        config.run.start_timeout_s,
        f"starting the first {kind.__ray_metadata__.class_name.strip('_')}",
        lambda: RayActorGroup(
            size.num_nodes,
            size.num_gpus_per_node,
            kind,
            pg=place,
            num_gpus_per_actor=gpus_per_worker,
            duplicate_actors=config.ds.ring_attn_size * config.ds.tensor_parallel_size,
        ),
    )


@contextlib.contextmanager
def judge_of(config: RunConfig, log_folder: Path) -> Iterator[JudgeClient]:
    """A client of the named judges, or of one that is started here, kept running, and stopped at the end."""
    judge = config.judge
    token = read_token(judge.token_file) if judge.token_file else None
    with contextlib.ExitStack() as stack:
        urls = list(judge.urls)
        if not urls:
            urls = [stack.enter_context(kept_running(log_folder / "judge.log"))]
        client = stack.enter_context(
            JudgeClient(
                urls,
                batch_size=judge.batch_size,
                max_wait_s=judge.max_wait_s,
                timeout_s=judge.timeout_s,
                attempt_timeout_s=judge.attempt_timeout_s,
                token=token,
                max_requests=judge.max_requests,
            )
        )
        client.wait_ready(judge.timeout_s)
        yield client
