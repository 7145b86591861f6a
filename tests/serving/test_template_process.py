"""A chat template in a process of its own: what it raises there is raised here."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from faulty_writer import FaultyWriter

from aifx.core.errors import EnvironmentFault
from aifx.serving.template_process import TemplateProcess


def test_what_the_machine_lacks_is_not_the_end_of_the_process() -> None:
    writer: Any = FaultyWriter()
    with closing(TemplateProcess(writer, 600.0)) as templates:
        for place in ("one", "two"):
            with pytest.raises(EnvironmentFault) as raised:
                templates.prompt_text([], place, ())
            assert raised.value.document() == {
                "what": f"{place}: no room", "why": "the disk is full", "hint": "df", "exit_code": 2,
                "transient": False,
            }  # fmt: skip
        assert templates.start().child.ended is None
