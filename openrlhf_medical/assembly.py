"""From a configuration to running learners, players and a judge: who is started, where, in which order."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather, reserve
from openrlhf_medical.config import RunConfig, upstream_options
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import STOP
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.prompts import assessor_prompt, attacker_prompt
from openrlhf_medical.game.seeds import Seed
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import start_judge_process
from openrlhf_medical.judge.token_file import read_token
from openrlhf_medical.learner.policy import Deadlines, Learner
from openrlhf_medical.learner.workers import PolicyWorker, ReferenceWorker, SelfPlayStrategy
from openrlhf_medical.rollout.engines import EnginePlayer, EngineSpec, Sampling, prompt_ids, start_engines

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
    engines: int

    @property
    def bundles(self) -> int:
        return self.policy + self.reference + self.engines


def policies_of(config: RunConfig) -> dict[str, tuple[Role, ...]]:
    """Name of each policy, and the roles that it plays."""
    if config.roles.policy == "shared":
        return {"shared": tuple(Role)}
    return {role.value: (role,) for role in Role}


def layout_of(config: RunConfig) -> Layout:
    """A count of 0 means: on the policy's own bundles."""
    actor, ref, vllm = config.actor, config.ref, config.vllm
    apart = not (config.train.colocate_all or config.train.colocate_actor_ref) and config.algo.kl.init_coef > 0
    return Layout(
        policy=actor.num_nodes * actor.num_gpus_per_node,
        reference=ref.num_nodes * ref.num_gpus_per_node if apart else 0,
        engines=0 if config.train.colocate_all else vllm.num_engines * vllm.tensor_parallel_size,
    )


def bundles_needed(config: RunConfig) -> int:
    return layout_of(config).bundles * len(policies_of(config))


def optimizer_steps_planned(config: RunConfig, roles: Collection[Role]) -> int:
    """Optimizer steps of a whole run if every game trains its roles: what a learning-rate schedule spans."""
    game = config.game
    attacks = config.rollout.batch_size * game.attacks_per_seed
    vanilla = sum(share for name, share in game.mix.model_dump().items() if name.startswith("vanilla"))
    generating = 1.0 if game.vanilla_turn == "generate" else 1.0 - vanilla
    of_role = {Role.ATTACKER: math.ceil(attacks * generating), Role.ASSESSOR: attacks * game.assessments_per_note}
    samples = max(1, sum(of_role[role] for role in roles))
    return config.run.steps * config.train.max_epochs * math.ceil(samples / config.train.batch_size)


def strategy_of(config: RunConfig) -> SelfPlayStrategy:
    """Upstream's strategy with its namespace of options."""
    args = _namespace(upstream_options(config))
    return SelfPlayStrategy(
        seed=args.train.seed,
        full_determinism=args.train.full_determinism_enable,
        max_norm=args.actor.max_norm,
        micro_train_batch_size=args.train.micro_batch_size,
        train_batch_size=args.train.batch_size,
        zero_stage=args.ds.zero_stage,
        args=args,
        policies=len(policies_of(config)),
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
        prompts = [assessor_prompt(seed.seed_note, cot=rules.cot, may_refuse=rules.unassessable_share > 0)]
        if rules.attacker_generates(seed.category):
            prompts.append(attacker_prompt(seed, rules))
        longest = max(len(prompt_ids(tokenizer, prompt)) for prompt in prompts)
        if longest > room:
            raise UserError(
                f"seed {seed.seed_id}: its prompt has {longest} tokens, but data.max_len {config.data.max_len} less "
                f"rollout.max_new_tokens {config.rollout.max_new_tokens} leaves {room}: raise data.max_len to at least "
                f"{longest + config.rollout.max_new_tokens}, or take the note out"
            )


def engine_spec(config: RunConfig) -> EngineSpec:
    vllm = config.vllm
    return EngineSpec(
        model=model_of(config),
        max_model_len=config.data.max_len,
        tensor_parallel_size=vllm.tensor_parallel_size,
        seed=config.train.seed,
        enable_prefix_caching=vllm.enable_prefix_caching and not config.run.deterministic,
        enforce_eager=vllm.enforce_eager,
        gpu_memory_utilization=vllm.gpu_memory_utilization,
        enable_sleep=vllm.enable_sleep,
        max_num_seqs=1 if config.run.deterministic else None,
    )


def start_engine_pool(config: RunConfig) -> list[Any]:
    """Engines only, one pool that plays both roles: what ``play`` needs."""
    vllm, timeout_s = config.vllm, config.run.placement_timeout_s
    place = reserve(vllm.num_engines * vllm.tensor_parallel_size, timeout_s, "the engines")
    engines = start_engines(engine_spec(config), vllm.num_engines, place, 1.0)
    gather({f"engine {i}": e.weight_stamp.remote() for i, e in enumerate(engines)},
           config.run.start_timeout_s, "starting engines")  # fmt: skip
    return engines


def start_learners(config: RunConfig, pad_token_id: int, engines: EngineSpec | None) -> list[Learner]:
    """Start every worker of every policy side by side, then send each policy's weights to its engines.

    Policy, KL reference and engines all load ``actor.model_name_or_path``; the first sync makes the
    engines' weights the policy's by construction and gives them their first stamp. With ``engines``
    None there are workers only.

    Raises:
        UserError: no room in the cluster. StuckError: a worker did not come up.
    """
    starting: dict[str, Any] = {}
    learners = [
        _start_learner(config, name, roles, pad_token_id, engines, starting)
        for name, roles in policies_of(config).items()
    ]
    gather(starting, config.run.start_timeout_s, "starting workers")
    for learner in learners:
        if engines is not None:
            learner.join_engines(
                config.vllm.tensor_parallel_size, WEIGHT_BUCKET_BYTES, shares_gpu=config.train.colocate_all
            )
            learner.sync()
    return learners


def _start_learner(
    config: RunConfig,
    name: str,
    roles: tuple[Role, ...],
    pad_token_id: int,
    spec: EngineSpec | None,
    starting: dict[str, Any],
) -> Learner:
    """Create one policy's actors and note in ``starting`` what to wait for."""
    layout, run = layout_of(config), config.run
    strategy = strategy_of(config)
    place = reserve(layout.policy, run.placement_timeout_s, f"policy {name}")
    places = [place]

    def bundles(count: int, purpose: str) -> tuple[Any, float]:
        """Bundles of its own and a whole GPU of each, or the policy's and a share of each."""
        if not count:
            return place, SHARED_GPU
        places.append(reserve(count, run.placement_timeout_s, f"{purpose} of {name}"))
        return places[-1], 1.0

    has_reference = config.algo.kl.init_coef > 0
    shares = (has_reference and not layout.reference) or not layout.engines
    policy = _workers(config, config.actor, PolicyWorker, place, SHARED_GPU if shares else 1.0)
    waiting = policy.async_init_model_from_pretrained(
        strategy, model_of(config), optimizer_steps_planned(config, roles), None
    )
    starting |= {f"{name} policy rank {i}": ref for i, ref in enumerate(waiting)}
    reference = None
    if has_reference:
        reference = _workers(config, config.ref, ReferenceWorker, *bundles(layout.reference, "reference"))
        waiting = reference.async_init_model_from_pretrained(strategy, model_of(config))
        starting |= {f"{name} reference rank {i}": ref for i, ref in enumerate(waiting)}
    engines = []
    if spec is not None:
        own, share = bundles(layout.engines, "engines")
        engines = start_engines(spec, config.vllm.num_engines, own, share)
        starting |= {f"{name} engine {i}": engine.weight_stamp.remote() for i, engine in enumerate(engines)}
    deadlines = Deadlines(update_s=run.update_timeout_s, sync_s=run.sync_timeout_s)
    return Learner(name, roles, strategy, policy, reference, engines, pad_token_id, deadlines, places)


def _workers(config: RunConfig, size: Any, kind: Any, place: Any, gpus_per_worker: float) -> RayActorGroup:
    return RayActorGroup(
        size.num_nodes,
        size.num_gpus_per_node,
        kind,
        pg=place,
        num_gpus_per_actor=gpus_per_worker,
        duplicate_actors=config.ds.ring_attn_size * config.ds.tensor_parallel_size,
    )


def players_of(config: RunConfig, pools: dict[Role, list[Any]], tokenizer: Any) -> dict[Role, EnginePlayer]:
    """A player for each role, on the engines of the policy that plays it."""
    sampling = Sampling(
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        max_new_tokens=config.rollout.max_new_tokens,
        stop=(STOP,),
        seed=config.train.seed,
        deterministic=config.run.deterministic,
    )
    return {
        role: EnginePlayer(engines, tokenizer, sampling, config.data.max_len, config.run.generate_timeout_s)
        for role, engines in pools.items()
    }


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
