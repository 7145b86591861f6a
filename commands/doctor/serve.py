"""`aifx doctor serve`: this node's health over HTTP."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.fleet import TOKEN, TokenFileOption
from aifx.commands.doctor.group import app
from aifx.commands.doctor.options import OnlyOption, SiteOption, SkipOption
from aifx.core.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    import ssl

PORT = 9470


@app.command()
def serve(
    bind: Annotated[
        str, typer.Option("--bind", metavar="ADDRESS", help="Where to listen; loopback unless told.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = PORT,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0, help="Check at most so often.")
    ] = 60.0,
    token_file: TokenFileOption = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Speak TLS with this.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key.", show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow others to ask without a token.")] = False,
    only: OnlyOption = None,
    skip: SkipOption = None,
    site: SiteOption = None,
) -> None:
    """Tell this node's health over HTTP: /healthz, /v1/report and Prometheus' /metrics.

    The check runs when somebody asks and the last is older than the interval. All but /healthz asks for the token.

    Examples:
        aifx doctor serve
        aifx doctor serve --bind 0.0.0.0 --token-file /etc/aifx/token --tls-cert node.pem --tls-key node.key
        aifx doctor serve --skip jax
    """
    with terminal() as out:
        from aifx.health.agent import Agent, Checks, is_loopback

        token = read_token(token_file)
        if not (token or insecure or is_loopback(bind)):
            raise UsageError(
                f"{bind} can be reached by others, who could then read this node's report",
                "no token was given",
                "aifx doctor serve --token-file FILE, or --insecure",
            )
        checks = Checks(_check(only, skip, site), interval)
        try:
            agent = Agent((bind, port), checks, token, _tls(tls_cert, tls_key))
        except OSError as error:
            why = error.strerror or str(error)
            raise EnvironmentFault(f"cannot listen at {bind}:{port}", why, "aifx doctor serve --port 0") from None
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        threading.Thread(target=agent.serve_forever, daemon=True, name="agent").start()
        out.say(f"listening at {agent.url}{'' if token else ', without a token'}; Ctrl-C ends it")
        stopped.wait()
        agent.shutdown()
        agent.server_close()


def read_token(file: Path | None) -> str:
    """The token of a file or of the environment; empty where there is none. Raises UsageError."""
    if file is None:
        return os.environ.get(TOKEN, "").strip()
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--token-file {file} cannot be read", why, f"ls -l {file}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"--token-file {file} holds no token", "one word of printable ASCII is needed", "openssl rand -hex 32"
        )
    return token


def _check(only: list[str] | None, skip: list[str] | None, site: Path | None) -> Any:
    """What gives a report's document; the site's file is read each time, so that a change in it counts at once."""
    from aifx.commands.console.terminal import SCHEMA_VERSION, to_json
    from aifx.health.check import check, collect
    from aifx.health.host import Host
    from aifx.health.rules import load_rules, read_site, select

    select(load_rules(read_site(site)).values(), only or (), skip or ())  # complain now, not at the first question

    def run() -> dict[str, Any]:
        began = time.monotonic()
        sites = read_site(site)
        rules = select(load_rules(sites).values(), only or (), skip or ())
        snapshot = collect(Host(), rules)
        report = check(snapshot, rules, sites, began)
        document = {"schema_version": SCHEMA_VERSION, **report.document(), "snapshot": snapshot.document()}
        return json.loads(to_json(document))  # type: ignore[no-any-return]

    return run


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    from aifx.health.agent import server_tls

    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key is of no use alone", "TLS needs a certificate", "give --tls-cert FILE as well")
        return None
    try:
        return server_tls(certificate, key)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"--tls-cert {certificate} cannot be used", why, "a PEM file and its key are needed") from None
