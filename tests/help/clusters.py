"""One Ray node on this machine, for the tests of clusters."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WORKERS = 2


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started_node(**more: str) -> Iterator[str]:
    """The address of a cluster of one node with this in its environment."""
    port = free_port()
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    # A short path: sockets in it may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [*program, "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
        command += ["--port", str(port), "--num-cpus", str(WORKERS), "--include-dashboard", "false"]
        command += ["--temp-dir", folder, "--object-store-memory", "80000000", "--disable-usage-stats"]
        with open(Path(folder) / "node.log", "w") as log:
            node = subprocess.Popen(
                command, env=environment | more, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        try:
            yield f"127.0.0.1:{port}"
        finally:
            node.terminate()
            try:
                node.wait(timeout=60)
            except subprocess.TimeoutExpired:
                node.kill()


def wait_for(address: str) -> str:
    """The address, once a head listens there."""
    host, _, port = address.partition(":")
    for _ in range(120):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        except OSError:
            time.sleep(0.5)
    return address


@pytest.fixture(scope="session")
def ray_node() -> Iterator[str]:
    """The address of a cluster of one node that ends with the tests."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with started_node(RAY_AUTH_MODE="disabled") as address:
        yield address


@pytest.fixture
def token_cluster() -> Iterator[tuple[str, str]]:
    """The address of a cluster that asks for a token, and the token."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    token = secrets.token_hex(32)
    with started_node(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token) as address:
        yield wait_for(address), token


@pytest.fixture
def cluster(ray_node: str) -> str:
    """The address of a cluster that answers."""
    return wait_for(ray_node)
