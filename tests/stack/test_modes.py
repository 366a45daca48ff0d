"""Every way of training, each as a user runs it, with what it leaves behind: weights, opponents, versions.

Modes that do not touch each other share a run, because a run's start costs more than its steps.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_models import taught_model
from test_train import BASE, data, moved, rows, run, training_steps  # noqa: F401  (data is a fixture)

from openrlhf_medical.config import load_config
from openrlhf_medical.data.seed_files import read_seeds
from openrlhf_medical.game.prompts import assessor_prompt_of, attacker_prompt

STEPS = 2
GAMES = "40"
"""So many that never all of a role's rewards are the same: three quarters of what a random model writes is bad form."""
COMMON = ("--train.colocate_all", "true", "--run.eval_games", "0")


def train(data: Path, folder: Path, name: str, *words: str, config: str = "configs/tiny.yaml", expect: int = 0):  # noqa: F811
    done = run(
        *("train", "--config", config, "--run.name", name, "--run.dir", str(folder), "--run.steps", str(STEPS)),
        *("--rollout.batch_size", GAMES),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        *words,
        expect=expect,
    )
    return folder / name, done


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("modes")


def turns(folder: Path, role: str) -> list[tuple[int, dict]]:
    return [(game["step"], game[role]) for game in rows(folder / "games.jsonl") if game[role]]


def learned(folder: Path, *roles: str, versions_behind: int = 0) -> None:
    """Rewards, gradients and engines of a run in which these roles learn. Games that are ``versions_behind`` tell what
    an update changed; whether the engines hold the policy's weights is seen only where they are not."""
    steps = training_steps(folder)
    for role in roles:
        assert any(row.get(f"policy/{role}/grad_norm", 0) > 0 for row in steps), f"no gradient for the {role}"
    at_once = steps[:1] if versions_behind else steps
    differences = [row["sync/logprob_mean_diff"] for row in at_once if "sync/logprob_mean_diff" in row]
    assert differences and max(differences) < 0.05, differences


class TestPool:
    """One shared policy, half of the seeds with a frozen attacker and half with a frozen assessor of its own
    past; all in lockstep, in groups, with the leave-one-out estimator."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, data, runs):  # noqa: F811
        words = ("--roles.policy", "shared", "--roles.opponent", "pool", "--roles.pool.size", "2", "--roles.pool.every",
                 "1", "--roles.pool.sampling", "hardest", "--roles.pool.share", "1.0", "--rollout.schedule", "lockstep",
                 "--algo.advantage.estimator", "rloo", "--game.attacks_per_seed", "2", "--game.assessments_per_note",
                 "2", "--rollout.batch_size", "20", "--run.steps", "3")  # fmt: skip
        return train(data, runs, "pool", *COMMON, *words)[0]

    def test_frozen_turns_are_played_by_members_and_not_trained(self, folder):
        for role in ("attacker", "assessor"):
            frozen = [(step, turn) for step, turn in turns(folder, role) if turn["frozen"]]
            assert frozen, f"nobody met a frozen {role}"
            for step, turn in frozen:
                assert turn["player"].startswith("pool/step_") and not turn["trained"]
                assert turn["policy_version"] == int(turn["player"].rpartition("_")[2]) <= step
        live = [(step, turn) for role in ("attacker", "assessor") for step, turn in turns(folder, role)
                if not turn["frozen"]]  # fmt: skip
        assert live and all(turn["policy_version"] == step and turn["player"] == "shared" for step, turn in live)

    def test_a_seed_meets_one_frozen_side(self, folder):
        sides = defaultdict(set)
        for game in rows(folder / "games.jsonl"):
            for role in ("attacker", "assessor"):
                if game[role]:
                    sides[game["step"], game["groups"]["attacker"], role].add(game[role]["frozen"])
        assert all(len(side) == 1 for side in sides.values())

    def test_opponents_change_with_the_run(self, folder):
        players = {turn["player"] for role in ("attacker", "assessor") for _, turn in turns(folder, role)}
        assert len(players - {"shared"}) >= 2, players
        members = sorted(path.name for path in (folder / "checkpoints" / "pool").iterdir())
        assert members == ["step_0", "step_3"], "the start and the newest stay"
        assert all("opponent/attacker/trained_steps" in row for row in training_steps(folder))

    def test_it_learns_in_groups(self, folder):
        learned(folder, "attacker", "assessor")
        assert moved(folder / "checkpoints" / "final" / "shared") > 0
        assert all(0 <= row["policy/assessor/equal_reward_share"] <= 1 for row in training_steps(folder)
                   if "policy/assessor/equal_reward_share" in row)  # fmt: skip


class TestAssessorOnly:
    """A frozen base attacker, a critic, a warm start and supervised examples mixed in."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, data, runs):  # noqa: F811
        words = ("--roles.train", "assessor", "--algo.advantage.estimator", "gae", "--algo.advantage.lambd", "0.95",
                 "--critic.adam.lr", "1e-3", "--train.sft_warmup_steps", "4", "--train.sft_batch_size", "4",
                 "--train.sft_note_steps", "2", "--train.sft_thoughts", "recite", "--train.sft_lr", "5e-3",
                 "--train.sft_coef", "0.5", "--actor.entropy_coef", "0.001")  # fmt: skip
        return train(data, runs, "assessor-only", *COMMON, *words)[0]

    def test_the_attacker_is_the_start_and_stays_it(self, folder):
        played = turns(folder, "attacker")
        assert played and all(turn["frozen"] and turn["player"] == "base" for _, turn in played)
        assert not any(turn["trained"] for _, turn in played)
        assert {path.name for path in (folder / "checkpoints" / "final").iterdir()} == {"assessor"}

    def test_everything_starts_from_the_warm_start(self, folder):
        warm = folder / "checkpoints" / "warm_start"
        assert {path.name for path in warm.iterdir()} == {"attacker", "assessor"}, "the frozen side is taught too"
        assert moved(warm / "assessor") > 1e-3
        losses = [row["policy/assessor/sft_loss"] for row in rows(folder / "warm_start.jsonl")
                  if "policy/assessor/sft_loss" in row]  # fmt: skip
        assert losses
        first = training_steps(folder)[0]
        # Against a reference left at the base model it would be far from 0.
        assert abs(first["policy/assessor/kl"]) < 0.02

    def test_policy_and_critic_learn(self, folder):
        learned(folder, "assessor")
        steps = training_steps(folder)
        assert all(row["policy/assessor/critic_grad_norm"] > 0 for row in steps)
        assert all(row["policy/assessor/sft_loss"] > 0 and row["policy/assessor/token_entropy"] > 0 for row in steps)
        warm = load_file(folder / "checkpoints" / "warm_start" / "assessor" / "model.safetensors")
        final = load_file(folder / "checkpoints" / "final" / "assessor" / "model.safetensors")
        assert any((final[name].float() - warm[name].float()).abs().max() > 0 for name in warm)


class TestAttackerOnly:
    """A frozen assessor from a folder; games are played while the update runs, and corrected for it."""

    STEPS = 3

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, data, runs):  # noqa: F811
        words = ("--roles.train", "attacker", "--roles.opponent", "checkpoint", "--roles.checkpoint", str(BASE),
                 "--algo.advantage.estimator", "reinforce_baseline", "--game.attacks_per_seed", "2",
                 "--rollout.batch_size", "20", "--train.async_enable", "true", "--algo.advantage.is_correction_level",
                 "token", "--run.steps", str(cls.STEPS), "--run.eval_games", "0")  # fmt: skip
        return train(data, runs, "attacker-only", *words)[0]

    def test_games_are_at_most_one_version_old(self, folder):
        versions = {step: {t["policy_version"] for s, t in turns(folder, "attacker") if s == step} for step in range(3)}
        assert versions == {0: {0}, 1: {0}, 2: {1}}

    def test_the_assessor_is_the_checkpoint(self, folder):
        played = turns(folder, "assessor")
        assert played and all(turn["frozen"] and turn["player"] == "checkpoint/tiny" for _, turn in played)
        assert {path.name for path in (folder / "checkpoints" / "final").iterdir()} == {"attacker"}

    def test_it_learns_with_correction(self, folder):
        learned(folder, "attacker", versions_behind=1)
        assert moved(folder / "checkpoints" / "final" / "attacker") > 0
        assert all(0 <= row["policy/attacker/is_filtered"] <= 1 for row in training_steps(folder))


class TestAdapters:
    """Two adapters on one base, with frozen ones of the past beside them; localisation, disguise, group norm,
    KL as a loss."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, data, runs):  # noqa: F811
        words = ("--roles.policy", "adapters", "--ds.lora.rank", "8", "--actor.adam.lr", "1e-2", "--roles.opponent",
                 "pool", "--roles.pool.every", "1", "--algo.advantage.estimator", "group_norm",
                 "--game.attacks_per_seed", "2", "--game.assessments_per_note", "2", "--rollout.batch_size", "20",
                 "--game.benign_goal", "disguise", "--game.rewards.scheme", "general_sum",
                 "--game.rewards.coefficients.assessor.localisation", "0.5", "--algo.kl.use_loss", "true",
                 "--algo.kl.estimator", "k3", "--run.steps", "3",
                 "--actor.gradient_checkpointing_enable", "true")  # fmt: skip
        return train(data, runs, "adapters", *COMMON, *words)[0]

    def test_both_learn_and_are_saved_as_adapters(self, folder):
        learned(folder, "attacker", "assessor")
        for role in ("attacker", "assessor"):
            final = folder / "checkpoints" / "final" / role
            assert json.loads((final / "adapter_config.json").read_text())["r"] == 8
            start = load_file(folder / "checkpoints" / "pool" / "step_0" / role / "adapter_model.safetensors")
            end = load_file(final / "adapter_model.safetensors")
            assert any((end[name] - start[name]).abs().max() > 0 for name in start), role

    def test_versions_and_opponents(self, folder):
        for role in ("attacker", "assessor"):
            played = turns(folder, role)
            assert any(turn["frozen"] for _, turn in played) and any(not turn["frozen"] for _, turn in played)
            for step, turn in played:
                if turn["frozen"]:
                    assert turn["policy_version"] == int(turn["player"].rpartition("_")[2]) <= step
                else:
                    assert (turn["player"], turn["policy_version"]) == (role, step)

    def test_the_saved_adapter_opens_with_transformers(self, folder):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / "final" / "assessor")
        assert any("lora_" in name for name, _ in model.named_parameters())

    def test_localisation_is_rewarded_where_the_data_knows(self, folder):
        games = rows(folder / "games.jsonl")
        located = [game for game in games if game["assessor"] and "localisation" in game["assessor"]["reward"]]
        assert located and all(game["label"]["source"] == "data" for game in located)


def test_a_collapse_is_seen_within_three_steps_and_rolled_back(data, runs, tmp_path_factory):  # noqa: F811
    """A policy that always says Harmful, whatever it is asked."""
    seeds = read_seeds(data / "train.jsonl")[:60]
    rules = load_config(Path("configs/tiny.yaml"), []).rules()
    prompts = [assessor_prompt_of(seed.seed_note, rules) for seed in seeds]
    prompts += [attacker_prompt(seed, rules) for seed in seeds if rules.attacker_generates(seed.category)]
    replies = [" It is wrong. </think> <answer>Harmful</answer>"]
    model = taught_model(tmp_path_factory.mktemp("model") / "harmful", prompts, replies, steps=60, lr=1e-2)
    folder, done = train(data, runs, "collapse", *COMMON, "--actor.model_name_or_path", model, "--roles.policy",
                         "shared", "--run.on_collapse", "rollback", "--run.good_every", "1", "--run.steps", "4",
                         "--actor.adam.lr", "1e-6", "--rollout.batch_size", "24")  # fmt: skip
    assert "step 2: always_harmful (assessor)" in done.stderr, done.stderr[-1500:]
    assert "back to the last good state (1 of 3 times)" in done.stderr
    versions = {
        step: {turn["policy_version"] for s, turn in turns(folder, "assessor") if s == step} for step in range(4)
    }
    assert versions == {0: {0}, 1: {1}, 2: {2}, 3: {4}}, "the state that was gone back to is a version of its own"
