"""What all tests share: a settled environment, and no file of the person who runs them touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

# Set before anything imports jax. Tests are about the CPU unless whoever runs them says otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in [name for name in os.environ if name.startswith("AIFX_")]:
    del os.environ[name]

# Whoever starts the tests in the background may have them ignore signals, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The first example of a property may compile a program, so time is no failure; and what passes once passes again.
hypothesis.settings.register_profile("aifx", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("aifx")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Token stores, compiled programs and ceilings go to folders of this test session."""
    os.environ["AIFX_CACHE_DIR"] = str(tmp_path_factory.mktemp("aifx-cache"))
    os.environ["AIFX_STATE_DIR"] = str(tmp_path_factory.mktemp("aifx-state"))
    yield
    del os.environ["AIFX_CACHE_DIR"], os.environ["AIFX_STATE_DIR"]
