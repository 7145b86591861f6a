"""Authentication between an agent and its clients: a token, and certificates."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from aifx.core.errors import UsageError
from aifx.core.web.policy import check_key, is_loopback

TOKEN_VARIABLE = "AIFX_DOCTOR_TOKEN"


def read_token(file: Path | None) -> str:
    """Return the token of a file, otherwise of the environment; empty without either. Raises UsageError."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--token-file {file} cannot be read", why, f"ls -l {file}") from None
    check_key(token, f"--token-file {file}", f"openssl rand -hex 32 > {file}")
    return token


def is_private(url: str) -> bool:
    """Return whether nobody on the way to `url` can read what is sent there."""
    import httpx  # the reading of the URL that connects: other parsers find another host in http://127.0.0.1\\@n1

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return True  # nothing is sent there
    return parsed.scheme == "https" or is_loopback(parsed.host)


def read_authority(file: Path | None) -> ssl.SSLContext | None:
    """Return whom agents must be signed by; None for the system's authorities. Raises UsageError."""
    if file is None:
        return None
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"--tls-ca {file} cannot be used", why, "FILE must hold certificates in PEM format") from None


def server_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS of an agent; None without a certificate. Raises UsageError."""
    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key requires --tls-cert", "", f"--tls-cert FILE --tls-key {key}")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or str(error)
        hint = "FILE must hold a certificate in PEM format; --tls-key FILE its key"
        raise UsageError(f"--tls-cert {certificate} cannot be used", why, hint) from None
    return context
