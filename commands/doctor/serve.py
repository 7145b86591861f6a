"""`aifx doctor serve`: this node's health over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from aifx.commands.console.options import option_group
from aifx.commands.console.terminal import terminal
from aifx.commands.doctor.options import OnlyOption, SiteOption, SkipOption, TokenFileOption, value_option
from aifx.core.errors import UsageError

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
        from aifx.core.web.policy import is_loopback
        from aifx.core.web.server import bind, url_of
        from aifx.health.agent import Checks, open_agent
        from aifx.health.agent_token import read_token, server_tls
        from aifx.health.check import repeatable_check

        token = read_token(options.token_file)
        if not (token or options.insecure or is_loopback(options.bind)):
            why = "other machines can reach this address, and could read this node's report"
            hint = "aifx doctor serve --token-file FILE, or --insecure"
            raise UsageError(f"--bind {options.bind} requires a token", why, hint)
        checks = Checks(repeatable_check(options.only or (), options.skip or (), options.site), options.interval)
        tls = server_tls(options.tls_cert, options.tls_key)
        bound = bind(
            options.bind,
            options.port,
            port_hint="aifx doctor serve --port 0",
            host_hint="aifx doctor serve --bind 127.0.0.1",
            listen=True,
        )
        url = url_of(bound, "http" if tls is None else "https")
        agent = open_agent(checks, bound, token, tls)
        agent.run(lambda: out.log(f"listening at {url}{'' if token else ', without a token'}; Ctrl-C ends it"))
