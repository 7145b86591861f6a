"""Who may ask a server of a model: the key of the environment, and `[serve]`."""

from __future__ import annotations

from aifx.config.serve_section import ServeSection
from aifx.core.errors import UsageError
from aifx.core.web.policy import Policy, check_key, is_loopback
from aifx.serving.http.errors import ApiError

KEY_VARIABLE = "AIFX_SERVE__API_KEY"

OPEN = ("/", "/health", "/ready")
"""Routes that need no key: for probes, and the page, which asks for one."""


def read_key(host: str, environ: dict[str, str]) -> str:
    """The key that clients must send, from the environment alone; "" if they need none. Raises UsageError."""
    key, hint = environ.get(KEY_VARIABLE), f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
    if key is None:
        if is_loopback(host):
            return ""
        why = "other machines can reach this address, and anyone there could ask"
        raise UsageError(f"serve.host = {host} requires a key", why, hint)
    check_key(key, KEY_VARIABLE, hint)
    return key


def policy_of(settings: ServeSection, key: str) -> Policy:
    """The policy of a server: one without a key answers this machine and its own page alone."""
    return Policy(
        key=key,
        open_paths=OPEN,
        own_names_only=not key and is_loopback(settings.host),
        own_site_only=not key and "*" not in settings.cors_origins,
        sites=settings.cors_origins,
        max_client_requests=settings.max_client_requests,
        discard_s=settings.request_s,
        hints={
            403: "serve.cors_origins allows sites",
            404: "/openapi.json lists them",
            429: "serve.max_client_requests allows as many",
        },
        error=ApiError,
    )
