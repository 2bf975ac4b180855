"""A server of S3 for the tests: s3s-fs, which serves a folder, or moto's, which keeps all in memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET = "AKTEST", "very-secret-word"


@dataclass(frozen=True)
class Server:
    """A running server; a bucket is a folder of `root`, where it serves one."""

    root: Path | None
    port: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def options(self, url: str | None = None) -> dict[str, str]:
        """Options of storage; `url` stands in for the server's own."""
        return {
            "aws_endpoint_url": url or f"http://127.0.0.1:{self.port}",
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_region": "us-east-1",
        }

    def bucket(self, name: str) -> str:
        """Makes a bucket and returns its URI."""
        if self.root is None:
            self._ask_moto("PUT", name)
        else:
            (self.root / name).mkdir()
        return f"s3://{name}"

    def remove(self, uri: str) -> None:
        """Removes a bucket with all that is in it."""
        name = uri.removeprefix("s3://")
        if self.root is None:
            self._ask_moto("DELETE", name)
        else:
            shutil.rmtree(self.root / name)

    def _ask_moto(self, method: str, name: str) -> None:
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/-/{name}", method=method)
        urllib.request.urlopen(asked).close()


def find_server() -> str | None:
    """The program; `cargo install s3s-fs --features binary` makes it. WSL_S3_SERVER=moto passes it over."""
    if os.environ.get("WSL_S3_SERVER") == "moto":
        return None
    own = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "bin" / "s3s-fs"
    return os.environ.get("WSL_S3S_FS") or shutil.which("s3s-fs") or (str(own) if own.is_file() else None)


def has_moto() -> bool:
    """Whether moto and what its server wants are installed."""
    return all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors"))


@contextmanager
def found_server(root: Path) -> Iterator[Server]:
    """Runs s3s-fs over the folder `root`, else moto's server; skips the test where there is neither."""
    import pytest

    program = find_server()
    if program is not None:
        with serving(program, root) as running:
            yield running
    elif has_moto():
        with running_at(lambda port: [sys.executable, "-m", "tests.help.moto_server", str(port)]) as port:
            yield Server(None, port)
    else:
        pytest.skip(f"there is not {NO_SERVER}")


NO_SERVER = (
    "a server of S3 (pip install 'moto[s3]' flask flask-cors, or cargo install s3s-fs --features binary)"
)


@contextmanager
def serving(program: str, root: Path) -> Iterator[Server]:
    """Runs s3s-fs over the folder `root`."""
    root.mkdir(parents=True, exist_ok=True)

    def command(port: int) -> list[str]:
        login = ["--access-key", KEY, "--secret-key", SECRET]
        return [program, "--host", "127.0.0.1", "--port", str(port), *login, str(root)]

    with running_at(command) as port:
        yield Server(root, port)


@contextmanager
def running_at(command: Callable[[int], list[str]]) -> Iterator[int]:
    """Runs a server at a port that nobody uses, and waits until it listens there; the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = os.environ | {"RUST_LOG": "error"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command(port), env=environment, **quiet)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if child.poll() is not None:
                raise RuntimeError(f"{child.args} ended with code {child.returncode}")
            time.sleep(0.05)
        yield port
    finally:
        child.kill()
        child.wait()
