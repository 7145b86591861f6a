"""A server of the toy engine, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
from toy_engine import ToyEngine

from aifx.config.serve_section import ServeSection
from aifx.core.web.server import Ending, bind, url_of
from aifx.core.web.traffic import AccessLog
from aifx.data.chat.assets import make_renderer
from aifx.data.chat.template import CHATML, ChatTemplate
from aifx.serving.http.app import open_server
from aifx.serving.http.services import TEXT_OPERATIONS
from aifx.serving.http.text import TextState

# Like Qwen's: tools before the conversation, calls between <tool_call> tags.
TOOLS_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


WAIT_S = 120.0
"""Only ends a hang."""


class Served:
    """A server in a thread."""

    def __init__(self, folder: Path, template: str = CHATML, key: str = "", **settings: Any) -> None:
        self.engine = ToyEngine()
        self.log_file = folder / "access.jsonl"
        renderer = make_renderer(self.engine.tokenizer, ChatTemplate(template, "a template"), folder, None)
        section = ServeSection(**{"idle_s": 600.0, "request_s": 600.0, **settings})
        log = AccessLog(self.log_file)
        self.state = TextState(
            engine=self.engine, tokenizer=self.engine.tokenizer, renderer=renderer, name="toy", settings=section,
            log=log, operations=TEXT_OPERATIONS, key=key,
        )  # fmt: skip
        self.socket = bound = bind("127.0.0.1", 0, port_hint="")
        self.url, self.port = url_of(bound), bound.getsockname()[1]
        self.server = open_server(self.state, bound)
        self.ending: Ending | None = None
        listening = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(listening.set,), daemon=True)
        self.thread.start()
        assert listening.wait(WAIT_S)
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)
        self.client: Any = openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or "none",
            max_retries=0,
            timeout=WAIT_S,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )

    def _run(self, on_listening: Callable[[], None]) -> None:
        self.ending = self.server.run(on_listening)

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.stop()
            self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.http.close()
        self.client.close()
        self.engine.stop()
