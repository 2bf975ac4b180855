"""Objects by URI: whole or not at all, listed by globs, and secrets that nobody sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from tests.help.servers import SECRET, Server
from tests.help.thoroughness import examples
from wsl import _core
from wsl.cli import run
from wsl.files import stores
from wsl.workspace.config import StorageConfig, WorkspaceConfig
from wsl.workspace.layout import Workspace
from wsl.workspace.settings import check, dump

pytestmark = pytest.mark.usefixtures("plain_storage")


@pytest.mark.parametrize("kind", ["memory", "bucket", "folder"])
def test_what_is_written_is_read_listed_and_removed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = str(tmp_path / "folder") if kind == "folder" else request.getfixturevalue(kind)
    content = np.random.default_rng(0).bytes(300_000)
    for name in ("a/one.bin", "a/two.bin", "a/deep/one.bin", "b/one.bin"):
        stores.write_bytes(stores.join(base, name), content + name.encode())
    assert stores.read_bytes(stores.join(base, "a/two.bin")) == content + b"a/two.bin"
    seen = stores.head(stores.join(base, "a/one.bin"))
    assert seen is not None
    assert seen.size == len(content) + 9
    assert seen.etag
    found = {pattern: [one.uri for one in stores.listing(f"{base}/{pattern}")] for pattern in PATTERNS}
    expected = {pattern: [f"{base}/{name}" for name in names] for pattern, names in PATTERNS.items()}
    assert found == expected
    stores.write_bytes(stores.join(base, "a/one.bin"), b"")
    assert stores.read_bytes(stores.join(base, "a/one.bin")) == b""
    assert stores.stamp(stores.join(base, "a/one.bin")) != [seen.size, seen.etag]
    for _ in range(2):
        stores.delete(stores.join(base, "a/one.bin"))
    assert not stores.exists(stores.join(base, "a/one.bin"))
    with pytest.raises(FileNotFoundError):
        stores.read_bytes(stores.join(base, "a/one.bin"))


PATTERNS = {
    "a/*.bin": ["a/one.bin", "a/two.bin"],
    "**/one.bin": ["a/deep/one.bin", "a/one.bin", "b/one.bin"],
    "a/t?o.bin": ["a/two.bin"],
    "[!a]/*": ["b/one.bin"],
    "a": ["a/deep/one.bin", "a/one.bin", "a/two.bin"],
    "none*": [],
}


def test_files_go_up_and_down_whole(bucket: str, tmp_path: Path) -> None:
    content = np.random.default_rng(1).bytes(70 << 20)
    (tmp_path / "large.bin").write_bytes(content)
    stores.upload(tmp_path / "large.bin", f"{bucket}/large.bin")
    seen = stores.download(f"{bucket}/large.bin", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == content
    assert seen.size == len(content)
    assert {path.name for path in tmp_path.iterdir()} == {"large.bin", "again.bin"}
    with pytest.raises(FileNotFoundError):
        stores.download(f"{bucket}/none.bin", tmp_path / "none.bin")
    assert not (tmp_path / "none.bin").exists()


def test_a_bucket_or_object_that_is_not_there_is_told_apart(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such object in the bucket"):
        stores.read_bytes(f"{bucket}/none")
    with pytest.raises(FileNotFoundError, match='no bucket "gone"'):
        stores.read_bytes("s3://gone/none")
    with pytest.raises(FileNotFoundError, match='no bucket "gone"'):
        stores.listing("s3://gone/*.tar")
    assert stores.listing(f"{bucket}/*.tar") == []


def test_wrong_credentials_are_said_without_repeating_them(server: Server, bucket: str) -> None:
    stores.use({"aws_secret_access_key": "hunter2"})
    with pytest.raises(PermissionError, match="refuses these credentials") as raised:
        stores.read_bytes(f"{bucket}/none")
    assert "hunter2" not in str(raised.value)
    assert "aws_skip_signature" in str(raised.value)


def test_an_https_endpoint_without_a_server_is_an_error_and_no_panic() -> None:
    options = {"aws_endpoint_url": "https://127.0.0.1:9", "aws_skip_signature": "true"}
    stores.use(options, retry_s=0.1)
    with pytest.raises(OSError, match="cannot be reached"):
        stores.read_bytes("s3://bucket/key")
    with pytest.raises(OSError, match="cannot be reached"):
        stores.read_bytes("https://127.0.0.1:9/key")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://key:hunter2@bucket/a", "must not hold a user or password"),
        ("az://box/a?sv=1&sig=hunter2", "must not hold a query"),
        ("s3:///a", "expected a bucket"),
        ("s3://bucket//a", "no key of an object"),
    ],
)
def test_uris_that_are_none_are_refused(uri: str, said: str) -> None:
    with pytest.raises(wsl.UsageError, match=said) as raised:
        stores.read_bytes(uri)
    assert "hunter2" not in str(raised.value)


def test_options_are_checked_and_merged(tmp_path: Path) -> None:
    with pytest.raises(wsl.UsageError, match='no store knows the option "aws_regin"'):
        stores.use({"aws_regin": "x"})
    with pytest.raises(wsl.UsageError, match="request_bytes"):
        stores.use(request_bytes=1)
    with pytest.raises(wsl.UsageError, match="unknown field 'gap'"):
        stores.use(gap=1)
    block = {"options": {"aws_region": "here", "aws_access_key_id": "k"}, "gap_bytes": 5}
    with stores.as_set_by(block):
        stores.use({"aws_region": "there"}, retry_s=3.0)
        now = stores.current()
        assert dict(now.options) == {"aws_region": "there", "aws_access_key_id": "k"}
        assert (now.gap_bytes, now.retry_s) == (5, 3.0)
        # Processes that are started have the same, and a workspace there changes nothing of it.
        code = (
            "from wsl.files import stores\n"
            "with stores.as_set_by({'options': {'aws_region': 'x'}}):\n"
            "    print(dict(stores.current().options), stores.current().gap_bytes)\n"
        )
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.split() == [*str(dict(now.options)).split(), "5"]
    # What the workspace set is gone with its scope; what was given stays.
    assert (stores.current().gap_bytes, stores.current().retry_s) == (stores.Settings().gap_bytes, 3.0)
    stores.use()
    assert stores.current() == stores.Settings()
    assert stores.ENVIRONMENT not in os.environ


def test_the_block_of_a_workspace_holds_and_its_secrets_are_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block: dict[str, Any] = {
        "options": {"aws_secret_access_key": SECRET, "aws_skip_signature": True, "timeout": 5},
        "cache": "shards",
        "cache_bytes": "2GiB",
    }
    (tmp_path / "wsl.yaml").write_text(json.dumps({"indexes": {}, "storage": block}))
    workspace = Workspace.find(tmp_path)
    assert stores.current() == stores.Settings()
    with workspace.stores():
        now = stores.current()
    assert dict(now.options) == {
        "aws_secret_access_key": SECRET,
        "aws_skip_signature": "true",
        "timeout": "5",
    }
    assert (now.cache, now.cache_bytes) == (str(tmp_path / "shards"), 2 << 30)
    shown = [repr(workspace), dump(workspace.config), repr(now), repr(now.core()), repr(stores.core())]
    assert not [text for text in shown if SECRET in text]
    for wrong, said in [
        ({"options": {"x": "y"}, "cache": "a"}, "cache_bytes"),
        ({"optons": {}}, "did you mean 'options'"),
        ({"cache": "a", "cache_bytes": "many"}, "expected a size"),
        ({"options": {"aws_secret_access_key": [SECRET]}}, "aws_secret_access_key"),
    ]:
        with pytest.raises(wsl.UsageError, match=said) as raised:
            check(WorkspaceConfig, {"indexes": {}, "storage": wrong}, "wsl.yaml")
        assert SECRET not in str(raised.value)
    assert run(["index", "info", str(tmp_path), "--storage-option", "hunter2"]) == 2
    captured = capsys.readouterr()
    assert "KEY=VALUE" in captured.err
    assert "hunter2" not in captured.err


def test_polars_gets_the_same_options() -> None:
    assert stores.polars_options() is None
    stores.use({"aws_endpoint_url": "http://127.0.0.1:1"})
    assert stores.polars_options() == {"aws_endpoint_url": "http://127.0.0.1:1", "aws_allow_http": "true"}
    assert StorageConfig().settings(Path("/")) == {}


NAMES = st.text(alphabet="ab/*?[]x.", min_size=1, max_size=8)


@given(pattern=NAMES.filter(lambda text: "**" not in text and "[" not in text), name=NAMES)
@examples(300)
def test_globs_of_stores_match_as_paths_do(pattern: str, name: str) -> None:
    import fnmatch

    parts, wanted = name.split("/"), pattern.split("/")
    expected = len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
    assert bool(stores._matcher(pattern).fullmatch(name)) == expected


def test_a_forked_child_reads_with_a_runtime_of_its_own(bucket: str) -> None:
    stores.write_bytes(f"{bucket}/a", b"before")
    assert stores.read_bytes(f"{bucket}/a") == b"before"
    for _ in range(2):
        child = os.fork()
        if child == 0:
            inner = os.fork()
            good = stores.read_bytes(f"{bucket}/a") == b"before"
            if inner == 0:
                os._exit(0 if good else 1)
            _, status = os.waitpid(inner, 0)
            os._exit(0 if good and status == 0 else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
    assert stores.read_bytes(f"{bucket}/a") == b"before"


def test_the_engine_names_what_it_was_built_with() -> None:
    assert _core.HAS_STORES
    assert not stores.is_remote("hf://a/b")
    assert stores.is_remote("gs://a/b")
