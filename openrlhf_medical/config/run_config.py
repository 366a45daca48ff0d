"""One run's whole configuration."""

from __future__ import annotations

from pydantic import model_validator

from openrlhf_medical.config import upstream_sections as upstream
from openrlhf_medical.config.base import Section
from openrlhf_medical.config.checks import contradictions
from openrlhf_medical.config.own_sections import Game, Judge, Roles, Run
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.rules import GameRules


class RunConfig(Section):
    """Everything that decides a run. ``run.name`` and ``actor.model_name_or_path`` have no default."""

    run: Run
    actor: upstream.Actor
    roles: Roles = Roles()
    game: Game = Game()
    judge: Judge = Judge()
    data: upstream.DataFiles = upstream.DataFiles()
    reward: upstream.Reward = upstream.Reward()
    rollout: upstream.Rollout = upstream.Rollout()
    train: upstream.Train = upstream.Train()
    algo: upstream.Algo = upstream.Algo()
    ref: upstream.Ref = upstream.Ref()
    critic: upstream.Critic = upstream.Critic()
    vllm: upstream.Vllm = upstream.Vllm()
    ds: upstream.Ds = upstream.Ds()
    ckpt: upstream.Ckpt = upstream.Ckpt()
    logger: upstream.Logger = upstream.Logger()

    @model_validator(mode="after")
    def _keys_agree(self) -> RunConfig:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def trained_roles(self) -> frozenset[Role]:
        return frozenset(Role) if self.roles.train == "both" else frozenset({Role(self.roles.train)})

    def rules(self) -> GameRules:
        """``game.*`` as the manager wants it."""
        game = self.game
        return GameRules(
            vanilla_turn=game.vanilla_turn,
            benign_goal=game.benign_goal,
            edit=game.edit,
            cot=game.cot,
            localise=game.localise,
            attacks_per_seed=game.attacks_per_seed,
            assessments_per_note=game.assessments_per_note,
            unassessable_share=game.unassessable_share,
            length_ratio=game.length_ratio,
            ties=game.ties,
            rewards=game.rewards.scheme,
            reward_overrides=game.rewards.overrides(),
            trained_roles=self.trained_roles,
            seed=self.train.seed,
        )
