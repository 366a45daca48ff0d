"""The OpenAPI document says what the server does; schemathesis (tests/stack) tries whether the server does it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.schema import MAX_QUERIES, MAX_TEXT_CHARS, TIMEOUT_HEADER
from openrlhf_medical.judge.server import create_app

POSTS = {"/judge": "JudgeRequest", "/evaluate": "JudgeQuery", "/get_reward": "RewardRequest"}


@pytest.fixture(scope="module")
def document() -> Iterator[dict[str, Any]]:
    with TestClient(create_app(ReferenceBackend(), token="s3cret")) as client:
        yield client.get("/openapi.json").json()


def test_every_endpoint_is_described(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {*POSTS, "/health", "/metrics"}
    assert set(document["paths"]["/health"]["get"]["responses"]) == {"200", "503"}


@pytest.mark.parametrize("path", POSTS)
def test_posts_tell_body_header_token_and_every_refusal(document: dict[str, Any], path: str) -> None:
    post = document["paths"][path]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": f"#/components/schemas/{POSTS[path]}"}
    assert [parameter["name"] for parameter in post["parameters"]] == [TIMEOUT_HEADER]
    assert post["security"] == [{"token": []}] and "token" in document["components"]["securitySchemes"]
    assert set(post["responses"]) == {"200", "401", "408", "413", "422", "429", "500", "503"}
    for code in ("429", "503"):
        assert "Retry-After" in post["responses"][code]["headers"]


def test_references_lead_somewhere_and_limits_are_told(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in schemas
    assert schemas["JudgeRequest"]["properties"]["queries"]["maxItems"] == MAX_QUERIES
    assert schemas["JudgeQuery"]["properties"]["medical_note"]["maxLength"] == MAX_TEXT_CHARS


def test_without_a_token_none_is_asked_for() -> None:
    with TestClient(create_app(ReferenceBackend())) as client:
        document = client.get("/openapi.json").json()
    assert all("security" not in document["paths"][path]["post"] for path in POSTS)
