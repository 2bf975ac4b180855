"""Writing shards, against tarfile and webdataset as readers."""

from __future__ import annotations

import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import webdataset

import wsl
from wsl.index.shards import write_shard, write_shards


def make_tree(folder: Path) -> None:
    for class_name, count in (("cat", 3), ("ant", 2)):
        (folder / class_name).mkdir(parents=True)
        for number in range(count):
            (folder / class_name / f"{number}.v1.PNG").write_bytes(f"{class_name}{number}".encode())
    (folder / "ant" / "notes.txt").write_text("no image")


def read(paths: list[Path]) -> list[tuple[str, bytes, bytes]]:
    with ExitStack() as stack:
        streams = [{"url": str(path), "stream": stack.enter_context(path.open("rb"))} for path in paths]
        files = webdataset.tariterators.tar_file_expander(streams, eof_value=None)
        samples = list(webdataset.tariterators.group_by_keys(files))
    return [(sample["__key__"], sample["png"], sample["cls"]) for sample in samples]


def test_webdataset_reads_a_packed_tree_with_classes_in_name_order(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    paths = wsl.pack_shards(tmp_path / "tree", tmp_path / "out", max_shard_samples=2)
    assert [path.name for path in paths] == [f"tree-{number:06}.tar" for number in range(3)]
    assert (tmp_path / "out" / "classes.txt").read_text() == "ant\ncat\n"
    expected = [(f"ant/{n}_v1", f"ant{n}".encode(), b"0") for n in range(2)]
    expected += [(f"cat/{n}_v1", f"cat{n}".encode(), b"1") for n in range(3)]
    assert read(paths) == expected


def test_a_seed_shuffles_the_same_way_every_time(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    one = wsl.pack_shards(tmp_path / "tree", tmp_path / "one", seed=3)
    two = wsl.pack_shards(tmp_path / "tree", tmp_path / "two", seed=3)
    plain = wsl.pack_shards(tmp_path / "tree", tmp_path / "plain")
    assert one[0].read_bytes() == two[0].read_bytes() != plain[0].read_bytes()
    assert sorted(read(one)) == sorted(read(plain))


def test_existing_shards_are_replaced_only_when_asked(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    wsl.pack_shards(tmp_path / "tree", tmp_path / "out", max_shard_samples=1)
    with pytest.raises(wsl.UsageError, match="overwrite"):
        wsl.pack_shards(tmp_path / "tree", tmp_path / "out")
    paths = wsl.pack_shards(tmp_path / "tree", tmp_path / "out", overwrite=True)
    assert sorted((tmp_path / "out").glob("*.tar")) == paths


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wsl.UsageError, match="no images found"):
        wsl.pack_shards(tmp_path, tmp_path / "out")


def test_tarfile_reads_long_and_unicode_names(tmp_path: Path) -> None:
    keys = ["a" * 150, "folder/" * 30 + "x", "mädchen/ü"]
    assert write_shard(tmp_path / "s.tar", [(key, {"jpg": key.encode()}) for key in keys]) == 3
    with tarfile.open(tmp_path / "s.tar") as tar:
        assert [member.name for member in tar] == [f"{key}.jpg" for key in keys]


def test_a_shard_ends_before_it_grows_over_its_size(tmp_path: Path) -> None:
    samples = [(f"{number}", {"jpg": b"x" * 513}) for number in range(5)]
    paths = write_shards(tmp_path, "s", samples, max_shard_bytes=2 * 1536)
    counts = []
    for path in paths:
        with tarfile.open(path) as tar:
            counts.append(len(tar.getnames()))
    assert counts == [2, 2, 1]


def test_an_error_in_the_middle_leaves_no_shard_behind(tmp_path: Path) -> None:
    samples = [("good", {"jpg": b"1"}), ("bad.key", {"jpg": b"2"})]
    with pytest.raises(wsl.UsageError, match="hold a dot"):
        write_shard(tmp_path / "s.tar", samples)
    assert list(tmp_path.iterdir()) == []
