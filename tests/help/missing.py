"""Programs and packages that some tests want, and what is skipped without them."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from tests.help.servers import NO_SERVER, find_server, has_moto

WORDNET = Path("/usr/share/wordnet/data.noun")


def lines() -> list[str]:
    """One line for each thing that is not here."""
    found = {
        f"{NO_SERVER}: tests of object stores are skipped": bool(find_server()) or has_moto(),
        "fake-gcs-server (WSL_FAKE_GCS names it): the test of gs:// is skipped": bool(
            os.environ.get("WSL_FAKE_GCS") or shutil.which("fake-gcs-server")
        ),
        "a C compiler: tests that kill a command at its writes are skipped": bool(
            shutil.which("cc") or shutil.which("c++")
        ),
        "Debian's wordnet-base: tests of synsets are skipped": WORDNET.is_file(),
        "unshare: tests on a small disk are skipped": bool(shutil.which("unshare")),
        "Ray: tests of a cluster are skipped": importlib.util.find_spec("ray") is not None,
        "pytest-xdist: the tests run in one process": importlib.util.find_spec("xdist") is not None,
    }
    return [line for line, here in found.items() if not here]
