"""The server that is measured: one that runs already, or one of a run of this project, for as long as a block."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from aifx.benchmarking.serve.client import Answered, Api, Client
from aifx.benchmarking.serve.load import WORDS, LoadOptions, Planned
from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.parsing import parse_json
from aifx.core.processes import Child, Ended, aifx_command, pump

START_S = 540.0
"""For a server to take requests: less than a launch may be silent (`runner.SILENCE_S`)."""

GRACE_S = 3.0
PROBE_WORDS = 40
PROBE_S = 60.0


class Server:
    """`aifx serve` of a run.

    Attributes:
        start_s: from its start until it took requests.
    """

    def __init__(self, child: Child, url: str, start_s: float) -> None:
        self.url, self.start_s = url, start_s
        self._child = child

    def attend(self) -> None:
        """Read what it writes, so that it never waits for a reader. Raises EnvironmentFault if it has ended."""
        pump([self._child], 0.0)
        self._child.take_output()
        self._child.take_error_lines()
        if (ended := self._child.ended) is not None:
            raise _failed(ended.how, ended.last_lines[-3:])


@contextmanager
def served(options: LoadOptions, folder: Path) -> Iterator[Server]:
    """Start `aifx serve` of a run, and end it after the block. Raises EnvironmentFault if it cannot serve."""
    assert options.run is not None
    # All requests come from one address.
    settings = [part for setting in ("serve.max_client_requests=0", *options.set) for part in ("--set", setting)]
    command = aifx_command("serve", "--run", options.run, "--host", "127.0.0.1", "--port", "0", "--json", *settings)
    began = time.perf_counter()
    printed: list[bytes] = []
    with Child(command, cwd=folder, grace_s=GRACE_S) as child:
        while True:
            pump([child], 0.05)
            if child.ended is not None:  # with all of its output that no line has taken yet
                raise _start_failure(child.ended, printed)
            for line in child.take_lines():
                printed.append(line)
                with suppress(ValueError):
                    if isinstance(document := parse_json(line), dict) and "url" in document:
                        yield Server(child, document["url"], time.perf_counter() - began)
                        return
            if time.perf_counter() - began > START_S:
                raise _failed(f"it took no requests within {START_S:.0f} s", ())


def _start_failure(ended: Ended, printed: Sequence[bytes]) -> EnvironmentFault:
    """The failure that `aifx serve --json` printed to stdout; otherwise the end of its stderr."""
    with suppress(ValueError, LookupError, TypeError):
        error = parse_json(b"\n".join([*printed, ended.output]))["error"]
        return EnvironmentFault(f"aifx serve: {error['what']}", error["why"], error["hint"])
    return _failed(ended.how, ended.last_lines[-3:])


def _failed(how: str, last_lines: Sequence[str]) -> EnvironmentFault:
    why = " ".join(line.strip() for line in last_lines) or "it printed nothing"
    return EnvironmentFault(f"aifx serve ended ({how})", why, "aifx serve")


@asynccontextmanager
async def connected(options: LoadOptions, url: str) -> AsyncIterator[tuple[Client, list[int], float]]:
    """A client that sends what the server takes, the token ids to write prompts of, and words per token otherwise.

    Raises EnvironmentFault if the server does not answer, UsageError if it refuses every request.
    """
    key = os.environ.get(options.key_variable)
    client = Client(Api(base_url(url), options.model, options.chat), timeout_s=options.timeout_s, key=key)
    async with client.http:
        if options.model is None:
            client.api = replace(client.api, model=await _model(client, options))
        ids = [] if options.chat else await _token_ids(client)
        answered = await _negotiate(client, ids, options)
        counted = (answered.usage or {}).get("prompt_tokens")
        words_per_token = PROBE_WORDS / counted if isinstance(counted, int) and counted else 1.0
        yield client, ids if client.api.takes_ids else [], words_per_token


def base_url(url: str) -> str:
    """Without the path that OpenAI's clients are given."""
    return url.rstrip("/").removesuffix("/v1")


async def _model(client: Client, options: LoadOptions) -> str | None:
    """The first model of the server; None if it has no list. Raises EnvironmentFault, UsageError."""
    url = client.api.url
    try:
        response = await client.http.get(f"{url}/v1/models", timeout=PROBE_S)
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise EnvironmentFault(
            f"no server answers at {url}", why, "aifx bench serve --run NAME, which starts a server"
        ) from None
    if response.status_code in (401, 403):
        raise _no_key(url, f"HTTP {response.status_code}", options)
    with suppress(ValueError, LookupError, TypeError):
        return str(response.json()["data"][0]["id"])
    return None


async def served_digest(client: Client) -> str | None:
    """The digest of the model that an aifx server answers with; None for an adapter of it, and another server."""
    url = client.api.url
    with suppress(httpx.HTTPError, ValueError, LookupError, TypeError):
        cards = (await client.http.get(f"{url}/v1/models", timeout=PROBE_S)).json()["data"]
        if any(card["id"] == client.api.model and card.get("parent") for card in cards):
            return None
        return str((await client.http.get(f"{url}/ready", timeout=PROBE_S)).json()["served"]["digest"])
    return None


async def _token_ids(client: Client) -> list[int]:
    """Ids of tokens that are in the model's vocabulary and not special, by the server's tokenizer: vLLM's and aifx's
    field is `prompt`, llama.cpp's `content`. Empty if it has none."""
    text = f" {' '.join(WORDS)}"
    for body in ({"prompt": text}, {"content": text}):
        with suppress(httpx.HTTPError, ValueError, LookupError, TypeError):
            response = await client.http.post(f"{client.api.url}/tokenize", json=body, timeout=PROBE_S)
            ids = sorted({int(token) for token in response.json()["tokens"]})
            if response.status_code == 200 and ids:
                return ids
    return []


async def _negotiate(client: Client, ids: Sequence[int], options: LoadOptions) -> Answered:
    """Find out which fields the server takes, by asking for two tokens. Raises UsageError, EnvironmentFault."""
    words = " ".join(WORDS[:PROBE_WORDS])
    prompts: list[Any] = [*([[*ids, *ids][:16]] if ids else []), words]
    answered: Answered | None = None
    for prompt in prompts:
        for ignores_end, counts_usage in ((True, True), (False, True), (True, False), (False, False)):
            client.api = replace(
                client.api,
                takes_ids=prompt is not words,
                ignores_end=ignores_end,
                counts_usage=counts_usage,
            )
            answered = await client.ask(Planned(0.0, 1, 2), client.api.body(prompt, 2))
            if answered.error is None:
                return answered
            if answered.status not in (400, 422):  # another field would change nothing
                raise _refused(client.api.url, answered, options)
    assert answered is not None
    raise _refused(client.api.url, answered, options)


def _refused(url: str, answered: Answered, options: LoadOptions) -> AifxError:
    """The error for a server that fails the first request."""
    why, status = f"{answered.error}: {answered.detail}", answered.status
    if status in (401, 403):
        return _no_key(url, why, options)
    if status in (None, 200, 429) or status >= 500:
        return EnvironmentFault(f"{url} does not answer requests", why, f"curl {url}/ready")
    hint = "aifx bench serve --model NAME, or --chat for a server that only answers chats"
    if status == 404 and "route" in answered.detail:  # aifx serve of a model that predicts
        hint = "aifx bench serve URL of a model that writes text"
    return UsageError(f"{url} refuses the requests of aifx bench serve", why, hint)


def _no_key(url: str, why: str, options: LoadOptions) -> UsageError:
    return UsageError(f"{url} requires a key", why, f"export {options.key_variable}=KEY")
