"""Packages that were replaced on their way: every script installs by hash, or installs nothing but what it is given."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / "Makefile", ROOT / ".ci" / "run"])
INSTALLS = re.compile(r"^\s*(?:\(.*&& )?(?:install|.*\bpip install|.*\bpip download)\s.*", re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_installation_checks_hashes_or_fetches_nothing(script: Path) -> None:
    text = re.sub(r"\\\n", " ", script.read_text())
    for line in INSTALLS.findall(text):
        is_wrapper = line.rstrip("; }").endswith('"$@"')  # its callers are looked at
        if not is_wrapper and "echo " not in line and not line.lstrip().startswith("#"):
            assert "--require-hashes" in line or "--no-deps" in line, line


def test_the_installer_refuses_a_package_with_another_hash(tmp_path: Path) -> None:
    """The scripts rely on it."""
    import zipfile

    name = "planted-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("planted.py", "")
        wheel.writestr("planted-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n")
        wheel.writestr("planted-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n")
        wheel.writestr("planted-1.0.dist-info/RECORD", "")
    (tmp_path / "lock").write_text(f"planted==1.0 --hash=sha256:{'0' * 64}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-index", "--find-links", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(tmp_path / "there")]
    done = subprocess.run([*command, "--require-hashes", "-r", str(tmp_path / "lock")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "HASH" in done.stderr
    assert not (tmp_path / "there" / "planted.py").exists()
