"""The description of the API, and requests made from it at random: no answer is a failure of ours."""

from __future__ import annotations

from typing import Any

import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks
from toy_server import WAIT_S, Served

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def test_the_document_describes_all_routes(served: Served) -> None:
    document = served.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    routes = {
        "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/{model}", "/tokenize",
        "/detokenize", "/health", "/ready", "/metrics", "/openapi.json", "/status", "/",
        "/tokenizer_info",
    }  # fmt: skip
    assert set(document["paths"]) == routes
    for path in routes - {"/v1/models/{model}"}:
        (method,) = document["paths"][path]
        answer = served.http.request(method, path)
        assert str(answer.status_code) in document["paths"][path][method]["responses"], path
    body = {"prompt": "a", "logprobs": 1, "max_tokens": 2, "echo": True}
    whole = served.http.post("/v1/completions", json=body).json()
    reference = {"$ref": "#/components/schemas/Completion", "components": document["components"]}
    jsonschema.validate(whole, reference)


def _try(served: Served, examples: int, seed: int) -> int:
    """Ask for what the document allows and for what it does not. Returns how many requests were made."""
    served.engine.answer = lambda ids: ids[:3]
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json", timeout=WAIT_S)
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method != "post":
                continue

            @hypothesis.seed(seed)
            @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal made
                made += 1
                case.call_and_validate(checks=CHECKS, timeout=WAIT_S)

            ask()
    return made


@pytest.mark.slow
def test_requests_made_from_the_document(served: Served) -> None:
    assert _try(served, 12, 1) >= 12 * 7


@pytest.mark.slow
def test_many_requests_made_from_the_document(served: Served) -> None:
    assert _try(served, 200, 2) >= 1000
