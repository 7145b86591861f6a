"""Licences as SPDX expressions: https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/."""

from __future__ import annotations

import re

from aifx.core.errors import UsageError, nearest

UNKNOWN = "unknown"
_OWN = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")


def check_license(expression: str) -> str:
    """The SPDX expression in its normal form, or "unknown". Raises UsageError.

    `LicenseRef-` and a name mean a licence that SPDX does not list.
    """
    if expression.strip().lower() == UNKNOWN:
        return UNKNOWN
    from license_expression import ExpressionError, Licensing, get_spdx_licensing

    spdx: Licensing = get_spdx_licensing()
    try:
        parsed = spdx.parse(expression)
    except ExpressionError as e:
        parsed, why = None, str(e)
    else:
        why = "it is empty"
    if parsed is None:
        raise _unknown(expression, why, "--license MIT")
    unknown = [key for key in spdx.unknown_license_keys(parsed) if not _OWN.fullmatch(key)]
    if unknown:
        known = [key for key in spdx.known_symbols if not key.startswith("LicenseRef-")]
        near = nearest(unknown[0], known)
        meant = expression.replace(unknown[0], near) if near else UNKNOWN
        quoted = f"'{meant}'" if " " in meant else meant
        raise _unknown(expression, f"SPDX lists no licence {unknown[0]!r}", f"--license {quoted}")
    return str(parsed)


def _unknown(expression: str, why: str, hint: str) -> UsageError:
    return UsageError(f"--license {expression!r} is not an SPDX expression", why, hint)
