"""No space for a selection or an index, and selections that are stopped: one clear error, nothing
half-written, and the same command comes to the same bytes afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.forked import Forked, ForkServer
from wsl.index.shards import write_shard

NUM_SAMPLES, NUM_CLASSES = 20_000, 60

CHILD = "import sys; from wsl.cli import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200,000 pairs in no order."""
    file = tmp_path_factory.mktemp("predictions") / "p.parquet"
    order = np.random.default_rng(0).permutation(NUM_SAMPLES * NUM_CLASSES)
    columns = {"sample": order // NUM_CLASSES, "class": order % NUM_CLASSES}
    scores = (order * 48_271 % 65_537 / 1024).astype(np.float32)
    pl.DataFrame(columns | {"score": scores}).write_parquet(file)
    return file


def arguments(predictions: Path, folder: Path, *more: object) -> list[str]:
    given = ["pseudolabel", "--predictions", predictions, "--k", 5000, "--p", 3, "--order", "image-first"]
    return [str(item) for item in [*given, "--out", folder / "o.parquet", "--workers", 1, *more]]


def spilling(folder: Path) -> list[object]:
    (folder / "spill").mkdir(exist_ok=True)
    return ["--memory", "1MiB", "--spill-dir", folder / "spill"]


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def start_within(command: list[str], *before: str) -> subprocess.Popen[str]:
    """Runs a command in a process of its own, by a program that is named before it."""
    line = [*before, sys.executable, "-c", CHILD, *command]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def expected(forks: ForkServer, predictions: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    child = forks.start(arguments(predictions, folder))
    _, said = child.communicate()
    assert child.returncode == 0, said
    return (folder / "o.parquet").read_bytes()


def check_error(child: Forked, where: Path) -> str:
    """The process ended with one paragraph that names a path below `where`."""
    _, said = child.communicate()
    assert child.returncode == 1, said
    assert "Traceback" not in said
    error = said[said.index("error: ") :]
    assert str(where) in error, error
    assert len(error.strip().splitlines()) == 1, error
    return error


def check_works(forks: ForkServer, command: list[str], folder: Path, expected: bytes) -> None:
    child = forks.start(command)
    _, said = child.communicate()
    assert child.returncode == 0, said
    assert (folder / "o.parquet").read_bytes() == expected


def left_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"spill"}


@pytest.mark.parametrize("where", ["spill", "state", "result"])
def test_a_file_that_may_not_grow_is_named_and_the_same_command_works_afterwards(
    forks: ForkServer, predictions: Path, expected: bytes, tmp_path: Path, where: str
) -> None:
    more = {
        "spill": spilling(tmp_path),
        "state": ["--state", tmp_path / "s.state"],
        "result": [],
    }[where]
    command = arguments(predictions, tmp_path, *more)
    for limit in (1, 1000, 100_000):
        error = check_error(forks.start(command, limit_bytes=limit), tmp_path)
        assert left_in(tmp_path) == set()
        if where == "spill":
            assert "--spill-dir" in error
    check_works(forks, command, tmp_path, expected)
    assert left_in(tmp_path) == {"o.parquet"} | ({"s.state"} if where == "state" else set())


def small_disk(tmp_path: Path) -> tuple[list[str], Path]:
    """What to put before a command so that it finds a disk of 100 KB at the path; skips where nobody but
    root may mount one. The disk is gone with the command."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size=100k none {small} && mkdir {small}/spill && exec "$@"; exit 77'
    within = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], check=False).returncode:
        pytest.skip("this system lets nobody but root mount a small disk")
    return within, small


def test_a_disk_that_is_full_is_said_and_the_same_command_works_afterwards(
    forks: ForkServer, predictions: Path, expected: bytes, tmp_path: Path
) -> None:
    within, small = small_disk(tmp_path)
    for more in (["--memory", "1MiB", "--spill-dir", small / "spill"], ["--state", small / "s.state"], []):
        # The disk is gone with the process, so it looks itself.
        out = tmp_path if more else small
        line = arguments(predictions, out, *more)
        looking = f'"$@"; code=$?; find {small} -type f; exit $code'
        child = start_within(line, *within, "sh", "-c", looking, "sh")
        shown, said = child.communicate()
        assert child.returncode == 1, said
        assert f"error: {small}" in said
        assert "no space" in said.lower()
        assert "Traceback" not in said
        assert shown.strip() == ""
        assert left_in(tmp_path) == {"small"}
    check_works(forks, arguments(predictions, tmp_path), tmp_path, expected)


def stop_while_spilling(
    forks: ForkServer, command: list[str], folder: Path, number: signal.Signals
) -> Forked:
    """The process, stopped when several runs of it are on disk."""
    child = forks.start(command)
    while child.poll() is None and len(list((folder / "spill").glob("*/*"))) < 5:
        time.sleep(0.001)
    child.send_signal(number)
    return child


def test_a_selection_that_is_interrupted_leaves_nothing(
    forks: ForkServer, predictions: Path, expected: bytes, tmp_path: Path
) -> None:
    command = arguments(predictions, tmp_path, *spilling(tmp_path))
    child = stop_while_spilling(forks, command, tmp_path, signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130, said
    assert "interrupted; run the same command again" in said
    assert "Traceback" not in said
    assert left_in(tmp_path) == set()
    check_works(forks, command, tmp_path, expected)


def test_the_folder_of_a_killed_selection_goes_with_the_next_one(
    forks: ForkServer, predictions: Path, expected: bytes, tmp_path: Path
) -> None:
    command = arguments(predictions, tmp_path, *spilling(tmp_path))
    child = stop_while_spilling(forks, command, tmp_path, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "o.parquet").exists()
    (folder,) = os.listdir(tmp_path / "spill")
    assert folder.startswith(".wsl-runs-")
    check_works(forks, command, tmp_path, expected)
    assert left_in(tmp_path) == {"o.parquet"}


def test_a_selection_that_is_killed_at_any_time_leaves_whole_files_or_none(
    forks: ForkServer, predictions: Path, expected: bytes, tmp_path: Path
) -> None:
    state = tmp_path / "s.state"
    command = arguments(predictions, tmp_path, *spilling(tmp_path), "--state", state)
    begun = time.monotonic()
    check_works(forks, command, tmp_path, expected)
    took, whole = time.monotonic() - begun, state.read_bytes()
    for share in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        (tmp_path / "o.parquet").unlink(missing_ok=True)
        state.unlink(missing_ok=True)
        child = forks.start(command)
        try:
            child.communicate(timeout=took * share)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        assert not state.exists() or state.read_bytes() == whole
        assert not (tmp_path / "o.parquet").exists() or (tmp_path / "o.parquet").read_bytes() == expected
    check_works(forks, command, tmp_path, expected)
    assert state.read_bytes() == whole
    assert os.listdir(tmp_path / "spill") == []


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], str]:
    """A command that builds an index of 20,000 samples and joins it on disk, and what it comes to."""
    folder = tmp_path_factory.mktemp("tagged")
    keys = [f"s{n:06}" for n in range(NUM_SAMPLES)]
    write_shard(folder / "a.tar", [(key, {"png": b"x"}) for key in keys])
    tags = [[f"t{n % 50}", f"u{n % 7}"] for n in range(NUM_SAMPLES)]
    pl.DataFrame({"key": keys[::-1], "hashtags": tags}).write_parquet(folder / "r.parquet")
    records = ["--records", folder / "r.parquet", "--label-kind", "hashtag", "--memory", "1MiB"]
    command: list[object] = ["index", "build", "--shards", folder / "a.tar", *records, "--workers", 1]
    whole = wsl.build_index(
        folder / "whole", [folder / "a.tar"], records=folder / "r.parquet", label_kind="hashtag"
    )
    return command, whole.fingerprint


def check_index(forks: ForkServer, command: list[str], folder: Path, fingerprint: str) -> None:
    child = forks.start(command)
    _, said = child.communicate()
    assert child.returncode == 0, said
    index = wsl.Index.open(folder)
    index.verify()
    assert index.fingerprint == fingerprint
    assert not [name for name in os.listdir(folder) if name.startswith((".tmp", "scan", "building"))]


def test_an_index_whose_files_may_not_grow_is_built_afterwards(
    forks: ForkServer, tagged: tuple[list[object], str], tmp_path: Path
) -> None:
    (tmp_path / "spill").mkdir()
    out = tmp_path / "index"
    command = [str(item) for item in [*tagged[0], "--out", out, "--spill-dir", tmp_path / "spill"]]
    for limit in (1, 1000, 30_000, 200_000):
        check_error(forks.start(command, limit_bytes=limit), tmp_path)
        assert not (out / "manifest.json").exists()
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".tmp", ".wsl"))]
    check_index(forks, command, out, tagged[1])


def test_an_index_for_which_the_disk_is_full_is_built_afterwards(
    forks: ForkServer, tagged: tuple[list[object], str], tmp_path: Path
) -> None:
    within, small = small_disk(tmp_path)
    for out, spill in ((small / "index", tmp_path), (tmp_path / "index", small)):
        command = [str(item) for item in [*tagged[0], "--out", out, "--spill-dir", spill]]
        child = start_within(command, *within)
        _, said = child.communicate()
        assert child.returncode == 1, said
        assert f"error: {small}" in said
        assert "no space" in said.lower()
        assert "Traceback" not in said
        assert not (tmp_path / "index" / "manifest.json").exists()
    command = [str(item) for item in [*tagged[0], "--out", tmp_path / "index"]]
    check_index(forks, command, tmp_path / "index", tagged[1])
