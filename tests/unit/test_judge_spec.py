"""The options of ``serve-judge``: what they mean together, and one clear message where they mean nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.build import make_backend
from openrlhf_medical.judge.cache import Cached
from openrlhf_medical.judge.chat import ChatBackend
from openrlhf_medical.judge.own_process import OwnProcess
from openrlhf_medical.judge.panel import Panel
from openrlhf_medical.judge.spec import JudgeSpec, read_member, read_panel

API = ("--backend", "openai", "--api-base", "http://127.0.0.1:1/v1", "--model", "m")
PANEL = """
rule: unanimous
members:
  - backend: reference
  - backend: vllm
    model: some/model
    votes: 3
    agreement: 0.9
  - {backend: openai, model: m, api_base: http://127.0.0.1:1/v1, api_timeout_s: 5}
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command hands to the server; the backend is made, and not loaded."""
    seen: dict[str, Any] = {}
    server = types.ModuleType("openrlhf_medical.judge.server")

    def serve(spec: JudgeSpec, *, cache_folder: Path | None, **options: Any) -> None:
        seen.update(spec=spec, backend=make_backend(spec, cache_folder))

    server.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openrlhf_medical.judge.server", server)
    for name in ("OPENAI_API_KEY", "JUDGE_KEY", "EMPTY_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMPTY_KEY", " ")
    return seen


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["serve-judge", *map(str, words)])


def test_the_default_is_the_reference(served: dict[str, Any]) -> None:
    assert run().exit_code == 0
    assert served["spec"] == JudgeSpec() and isinstance(served["backend"], OwnProcess)


def test_a_model_gets_its_options(served: dict[str, Any], tmp_path: Path) -> None:
    words = ["--backend", "vllm", "--votes", "5", "--agreement", "0.8", "--order-swap", "--max-new-tokens", "100",
             "--max-model-len", "2000", "--device", "cpu", "--cache-dir", tmp_path / "cache"]  # fmt: skip
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert served["spec"] == JudgeSpec(backend="vllm", votes=5, agreement=0.8, order_swap=True, max_new_tokens=100,
                                       max_model_len=2000, device="cpu")  # fmt: skip
    backend = served["backend"]
    assert isinstance(backend, Cached) and backend.model_name == "google/medgemma-4b-it"
    identity = backend.identity
    assert identity == identity | {"backend": "vllm", "model": "google/medgemma-4b-it", "votes": 5, "agreement": 0.8,
                                   "order_swap": True, "temperature": 0.7, "max_new_tokens": 100}  # fmt: skip
    assert not (tmp_path / "cache").exists()  # made when it is loaded


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--backend", "oracle"), "'oracle'; allowed: reference, vllm, openai, panel"),
        (
            ("--model", "m"),
            "--model has no meaning for the backend 'reference': it belongs to --backend vllm or openai",
        ),
        (("--votes", "3"), "--votes has no meaning for the backend 'reference'"),
        (("--order-swap",), "--order-swap has no meaning"),
        (("--backend", "vllm", "--api-base", "http://x"), "--api-base has no meaning for the backend 'vllm'"),
        (("--backend", "vllm", "--rule", "majority"), "--rule has no meaning for the backend 'vllm'"),
        ((*API, "--device", "cpu"), "--device has no meaning for the backend 'openai'"),
        (("--backend", "vllm", "--agreement", "0.9"), "give --votes 3 or more with it"),
        (("--backend", "vllm", "--votes", "3", "--agreement", "0.5"), "--agreement: Input should be greater than 0.5"),
        (("--backend", "vllm", "--votes", "3", "--temperature", "0"), "3 times the same reply"),
        (("--backend", "vllm", "--votes", "0"), "--votes: Input should be greater than or equal to 1"),
        (("--backend", "vllm", "--max-model-len", "400", "--max-new-tokens", "400"), "no room for a question"),
        (("--backend", "openai", "--model", "m"), "needs --api-base"),
        (("--backend", "openai", "--api-base", "http://x/v1"), "needs --model"),
        ((*API, "--api-base", "127.0.0.1:8001"), "--api-base must be an address"),
        ((*API, "--api-base", "http://me:hunter2@x/v1"), "without user, password or query"),
        ((*API, "--api-key-env", "JUDGE_KEY"), "is not set, or is empty"),
        ((*API, "--api-key-env", "EMPTY_KEY"), "is not set, or is empty"),
        ((*API, "--api-key-env", "sk-hunter2"), "takes the name of an environment variable that holds the key"),
        ((*API, "--api-timeout-s", "nan"), "--api-timeout-s: Input should be"),
        (("--backend", "panel"), "a panel of 0 is none"),
        (("--member", "backend=reference"), "a panel of 1 is none"),
        (
            ("--member", "backend=reference", "--member", "backend=reference"),
            "members 1 and 2 of the panel are the same",
        ),
        (("--member", "backend=reference", "--member", "backend=panel"), "member 2 of the panel is a panel itself"),
        (("--member", "backend=reference", "--member", "backend=openai,model=m"), "member 2 of the panel: the backend"),
        (("--member", "backend=reference", "--member", "backend=oracle"), "unknown judge backend 'oracle'"),
        (("--member", "backend=vllm,vote=3"), "--member: 'vote' is no option of a judge; allowed: backend, model"),
        (("--member", "reference"), "NAME=VALUE"),
        (("--member", "backend=vllm,backend=vllm"), "each name once"),
        (("--member", "backend=reference", "--member", "backend=vllm", "--rule", "most"), "--rule: Input should be"),
        (("--member", "backend=reference", "--member", "backend=vllm", "--votes", "3"), "or to a member"),
        (("--backend", "vllm", "--member", "backend=reference"), "--member has no meaning for the backend 'vllm'"),
        (("--panel", "none.yaml"), "the panel none.yaml cannot be read"),
        (("--panel", "p.yaml", "--member", "backend=reference"), "leave out --panel or --member"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_nonsense_is_told_in_one_line(served: dict[str, Any], words: tuple[str, ...], told: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert "hunter2" not in result.output and not served


def test_a_panel_of_a_file(served: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "panel.yaml").write_text(PANEL)
    result = run("--panel", tmp_path / "panel.yaml", "--cache-dir", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    panel = served["backend"]
    assert isinstance(panel, Panel) and panel.model_name == "panel (unanimous): reference, some/model, m"
    assert all(isinstance(member, Cached) for member in panel._members)
    assert [member["votes"] for member in panel.identity["members"][1:]] == [3, 1]
    result = run("--panel", tmp_path / "panel.yaml", "--rule", "majority")
    assert result.exit_code == 2 and "--rule majority is not the rule" in result.stderr


def test_a_panel_of_the_command_line_is_the_same(served: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "panel.yaml").write_text(PANEL)
    members = ("backend=reference", "backend=vllm,model=some/model,votes=3,agreement=0.9",
               "backend=openai,model=m,api-base=http://127.0.0.1:1/v1,api_timeout_s=5")  # fmt: skip
    result = run("--rule", "unanimous", *[word for member in members for word in ("--member", member)])
    assert result.exit_code == 0, result.output
    assert served["spec"] == JudgeSpec(backend="panel", **read_panel(tmp_path / "panel.yaml"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("members: [", "cannot be read"),
        ("members: {a: 1}", "must be a list of judges"),
        ("members: [reference]", "must be a list of judges"),
        ("judges: []", "two keys"),
        ("- backend: reference", "two keys"),
        ("members: [{backend: vllm, temprature: 1}]", "member 1: 'temprature' is no option"),
        ("members: [{backend: vllm, votes: many}]", "member 1: --votes"),
    ],
)
def test_a_panel_that_is_none(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "panel.yaml").write_text(content)
    with pytest.raises(UserError, match=told):
        read_panel(tmp_path / "panel.yaml")


def test_words_of_a_member_are_yaml() -> None:
    spec = read_member("backend=openai, model=gpt, api_base=https://host/v1, order-swap=true, temperature=1e-1")
    assert (spec.order_swap, spec.temperature, spec.api_base) == (True, 0.1, "https://host/v1")


def test_a_model_is_asked_in_a_process_of_its_own_and_an_endpoint_is_not() -> None:
    assert isinstance(make_backend(JudgeSpec(backend="vllm")), OwnProcess)
    openai = make_backend(JudgeSpec(backend="openai", model="m", api_base="http://127.0.0.1:1/v1"))
    assert isinstance(openai, ChatBackend)
