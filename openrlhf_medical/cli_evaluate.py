"""``openrlhf-medical evaluate``: its options, and what is made of them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openrlhf_medical.errors import UserError

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig
    from openrlhf_medical.evaluate import Model

MAX_NEW_TOKENS = 128
"""Of a reply, where no configuration says otherwise: short thoughts, a sentence and its correction. How many replies
were cut is told: a model that thinks at length wants more."""

KEY_VARIABLE = "OPENAI_API_KEY"


def evaluate(
    context: typer.Context,
    data: Annotated[
        str, typer.Option(help="MEDEC CSV or folder, synthetic (the embedded corpus's held-out notes), or a val.jsonl.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Hugging Face folder or name; with --api-base the endpoint's name of it.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help='Score this file instead: text-id flag sentence-id "correction or NA".')
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="Predictions to compare with, paired by vignette.")] = None,
    api_base: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, such as http://127.0.0.1:8001/v1.")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the endpoint's key.")] = KEY_VARIABLE,
    api_concurrency: Annotated[int, typer.Option(min=1, help="Questions to the endpoint at a time.")] = 16,
    api_timeout_s: Annotated[float, typer.Option(help="Deadline of one try at the endpoint.")] = 120.0,
    json: Annotated[
        Path | None, typer.Option(help="Write the result here; of a model runs/evaluate/NAME-DATA.json by default.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Answers are kept here as they come; beside the result by default.")
    ] = None,
    write_predictions: Annotated[
        Path | None, typer.Option(help="Write the predictions here, in the official format.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many texts; twins stay together.")] = None,
    seed: Annotated[int, typer.Option(help="Of the vignettes that --limit draws.")] = 0,
    name: Annotated[str | None, typer.Option(help="What tables call it; the folder's or the file's name.")] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One text at a time, so that a rerun gives the same bits; slow.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Ask as this configuration's games do (a run's config.yaml).")
    ] = None,
) -> None:
    """Measure a model on MEDEC's three subtasks, or score a file of predictions as the official scorer does.

    Beside it stand what flagging always and never would give, with 95 % intervals over vignettes. A model is asked
    at temperature 0; what it has answered is kept, and the same command goes on where it was interrupted. Options
    of train are taken too, such as --game.cot false, --rollout.max_new_tokens 512 or --vllm.num_engines 4.

    \b
    Examples:
      openrlhf-medical evaluate --data synthetic --model models/smollm2-135m --limit 40
      openrlhf-medical evaluate --data path/to/MEDEC.csv --model runs/mine/checkpoints/final/assessor \\
        --config runs/mine/config.yaml --write-predictions mine.txt
      openrlhf-medical evaluate --data path/to/MEDEC.csv --predictions mine.txt --compare base.txt --json out.json
      openrlhf-medical evaluate --data path/to/MEDEC.csv --api-base http://HOST:8001/v1 --model NAME
    """
    from openrlhf_medical.evaluate import EvaluationPlan
    from openrlhf_medical.evaluate import evaluate as run

    _check_sources(model, predictions, api_base, answers, context.args, config)
    settings, asked = None, None
    if model is not None:
        called = name or Path(model).name
        json = json or Path("runs/evaluate") / f"{_plain(called)}-{_plain(Path(data).stem)}.json"
        answers = answers or json.with_suffix(".answers.jsonl")
        settings = _settings(model, config, deterministic, context.args)
        asked = _model(settings, api_base, api_key_env, api_concurrency, api_timeout_s, json.with_suffix(".log"))
    else:
        called = name or Path(str(predictions)).stem
    plan = EvaluationPlan(
        data=data,
        name=called,
        predictions=predictions,
        compare=compare,
        model=asked,
        config=settings,
        json=json,
        answers=answers,
        write_predictions=write_predictions,
        limit=limit,
        seed=seed,
    )
    run(plan, command=sys.argv)


def _check_sources(
    model: str | None,
    predictions: Path | None,
    api_base: str | None,
    answers: Path | None,
    words: list[str],
    config: Path | None,
) -> None:
    if (model is None) == (predictions is None):
        found = "both --model and --predictions" if model else "neither --model nor --predictions"
        raise UserError(f"found {found}: give the one that is to be measured")
    if predictions is None:
        return
    of_models = {"--api-base": api_base, "--answers": answers, "--config": config, " ".join(words[:1]): words}
    if given := [option for option, value in of_models.items() if value]:
        raise UserError(f"{', '.join(given)} belongs to --model, but a file of predictions is scored: leave it out")


def _settings(model: str, config: Path | None, deterministic: bool, words: list[str]) -> RunConfig:
    from openrlhf_medical.config import load_config

    own = [f"--actor.model_name_or_path={model}"]
    if config is None:
        own += ["--run.name=evaluate", f"--rollout.max_new_tokens={MAX_NEW_TOKENS}"]
        own += ["--vllm.enable_prefix_caching=true"]  # all prompts begin with the same instructions
    if deterministic:
        own.append("--run.deterministic=true")
    return load_config(config, [*own, *words])


def _model(
    settings: RunConfig, api_base: str | None, variable: str, concurrency: int, timeout_s: float, log_file: Path
) -> Model:
    from openrlhf_medical.evaluate_models import endpoint_model, engine_model

    if api_base is None:
        from openrlhf_medical import devices
        from openrlhf_medical.config import check_hardware
        from openrlhf_medical.models import check_model_folder

        check_hardware(settings, devices.has_gpu() or "RAY_ADDRESS" in os.environ)
        check_model_folder(settings.actor.model_name_or_path)
        log_file.parent.mkdir(parents=True, exist_ok=True)
        return engine_model(settings, log_file)
    from openrlhf_medical.judge.openai_model import Endpoint

    key = os.environ.get(variable, "").strip() or None
    if variable != KEY_VARIABLE and key is None:
        raise UserError("the environment variable that --api-key-env names is not set, or is empty: export it")
    return endpoint_model(settings, Endpoint(api_base.rstrip("/"), key, variable, timeout_s, concurrency=concurrency))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"
