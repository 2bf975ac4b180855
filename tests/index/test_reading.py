"""`Index.read`: the same bytes whatever is asked for together, by how many threads, cached or not."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from tests.help.thoroughness import examples
from wsl.index.shards import write_shard

SIZES = [1, 511, 512, 513, 5000, 70_000, 300_000, 1_200_000]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[wsl.Index, list[bytes]]:
    """Images from a byte to more than a run of several, 30 MB in three shards: more than a chunk."""
    folder = tmp_path_factory.mktemp("reading")
    rng = np.random.default_rng(0)
    contents = [rng.bytes(SIZES[n % len(SIZES)] + n) for n in range(150)]
    for shard in range(3):
        samples = [(f"s{n:03}", {"png": contents[n], "cls": b"1"}) for n in range(shard, 150, 3)]
        write_shard(folder / f"{shard}.tar", samples)
    index = wsl.build_index(folder / "index", sorted(folder.glob("*.tar")))
    order = [n for shard in range(3) for n in range(shard, 150, 3)]
    return index, [contents[n] for n in order]


def evict(index: wsl.Index) -> None:
    """Takes the shards out of the page cache, as far as the system lets us."""
    for path in index.shard_paths():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@given(st.lists(st.integers(0, 149), max_size=60), st.integers(1, 5), st.booleans())
@examples(40)
def test_images_come_as_they_were_asked_for(
    many: tuple[wsl.Index, list[bytes]], ordinals: list[int], num_threads: int, is_cold: bool
) -> None:
    index, contents = many
    if is_cold:
        evict(index)
    found = index.read(np.array(ordinals, dtype=np.int64), num_threads=num_threads)
    assert found == [contents[n] for n in ordinals]


def test_progress_ends_at_all_samples_and_never_goes_back(many: tuple[wsl.Index, list[bytes]]) -> None:
    index, contents = many
    seen: list[int] = []
    order = np.random.default_rng(1).permutation(len(contents))
    evict(index)
    assert index.read(order, num_threads=2, progress=seen.append) == [contents[n] for n in order]
    assert seen == sorted(seen)
    assert len(seen) > 1
    assert seen[-1] == len(contents)


def test_samples_taken_down_are_empty_among_the_others(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(f"s{n}", {"png": bytes([n]) * 9000}) for n in range(20)])
    index = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    wsl.drop_samples(index.path, ["s3", "s4", "s19"])
    found = wsl.Index.open(index.path).read([19, 3, 5, 3, 0])
    assert found == [b"", b"", bytes([5]) * 9000, b"", bytes(9000)]
    assert wsl.Index.open(index.path).read([3, 4, 19]) == [b"", b"", b""]
    assert index.read([]) == []


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_shard_cut_or_replaced_while_it_is_open_is_named(tmp_path: Path, num_threads: int) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, [(f"s{n}", {"png": bytes([n]) * 60_000}) for n in range(200)])
    index = wsl.build_index(tmp_path / "index", [path])
    order = np.random.default_rng(0).permutation(200)
    assert len(index.read(order, num_threads=num_threads)) == 200
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(wsl.DataError, match=r"a\.tar: sample \d+ .* replaced or cut"):
        index.read(order, num_threads=num_threads)
    assert index.read([0]) == [bytes(60_000)]
    with path.open("r+b") as file:
        file.write(tarfile.TarInfo("other.png").tobuf())
    with pytest.raises(wsl.DataError, match=r'sample 0 \("s0"\).*another member stands there'):
        index.read(np.arange(60), num_threads=num_threads)


def test_long_prefixes_and_names_outside_their_header_are_read(tmp_path: Path) -> None:
    names = ["p" * 120 + "/q.r/k.png", "d.e/" * 40 + "name.png", "é" * 60 + "/x.png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for n, name in enumerate(names):
            header = tarfile.TarInfo(name)
            header.size = 700 + n
            archive.addfile(header, _Zeros(700 + n))
    index = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    assert [len(content) for content in index.read(np.arange(len(index)))] == [700, 701, 702]


class _Zeros:
    """A file of so many zeros."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int) -> bytes:
        taken = min(size, self.left)
        self.left -= taken
        return bytes(taken)
