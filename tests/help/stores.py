"""Fixtures of object stores: one in memory, and a server of S3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.help.servers import Server, found_server
from wsl import _core
from wsl.files import stores

_number = itertools.count()


@pytest.fixture
def plain_storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing set before or after; no store of the machine's own."""
    if not _core.HAS_STORES:
        pytest.skip("this wsl was built without object stores (Cargo feature cloud)")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", stores.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    stores.use()
    yield
    stores.use()


@pytest.fixture
def memory(plain_storage: None) -> str:
    """The URI of an empty bucket in the memory of this process."""
    return f"memory://bucket-{next(_number)}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of S3."""
    with found_server(tmp_path_factory.mktemp("s3") / "root") as running:
        yield running


@pytest.fixture
def bucket(plain_storage: None, server: Server) -> str:
    """The URI of an empty bucket of the server, which is what storage reaches."""
    stores.use(server.options())
    return server.bucket(f"bucket-{next(_number)}")


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A folder for a cache of shards."""
    return tmp_path / "cache"
