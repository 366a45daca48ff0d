"""Two LoRA adapters on one base: one engine pool, separate optimizers, versions that are really exchanged."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load
from test_learner import play_and_compare, synthetic_samples

from openrlhf_medical import assembly, casting, layout
from openrlhf_medical.config import load_config
from openrlhf_medical.game.players import Prompt, Role, TurnKey

ROOT = Path(__file__).resolve().parents[2]
CONFIG = load_config(
    ROOT / "configs" / "tiny.yaml",
    ["--actor.model_name_or_path", str(ROOT / "models/tiny"), "--roles.policy", "adapters", "--ds.lora.rank", "8",
     "--train.colocate_all", "true", "--actor.adam.lr", "1e-2"],
)  # fmt: skip


@pytest.fixture(scope="module")
def learners(ray_session):
    tokenizer = assembly.load_tokenizer(CONFIG)
    starts = dict.fromkeys(Role, layout.model_of(CONFIG))
    learners = assembly.start_learners(CONFIG, starts, tokenizer.pad_token_id, casting.engine_spec(CONFIG))
    yield {learner.name: learner for learner in learners}
    learners[0].stop()


def weights_of(learner) -> dict[str, torch.Tensor]:
    learner._select()
    return load(next(f for f in learner.each_rank("adapter_files") if f is not None).weights)


def update(learner) -> None:
    samples = [t for t in synthetic_samples(version=learner.version) if t.role in learner.roles]
    learner.update(learner.prepare(samples), seed=1)


def test_one_base_and_one_engine_pool_for_both(learners):
    attacker, assessor = learners["attacker"], learners["assessor"]
    assert attacker.engines == assessor.engines and len(attacker.engines) == CONFIG.vllm.num_engines
    assert attacker.workers.policy is assessor.workers.policy
    assert len(attacker.workers.policy._actor_handlers) == 1
    assert layout.layout_of(CONFIG).reference == 0, "the base with adapters off is the KL reference"


def test_updating_one_leaves_the_other_bit_identical(learners):
    attacker, assessor = learners["attacker"], learners["assessor"]
    before = {name: weights_of(learner) for name, learner in learners.items()}
    update(attacker)
    after = weights_of(attacker)
    assert any(not torch.equal(after[key], value) for key, value in before["attacker"].items())
    assert all(torch.equal(weights_of(assessor)[key], value) for key, value in before["assessor"].items())
    update(assessor)
    assert any(not torch.equal(weights_of(assessor)[key], value) for key, value in before["assessor"].items())
    assert all(torch.equal(weights_of(attacker)[key], value) for key, value in after.items()), "Adam's momentum leaked"


def test_every_version_has_an_id_of_its_own_and_the_old_one_is_gone(learners):
    attacker = learners["attacker"]
    for _ in range(3):
        attacker.sync()
        attacker.check_engines()
    loaded = ray.get([engine.loaded_adapters.remote() for engine in attacker.engines])
    assert all(len(names) == 2 for names in loaded), loaded
    attacker.stamp, current = learners["assessor"].stamp, attacker.stamp
    try:
        with pytest.raises(RuntimeError, match=r"attacker\+assessor engine 0"):
            attacker.check_engines()
    finally:
        attacker.stamp = current


def test_parity_of_both_after_a_large_change(learners):
    """Engine and policy agree on each adapter, and only on its own."""
    tokenizer = assembly.load_tokenizer(CONFIG)
    for n, learner in enumerate(learners.values()):
        learner._select()
        learner.each_rank("perturb", 3.0, 7 + n)
        learner.sync()
    for role, learner in zip(Role, learners.values(), strict=True):
        metrics = play_and_compare(CONFIG, learner, tokenizer, role)
        assert metrics[f"policy/{role}/kl"] > 0.05, "the change was meant to be large"
        assert metrics["sync/logprob_mean_diff"] < 0.1
    # The other adapter's replies, read as one's own: what the check must be able to see.
    attacker, assessor = learners.values()
    attacker.adapter, own = assessor.adapter, attacker.adapter
    engines_say = play_and_compare(CONFIG, attacker, tokenizer, Role.ATTACKER, select=own)
    attacker.adapter = own
    assert engines_say["sync/logprob_mean_diff"] > 0.05


def test_both_adapters_play_in_one_batch(learners):
    tokenizer = assembly.load_tokenizer(CONFIG)
    players = [
        casting.player_of(CONFIG, learner.engines, tokenizer, name=learner.name, adapter=learner.adapter)
        for learner in learners.values()
    ]
    prompt = Prompt(({"role": "user", "content": "Is he ill?"},), "<think>")

    async def at_once():
        return await asyncio.gather(*[p.reply(prompt, TurnKey(0, i, Role.ASSESSOR)) for i in range(4) for p in players])

    replies = asyncio.run(at_once())
    assert {(reply.player, reply.policy_version) for reply in replies} == {
        (learner.name, learner.version) for learner in learners.values()
    }


def test_a_dead_engine_is_found_before_a_step_and_its_successor_has_both_adapters(learners):
    attacker, assessor = learners.values()
    [old] = attacker.engines
    ray.kill(old)
    attacker.check_engines()
    assessor.check_engines()
    [new] = assessor.engines
    assert new is not old and attacker.engines.finish_step()["supervision/engine_restarts"] == 1
    tokenizer = assembly.load_tokenizer(CONFIG)
    for role, learner in zip(Role, learners.values(), strict=True):  # after the large changes above
        assert play_and_compare(CONFIG, learner, tokenizer, role)["sync/logprob_mean_diff"] < 0.1
