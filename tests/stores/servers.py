"""A server of S3 for the tests: s3s-fs, which serves a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "AKTEST", "very-secret-word"


@dataclass(frozen=True)
class Server:
    """A running server; a bucket is a folder of `root`."""

    root: Path
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
        (self.root / name).mkdir()
        return f"s3://{name}"


def find_server() -> str | None:
    """The program; `cargo install s3s-fs --features binary` makes it."""
    own = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "bin" / "s3s-fs"
    return os.environ.get("WSL_S3S_FS") or shutil.which("s3s-fs") or (str(own) if own.is_file() else None)


@contextmanager
def found_server(root: Path) -> Iterator[Server]:
    """Runs it over the folder `root`; skips the test where there is no such program."""
    import pytest

    program = find_server()
    if program is None:
        pytest.skip("no server of S3: cargo install s3s-fs --version 0.14.1 --locked --features binary")
    with serving(program, root) as running:
        yield running


@contextmanager
def serving(program: str, root: Path) -> Iterator[Server]:
    """Runs the server over the folder `root`."""
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--access-key", KEY, "--secret-key", SECRET, str(root)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, env=os.environ | {"RUST_LOG": "error"}, **quiet)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if child.poll() is not None:
                raise RuntimeError(f"{program} ended with code {child.returncode}")
            time.sleep(0.05)
        yield Server(root, port)
    finally:
        child.kill()
        child.wait()
