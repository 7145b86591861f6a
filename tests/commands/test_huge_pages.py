"""Commands that compute start over once, as the same process, with an allocator that asks for huge pages."""

import os
import subprocess
import sys

import pytest

from aifx.machine import huge_pages
from aifx.machine.huge_pages import with_huge_pages

PLAIN = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}

PROGRAM = """
import os, sys
from aifx.machine.huge_pages import restart_with_huge_pages
print(os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES"), flush=True)
restart_with_huge_pages()
print("after", sys.stdin.read())
"""


@pytest.fixture
def can(monkeypatch, tmp_path):
    """A machine where asking has an effect."""
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "HUGE_PAGES", enabled)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35", raising=False)
    return enabled


def test_the_setting_is_added_to_what_is_there(can):
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    joined = with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=1"})
    assert joined == {"GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


def test_the_operator_decides(can):
    assert with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}) is None


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", ""])
def test_nothing_where_the_kernel_would_not_listen(can, mode):
    can.write_text(mode)
    assert with_huge_pages({}) is None


@pytest.mark.parametrize("libc", ["glibc 2.34", "musl", "", None])
def test_nothing_where_the_library_would_not_listen(can, monkeypatch, libc):
    monkeypatch.setattr(os, "confstr", lambda name: libc, raising=False)
    assert with_huge_pages({}) is None


@pytest.mark.skipif(with_huge_pages(PLAIN) is None, reason="this machine gives huge pages to all or to none")
def test_one_restart_as_the_same_process_with_the_same_arguments():
    command = [sys.executable, "-c", PROGRAM, "train", "--set", "a=b c"]
    done = subprocess.run(command, env=PLAIN, input="piped", capture_output=True, text=True, check=True, timeout=300)
    first, second, last = done.stdout.splitlines()
    assert first.endswith("None")
    assert second == first.removesuffix("None") + "glibc.malloc.hugetlb=1"
    assert last == "after piped"
