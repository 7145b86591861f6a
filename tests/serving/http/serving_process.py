"""`aifx serve ARGUMENTS` over a toy engine: all but the model is the command's own.

AIFX_TEST_STEP_S and AIFX_TEST_DRAIN_S: seconds of a step, and of serve.drain_s. AIFX_TEST_BUSY: the event loop is busy
from the first signal on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from toy_engine import ToyEngine

from aifx.commands.main import main
from aifx.config.serve_section import ServeSection
from aifx.core.web.server import HttpServer, bind, url_of
from aifx.core.web.traffic import AccessLog
from aifx.serving.http.app import open_server
from aifx.serving.http.services import TEXT_OPERATIONS
from aifx.serving.http.text import TextState
from aifx.verbs import models, serving


def prepare(*_: Any) -> serving.PreparedServer:
    engine = ToyEngine(step_s=float(os.environ["AIFX_TEST_STEP_S"]))
    settings = ServeSection(drain_s=float(os.environ["AIFX_TEST_DRAIN_S"]))
    bound = bind("127.0.0.1", 0, port_hint="")
    state = TextState(
        engine=engine, tokenizer=engine.tokenizer, renderer=None, name="toy", settings=settings,
        log=AccessLog(Path("access.jsonl")), operations=TEXT_OPERATIONS,
    )  # fmt: skip
    listening = serving.Listening(
        url=url_of(bound), run="main", step=3, model="toy", routes=[], adapters=[], system_fingerprint="toy",
        slots=[8], pool_tokens=1, max_model_len=4096, is_reproducible=True,
    )  # fmt: skip
    return serving.PreparedServer(open_server(state, bound), listening, SimpleNamespace(state=state))  # type: ignore[arg-type]


async def be_busy(_: HttpServer) -> int:
    Path("busy").touch()
    time.sleep(600)
    return 0


if __name__ == "__main__":
    if "AIFX_TEST_BUSY" in os.environ:
        HttpServer._drain = be_busy  # type: ignore[method-assign]
    serving.prepare = prepare
    serving.open_model = lambda *_: (None, None)  # type: ignore[assignment,return-value]
    models.choose_model = lambda *_: "main"
    main()
