"""Through every fault of a store the bytes are those of the files; what does not pass is said clearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import wsl
from tests.help.proxy import Fault, Plan, every, proxy
from tests.help.servers import Server
from tests.help.shards import both
from tests.index.test_stored_shards import epoch
from wsl.files import stores

pytestmark = pytest.mark.usefixtures("plain_storage")

FAULTS = {
    "503": Fault(status=503),
    "429": Fault(status=429, code="TooManyRequests"),
    "reset": Fault(reset=True),
    "cut": Fault(cut=True),
    "stall": Fault(stall_s=1.5),
    "late": Fault(delay_s=0.02),
}


@pytest.mark.parametrize("name", FAULTS)
def test_reads_and_an_epoch_are_the_local_ones(
    name: str, server: Server, bucket: str, tmp_path: Path
) -> None:
    local, stored = both(tmp_path, bucket, num_samples=10)
    # A stalled body is waited for as long as the timeout, so only some stand still.
    plan = every(2, FAULTS[name]) if name != "stall" else _some(5, FAULTS[name])
    with proxy(server.address, plan) as (url, seen):
        stores.use(server.options(url), timeout_s=0.5, retry_s=30.0, gap_bytes=0, num_requests=8)
        index = wsl.Index.open(stored.path)
        wanted = np.random.default_rng(1).permutation(len(local))[:30]
        assert index.read(wanted) == local.read(wanted)
        assert list(epoch(index)) == list(epoch(local))
        built = wsl.build_index(tmp_path / "again", stored.shard_paths(), label_kind="class")
        assert built.fingerprint == local.fingerprint
        index.verify()
        report = index.read_report()
        assert (report["num_retries"] > 0) == (name != "late")
        assert report["num_requests"] <= seen.count("GET")


def _some(number: int, fault: Fault) -> Plan:
    """The fault at every `number`-th request for an image."""
    counter = [0]

    def plan(_: int, line: str) -> Fault | None:
        counter[0] += line.startswith("GET ")
        return fault if line.startswith("GET ") and counter[0] % number == 0 and counter[0] < 40 else None

    return plan


def test_writing_goes_on_after_faults(server: Server, bucket: str) -> None:
    with proxy(server.address, every(3, Fault(status=503), method="PUT")) as (url, seen):
        stores.use(server.options(url))
        for number in range(3):
            stores.write_bytes(f"{bucket}/{number}", b"whole %d" % number)
    stores.use(server.options())
    assert [stores.read_bytes(f"{bucket}/{n}") for n in range(3)] == [b"whole 0", b"whole 1", b"whole 2"]
    assert seen.count("PUT") > 3


def test_a_store_that_stays_down_is_given_up_at_the_deadline(server: Server, bucket: str) -> None:
    with proxy(server.address, lambda *_: Fault(status=503)) as (url, seen):
        stores.use(server.options(url), retry_s=0.5)
        with pytest.raises(OSError, match=r"fewer requests.*tried \d+ times"):
            stores.read_bytes(f"{bucket}/a")
    assert len(seen.requests) > 2
    stores.use(server.options("http://127.0.0.1:9"), retry_s=0.2)
    with pytest.raises(OSError, match="cannot be reached"):
        stores.read_bytes(f"{bucket}/a")


def test_credentials_that_expire_in_the_middle_are_said_and_the_build_goes_on(
    server: Server, bucket: str, tmp_path: Path
) -> None:
    local, stored = both(tmp_path, bucket, num_shards=4)
    expired = Fault(status=400, code="ExpiredToken")
    with proxy(server.address, lambda number, _: expired if number >= 2 else None) as (url, _):
        stores.use(server.options(url))
        with pytest.raises(PermissionError, match="credentials have expired") as raised:
            wsl.build_index(
                tmp_path / "again", stored.shard_paths(), label_kind="class", num_threads=1, part_rows=10
            )
        assert "ExpiredToken" in str(raised.value)
        assert bucket in str(raised.value)
    assert not (tmp_path / "again" / "manifest.json").exists()
    stores.use(server.options())
    built = wsl.build_index(
        tmp_path / "again", stored.shard_paths(), label_kind="class", num_threads=1, part_rows=10
    )
    assert built.read([0, 79]) == local.read([0, 79])


def test_a_bucket_that_is_gone_is_said(server: Server, bucket: str, tmp_path: Path) -> None:
    _, stored = both(tmp_path, bucket)
    server.remove(bucket)
    with pytest.raises(FileNotFoundError, match="no bucket"):
        stored.read([0])
    with pytest.raises(FileNotFoundError, match="no bucket"):
        wsl.build_index(tmp_path / "again", stored.shard_paths(), label_kind="class")
