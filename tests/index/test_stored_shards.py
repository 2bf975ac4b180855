"""An index over shards in a store is the index over the same files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.servers import Server
from tests.help.shards import both, make_shards, padded, put
from wsl.cli import run
from wsl.data.augment import ImageOptions
from wsl.data.epochs import EpochDataset
from wsl.files import stores
from wsl.index.export import export_index
from wsl.index.shards import write_shard

pytestmark = pytest.mark.usefixtures("plain_storage")


@pytest.fixture(params=["memory", "bucket"])
def base(request: pytest.FixtureRequest) -> str:
    """A bucket in memory, and one of the server."""
    return str(request.getfixturevalue(request.param))


def test_the_index_is_the_same_and_so_is_what_it_reads(base: str, tmp_path: Path) -> None:
    local, stored = both(tmp_path, base)
    assert stored.fingerprint == local.fingerprint
    everything = np.random.default_rng(0).permutation(len(local))
    assert stored.read(everything) == local.read(everything)
    assert stored.read([5, 5, 3]) == local.read([5, 5, 3])
    assert stored.keys(everything) == local.keys(everything)
    assert stored.row(7)["shard"] == f"{base}/part-0.tar"
    assert stored.shard_paths() == [f"{base}/part-{n}.tar" for n in range(3)]
    stored.verify()
    wsl.drop_samples(stored.path, ["s0-003"])
    assert wsl.Index.open(stored.path).read([3, 4]) == [b"", local.read([4])[0]]


def test_neighbours_come_with_one_request_and_the_report_says_what_it_took(
    memory: str, tmp_path: Path
) -> None:
    _, stored = both(tmp_path, memory, num_shards=1, num_samples=40)
    wanted = np.arange(0, 40, 4)
    images = stored.read(wanted)
    report = stored.read_report()
    assert report["num_requests"] == 1
    assert report["num_retries"] == 0
    assert report["wanted_bytes"] == sum(map(len, images)) < report["read_bytes"]
    assert report["amplification"] == report["read_bytes"] / report["wanted_bytes"]
    stores.use(gap_bytes=0)
    apart = wsl.Index.open(stored.path)
    assert apart.read(wanted) == images
    report = apart.read_report()
    assert report["num_requests"] == 10
    assert report["read_bytes"] == report["wanted_bytes"] + 10 * 512


def test_large_images_are_skipped_by_the_scan_and_read_in_several_requests(
    memory: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    samples = [(f"s{n}", {"png": rng.bytes(3 << 20), "cls": b"0"}) for n in range(8)]
    write_shard(tmp_path / "a.tar", samples)
    uri = put([tmp_path / "a.tar"], memory)
    stores.use(request_bytes=1 << 20)
    before = stores.core().report()
    stored = wsl.build_index(tmp_path / "index", uri, label_kind="class")
    after = stores.core().report()
    assert after[3] - before[3] < 4 << 20, "the scan read over the images"
    assert stored.read(np.arange(8)) == [members["png"] for _, members in samples]
    assert stored.read_report()["num_requests"] == 8 * 4


def test_an_epoch_over_a_store_is_the_local_one(base: str, tmp_path: Path) -> None:
    local, stored = both(tmp_path, base)
    assert list(epoch(stored)) == list(epoch(local))


def epoch(index: wsl.Index, batch: int = 16) -> Any:
    """Ordinals and pixels of two epochs, batch by batch."""
    factors = np.linspace(0.5, 2, len(index)).astype(np.float32)
    order = wsl.EpochOrder(index, factors, seed=3, window=2)
    data = EpochDataset(index, order, ImageOptions(image_size=12), seed=3)
    for start in range(0, 2 * len(order), batch):
        examples = data.__getitems__(list(range(start, start + batch)))
        yield [(one.sample, one.labels.tolist(), one.image.numpy().tobytes()) for one in examples]


def test_a_shard_that_was_replaced_is_an_error_everywhere(base: str, tmp_path: Path) -> None:
    _, stored = both(tmp_path, base)
    changed = write_other(tmp_path / "other.tar")
    stores.write_bytes(f"{base}/part-1.tar", changed)
    with pytest.raises(wsl.DataError, match=r"part-1\.tar: the object was replaced after it was indexed"):
        stored.read([25])
    assert stored.read([0]) == wsl.Index.open(tmp_path / "local").read([0])
    with pytest.raises(wsl.DataError, match=r"part-1\.tar: expected the \d+ bytes that were indexed"):
        stored.verify()
    stores.delete(f"{base}/part-2.tar")
    with pytest.raises(FileNotFoundError, match="no such object"):
        stored.read([45])


def write_other(path: Path) -> bytes:
    """A shard of the same names and sizes, with other pixels."""
    rng = np.random.default_rng(9)
    write_shard(path, [(f"s1-{n:03}", {"png": rng.bytes(700), "cls": b"0"}) for n in range(20)])
    return path.read_bytes()


def test_the_same_bytes_written_anew_are_taken_for_another_shard(memory: str, tmp_path: Path) -> None:
    _, stored = both(tmp_path, memory)
    stores.write_bytes(f"{memory}/part-0.tar", stores.read_bytes(f"{memory}/part-0.tar"))
    with pytest.raises(wsl.DataError, match="expected etag"):
        stored.read([0])
    with pytest.raises(wsl.DataError, match="written anew"):
        stored.verify()
    # Shards that were moved are known by their headers alone.
    moved = wsl.Index.open(stored.path, shard_root=memory)
    assert moved.read([0]) == wsl.Index.open(tmp_path / "local").read([0])
    moved.verify()


def test_shards_move_between_folders_and_stores(memory: str, tmp_path: Path) -> None:
    local, stored = both(tmp_path, memory)
    away = wsl.Index.open(local.path, shard_root=memory)
    back = wsl.Index.open(stored.path, shard_root=tmp_path / "data")
    assert away.read(np.arange(60)) == back.read(np.arange(60)) == local.read(np.arange(60))
    away.verify()
    again = pickle.loads(pickle.dumps(away))
    assert again.read([1]) == local.read([1])


def test_a_damaged_or_empty_shard_is_told_by_its_uri(memory: str, tmp_path: Path) -> None:
    path = make_shards(tmp_path / "data", 1)[0]
    uri = f"{memory}/part-0.tar"
    for content, said in [
        (b"", "at byte 0: the file ends here"),
        (path.read_bytes()[:5000], "past the end of the file|ends here"),
        (b"x" * 5000, "no tar header here"),
    ]:
        stores.write_bytes(uri, content)
        with pytest.raises(wsl.DataError, match=said) as raised:
            wsl.build_index(tmp_path / "index", [uri])
        assert uri in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such object"):
        wsl.build_index(tmp_path / "index", [f"{memory}/none.tar"])


def test_hashtags_come_from_shards_and_tables_in_a_store(bucket: str, tmp_path: Path) -> None:
    samples = [(f"s{n}", {"png": b"%d" % n, "json": json.dumps({"tags": TAGS[n % 3]})}) for n in range(9)]
    encoded = [
        (key, {k: v.encode() if isinstance(v, str) else v for k, v in m.items()}) for key, m in samples
    ]
    write_shard(tmp_path / "a.tar", encoded)
    uris = put([tmp_path / "a.tar"], bucket)
    inside = wsl.build_index(tmp_path / "inside", uris, label_kind="hashtag", hashtags_column="tags")
    records = pl.DataFrame({"key": [f"s{n}" for n in range(9)], "hashtags": [TAGS[n % 3] for n in range(9)]})
    padded(records).write_parquet(tmp_path / "r.parquet")
    stores.upload(tmp_path / "r.parquet", f"{bucket}/tags/r.parquet")
    for source in (
        f"{bucket}/tags/r.parquet",
        f"{bucket}/tags/*.parquet",
        f"{bucket}/tags/",
    ):
        counts = wsl.count_hashtags(source)
        assert counts.num_records == 9
        assert counts.count_of("cat") == 6
    joined = wsl.build_index(
        tmp_path / "joined", uris, records=f"{bucket}/tags/*.parquet", label_kind="hashtag"
    )
    assert joined.fingerprint == inside.fingerprint
    with pytest.raises(wsl.UsageError, match="no object matches"):
        wsl.count_hashtags(f"{bucket}/none/*.parquet")


TAGS = [["cat", "dog"], ["dog"], ["cat"]]


def test_predictions_are_read_from_a_store_and_the_selection_is_written_to_one(
    bucket: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        pairs = {"sample": np.repeat(np.arange(50) + 50 * number, 4), "class": np.tile(np.arange(4), 50)}
        frame = pl.DataFrame(pairs | {"score": rng.normal(size=200).astype(np.float32)})
        padded(frame).write_parquet(tmp_path / f"p{number}.parquet")
        stores.upload(tmp_path / f"p{number}.parquet", f"{bucket}/predictions/p{number}.parquet")
    options = ["--k", "20", "--p", "2"]
    local, away = str(tmp_path / "local.parquet"), f"{bucket}/out/away.parquet"
    command = ["pseudolabel", *options, "--predictions"]
    assert run([*command, str(tmp_path / "p*.parquet"), "--out", local]) == 0
    for pattern in (f"{bucket}/predictions/*.parquet", f"{bucket}/predictions/"):
        assert run([*command, pattern, "--out", away, "--overwrite"]) == 0
        stores.download(away, tmp_path / "away.parquet")
        assert pl.read_parquet(tmp_path / "away.parquet").equals(pl.read_parquet(local))
    assert run([*command, f"{bucket}/none/*.parquet", "--out", away]) == 2


def test_the_command_line_reads_shards_by_glob_and_adds_new_ones(
    server: Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_shards(tmp_path / "data")
    put(paths[:2], f"{bucket}/shards")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    block = {"options": server.options(), "gap_bytes": "64KiB"}
    indexes = {"all": {"shards": f"{bucket}/shards/part-*.tar", "label_kind": "class"}}
    (tmp_path / "work" / "wsl.yaml").write_text(json.dumps({"indexes": indexes, "storage": block}))
    stores.use()
    assert wsl_command("index", "build") == (0, "built, 40 samples")
    assert wsl_command("index", "build") == (0, "up to date, 40 samples")
    put_one = [*paths[2:]]
    stores.use(server.options())
    put(put_one, f"{bucket}/shards")
    stores.use()
    assert wsl_command("index", "build") == (0, "appended, 60 samples")
    for command in (["verify"], ["get", "41", "--out", "one.png"]):
        code, said = wsl_command("index", command[0], "index/all", *command[1:])
        assert code == 0, said
    local = wsl.build_index(tmp_path / "local", paths, label_kind="class")
    assert Path("one.png").read_bytes() == local.read([41])[0]
    text = "".join(path.read_text(errors="replace") for path in Path("index/all").iterdir() if path.is_file())
    assert server.options()["aws_secret_access_key"] not in text


def wsl_command(*arguments: str) -> tuple[int, str]:
    """Code and the state that was said, in a process of its own."""
    code = "import sys; from wsl.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != stores.ENVIRONMENT},
    )
    said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return done.returncode, said.partition(": ")[2].partition(" in ")[
        0
    ] if not done.returncode else done.stderr


def test_an_index_over_a_store_is_exported(memory: str, tmp_path: Path) -> None:
    local, stored = both(tmp_path, memory, num_shards=1)
    for kind, name in [("dali", "part-0.idx"), ("energon", "part-0.tar.idx")]:
        for index, folder in [(local, "a"), (stored, "b")]:
            export_index(index, tmp_path / folder, kind)
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    file = export_index(stored, tmp_path / "w.json", "wids")[0]
    assert json.loads(file.read_text())["shardlist"][0]["url"] == f"{memory}/part-0.tar"


def test_options_on_the_command_line_hold(server: Server, bucket: str, tmp_path: Path) -> None:
    put(make_shards(tmp_path / "data", 1), bucket)
    stores.use()
    options = [f"--storage-option={key}={value}" for key, value in server.options().items()]
    out = str(tmp_path / "index")
    assert run(["index", "build", "--shards", f"{bucket}/*.tar", "--out", out, *options]) == 0
    assert len(wsl.Index.open(out)) == 20
