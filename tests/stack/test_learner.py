"""Learners on the real stack: updates that do not depend on ranks, and weight sync that is checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_medical import assembly, casting, layout
from openrlhf_medical.config import load_config
from openrlhf_medical.game.players import Prompt, Role, TurnKey
from openrlhf_medical.rollout.engine_player import Sampling
from openrlhf_medical.rollout.trajectories import Trajectory

ROOT = Path(__file__).resolve().parents[2]


def configure(*words: str):
    return load_config(
        ROOT / "configs" / "tiny.yaml", ["--actor.model_name_or_path", str(ROOT / "models/tiny"), *words]
    )


def synthetic_samples(attackers: int = 5, assessors: int = 8, seed: int = 0, version: int = 0) -> list[Trajectory]:
    """Samples of uneven lengths with rewards of either sign; their tokens are any."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return tuple(torch.randint(10, 40_000, (n,), generator=generator).tolist())

    samples = []
    for i in range(attackers + assessors):
        n = 5 + 3 * i
        samples.append(
            Trajectory(
                role=Role.ATTACKER if i < attackers else Role.ASSESSOR,
                game_idx=i,
                group=str(i),
                category="adversarial_benign",
                prompt_ids=ids(20),
                token_ids=ids(n),
                logprobs=(-10.8,) * n,
                reward=float((-1) ** i) * (1 + i / 10),
                policy_version=version,
            )
        )
    return samples


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}


def change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(after[name] - before[name]).flatten() for name in sorted(before)])


class TestUpdateDoesNotDependOnRanks:
    """Five attacker and eight assessor samples give the same update on one rank and on two."""

    # A huge epsilon makes Adam's first step proportional to the gradient. With the usual one it is
    # its sign, and a gradient of nothing but rounding noise would move a weight as far as any other.
    linear = (
        *("--actor.adam.eps", "1.0", "--actor.adam.lr", "10", "--actor.max_norm", "0"),
        *("--algo.kl.init_coef", "0.01", "--roles.policy", "shared", "--train.colocate_all", "true"),
    )

    @classmethod
    def one_update(cls, folder: Path, ranks: int, stage: int) -> tuple[torch.Tensor, dict[str, float]]:
        config = configure(*cls.linear, "--actor.num_gpus_per_node", str(ranks), "--ref.num_gpus_per_node", str(ranks),
                           "--vllm.num_engines", str(ranks), "--ds.zero_stage", str(stage))  # fmt: skip
        [learner] = assembly.start_learners(config, starts(config), pad_token_id=2, spec=None)
        try:
            learner.version = 0
            prepared = learner.prepare(synthetic_samples())
            metrics = learner.update(prepared, seed=1)
            learner.save(folder)
        finally:
            learner.stop()
        return change(weights_of(ROOT / "models/tiny"), weights_of(folder)), metrics

    @pytest.fixture(scope="class")
    @classmethod
    def single(cls, ray_session, tmp_path_factory):
        return cls.one_update(tmp_path_factory.mktemp("one") / "saved", ranks=1, stage=2)

    @pytest.mark.parametrize("stage", [2, 3])
    def test_two_ranks(self, single, tmp_path, stage):
        expected, one = single
        got, two = self.one_update(tmp_path / "saved", ranks=2, stage=stage)
        norm = one["policy/attacker/grad_norm"]
        assert norm > 0.01
        assert two["policy/attacker/grad_norm"] == pytest.approx(norm, rel=0.02)
        assert two["policy/attacker/optimizer_steps"] == one["policy/attacker/optimizer_steps"] == 2
        assert expected.abs().max() > 1e-3, "the update moved nothing"
        error = (got - expected).norm() / expected.norm()
        assert error < 0.05, f"the updates differ by {error:.3f} of their size"


def starts(config) -> dict[Role, str]:
    return dict.fromkeys(Role, layout.model_of(config))


def play_and_compare(config, learner, tokenizer, role=Role.ASSESSOR, select="") -> dict[str, float]:
    """Replies from the learner's engines, and how far their log-probabilities are from the policy's.
    ``select``: compare with this adapter instead."""
    player = casting.player_of(config, learner.engines, tokenizer, name=learner.name, adapter=learner.adapter)
    player._sampling = replace(player._sampling, max_new_tokens=16)

    async def replies():
        prompts = [Prompt(({"role": "user", "content": f"Is patient {i} ill?"},), "<think>") for i in range(6)]
        return await asyncio.gather(*[player.reply(p, TurnKey(0, i, role)) for i, p in enumerate(prompts)])

    samples = [
        Trajectory(role, i, str(i), "c", r.prompt_ids, r.token_ids, r.logprobs, float(i % 2), {}, learner.version)
        for i, r in enumerate(asyncio.run(replies()))
    ]
    learner.adapter = select or learner.adapter
    return learner.prepare(samples).metrics


class TestWeightSync:
    """Every engine's weights are the policy's, shown after a change far larger than bf16 noise."""

    config = configure("--roles.policy", "shared", "--train.colocate_all", "true")

    @pytest.fixture(scope="class")
    @classmethod
    def tokenizer(cls, ray_session):
        return assembly.load_tokenizer(cls.config)

    @pytest.fixture(scope="class")
    @classmethod
    def learner(cls, tokenizer):
        [learner] = assembly.start_learners(
            cls.config, starts(cls.config), tokenizer.pad_token_id, casting.engine_spec(cls.config)
        )
        yield learner
        learner.stop()

    def test_parity_after_a_large_change(self, learner, tokenizer):
        start = play_and_compare(self.config, learner, tokenizer)
        assert start["sync/logprob_mean_diff"] < 0.02
        learner.each_rank("perturb", 2.0, 7)
        learner.sync()
        learner.check_engines()
        after = play_and_compare(self.config, learner, tokenizer)
        assert after["policy/assessor/kl"] > 1.0, "the change was meant to be large"
        assert after["sync/logprob_mean_diff"] < 0.15

    def test_an_engine_one_version_behind_is_noticed(self, learner):
        learner.check_engines()
        current = learner.stamp
        learner.stamp = replace(current, version=current.version + 1)
        try:
            with pytest.raises(RuntimeError, match="shared engine 0"):
                learner.check_engines()
        finally:
            learner.stamp = current

    def test_samples_of_another_version_are_refused(self, learner):
        with pytest.raises(RuntimeError, match="versions"):
            learner.prepare(synthetic_samples(version=learner.version - 1))

    def test_same_turn_same_tokens(self, learner, tokenizer):
        """With a seed per turn, a reply does not depend on what else is being generated."""
        player = casting.player_of(self.config, learner.engines, tokenizer)
        player._sampling = Sampling(max_new_tokens=12, deterministic=True, seed=5)
        prompt = Prompt(({"role": "user", "content": "Is he ill?"},), "<think>")
        keys = [TurnKey(0, i, Role.ASSESSOR) for i in (1, 1, 2)]

        async def one_by_one():
            return [(await player.reply(prompt, key)).token_ids for key in keys]

        first, again, other = asyncio.run(one_by_one())
        assert first == again != other


@pytest.mark.stack
def test_a_stale_output_head_is_seen(ray_session):
    """The parity check must fail where the fault is real: the tied head keeps its old packed copy."""
    config = configure("--roles.policy", "shared", "--train.colocate_all", "true")
    tokenizer = assembly.load_tokenizer(config)
    spec = replace(casting.engine_spec(config), worker_extension="stale_head.StaleHeadReceiver")
    [learner] = assembly.start_learners(config, starts(config), tokenizer.pad_token_id, spec)
    try:
        learner.each_rank("perturb", 2.0, 7)
        learner.sync()
        learner.check_engines()  # version and checksum are right: they speak of what arrived, not of what is used
        assert play_and_compare(config, learner, tokenizer)["sync/logprob_mean_diff"] > 1.0
    finally:
        learner.stop()
