"""Exports of an index, held against what the neighbours' own tools wrote or read.

``tests/data/exports`` holds what DALI's ``wds2idx.py`` and Energon 7.4.1's preparation made of the three
archives below. (Of a PAX archive ``wds2idx.py`` counts the extended headers twice and points beside the
contents, so DALI has none of the third.)
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import wids

import wsl
from wsl.cli import run
from wsl.index.export import export_index
from wsl.index.shards import write_shard

STORED = Path(__file__).with_name("exports")
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@pytest.fixture
def index(tmp_path: Path) -> wsl.Index:
    long = "folder/" * 20 + "long"
    for number, layout in enumerate(FORMATS):
        with tarfile.TarFile(tmp_path / f"s-{number}.tar", "w", format=layout) as archive:
            for key in ("a", "b/c.d/e", long if number else "plain", "z"):
                for extension, size in (("png", 600 + number), ("cls", 1), ("seg.png", 0)):
                    header = tarfile.TarInfo(f"{key}.{extension}")
                    header.size = size
                    archive.addfile(header, io.BytesIO(b"x" * size))
            folder = tarfile.TarInfo("afolder")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
    shards = sorted(tmp_path.glob("s-*.tar"))
    return wsl.build_index(tmp_path / "index", shards, limits={"keys_doubled": 1.0})


@pytest.mark.parametrize("number", [0, 1])
def test_dali_gets_the_bytes_of_its_own_tool(index: wsl.Index, tmp_path: Path, number: int) -> None:
    paths = export_index(index, tmp_path / "out", "dali")
    assert [path.name for path in paths] == ["s-0.idx", "s-1.idx", "s-2.idx"]
    assert paths[number].read_bytes() == (STORED / f"dali-{number}.idx").read_bytes()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_energon_gets_the_bytes_of_its_own_tool(index: wsl.Index, tmp_path: Path, number: int) -> None:
    paths = export_index(index, tmp_path / "out", "energon")
    assert paths[number].read_bytes() == (STORED / f"energon-{number}.tar.idx").read_bytes()


def test_offsets_of_a_pax_archive_are_those_of_tarfile(index: wsl.Index, tmp_path: Path) -> None:
    text = export_index(index, tmp_path / "out", "dali")[2].read_text().splitlines()[1:]
    found = [tuple(line.split()[at : at + 4]) for line in text for at in range(0, 12, 4)]
    with tarfile.open(tmp_path / "s-2.tar") as archive:
        members = [member for member in archive if member.isreg()]
    assert [(int(offset), int(size), name) for _, offset, size, name in found] == [
        (member.offset_data, member.size, member.name) for member in members
    ]


def test_wids_reads_every_sample_of_its_export(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        samples = [(f"k{number}{n}", {"png": f"{number}-{n}".encode(), "cls": b"1"}) for n in range(4)]
        write_shard(tmp_path / "data" / f"s-{number}.tar", samples)
    index = wsl.build_index(tmp_path / "index", sorted((tmp_path / "data").glob("*.tar")))
    (path,) = export_index(index, tmp_path / "data" / "set.json", "wids")
    data = wids.ShardListDataset(str(path), keep=True, transformations=[])
    assert len(data) == 12
    read = [data[n] for n in range(12)]
    assert [sample["__key__"] for sample in read] == index.keys(range(12))
    assert [sample[".png"].read() for sample in read] == index.read(range(12))


def test_the_command_writes_once_and_says_what_it_cannot(index: wsl.Index, tmp_path: Path) -> None:
    command = ["index", "export", str(index.path), "--out", str(tmp_path / "out"), "--format"]
    assert run([*command, "dali"]) == 0
    assert run([*command, "dali"]) == 2
    assert run([*command, "dali", "--overwrite"]) == 0
    assert run([*command, "parquet"]) == 2
    write_shard(tmp_path / "spaced.tar", [("a b", {"png": b"x"})])
    spaced = wsl.build_index(tmp_path / "spaced", [tmp_path / "spaced.tar"])
    with pytest.raises(wsl.UsageError, match="white space"):
        export_index(spaced, tmp_path / "other", "dali")
