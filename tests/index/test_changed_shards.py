"""Shards that change while an index reads them: images as written, or an error that names the shard.

Whatever might end the process runs in one of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import wsl
from wsl.index.shards import write_shard

COUNT, CALL = 400, 100


def content(n: int) -> bytes:
    return np.random.default_rng(n).bytes(300 + 7 * n % 5000)


def make_index(folder: Path) -> wsl.Index:
    for shard in range(2):
        samples = (
            (f"s{n:03}", {"png": content(n)}) for n in range(shard * COUNT // 2, (shard + 1) * COUNT // 2)
        )
        write_shard(folder / f"{shard}.tar", samples)
    return wsl.build_index(folder / "index", sorted(folder.glob("*.tar")))


def read_all(index: wsl.Index, num_threads: int = 1, seed: int = 0) -> dict[int, bytes]:
    """Images in random order, far enough apart that each is read by itself."""
    order = np.random.default_rng(seed).permutation(len(index))
    calls = [order[at : at + CALL] for at in range(0, len(order), CALL)]
    return {
        int(n): image
        for call in calls
        for n, image in zip(call, index.read(call, num_threads=num_threads), strict=True)
    }


@pytest.fixture
def index(tmp_path: Path) -> wsl.Index:
    """An index whose shards are open and in the page cache."""
    index = make_index(tmp_path)
    for seed in range(4):
        read_all(index, seed=seed)
    return index


@pytest.mark.parametrize("num_threads", [1, 3])
def test_images_in_any_order_are_those_written(index: wsl.Index, num_threads: int) -> None:
    expected = {n: content(n) for n in range(COUNT)}
    assert read_all(index, num_threads) == expected
    few = [3, 3, 399, 0]
    assert index.read(few) == [content(n) for n in few]
    neighbours = np.arange(COUNT)
    assert index.read(neighbours, num_threads=num_threads) == [content(n) for n in neighbours]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_images_of_all_sizes_come_in_one_long_call(tmp_path: Path, num_threads: int) -> None:
    """Images of a byte and large ones, samples taken down, more shards than are kept open, and a call so long
    that it takes many chunks."""
    sizes, num_shards = [700, 1, 2, 33_000, 32 << 10, 500, 70_000], 300
    images = [np.random.default_rng(n).bytes(sizes[n % len(sizes)]) for n in range(5 * num_shards)]
    for shard in range(num_shards):
        own = range(5 * shard, 5 * shard + 5)
        write_shard(tmp_path / f"{shard:03}.tar", ((f"s{n:04}", {"png": images[n]}) for n in own))
    wsl.build_index(tmp_path / "index", sorted(tmp_path.glob("*.tar")))
    wsl.drop_samples(tmp_path / "index", ["s0005", "s0703"])
    images[5] = images[703] = b""
    index = wsl.Index.open(tmp_path / "index")
    rng = np.random.default_rng(0)
    for _ in range(20):
        index.read(rng.permutation(100))
    wanted = np.concatenate([rng.integers(0, len(images), 9_000), [5, 5, 703]])
    seen: list[int] = []
    assert index.read(wanted, num_threads=num_threads, progress=seen.append) == [images[n] for n in wanted]
    assert seen == sorted(seen)
    assert seen[-1] == sum(n not in (5, 703) for n in wanted)
    with pytest.raises(wsl.UsageError, match="there is no sample 1500"):
        index.read([*range(50), 1500], num_threads=num_threads)
    with pytest.raises(wsl.UsageError, match="num_threads"):
        index.read(range(50), num_threads=0)


def test_pages_that_are_evicted_are_read_again(index: wsl.Index) -> None:
    for path in index.shard_paths():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read_all(index) == {n: content(n) for n in range(COUNT)}


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 511, 4096, 4097, 40_960, 123_456, 300_000, -1, -1024, -1025, -3000])
def test_a_shard_cut_while_it_is_open_is_named(index: wsl.Index, length: int, num_threads: int) -> None:
    path = index.shard_paths()[1]
    whole = path.read_bytes()
    length = length if length >= 0 else len(whole) + length
    os.truncate(path, length)
    rows = [index.row(n) for n in range(COUNT)]
    cut = [
        n for n, row in enumerate(rows) if row["shard"] == str(path) and row["offset"] + row["size"] > length
    ]
    left = [n for n in range(COUNT) if n not in cut]
    if cut:
        with pytest.raises(wsl.DataError, match=r"1\.tar: sample \d+ .* replaced or cut"):
            read_all(index, num_threads)
    assert index.read(left, num_threads=num_threads) == [content(n) for n in left]
    for n in cut[:20]:
        with pytest.raises(wsl.DataError, match=rf"1\.tar: sample {n} .* replaced or cut"):
            index.read([*left[:30], n])
    path.write_bytes(whole)
    assert read_all(index, num_threads) == {n: content(n) for n in range(COUNT)}


def test_a_shard_removed_replaced_or_grown_is_read_as_it_was(index: wsl.Index) -> None:
    expected = {n: content(n) for n in range(COUNT)}
    first, second = index.shard_paths()
    with second.open("ab") as file:
        file.write(bytes(100_000))
    shutil.copy(second, second.with_suffix(".new"))
    assert read_all(index) == expected
    os.replace(second.with_suffix(".new"), second)
    first.unlink()
    assert read_all(index) == expected


def test_another_member_in_its_place_is_named(index: wsl.Index) -> None:
    row = index.row(7)
    with Path(row["shard"]).open("r+b") as file:
        file.seek(row["offset"] - 512)
        file.write(b"other")
    with pytest.raises(wsl.DataError, match=r'0\.tar: sample 7 \("s007"\).*another member stands there'):
        read_all(index)


def test_threads_that_read_while_a_shard_is_cut_see_images_or_an_error(index: wsl.Index) -> None:
    path = index.shard_paths()[1]

    def read_on(seed: int) -> list[str]:
        seen = []
        for round_ in range(30):
            order = np.random.default_rng(100 * seed + round_).permutation(COUNT)[:CALL]
            try:
                images = index.read(order)
            except wsl.DataError as error:
                seen.append(str(error))
            else:
                assert images == [content(n) for n in order]
        return seen

    with ThreadPoolExecutor(4) as pool:
        seen = [pool.submit(read_on, seed) for seed in range(4)]
        os.truncate(path, 70_000)
        errors = [error for one in seen for error in one.result()]
    assert errors
    assert all("1.tar: sample" in error for error in errors)


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, beside an index."""
    start = """
        import os, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from tests.index.test_changed_shards import COUNT, content, make_index, read_all
        import wsl

        def cut(index):
            os.truncate(index.shard_paths()[1], 50_001)

        def is_named(index):
            try:
                read_all(index)
            except wsl.DataError as error:
                return "1.tar: sample" in str(error) and "replaced or cut" in str(error)
            return False

        def read_often(index):
            for seed in range(4):
                read_all(index, seed=seed)

        index = make_index(Path(sys.argv[1]))
    """
    text = textwrap.dedent(start) + textwrap.dedent(code)
    here = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", text, str(folder), here]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, env=environment)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_forked_process_sees_the_error_too(tmp_path: Path, when: str) -> None:
    code = f"""
        read_often(index)
        if {when == "before"}:
            cut(index)
        child = os.fork()
        if not child:
            cut(index)
            os._exit(0 if is_named(index) else 9)
        assert os.waitpid(child, 0)[1] == 0
        assert is_named(index)
        assert index.read([0]) == [content(0)]
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_workers_of_a_loader_raise_the_error(tmp_path: Path) -> None:
    code = """
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Images(Dataset):
            def __len__(self):
                return 600

            def __getitem__(self, number):
                if number == 500:
                    cut(index)
                return len(read_all(index, seed=number))

        read_often(index)
        seen = 0
        try:
            for lengths in DataLoader(Images(), batch_size=10, num_workers=1):
                assert set(lengths.tolist()) == {COUNT}
                seen += 1
        except wsl.DataError as error:
            assert "1.tar: sample" in str(error), error
        assert seen == 50, seen
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_a_cut_shard_is_named_where_address_space_is_limited(tmp_path: Path) -> None:
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
        for seed in range(4):
            read_all(index, seed=seed)
        cut(index)
        assert is_named(index)
    """
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
