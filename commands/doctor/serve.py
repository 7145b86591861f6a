"""`aifx doctor serve`: this node's health over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import OnlyOption, SiteOption, SkipOption, TokenFileOption, value_option

PORT = 9470


@dataclass(frozen=True)
class ServeOptions:
    """Where the agent listens, for whom, and what it checks: one option per attribute."""

    bind: Annotated[str, typer.Option("--bind", metavar="ADDRESS", help="Listen at ADDRESS.")] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Listen at this port; 0 takes a free one.")
    ] = PORT
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0, help="Check at most once per SECONDS.")
    ] = 60.0
    token_file: TokenFileOption = None
    tls_cert: Annotated[Path | None, value_option("--tls-cert", "Use TLS with the certificate in FILE.")] = None
    tls_key: Annotated[Path | None, value_option("--tls-key", "Read the certificate's key from FILE.")] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Answer other machines without asking them for a token.")
    ] = False
    only: OnlyOption = None
    skip: SkipOption = None
    site: SiteOption = None


@option_group
def serve(*, options: ServeOptions) -> None:
    """Serve this node's health over HTTP: /healthz, /v1/report, and /metrics for Prometheus.

    The check runs if a client asks and the last check is older than the interval. All but /healthz ask for the token.

    Examples:
        aifx doctor serve
        aifx doctor serve --bind 0.0.0.0 --token-file /etc/aifx/token
        aifx doctor serve --skip jax
    """
    with terminal() as out:
        from aifx.verbs.health import doctor_serve

        agent = doctor_serve(
            bind=options.bind,
            port=options.port,
            interval_s=options.interval,
            token_file=options.token_file,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            insecure=options.insecure,
            only=options.only or (),
            skip=options.skip or (),
            site=options.site,
        )
        open_to_all = "" if agent.listening.has_token else ", without a token"
        agent.wait(lambda: out.log(f"listening at {agent.url}{open_to_all}; Ctrl-C ends it"))
