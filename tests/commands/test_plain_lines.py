"""Lines that go to no terminal: as rich writes them, without importing it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aifx.commands.console.output import Output

LINES = ["", "a", "a\n", "a\tb\n\tc", "x" * 300, "[bold]x[/] :smile: \x1b[31m", " lead  trail  ", "é—\u202f", "a\r\nb"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_what_rich_would_write(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.print(line)
    out.log(line)
    plain = capsys.readouterr()
    assert not {"out", "err"} & vars(out).keys()  # no console was made
    assert out.out is not None
    assert out.err is not None
    out.print(line)
    out.log(line)
    assert capsys.readouterr() == plain


def test_a_line_that_nobody_reads_does_not_end_the_command() -> None:
    code = "from aifx.commands.console.output import Output; [Output().print('x' * 9000) for _ in range(30)]"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_promotion_imports_neither_reports_nor_rich(tmp_path: Path) -> None:
    code = """
import sys
from aifx.commands.main import main
sys.argv = ["aifx", "registry", "promote", "fraud@v1", "production", "--root", "models"]
try:
    main()
finally:
    import os
    needless = {"rich", "aifx.registry.reports", "aifx.kinds", "numpy"}
    print(needless & set(sys.modules), os.environ["PYDANTIC_DISABLE_PLUGINS"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "no model 'fraud'" in done.stderr
    assert done.stdout == "set() __all__\n"
