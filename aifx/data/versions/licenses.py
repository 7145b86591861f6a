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
    what = f"--license {expression!r} is not an SPDX expression"
    try:
        parsed = spdx.parse(expression)
    except ExpressionError as e:
        raise UsageError(what, str(e), "--license MIT") from None
    if parsed is None:
        raise UsageError(what, "it is empty", "--license MIT")
    unknown = [key for key in spdx.unknown_license_keys(parsed) if not _OWN.fullmatch(key)]
    if unknown:
        near = nearest(unknown[0], [key for key in spdx.known_symbols if not key.startswith("LicenseRef-")])
        meant = expression.replace(unknown[0], near) if near else UNKNOWN
        quoted = f"'{meant}'" if " " in meant else meant
        raise UsageError(what, f"SPDX lists no licence {unknown[0]!r}", f"--license {quoted}")
    return str(parsed)
