"""Shards and records at gs://: what is read is what lies in local files. Wants fake-gcs-server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help import clustered
from wsl import DataError
from wsl.files import stores

pytestmark = pytest.mark.usefixtures("plain_storage")

Upload = Callable[[str, bytes], str]


@pytest.fixture
def upload() -> Iterator[Upload]:
    """Puts an object into a bucket of a server that storage reaches, and returns its URI."""
    program = os.environ.get("WSL_FAKE_GCS") or shutil.which("fake-gcs-server")
    if program is None:
        pytest.skip("no fake-gcs-server on PATH, nor named by WSL_FAKE_GCS")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-public-host", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def post(path: str, content: bytes, kind: str) -> None:
        asked = urllib.request.Request(url + path, content, {"Content-Type": kind}, method="POST")
        urllib.request.urlopen(asked).close()

    def put(name: str, content: bytes) -> str:
        quoted = urllib.parse.quote(name, safe="")
        post(f"/upload/storage/v1/b/bucket/o?uploadType=media&name={quoted}", content, "application/x")
        return f"gs://bucket/{name}"

    with subprocess.Popen(command, **quiet) as child:
        try:
            while child.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            post("/storage/v1/b?project=any", b'{"name": "bucket"}', "application/json")
            names = ("client_email", "private_key", "private_key_id")
            account = {"gcs_base_url": url, "disable_oauth": True} | dict.fromkeys(names, "")
            options = {"google_service_account_key": json.dumps(account), "google_skip_signature": "true"}
            stores.use(options | {"allow_http": "true"}, gap_bytes=0)
            yield put
        finally:
            child.kill()


def test_an_index_and_counts_of_a_bucket_are_those_of_files(upload: Upload, tmp_path: Path) -> None:
    records = clustered.write_records(tmp_path / "records", 3, 40)
    clustered.write_shards(tmp_path / "shards", 3, 40)
    shards = sorted((tmp_path / "shards").iterdir())
    stored = [upload(f"a b/shards/{shard.name}", shard.read_bytes()) for shard in shards]
    for file in (tmp_path / "records").iterdir():
        upload(f"records/{file.name}", file.read_bytes())
        text = pl.read_parquet(file).with_columns(pl.col("hashtags").list.join(" ")).write_csv()
        upload(f"text/{file.stem}.csv", text.encode())
    one = wsl.build_index(tmp_path / "one", shards, records=records, label_kind="hashtag")
    two = wsl.build_index(
        tmp_path / "two", stored, records="gs://bucket/records/*.parquet", label_kind="hashtag"
    )
    wanted = np.random.default_rng(0).permutation(len(one))
    assert len(one) == 120
    assert two.read(wanted) == one.read(wanted)
    assert two.keys(wanted) == one.keys(wanted)
    assert [row.tolist() for row in two.labels(wanted)] == [row.tolist() for row in one.labels(wanted)]
    two.verify()
    stores.use(cache=str(tmp_path / "cache"), cache_bytes=1 << 26)
    assert wsl.Index.open(tmp_path / "two").read(wanted) == one.read(wanted)
    stores.use(cache=None, cache_bytes=None)

    wsl.count_hashtags(records).save(tmp_path / "counts")
    for source, separator in (("gs://bucket/records/", None), ("gs://bucket/text/*.csv", " ")):
        wsl.count_hashtags(source, separator=separator).save(tmp_path / "stored")
        assert (tmp_path / "stored").read_bytes() == (tmp_path / "counts").read_bytes()

    listed = [stores.stamp(one.uri) for one in stores.listing("gs://bucket/records/")]
    stores.use(num_requests=4)
    assert [stores.stamp(f"gs://bucket/records/records-{n:04}.parquet") for n in range(3)] == listed

    upload(f"a b/shards/{shards[0].name}", shards[1].read_bytes())
    with pytest.raises(DataError, match="was replaced after it was indexed"):
        wsl.Index.open(tmp_path / "two").read(wanted)
    with pytest.raises(FileNotFoundError, match="no such object"):
        stores.read_bytes("gs://none/a")
