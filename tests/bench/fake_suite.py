"""A suite whose `measure` is the test's, in the real processes of real launches."""

import textwrap
from pathlib import Path

SITE = """
import os, sys, types

if "FAKE_SUITE" in os.environ:
    module = sys.modules["aifx.bench.hardware"] = types.ModuleType("aifx.bench.hardware")
    exec(open(os.environ["FAKE_SUITE"]).read(), module.__dict__)
"""


HEAD = """
import os, signal, time


def result(name, *seconds, **params):
    from aifx.bench.results import Measured

    return Measured(name=f"hardware.{name}", samples_s=list(seconds), params=params, flops=1e9)


def measure(bench):
"""


def environ(folder: Path, body: str) -> dict[str, str]:
    """Variables with which `aifx.bench.launch` finds `measure(bench)` of this body in the place of `hardware`."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    suite = folder / "suite.py"
    suite.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
    return {"PYTHONPATH": str(folder / "site"), "FAKE_SUITE": str(suite)}
