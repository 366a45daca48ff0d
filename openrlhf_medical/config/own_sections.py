"""Keys of our own: the game, the judge, who plays and who trains, and the run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from openrlhf_medical.config.base import Count, NotNegative, Positive, Section, Share
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.rewards import reward_table
from openrlhf_medical.health import HealthLimits
from openrlhf_medical.yardstick import check_metric

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
    localisation: NotNegative | None = Field(
        default=None,
        description="for naming and correcting the wrong sentence (MEDEC's subtasks B and C); 0 in all schemes",
    )


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
    localise: bool = Field(
        default=True, description="ask the assessor for the wrong sentence and its correction, beside the verdict"
    )
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

    @model_validator(mode="after")
    def _localisation_is_asked_for(self) -> Game:
        if self.rewards.coefficients.assessor.localisation and not self.localise:
            raise ValueError(
                "game.rewards.coefficients.assessor.localisation rewards what game.localise false does not ask for: "
                "set game.localise true, or remove the coefficient"
            )
        return self

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
    timeout_s: Positive = Field(default=120.0, description="deadline of one label, all retries included")
    attempt_timeout_s: Positive | None = Field(
        default=None,
        description="deadline of one request; null: timeout_s with one replica, half of it with several, so that one "
        "that hangs leaves time for another",
    )
    batch_size: Count = Field(default=16, description="queries per request, at most")
    max_wait_s: NotNegative = Field(default=0.05, description="how long a query waits for others to share its request")
    max_requests: Count = Field(default=64, description="requests under way at the same time, at most")
    max_failed_fraction: Share = Field(
        default=0.2,
        description="share of a step's games that may fail (abstentions do not); with more, training pauses",
    )
    recovery_timeout_s: NotNegative = Field(
        default=600.0, description="how long a pause waits for the judge before the run saves its weights and ends"
    )
    token_file: Path | None = Field(default=None, description="file with the bearer token that the judge asks for")
    probe_every: int = Field(
        default=0, ge=0, description="steps between two rounds of gold probes, pairs of known truth; 0 none"
    )
    probe_count: int = Field(default=32, ge=4, description="gold probes in a round, half of them Harmful")
    probe_alarm: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="balanced accuracy of the decided gold probes, below which the judge is told to have drifted; "
        "so it is where it abstains on half of them",
    )

    @field_validator("urls")
    @classmethod
    def _http(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not an address: write http://HOST:PORT")
        return tuple(url.rstrip("/") for url in urls)


class Pool(Section):
    """Past checkpoints of this run, for roles.opponent pool."""

    size: int = Field(default=4, ge=2, description="past versions kept; the start is always one of them")
    every: Count = Field(default=10, description="steps between two additions")
    sampling: Literal["latest", "uniform", "hardest"] = Field(
        default="uniform", description="which member plays a step; hardest: by its win rate against the trained side"
    )
    share: Share = Field(
        default=0.5,
        description="with roles.train both: share of seeds played against the pool, half of them for each role",
    )


class Roles(Section):
    policy: Literal["separate", "shared", "adapters"] = Field(
        default="separate",
        description="two policies; one that plays both roles; or one frozen base with a LoRA adapter for each role",
    )
    train: Literal["both", "attacker", "assessor"] = Field(default="both", description="roles that learn")
    opponent: Literal["current", "base", "checkpoint", "pool"] | None = Field(
        default=None,
        description="who the learning side meets: the other side's current policy, the model that training starts "
        "from, roles.checkpoint, or past versions; null: current where both learn, else base",
    )
    checkpoint: Path | None = Field(
        default=None, description="model folder of the frozen side, for opponent checkpoint"
    )
    pool: Pool = Pool()

    @property
    def met(self) -> Literal["current", "base", "checkpoint", "pool"]:
        """``opponent`` with its default settled."""
        return self.opponent or ("current" if self.train == "both" else "base")


class Health(Section):
    """From where on a step counts as collapsed; see health.HealthLimits."""

    window: Count = Field(default=3, description="steps in a row before it is told")
    min_turns: Count = Field(default=8, description="turns in a step, below which a share of them says nothing")
    one_sided_share: Share = Field(default=0.95, description="share of one verdict")
    mixed_truth_share: Share = Field(default=0.2, description="share of the rarer truth, so that verdicts should vary")
    violation_share: Share = Field(default=0.5, description="share of a role's replies out of form")
    forfeit_share: Share = Field(default=0.5, description="share of attackers that wrote no note")
    able_share: Share = Field(default=0.25, description="share of either, up to which a role has shown that it can")
    copy_share: Share = Field(default=0.8, description="share of adversarial notes that copy their seed")
    entropy_nats: NotNegative = Field(default=0.02, description="entropy per token, below which nothing is explored")
    equal_reward_share: Share = Field(default=0.98, description="share of groups or batches with equal rewards")
    sync_nats: Positive = Field(default=0.2, description="mean log-probability gap of engine and policy per token")

    @model_validator(mode="after")
    def _go_together(self) -> Health:
        try:
            HealthLimits(**self.model_dump())
        except UserError as error:
            raise ValueError(str(error)) from None
        return self


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
    eval_every: int = Field(
        default=0, ge=0, description="steps between held-out games during training; 0: before and after it alone"
    )
    eval_frozen: bool = Field(
        default=False,
        description="play held-out games against the model that training starts from, too, for each trained role; "
        "without adapters it takes vllm.num_engines * vllm.tensor_parallel_size GPUs of its own",
    )
    best_metric: str | None = Field(
        default=None,
        description="held-out figure by which checkpoints/best is chosen, such as eval/assessor/balanced_accuracy",
    )
    early_stop_patience: int = Field(
        default=0, ge=0, description="evaluations without a better run.best_metric after which training ends; 0 never"
    )
    on_collapse: Literal["warn", "stop", "rollback"] = Field(
        default="warn",
        description="when a health check finds a collapse: say so, stop, or go back to the last good checkpoint",
    )
    good_every: Count = Field(
        default=10, description="with on_collapse rollback: steps between two states to go back to"
    )
    health: Health = Health()
    start_timeout_s: Positive = Field(default=1800.0, description="deadline for all workers and engines to load")
    placement_timeout_s: Positive = Field(default=600.0, description="deadline for Ray to find room for all workers")
    generate_timeout_s: Positive = Field(default=1800.0, description="deadline of one reply")
    update_timeout_s: Positive = Field(default=3600.0, description="deadline of one update of a policy")
    sync_timeout_s: Positive = Field(default=600.0, description="deadline of one weight sync")

    @field_validator("best_metric")
    @classmethod
    def _is_measured(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                check_metric(name)
        except UserError as error:
            raise ValueError(str(error)) from None
        return name

    @property
    def folder(self) -> Path:
        """``runs/<name>``."""
        return self.dir / self.name
