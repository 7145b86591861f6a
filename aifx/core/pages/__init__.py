"""A report as one HTML file that can be mailed: it loads nothing and runs nothing.

Each room has its templates in a folder `pages` of its own, which extend base.html and have a style.css.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.digests import Sha256
from aifx.core.errors import EnvironmentFault
from aifx.core.files import write_output
from aifx.core.sanitize import escape_controls
from aifx.core.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


def render(room: str, template: str, *, title: str, command: str, status: str = "", **values: Any) -> str:
    """Render a page; every text is escaped.

    Args:
        room: the package in whose folder `pages` the template is.
        command: what made the page.
        status: a word behind the title.
    """
    given = {"title": title, "command": command, "status": status, "version": __version__, **values}
    return _environment(room).get_template(template).render(given)


PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of a page that a server sends, in addition to its Content-Security-Policy."""


def render_live(
    room: str, template: str, script: str, *, title: str, command: str, allowed: str = ""
) -> tuple[str, str]:
    """Render a page with a script, and its Content-Security-Policy: its style, its script and requests to its server.

    Args:
        script: the file of the script in the folder `pages`.
        allowed: further directives of the policy, each with a semicolon after it.
    """
    from importlib.resources import files

    from markupsafe import Markup

    code = (files(room) / "pages" / script).read_text(encoding="utf-8")
    text = render(room, template, title=title, command=command, script=Markup(code), script_digest=_digest(code))
    found = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert found is not None
    policy = (
        f"default-src 'none'; style-src '{_digest(found[1])}'; script-src '{_digest(code)}'; connect-src 'self'; "
        f"{allowed}base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(Sha256(text.encode()).digest()).decode()


def write_page(text: str, path: Path) -> None:
    """Write a page. Raises EnvironmentFault if the file cannot be written."""
    try:
        write_output(path, text.encode())
    except OSError as error:
        why = error.strerror or str(error)
        raise EnvironmentFault(f"{path} cannot be written", why, "--html FILE writes it elsewhere") from None


def date(time: float) -> str:
    """A Unix time, to the minute; a dash for one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "-"


@cache
def _environment(room: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader(room, "pages"), PackageLoader("aifx.core.pages", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """A text with its control characters made visible: one that turns the reading direction could hide what it says."""
    if type(value) is not str:  # not Markup, which a macro has made
        return value
    return escape_controls(value, keep="\n")
