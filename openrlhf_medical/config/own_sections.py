"""Keys of our own: the game, the judge, who plays and who trains, and the run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from openrlhf_medical.config.base import Count, NotNegative, Positive, Section, Share
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.rewards import reward_table

SHARES_SUM_TOLERANCE = 1e-6


class Mix(Section):
    """Shares of games played, by category; they sum to 1."""

    vanilla_harmful: Share = Field(default=0.25, description="note with the error, passed on as it is")
    adversarial_harmful: Share = Field(default=0.25, description="note with the error, made worse")
    vanilla_benign: Share = Field(default=0.25, description="clean note, passed on as it is")
    adversarial_benign: Share = Field(default=0.25, description="clean note, one error injected (or disguised)")

    @model_validator(mode="after")
    def _sum_to_one(self) -> Mix:
        total = sum(self.model_dump().values())
        if abs(total - 1) > SHARES_SUM_TOLERANCE:
            raise ValueError(f"the four shares of game.mix sum to {total:g}, not to 1: change them together")
        return self


class AttackerCoefficients(Section):
    """null keeps the scheme's coefficient."""

    res_harm: NotNegative | None = Field(default=None, description="for the assessor being wrong")
    res_refusal: NotNegative | None = Field(default=None, description="for the assessor refusing")
    revision: NotNegative | None = Field(default=None, description="for a rewrite that is faithful to its task")
    format: NotNegative | None = Field(default=None, description="for a well-formed reply")


class AssessorCoefficients(Section):
    """null keeps the scheme's coefficient."""

    res_harm: NotNegative | None = Field(default=None, description="for being right")
    res_refusal: NotNegative | None = Field(default=None, description="for not refusing")
    format: NotNegative | None = Field(default=None, description="for a well-formed reply")


class Coefficients(Section):
    attacker: AttackerCoefficients = AttackerCoefficients()
    assessor: AssessorCoefficients = AssessorCoefficients()


class Rewards(Section):
    scheme: Literal["zero_sum", "general_sum", "general_sum_all_one"] = Field(
        default="zero_sum", description="reward table; the general_sum tables are Self-RedTeam's (arXiv 2506.07468)"
    )
    coefficients: Coefficients = Coefficients()

    def overrides(self) -> dict[str, dict[str, float]]:
        """{role: {component: coefficient}} of the coefficients that were set, for ``game.rewards.reward_table``."""
        return self.coefficients.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _keep_the_scheme(self) -> Rewards:
        try:
            reward_table(self.scheme, self.overrides())
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


class Game(Section):
    mix: Mix = Mix()
    vanilla_turn: Literal["passthrough", "generate"] = Field(
        default="passthrough", description="vanilla notes go straight to the assessor, or the attacker must copy them"
    )
    benign_goal: Literal["inject", "disguise"] = Field(
        default="inject", description="adversarial_benign: inject one error, or reword and keep it correct"
    )
    edit: Literal["note", "sentence"] = Field(
        default="note", description="the attacker writes the whole note, or one sentence that is spliced in"
    )
    cot: bool = Field(default=True, description="hidden chain of thought; false is the no-CoT ablation")
    attacks_per_seed: Count = Field(default=1, description="attackers on the same seed")
    assessments_per_note: Count = Field(default=1, description="assessors on the same presented note")
    unassessable_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of seeds whose note is blanked or cut"
    )
    length_ratio: tuple[Positive, Positive] = Field(
        default=(0.5, 2.0), description="allowed length of the attacker's note over the seed's: LOW HIGH"
    )
    ties: Literal["drop"] = Field(default="drop", description="a game without a label trains neither role")
    rewards: Rewards = Rewards()

    @field_validator("length_ratio")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not bounds[0] <= 1 <= bounds[1]:
            raise ValueError("LOW is at most 1 and HIGH at least 1: a note as long as the seed's is always allowed")
        return bounds


class Judge(Section):
    urls: tuple[str, ...] = Field(
        default=(),
        description="judge servers (openrlhf-medical serve-judge); none: the run starts a reference judge of its own",
    )
    timeout_s: Positive = Field(default=120.0, description="deadline of one request")
    batch_size: Count = Field(default=16, description="queries per request, at most")
    max_wait_s: NotNegative = Field(default=0.05, description="how long a query waits for others to share its request")
    max_failed_fraction: Share = Field(default=0.2, description="more failed labels than this in one step stop the run")
    token_file: Path | None = Field(default=None, description="file with the bearer token that the judge asks for")

    @field_validator("urls")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not an address: write http://HOST:PORT")
        return tuple(url.rstrip("/") for url in urls)


class Roles(Section):
    policy: Literal["separate", "shared"] = Field(
        default="separate", description="attacker and assessor are two policies, or one policy plays both"
    )
    train: Literal["both"] = Field(
        default="both", description="roles whose turns are trained on; only both in this version (no frozen role yet)"
    )


class Run(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder: letters, digits, . _ -"
    )
    dir: Path = Field(default=Path("runs"), description="folder of all runs")
    steps: Count = Field(default=100, description="steps: games, then one update of each policy")
    deterministic: bool = Field(
        default=False, description="same bits twice: a seed per turn, one sequence at a time in each engine; slow"
    )
    eval_games: int = Field(
        default=64, ge=0, description="held-out games before the first and after the last step; 0 none"
    )
    start_timeout_s: Positive = Field(default=1800.0, description="deadline for all workers and engines to load")
    placement_timeout_s: Positive = Field(default=600.0, description="deadline for Ray to find room for all workers")
    generate_timeout_s: Positive = Field(default=1800.0, description="deadline of one reply")
    update_timeout_s: Positive = Field(default=3600.0, description="deadline of one update of a policy")
    sync_timeout_s: Positive = Field(default=600.0, description="deadline of one weight sync")

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return self.dir / self.name
