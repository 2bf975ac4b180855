"""Whole shards kept in a folder: within a limit, safe between processes, nothing of others removed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import wsl
from tests.help.proxy import Fault, proxy
from tests.help.servers import Server
from tests.help.shards import both
from tests.index.test_stored_shards import epoch, write_other
from wsl.errors import explain
from wsl.files import stores

pytestmark = pytest.mark.usefixtures("plain_storage")


def shards_in(folder: Path) -> list[Path]:
    """The shards that are kept."""
    return sorted((folder / "wsl-shards").glob("*.shard"))


def test_shards_are_fetched_once_and_read_as_files(memory: str, fetched: Path, tmp_path: Path) -> None:
    local, stored = both(tmp_path, memory)
    stores.use(cache=str(fetched), cache_bytes=1 << 30)
    index = wsl.Index.open(stored.path)
    wanted = np.random.default_rng(0).permutation(60)
    assert index.read(wanted) == local.read(wanted)
    assert len(shards_in(fetched)) == 3
    assert index.read_report()["num_requests"] == 3
    assert index.read(wanted, num_threads=4) == local.read(wanted)
    assert index.read_report()["num_requests"] == 3
    assert list(epoch(index)) == list(epoch(local))
    assert [path.read_bytes() for path in (tmp_path / "data").iterdir()]
    kept = sorted(path.read_bytes() for path in shards_in(fetched))
    assert kept == sorted(path.read_bytes() for path in (tmp_path / "data").glob("*.tar"))


def test_a_limit_holds_and_nothing_of_others_is_removed(memory: str, fetched: Path, tmp_path: Path) -> None:
    local, stored = both(tmp_path, memory, num_shards=4)
    size = (tmp_path / "data" / "part-0.tar").stat().st_size
    (fetched / "wsl-shards").mkdir(parents=True)
    foreign = [fetched / "precious.shard", fetched / "wsl-shards" / "precious.shard", fetched / "a.tar"]
    for path in foreign:
        path.write_bytes(b"x" * size * 5)
    stores.use(cache=str(fetched), cache_bytes=int(size * 2.5))
    index = wsl.Index.open(stored.path)
    for shard in (0, 1, 0, 2, 3, 0):
        assert index.read([shard * 20 + 1]) == local.read([shard * 20 + 1])
        kept = [path for path in shards_in(fetched) if path not in foreign]
        assert sum(path.stat().st_size for path in kept) <= size * 2.5
    assert all(path.stat().st_size == size * 5 for path in foreign)
    assert list(epoch(index)) == list(epoch(local))


def test_a_limit_under_one_shard_and_a_full_disk_are_said(memory: str, fetched: Path, tmp_path: Path) -> None:
    local, stored = both(tmp_path, memory)
    stores.use(cache=str(fetched), cache_bytes=1000)
    with pytest.raises(wsl.UsageError, match=r"may hold 1000 bytes, and the shard .*part-0\.tar has"):
        wsl.Index.open(stored.path).read([0])
    assert not fetched.exists()
    stores.use(cache=str(fetched), cache_bytes=1 << 30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=str(fetched)) as raised:
            wsl.Index.open(stored.path).read([0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert str(fetched) in explain(raised.value)
    assert shards_in(fetched) == []
    assert not list(fetched.rglob("*.part"))
    assert wsl.Index.open(stored.path).read([0]) == local.read([0])


def test_a_real_full_disk_is_said(memory: str, tmp_path: Path) -> None:
    _, stored = both(tmp_path, memory, num_samples=200)
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        stores.use(cache=str(folder), cache_bytes=1 << 30)
        with pytest.raises(OSError, match="No space left") as raised:
            wsl.Index.open(stored.path).read([0])
        assert "no space is left" in explain(raised.value)
        assert str(folder) in explain(raised.value)
        assert not list(folder.rglob("*.part")) + list(folder.rglob("*.shard"))
    finally:
        subprocess.run(["umount", folder], check=True)


CHILD = """
import sys, numpy as np, wsl
index = wsl.Index.open(sys.argv[1])
for shard in np.random.default_rng(int(sys.argv[2])).permutation(8).tolist() * 3:
    assert index.read([shard * 20 + 3]) == wsl.Index.open(sys.argv[3]).read([shard * 20 + 3])
print(index.read_report()["num_requests"])
"""


def test_processes_share_a_folder(server: Server, bucket: str, fetched: Path, tmp_path: Path) -> None:
    local, stored = both(tmp_path, bucket, num_shards=8)
    size = (tmp_path / "data" / "part-0.tar").stat().st_size
    stores.use(cache=str(fetched), cache_bytes=1 << 30)
    assert sum(_children(stored, local, 3)) == 8, "each shard is fetched once"
    shutil.rmtree(fetched)
    stores.use(cache=str(fetched), cache_bytes=size * 3)
    assert sum(_children(stored, local, 3)) > 8
    assert len(shards_in(fetched)) <= 3
    assert not list(fetched.rglob("*.part"))


def _children(stored: wsl.Index, local: wsl.Index, number: int) -> list[int]:
    command = [sys.executable, "-c", CHILD, str(stored.path)]
    children = [
        subprocess.Popen([*command, str(n), str(local.path)], stdout=subprocess.PIPE) for n in range(number)
    ]
    out = [child.communicate()[0] for child in children]
    assert all(child.returncode == 0 for child in children)
    return [int(float(text)) for text in out]


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_a_shard(
    server: Server, bucket: str, fetched: Path, tmp_path: Path
) -> None:
    local, stored = both(tmp_path, bucket)
    stalled = threading.Event()

    def plan(_: int, line: str) -> Fault | None:
        stalled.set()
        return Fault(stall_s=20.0)

    with proxy(server.address, plan) as (url, _):
        stores.use(server.options(url), cache=str(fetched), cache_bytes=1 << 30)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(stored.path), "0", str(local.path)])
        assert stalled.wait(30)
        child.kill()
        child.wait()
    assert shards_in(fetched) == []
    assert list(fetched.rglob("*.part"))
    stores.use(server.options())
    index = wsl.Index.open(stored.path)
    assert index.read(np.arange(60)) == local.read(np.arange(60))
    assert len(shards_in(fetched)) == 3
    assert not list(fetched.rglob("*.part"))


def test_a_replaced_shard_is_not_taken_from_the_folder(memory: str, fetched: Path, tmp_path: Path) -> None:
    _, stored = both(tmp_path, memory)
    stores.use(cache=str(fetched), cache_bytes=1 << 30)
    stores.write_bytes(f"{memory}/part-1.tar", write_other(tmp_path / "other.tar"))
    with pytest.raises(wsl.DataError, match="replaced after it was indexed"):
        wsl.Index.open(stored.path).read([25])
    assert shards_in(fetched) == []
    assert not list(fetched.rglob("*.part"))
