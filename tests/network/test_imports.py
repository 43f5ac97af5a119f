"""The words of the network cost nothing to import; only a running network needs libp2p."""

import os
import subprocess
import sys

import pytest


def is_imported_by(module: str, wanted: str) -> bool:
    code = f"import sys, {module}; print({wanted!r} in sys.modules)"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


@pytest.mark.parametrize("name", ["events", "frames", "settings", "addresses", "local"])
def test_the_words_do_not_import_libp2p(name: str) -> None:
    assert not is_imported_by(f"loremesh.network.{name}", "libp2p")


def test_the_network_does_import_libp2p() -> None:
    assert is_imported_by("loremesh.network.behaviour", "libp2p")  # else the test above proves nothing


def test_yamux_is_told_not_to_answer_every_read() -> None:
    code = "import loremesh.network.behaviour, os; print(os.environ['PY_YAMUX_RELEASE_ON_READ'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PY_YAMUX")}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "0"
