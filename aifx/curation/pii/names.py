"""Names of people, by Presidio and a model of spaCy: the extra `pii-names`. Nothing is fetched."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.extras import install_command
from aifx.curation.pii.findings import Finding

MODEL = "en_core_web_lg"
"""Presidio's own choice for English."""


def names(text: str) -> Iterator[Finding]:
    """Names of people, as the model finds them in English."""
    for found in _analyzer().analyze(text=text, language="en", entities=["PERSON"]):
        yield Finding(found.start, found.end, "name", f"model: {MODEL}")


def check_names() -> None:
    """Raise EnvironmentFault if what finds names is not installed."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        why = "names are found by presidio-analyzer, which is not installed"
        raise EnvironmentFault("--kinds name cannot be searched", why, install_command("pii-names"))
    if importlib.util.find_spec(MODEL) is None:
        why = f"the model {MODEL} of spaCy is not installed, and aifx fetches nothing"
        raise EnvironmentFault("--kinds name cannot be searched", why, f"python -m spacy download {MODEL}")


@cache
def _analyzer() -> Any:
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": "en", "model_name": MODEL}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])
