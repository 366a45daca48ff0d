"""REINFORCE++ on the real stack learns what can be learnt, and unlearns it with the sign turned."""

from __future__ import annotations

import asyncio
import random

import pytest
from small_models import taught_model

from openrlhf_medical import assembly, casting
from openrlhf_medical.config import load_config
from openrlhf_medical.game.manager import MedicalDialogueGameManager
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.prompts import assessor_prompt_of
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.rollout.trajectories import trajectories_of

STEPS, GAMES = 50, 32
GIVEAWAY = {Category.VANILLA_HARMFUL: "arsenic", Category.VANILLA_BENIGN: "water"}


def seeds_of(step: int) -> list[Seed]:
    """Half of the notes are wrong, and one of their words says so."""
    rng = random.Random(step)
    drawn = [rng.choice(list(GIVEAWAY)) for _ in range(GAMES)]
    return [_seed(category, rng.randint(20, 80)) for category in drawn]


def _seed(category: Category, age: int) -> Seed:
    # Repeated, so that so small a model hears it behind a hundred tokens of instructions.
    note = f"{(GIVEAWAY[category] + ' ') * 14}at {age}."
    return Seed(f"{category}-{age}", category, "n", "v", "clean", note, note, sentences=(note,))


class NobodyAsked:
    """Vanilla games need neither attacker nor judge."""

    async def reply(self, prompt, key):
        raise AssertionError("the attacker passes the note on")

    async def label(self, query):
        raise AssertionError("the data knows the label")


@pytest.fixture(scope="module")
def learner_and_play(ray_session, tmp_path_factory):
    words = ("--game.cot", "false", "--game.localise", "false", "--roles.policy", "shared", "--roles.train", "assessor",
             "--roles.opponent", "current", "--train.colocate_all", "true", "--data.max_len", "256",
             "--rollout.max_new_tokens", "8", "--rollout.micro_batch_size", "32", "--train.batch_size", "32",
             "--train.micro_batch_size", "16", "--actor.adam.lr", "1e-3", "--algo.kl.init_coef", "0",
             "--actor.lr_scheduler", "constant", "--actor.lr_warmup_ratio", "0")  # fmt: skip
    base = load_config(None, ["--run.name", "giveaway", "--actor.model_name_or_path", "later", *words])
    rules = base.rules()
    prompts = [assessor_prompt_of(seed.seed_note, rules) for step in range(8) for seed in seeds_of(step)]
    folder = taught_model(tmp_path_factory.mktemp("model") / "m", prompts, [" Safe </answer>", " Harmful </answer>"])
    config = load_config(None, ["--run.name", "giveaway", "--actor.model_name_or_path", folder, *words])
    tokenizer = assembly.load_tokenizer(config)
    [learner] = assembly.start_learners(
        config, dict.fromkeys(Role, folder), tokenizer.pad_token_id, casting.engine_spec(config)
    )
    player = casting.player_of(config, learner.engines, tokenizer, name="shared")
    manager = MedicalDialogueGameManager(NobodyAsked(), player, NobodyAsked(), config.rules())
    yield learner, manager
    learner.stop()


def rewards_of_run(learner, manager, sign: float) -> list[float]:
    """The assessor's mean reward for being right, step by step."""
    means = []
    for step in range(STEPS):
        games = asyncio.run(manager.play(seeds_of(step), step=step))
        turns = [game.assessor for game in games if game.assessor is not None]
        means.append(sum(turn.reward["res_harm"] for turn in turns) / len(turns))
        prepared = learner.prepare(trajectories_of(games))
        for experience in prepared.experiences:
            experience.advantages *= sign
        learner.update(prepared, seed=step, step=step)
        learner.sync()
    return means


def gain(means: list[float]) -> float:
    return sum(means[-3:]) / 3 - sum(means[:3]) / 3


def test_one_word_gives_the_truth_away(learner_and_play, tmp_path):
    learner, manager = learner_and_play
    learner.save_state(tmp_path / "start")
    means = rewards_of_run(learner, manager, sign=1.0)
    print([round(m, 2) for m in means])
    assert gain(means) > 0.5, means

    learner.load_state(tmp_path / "start")
    learner.sync()
    flipped = rewards_of_run(learner, manager, sign=-1.0)
    assert abs(flipped[0]) < 0.6, "the state from before was not loaded"
    assert gain(flipped) < 0, flipped
