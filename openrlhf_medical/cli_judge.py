"""``openrlhf-medical serve-judge``: its options, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openrlhf_medical.errors import UserError

if TYPE_CHECKING:
    from openrlhf_medical.judge.spec import JudgeSpec


def serve_judge(
    backend: Annotated[
        str | None,
        typer.Option(
            help="reference: compares with the clean note by rules, no model (default). vllm: a chat model here. "
            "openai: one behind an OpenAI-compatible endpoint. panel: several of these."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Chat model, a folder or a name; of vllm google/medgemma-4b-it by default.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 (with a token) for other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one (see --port-file).")] = 8000,
    device: Annotated[str | None, typer.Option(help="vllm: cpu, cuda or cuda:N; what there is by default.")] = None,
    votes: Annotated[int | None, typer.Option(help="Model: replies to each question; 1 by default.")] = None,
    agreement: Annotated[
        float | None,
        typer.Option(help="Model: share of the votes that must agree, above 0.5; 0.6 by default. Below it: abstain."),
    ] = None,
    order_swap: Annotated[
        bool, typer.Option("--order-swap", help="Model: ask with the notes in either order; else abstain.")
    ] = False,
    temperature: Annotated[float | None, typer.Option(help="Model: 0 by default, 0.7 with several votes.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Model: tokens of one reply, thoughts included; 512 by default.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="vllm: tokens of question and reply together; 8192 by default, or the model's.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="vllm: share of the GPU's memory to take; 0.9 by default.")
    ] = None,
    api_base: Annotated[
        str | None, typer.Option(help="openai: address of the endpoint, for example http://127.0.0.1:8001/v1.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="openai: environment variable with the key; OPENAI_API_KEY by default, if it is set."),
    ] = None,
    api_timeout_s: Annotated[float | None, typer.Option(help="openai: for one try; 60 by default.")] = None,
    api_retries: Annotated[int | None, typer.Option(help="openai: further tries; 2 by default.")] = None,
    api_concurrency: Annotated[
        int | None, typer.Option(help="openai: questions under way at a time; 16 by default.")
    ] = None,
    panel: Annotated[
        Path | None, typer.Option(help="panel: YAML file with members (a list of judges) and rule.")
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(help="panel: a judge as NAME=VALUE,... with the options above (votes=3); twice or more."),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="panel: majority (default) or unanimous. No agreement: abstain.")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Keep findings in this folder, and find them again after a restart.")
    ] = None,
    port_file: Annotated[Path | None, typer.Option(help="Write the port here once the judge is ready.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that clients must send (judge.token_file).")
    ] = None,
    max_queue: Annotated[int, typer.Option(min=1, help="Queries that may wait; more are refused with 429.")] = 4096,
    max_batch: Annotated[int, typer.Option(min=1, help="Queries that the backend is given at once.")] = 64,
    request_timeout_s: Annotated[float, typer.Option(help="What is not judged by then is an error.")] = 120.0,
    grace_s: Annotated[float, typer.Option(help="Time to finish what was taken, when told to stop.")] = 5.0,
    log_text: Annotated[
        bool, typer.Option("--log-text", help="Write notes to the log. Clinical text is sensitive.")
    ] = False,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="Stop when the process that started it ends.")
    ] = False,
) -> None:
    """Serve the judge over HTTP.

    POST /judge answers what is true of a note, GET /health whether the judge is ready, GET /openapi.json the rest.

    A model sees the two notes and nothing else. Where it cannot tell, says nothing that can be read, or its votes do
    not agree, the judge abstains. A judge on several GPUs: start `vllm serve` there, and use the backend openai.

    \b
    Examples:
      openrlhf-medical serve-judge --port 8000
      openrlhf-medical serve-judge --host 0.0.0.0 --token-file judge.token --port 0 --port-file judge.port
      openrlhf-medical serve-judge --backend vllm --model google/medgemma-4b-it --cache-dir ~/judge-cache
      openrlhf-medical serve-judge --backend openai --api-base http://127.0.0.1:8001/v1 --model NAME --votes 5
      openrlhf-medical serve-judge --backend panel --member backend=reference --member backend=vllm,order_swap=true
    """
    from openrlhf_medical.judge.limits import Limits
    from openrlhf_medical.judge.server import serve
    from openrlhf_medical.judge.token_file import read_token

    options = {
        "model": model, "device": device, "votes": votes, "agreement": agreement, "order_swap": order_swap or None,
        "temperature": temperature, "max_new_tokens": max_new_tokens, "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization, "api_base": api_base, "api_key_env": api_key_env,
        "api_timeout_s": api_timeout_s, "api_retries": api_retries, "api_concurrency": api_concurrency,
    }  # fmt: skip
    serve(
        _spec(backend, options, panel, member or [], rule),
        cache_folder=cache_dir,
        host=host,
        port=port,
        port_file=port_file,
        token=read_token(token_file) if token_file else None,
        limits=Limits(max_queue, max_batch, request_timeout_s, grace_s),
        log_text=log_text,
        exit_with_parent=exit_with_parent,
    )


def _spec(
    backend: str | None, options: dict[str, Any], panel: Path | None, members: list[str], rule: str | None
) -> JudgeSpec:
    from openrlhf_medical.judge.spec import read_member, read_panel, read_spec

    if panel and members:
        raise UserError("the members of a panel are given twice: leave out --panel or --member")
    asked: dict[str, Any] = {"rule": rule}
    if panel:
        asked = read_panel(panel)
        if rule and asked["rule"] not in (None, rule):
            raise UserError(f"--rule {rule} is not the rule in {panel} ({asked['rule']}): leave one of them out")
        asked["rule"] = rule or asked["rule"]
    elif members:
        asked["members"] = tuple(map(read_member, members))
    if backend is None:
        backend = "panel" if panel or members else "reference"
    return read_spec({"backend": backend, **options, **asked})
