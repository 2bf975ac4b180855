"""A damaged index, an index written while it is read, a full disk: refused or caught, and never a crash."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.thoroughness import Places
from wsl.cli import run
from wsl.index.shards import write_shard


@pytest.fixture
def index(tmp_path: Path) -> wsl.Index:
    for shard in range(2):
        samples = [(f"k{shard}{n}", {"png": bytes([n]) * 20}) for n in range(3)]
        write_shard(tmp_path / f"s{shard}.tar", samples)
    records = pl.DataFrame(
        {"key": [f"k{s}{n}" for s in range(2) for n in range(3)], "hashtags": [["a", "b"]] * 6}
    )
    shards = sorted(tmp_path.glob("s*.tar"))
    built = wsl.build_index(
        tmp_path / "index", shards, records=records, label_kind="hashtag", provenance={"made": "here"}
    )
    wsl.drop_samples(built.path, ["k11"])
    return wsl.Index.open(built.path)


def look_everywhere(path: Path, shard_root: Path) -> None:
    """Everything that reads; raises DataError or UsageError for what is found to be damaged."""
    index = wsl.Index.open(path, shard_root=shard_root)
    everything = np.arange(len(index))
    index.keys(everything)
    index.labels(everything)
    index.find("k12")
    index.read(everything)
    index.verify()


FILES = (
    "manifest.json",
    "part-00000.arrow",
    "shards.arrow",
    "keys.idx",
    "vocabulary.parquet",
    "dropped.arrow",
)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_that_is_altered_is_refused_or_caught(
    index: wsl.Index, tmp_path: Path, name: str, places: Places
) -> None:
    whole = (index.path / name).read_bytes()
    target = tmp_path / "copy" / name
    shutil.copytree(index.path, tmp_path / "copy")
    for at in places.of(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        # Never in place: what is mapped must not change.
        target.unlink()
        target.write_bytes(bytes(damaged))
        with pytest.raises((wsl.DataError, wsl.UsageError)):
            look_everywhere(tmp_path / "copy", tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_length_is_refused(index: wsl.Index, tmp_path: Path, name: str) -> None:
    whole = (index.path / name).read_bytes()
    shutil.copytree(index.path, tmp_path / "copy")
    target = tmp_path / "copy" / name
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        target.unlink()
        target.write_bytes(whole[:length])
        with pytest.raises((wsl.DataError, wsl.UsageError)):
            look_everywhere(tmp_path / "copy", tmp_path)
    target.unlink()
    with pytest.raises((wsl.DataError, wsl.UsageError, FileNotFoundError)):
        look_everywhere(tmp_path / "copy", tmp_path)


def test_damage_is_exit_code_3_with_one_paragraph(
    index: wsl.Index, capfd: pytest.CaptureFixture[str]
) -> None:
    part = index.path / "part-00000.arrow"
    content = part.read_bytes()
    part.unlink()
    part.write_bytes(content[:-9])
    assert run(["index", "verify", str(index.path)]) == 3
    message = capfd.readouterr().err
    assert "part-00000.arrow" in message
    assert "Traceback" not in message


def rebuild(folder: Path, times: int) -> None:
    shards = sorted(folder.glob("s*.tar"))
    for number in range(times):
        wsl.build_index(folder / "index", shards[: 1 + number % 2], part_rows=1, overwrite=True)


def test_an_index_that_is_rebuilt_while_it_is_read_is_the_old_or_the_new(tmp_path: Path) -> None:
    for shard in range(2):
        write_shard(tmp_path / f"s{shard}.tar", [(f"k{shard}{n}", {"png": b"x"}) for n in range(4)])
    rebuild(tmp_path, 1)
    child = multiprocessing.get_context("fork").Process(target=rebuild, args=(tmp_path, 30))
    child.start()
    seen = set()
    while child.is_alive():
        index = wsl.Index.open(tmp_path / "index")
        assert index.keys(np.arange(len(index)))[-1] == {4: "k03", 8: "k13"}[len(index)]
        seen.add(len(index))
    child.join()
    assert child.exitcode == 0
    assert seen


CHILD = """
import resource, signal, sys
from pathlib import Path
import wsl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    wsl.build_index(folder / "index", sorted(folder.glob("s*.tar")), overwrite=True)
    print("built")
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_write_that_fails_is_a_clear_error_and_the_old_index_stays(
    index: wsl.Index, tmp_path: Path
) -> None:
    outcomes = set()
    before = {path.name for path in index.path.iterdir()}
    for limit in (0, 100, 600, 1500, 4000, 100_000):
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(tmp_path), str(limit)],
            capture_output=True,
            text=True,
            check=True,
        )
        outcomes.add(done.stdout.split()[0])
        if done.stdout.startswith("built"):
            break
        assert str(tmp_path / "index") in done.stdout
        opened = wsl.Index.open(index.path)
        opened.verify()
        assert opened.fingerprint == index.fingerprint
        assert not {path.name for path in index.path.iterdir()} - before - {"building.jsonl"}
    assert "built" in outcomes
    assert len(outcomes) == 2
    wsl.Index.open(index.path).verify()


def test_open_files_stay_bounded(tmp_path: Path) -> None:
    for shard in range(300):
        write_shard(tmp_path / f"{shard:03}.tar", [(f"k{shard}", {"png": b"x"})])
    index = wsl.build_index(tmp_path / "index", sorted(tmp_path.glob("*.tar")))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert len(index.read(np.random.default_rng(0).permutation(300))) == 300
    assert len(os.listdir("/proc/self/fd")) - before <= 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fresh = wsl.Index.open(tmp_path / "index")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
        assert len(fresh.read(np.arange(300))) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
