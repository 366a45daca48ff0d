"""Which judge is wanted: ``serve-judge``'s options, or a member of a panel, and the check that they go together.

Light to import. What is not given is None, so that an option without meaning for a backend can be told from a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openrlhf_medical.config.yaml_dialect import Loader, parse_scalar
from openrlhf_medical.errors import UserError

DEFAULT_MODEL = "google/medgemma-4b-it"
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_SEVERAL = 0.7  # temperature of several votes: at 0 they would all be the same

_MODELS = ("vllm", "openai")
MEANT_FOR: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("model", "votes", "agreement", "order_swap", "temperature", "max_new_tokens"), _MODELS),
    **dict.fromkeys(("device", "max_model_len", "gpu_memory_utilization"), ("vllm",)),
    **dict.fromkeys(("api_base", "api_key_env", "api_timeout_s", "api_retries", "api_concurrency"), ("openai",)),
    **dict.fromkeys(("rule", "members"), ("panel",)),
}
"""Option to the backends that it means something to."""

_Share = Annotated[float, Field(gt=0.5, le=1.0)]
_Positive = Annotated[int, Field(ge=1)]


class JudgeSpec(BaseModel):
    """One judge. What each option means: ``serve-judge --help``."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    backend: str = "reference"
    model: Annotated[str, Field(min_length=1)] | None = None
    device: str | None = None
    votes: _Positive | None = None
    agreement: _Share | None = None
    order_swap: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    max_new_tokens: _Positive | None = None
    max_model_len: _Positive | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    api_base: str | None = None
    api_key_env: str | None = None
    api_timeout_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    api_retries: Annotated[int, Field(ge=0, le=10)] | None = None
    api_concurrency: _Positive | None = None
    rule: Literal["majority", "unanimous"] | None = None
    members: tuple[Self, ...] | None = None

    @property
    def drawn_at(self) -> float:
        """The temperature."""
        if self.temperature is not None:
            return self.temperature
        return _SEVERAL if (self.votes or 1) > 1 else 0.0

    def check(self) -> None:
        """Raises UserError for options that do not go together. The name of the backend is not looked at."""
        for name in sorted(self.model_fields_set):
            backends = MEANT_FOR.get(name)
            if backends and getattr(self, name) is not None and self.backend not in backends:
                whose = f"it belongs to --backend {' or '.join(backends)}"
                where = ", or to a member" if self.backend == "panel" else ""
                raise UserError(f"{option(name)} has no meaning for the backend {self.backend!r}: {whose}{where}; "
                                "leave it out")  # fmt: skip
        if self.backend in _MODELS:
            self._check_model()
        if self.backend == "panel":
            self._check_panel()

    def _check_model(self) -> None:
        votes = self.votes or 1
        if self.agreement is not None and votes == 1:
            raise UserError("--agreement is the share of several votes that must agree: give --votes 3 or more with it")
        if votes > 1 and self.temperature == 0:
            raise UserError(f"--votes {votes} at --temperature 0 are {votes} times the same reply: leave --temperature "
                            f"out ({_SEVERAL:g}), or ask once")  # fmt: skip
        if self.max_model_len and self.max_model_len <= (self.max_new_tokens or 0):
            raise UserError("--max-new-tokens leaves no room for a question: raise --max-model-len, which holds both")
        if self.backend == "openai":
            if self.model is None or self.api_base is None:
                missing = "--model" if self.model is None else "--api-base"
                raise UserError(f"the backend 'openai' needs {missing}: notes are sent only where you say, for "
                                "example --api-base http://127.0.0.1:8001/v1 --model NAME")  # fmt: skip
            check_api_base(self.api_base)

    def _check_panel(self) -> None:
        members = self.members or ()
        if len(members) < 2:
            raise UserError(f"a panel of {len(members)} is none: give --member twice or more, or --panel FILE")
        for i, member in enumerate(members):
            if member.backend == "panel":
                raise UserError(f"member {i + 1} of the panel is a panel itself: list its members instead")
            if member in members[:i]:
                raise UserError(f"members {members.index(member) + 1} and {i + 1} of the panel are the same judge, "
                                "which would have two votes")  # fmt: skip
            try:
                member.check()
            except UserError as error:
                raise UserError(f"member {i + 1} of the panel: {error}") from None


def option(name: str) -> str:
    return "--" + ("member" if name == "members" else name.replace("_", "-"))


def check_api_base(url: str) -> None:
    """Raises UserError on anything but http(s)://host[:port][/path]; it may hold a password, so is not shown."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("--api-base must be an address such as http://127.0.0.1:8001/v1, without user, password or "
                        "query; the key comes from the variable that --api-key-env names")  # fmt: skip


def read_spec(options: Mapping[str, Any], where: str = "") -> JudgeSpec:
    """A spec from options by name, None where not given.

    Raises:
        UserError: names the option, never a value.
    """
    try:
        return JudgeSpec(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where}{name!r} is no option of a judge; allowed: "
                            f"{', '.join(JudgeSpec.model_fields)}") from None  # fmt: skip
        raise UserError(f"{where}{option(name)}: {problem['msg']}") from None


def read_panel(path: Path) -> dict[str, Any]:
    """``rule`` and ``members`` of a panel's YAML file.

    Raises:
        UserError: a file that cannot be read, or is something else.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"the panel {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) - {"rule", "members"}:
        raise UserError(f"the panel {path} must have two keys: members, a list of judges, and rule "
                        "(majority or unanimous)")  # fmt: skip
    members = content.get("members")
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise UserError(f"the members in {path} must be a list of judges, such as: - backend: reference")
    specs = [read_spec(member, f"{path}, member {i}: ") for i, member in enumerate(members, 1)]
    return {"rule": content.get("rule"), "members": tuple(specs)}


def read_member(words: str) -> JudgeSpec:
    """``backend=openai,model=NAME,api_base=URL``: one member on the command line."""
    options: dict[str, Any] = {}
    for word in words.split(","):
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not value or name in options:
            raise UserError("--member takes NAME=VALUE words with commas between them, each name once, for example "
                            "backend=vllm,model=FOLDER,votes=3")  # fmt: skip
        options[name] = parse_scalar(value.strip())
    return read_spec(options, "--member: ")
