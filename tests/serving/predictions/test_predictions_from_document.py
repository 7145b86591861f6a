"""Requests made at random from the description of a server of predictions: no answer is a failure of ours."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

CHECKS = [checks.not_a_server_error, checks.status_code_conformance, checks.response_schema_conformance]


@pytest.mark.slow
def test_requests_made_from_the_document(rows_served: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{rows_served.url}/openapi.json", timeout=120)
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in ("/v1/predict", "/status", "/"):
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and operation.method != "post":
                continue

            @hypothesis.seed(1)
            @settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal made
                made += 1
                case.call_and_validate(checks=CHECKS, timeout=120)

            ask()
    assert made >= 80
