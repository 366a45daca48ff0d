"""Role-wise estimators on whole samples, beside upstream's own, and the critic that gae needs. No Ray, no GPU."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from openrlhf_medical import devices
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.advantages import GROUP_ESTIMATORS, WHITENING_ESTIMATORS, whiten_by_role
from openrlhf_medical.learner.critic import _CriticWorker
from openrlhf_medical.learner.experience import (
    SelfPlayExperienceMaker,
    drop_thinned,
    equal_reward_shares,
    generalized_advantages,
)
from openrlhf_medical.rollout.trajectories import Trajectory, masked_experience, to_experience

devices.prepare_process()

from openrlhf.models import get_llm_for_sequence_regression  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402
from openrlhf.trainer.ray.ppo_critic import CriticPPOTrainer  # noqa: E402

ESTIMATORS = ["reinforce", "reinforce_baseline", "rloo", "group_norm", "gae"]
PAD = 0


def options(estimator: str, *, ranks: int = 1, per_prompt: int = 2, gamma: float = 1.0, lambd: float = 0.9):
    advantage = SimpleNamespace(estimator=estimator, gamma=gamma, lambd=lambd, no_std_norm=False)
    return SimpleNamespace(
        algo=SimpleNamespace(advantage=advantage),
        actor=SimpleNamespace(num_nodes=1, num_gpus_per_node=ranks),
        ds=SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1),
        reward=SimpleNamespace(clip_range=(-10, 10)),
        rollout=SimpleNamespace(micro_batch_size=2, n_samples_per_prompt=per_prompt),
    )


def fill(batches: list[Experience]) -> list[Experience]:
    """Stands in for the workers: KL and values that depend on the token alone, large where nobody may look."""
    for batch in batches:
        token, hidden = batch.sequences[:, 1:], batch.action_mask == 0
        batch.kl = (token % 7 / 5 - 0.5).masked_fill(hidden, 0.0)  # upstream's Actor masks log-probabilities
        batch.values = (token % 5 / 4 - 0.3).masked_fill(hidden, 1e3)
    return batches


class OfflineMaker(SelfPlayExperienceMaker):
    def make_experience(self, samples_list: list[Experience]) -> list[Experience]:
        return fill(samples_list)

    def _share_cores(self) -> bool:
        return True


def maker(estimator: str, **changes) -> OfflineMaker:
    strategy = SimpleNamespace(args=options(estimator, **changes))
    kl = SimpleNamespace(value=0.1)
    return OfflineMaker(None, "a critic", None, None, kl, strategy, pad_token_id=PAD, timeout_s=1.0)


def advantages(estimator: str, trajectories: list[Trajectory], **changes) -> list[torch.Tensor]:
    """(T_a,) advantages of each trajectory's action tokens."""
    prepared = maker(estimator, **changes).prepare(trajectories)
    return [e.advantages[e.action_mask.bool()] for e in prepared]


def trajectory(role: Role, group: str, reward: float, prompt: int, actions: int, seed: int) -> Trajectory:
    tokens = torch.randint(1, 200, (prompt + actions,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Trajectory(
        role=role, game_idx=seed, group=group, category="", prompt_ids=tuple(tokens[:prompt]),
        token_ids=tuple(tokens[prompt:]), logprobs=(-1.0,) * actions, reward=reward,
    )  # fmt: skip


rewards = st.integers(-8, 8).map(lambda halves: halves / 2)
SIZES = st.integers(2, 4)


@st.composite
def games(draw, roles=tuple(Role), sizes=SIZES) -> list[Trajectory]:
    """Some groups of each role; both roles use the same group names."""
    found: list[Trajectory] = []
    for role in roles:
        for group in range(draw(st.integers(1, 3))):
            for _ in range(draw(sizes)):
                prompt, actions = draw(st.integers(1, 4)), draw(st.integers(1, 5))
                found.append(trajectory(role, f"s{group}", draw(rewards), prompt, actions, len(found)))
    return found


def close(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.allclose(a, b, atol=1e-5) for a, b in zip(left, right, strict=True))


def test_gae_by_hand():
    """λ = ½, γ = 1, values 1, 2, 4, reward 5 at the end: δ = (0+2-1, 0+4-2, 5-4) = (1, 2, 1), from the back
    A₃ = 1, A₂ = 2 + ½·1 = 2.5, A₁ = 1 + ½·2.5 = 2.25; returns A + V. Prompt and padding hold rubbish."""
    values = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    rewards = torch.tensor([[7.0, 0.0, 0.0, 5.0, 7.0]])
    found, returns = generalized_advantages(values, rewards, torch.tensor([[0, 1, 1, 1, 0]]), 1.0, 0.5)
    assert found.tolist() == [[0.0, 2.25, 2.5, 1.0, 0.0]]
    assert returns.tolist() == [[0.0, 3.25, 4.5, 5.0, 0.0]]


def test_gae_discounts_by_hand():
    """γ = λ = ½, values 1, 2, reward 5: δ = (0 + ½·2 - 1, 5 - 2) = (0, 3), A₁ = 0 + ¼·3."""
    found, _ = generalized_advantages(
        torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]]), torch.ones(1, 2), gamma=0.5, lambd=0.5
    )
    assert found.tolist() == [[0.75, 3.0]]


@given(st.sampled_from(ESTIMATORS), st.integers(2, 4), st.data(), st.sampled_from([0.5, 1.0]))
def test_one_role_in_equal_groups_is_upstreams(estimator, size, data, gamma):
    trajectories = data.draw(games(roles=(Role.ASSESSOR,), sizes=st.just(size)))
    gamma = 1.0 if estimator in GROUP_ESTIMATORS else gamma
    args = options(estimator, per_prompt=size, gamma=gamma)
    theirs = RemoteExperienceMaker(None, None, None, None, SimpleNamespace(value=0.1), SimpleNamespace(args=args), None)
    samples = [to_experience(t, i) for i, t in enumerate(trajectories)]
    expected = theirs.compute_advantages_and_returns(fill(samples))
    ours = maker(estimator, gamma=gamma).prepare(trajectories)
    for a, b in zip(ours, expected, strict=True):
        mask = a.action_mask.bool()
        assert torch.allclose(a.advantages[mask], b.advantages[0][mask], atol=1e-4)
        assert torch.allclose(a.returns[mask], b.returns[0][mask], atol=1e-4)


@given(st.sampled_from(ESTIMATORS), games(), st.randoms(use_true_random=False))
def test_order_does_not_matter(estimator, trajectories, rng):
    order = list(range(len(trajectories)))
    rng.shuffle(order)
    expected = advantages(estimator, trajectories)
    found = advantages(estimator, [trajectories[i] for i in order])
    assert close(found, [expected[i] for i in order])


@given(st.sampled_from(ESTIMATORS), games(), st.integers(2, 5))
def test_masked_samples_change_nothing(estimator, trajectories, ranks):
    """More ranks are filled up with more masked samples."""
    assert close(advantages(estimator, trajectories, ranks=ranks), advantages(estimator, trajectories))


@given(st.sampled_from(ESTIMATORS), games(), rewards)
def test_one_roles_rewards_leave_the_other_bit_for_bit(estimator, trajectories, shift):
    changed = [
        trajectory(t.role, t.group, t.reward + shift * (1 + i), len(t.prompt_ids), len(t.token_ids), i)
        if t.role is Role.ATTACKER else t
        for i, t in enumerate(trajectories)
    ]  # fmt: skip
    before, after = advantages(estimator, trajectories), advantages(estimator, changed)
    for t, one, other in zip(trajectories, before, after, strict=True):
        assert t.role is Role.ATTACKER or torch.equal(one, other)


def opposite_roles() -> list[Trajectory]:
    """A zero-sum batch that the attacker is winning: groups of 3, rewards 3 ± 1 against -3 ± 1."""
    return [
        trajectory(role, f"s{i % 4}", sign * 3 + (-1) ** (i % 5), 3, 2 + i % 6, i)
        for role, sign in ((Role.ATTACKER, 1), (Role.ASSESSOR, -1))
        for i in range(12)
    ]


def tokens_of(role: Role, values: list[torch.Tensor], trajectories: list[Trajectory]) -> torch.Tensor:
    return torch.cat([v for v, t in zip(values, trajectories, strict=True) if t.role is role])


@pytest.mark.parametrize("estimator", sorted(WHITENING_ESTIMATORS))
def test_each_role_has_mean_zero_and_deviation_one(estimator):
    trajectories = opposite_roles()
    found = advantages(estimator, trajectories)
    for role in Role:
        own = tokens_of(role, found, trajectories)
        assert own.mean().item() == pytest.approx(0, abs=1e-5)
        assert own.std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("estimator", ["reinforce", "gae"])
def test_whitened_together_the_check_above_would_fail(estimator):
    trajectories = opposite_roles()
    prepared = maker(estimator).prepare(trajectories)
    unwhitened = [e.returns - e.values.masked_fill(e.action_mask == 0, 0) * (estimator == "gae") for e in prepared]
    rows, masks = [u[None] for u in unwhitened], [e.action_mask[None] for e in prepared]
    together = whiten_by_role(rows, masks, [["everyone"]] * len(rows))
    own = [t[m.bool()] for t, m in zip(together, masks, strict=True)]
    assert tokens_of(Role.ATTACKER, own, trajectories).mean() > 0.5
    assert tokens_of(Role.ASSESSOR, own, trajectories).mean() < -0.5


def test_gamma_is_for_reinforce_and_gae_alone():
    trajectories = opposite_roles()
    for estimator in ESTIMATORS:
        same = close(advantages(estimator, trajectories, gamma=0.5), advantages(estimator, trajectories))
        assert same == (estimator in GROUP_ESTIMATORS)


@given(st.sampled_from(ESTIMATORS), games(sizes=st.integers(1, 3)))
def test_thinned_groups_are_dropped_and_the_rest_kept_in_order(estimator, trajectories):
    kept, dropped = drop_thinned(trajectories, estimator)
    names = [(t.role, t.group) for t in trajectories]
    alone = [names.count(name) < 2 and estimator in GROUP_ESTIMATORS for name in names]
    assert kept == [t for t, a in zip(trajectories, alone, strict=True) if not a]
    assert dropped == Counter(t.role for t, a in zip(trajectories, alone, strict=True) if a)


def test_the_same_group_name_in_two_roles_is_two_groups():
    pair = [trajectory(role, "s0", 1.0, 2, 2, i) for i, role in enumerate(Role)]
    assert drop_thinned(pair, "rloo") == ([], dict.fromkeys(Role, 1))


def test_equal_reward_shares_by_hand():
    """Attackers: s0 (1, 1) and s1 (1, 2); assessors: s0 (0, 0)."""
    sides = [(Role.ATTACKER, "s0", 1), (Role.ATTACKER, "s0", 1), (Role.ATTACKER, "s1", 1), (Role.ATTACKER, "s1", 2),
             (Role.ASSESSOR, "s0", 0), (Role.ASSESSOR, "s0", 0)]  # fmt: skip
    found = [trajectory(role, group, reward, 2, 2, i) for i, (role, group, reward) in enumerate(sides)]
    assert equal_reward_shares(found, "rloo") == {Role.ATTACKER: 0.5, Role.ASSESSOR: 1.0}
    assert equal_reward_shares(found, "reinforce") == {Role.ATTACKER: 0.0, Role.ASSESSOR: 1.0}


def test_what_the_maker_refuses():
    with pytest.raises(ValueError, match="dr_grpo"):
        maker("dr_grpo")
    with pytest.raises(ValueError, match="needs a critic"):
        strategy = SimpleNamespace(args=options("gae"))
        SelfPlayExperienceMaker(None, None, None, None, None, strategy, pad_token_id=PAD, timeout_s=1.0)


# ── The critic ──


@pytest.fixture(scope="module", params=["llama", "mistral"])
def critic(request, tmp_path_factory):
    """Upstream's critic on a random model of each family that we name, in float32."""
    folder = tmp_path_factory.mktemp(request.param)
    config = AutoConfig.for_model(
        request.param, vocab_size=200, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return get_llm_for_sequence_regression(
        str(folder), "critic", attn_implementation=devices.attention("sdpa"), init_value_head=True
    ).float()


class PlainStrategy:
    """What upstream's training step asks of a strategy, without DeepSpeed."""

    ring_attn_group = None
    args = SimpleNamespace(
        train=SimpleNamespace(max_epochs=1, dynamic_batch_enable=False),
        ds=SimpleNamespace(packing_samples=False),
        actor=SimpleNamespace(aux_loss_coef=0.0),
    )

    def backward(self, loss, model, optimizer):
        loss.backward()

    def optimizer_step(self, *args, **kwargs):
        pass

    def get_grad_norm(self, model):
        return 2.0


def worker_of(critic) -> tuple[_CriticWorker, list[bool]]:
    worker, boundaries = object.__new__(_CriticWorker), []
    critic.set_gradient_accumulation_boundary = boundaries.append
    critic.zero_grad()
    worker.strategy, worker.critic = PlainStrategy(), critic
    scheduler = SimpleNamespace(get_last_lr=lambda: [0.125])
    worker.trainer = CriticPPOTrainer(worker.strategy, critic, None, scheduler, value_clip=0.5)
    return worker, boundaries


def batch_of(*trajectories: Trajectory) -> Experience:
    own = [to_experience(t, i) for i, t in enumerate(trajectories)]
    batch = Experience.concat_experiences(own or [masked_experience(PAD)], PAD)
    batch.values = torch.zeros(batch.action_mask.shape)
    batch.returns = torch.full(batch.action_mask.shape, 2.0) * batch.action_mask
    return batch


def test_critic_update_is_one_mean_over_all_tokens_and_masked_samples_change_nothing(critic):
    attackers = batch_of(trajectory(Role.ATTACKER, "", 0, 3, 4, 1), trajectory(Role.ATTACKER, "", 0, 2, 2, 2))
    assessors = batch_of(trajectory(Role.ASSESSOR, "", 0, 2, 5, 3))

    def gradients(micro_batches):
        worker, boundaries = worker_of(critic)
        found = worker.update([micro_batches])
        assert boundaries == [False] * (len(micro_batches) - 1) + [True]
        return found, [p.grad.clone() for p in critic.parameters()]

    plain, expected = gradients([("attacker", attackers), ("assessor", assessors)])
    filled, found = gradients([("attacker", attackers), ("", batch_of()), ("assessor", assessors)])
    assert filled == plain
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    critic.zero_grad()
    losses = {}
    for role, batch in (("attacker", attackers), ("assessor", assessors)):
        mask = batch.action_mask.bool()
        values = critic(batch.sequences, action_mask=batch.action_mask, attention_mask=batch.attention_mask)[mask]
        # old values 0, returns 2, clip range 0.5: the clipped error counts where it is the larger one
        losses[role] = 0.5 * torch.maximum((values.clamp(-0.5, 0.5) - 2) ** 2, (values - 2) ** 2)
        assert plain[role]["value_loss"] == pytest.approx(losses[role].mean().item(), rel=1e-5)
        assert plain[role]["value_mean"] == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-6)
        assert plain[role]["tokens"] == mask.sum()
    torch.cat(list(losses.values())).mean().backward()
    assert all(torch.allclose(p.grad, e, atol=1e-6) for p, e in zip(critic.parameters(), expected, strict=True))
    assert plain[""] == {"critic_grad_norm": 2.0, "critic_learning_rate": 0.125}


def test_values_do_not_depend_on_padding(critic):
    critic.eval()
    short, long = (trajectory(Role.ASSESSOR, "", 0, 2, actions, actions) for actions in (3, 9))
    alone, together = batch_of(short), batch_of(short, long)
    values = [
        critic(b.sequences, action_mask=b.action_mask, attention_mask=b.attention_mask) for b in (alone, together)
    ]
    width = alone.action_mask.shape[1]
    assert torch.allclose(values[0][0], values[1][0, :width], atol=1e-6)
    assert not values[1][0, width:].any(), "upstream masks values"
