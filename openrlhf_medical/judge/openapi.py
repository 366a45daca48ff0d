"""The OpenAPI document. Bodies are read by hand (``judge.gate``), so FastAPI is told here what they are."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from openrlhf_medical.judge.schema import TIMEOUT_HEADER, Health, JudgeQuery, JudgeRequest, Problem, RewardRequest

_REFERENCE = "#/components/schemas/{model}"
_RETRY_AFTER = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer", "minimum": 1}}}
_PROBLEMS: dict[int, str] = {
    401: "No bearer token, or a wrong one.",
    408: "The body did not come in time.",
    413: "The body is too large, or has far more structure than any request needs.",
    422: "A field does not fit; named in the detail. Also: a game_idx that comes twice.",
    429: "Too many queries are waiting; nothing was taken.",
    500: "A defect of the server; its log says where.",
    503: "The backend is loading, cannot be loaded, or the server is stopping; /get_reward: an entry has no label.",
}

Responses = dict[int | str, dict[str, Any]]


def health_responses() -> Responses:
    return {200: {"model": Health}, 503: _problem("Not ready, stopping, or the backend brings nothing.", retry=True)}


def text_responses(content_type: str) -> Responses:
    return {200: {"content": {content_type: {"schema": {"type": "string"}}}}}


def post_responses(answer: type[BaseModel]) -> Responses:
    """What a POST may answer."""
    responses: Responses = {200: {"model": answer}}
    for code, text in _PROBLEMS.items():
        responses[code] = _problem(text, retry=code in (429, 503))
    return responses


def post_extra(body: type[BaseModel]) -> dict[str, Any]:
    """What a POST takes, where FastAPI does not see it."""
    header = {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "required": False,
        "description": "Seconds that the client will wait. What is not judged by then is a row with status error.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=body.__name__)}}}
    return {"requestBody": {"required": True, "content": content}, "parameters": [header]}


def document(app: FastAPI, *, with_token: bool) -> dict[str, Any]:
    """The whole document; made once."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        bodies = [(body, "validation") for body in (JudgeQuery, JudgeRequest, RewardRequest)]
        _, definitions = models_json_schema(bodies, ref_template=_REFERENCE)  # type: ignore[arg-type]
        components = found.setdefault("components", {})
        components["schemas"] = {**definitions["$defs"], **components["schemas"]}
        if with_token:
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path in found["paths"].values():
                if "post" in path:
                    path["post"]["security"] = [{"token": []}]
        app.openapi_schema = found
    return app.openapi_schema


def _problem(text: str, *, retry: bool = False) -> dict[str, Any]:
    return {"model": Problem, "description": text, **({"headers": _RETRY_AFTER} if retry else {})}
