"""Tar shards from outside, held against Python's tarfile: the same members, or an error that says where."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from tests.help.thoroughness import examples
from wsl import _core
from wsl.index.shards import write_shard

NAMES = st.text(alphabet="ab./é-_0", min_size=1, max_size=12) | st.text(
    alphabet="abc/", min_size=90, max_size=300
)
KINDS = [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE]
KINDS += [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE]
MEMBERS = st.lists(st.tuples(NAMES, st.sampled_from(KINDS), st.integers(0, 1500)), min_size=1, max_size=8)
LAYOUTS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def archive(members: list[tuple[str, bytes, int]], layout: int, pax: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with tarfile.TarFile(fileobj=out, mode="w", format=layout, pax_headers=pax) as tar:
        for name, kind, size in members:
            is_regular = kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
            # Before POSIX a regular file whose name ends with a slash was a folder. tarfile looks at the
            # 100 bytes in the header for that, where GNU tar and wsl look at the whole of a longer name.
            header = tarfile.TarInfo((name.rstrip("/") or "x") if is_regular else name)
            cut_at_slash = header.name.encode()[:100].endswith(b"/")
            header.type = tarfile.REGTYPE if is_regular and cut_at_slash else kind
            header.size = size if is_regular else 0
            header.linkname = "target" * 30 if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            try:
                tar.addfile(header, io.BytesIO(b"\xabz" * 750))
            except ValueError:  # a name that the layout cannot hold
                continue
    return out.getvalue()


def by_tarfile(content: bytes, lenient: bool = False) -> list[tuple[bytes, int, int, int]]:
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:", encoding="utf-8") as tar:
            for m in tar:
                if m.isreg():
                    found.append((m.name.encode("utf-8", "surrogateescape"), m.offset, m.offset_data, m.size))
    except tarfile.ReadError:
        if not lenient:
            raise
    return found


def by_wsl(content: bytes, folder: Path) -> list[tuple[bytes, int, int, int]]:
    path = folder / "s.tar"
    path.write_bytes(content)
    return _core.scan_shard(path)[0]


@given(MEMBERS, LAYOUTS, st.booleans())
@examples(150)
def test_archives_of_every_layout_have_the_members_that_tarfile_sees(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[tuple[str, bytes, int]],
    layout: int,
    comment: bool,
) -> None:
    content = archive(members, layout, {"comment": "x" * 40} if comment else {})
    assert by_wsl(content, tmp_path_factory.mktemp("tar")) == by_tarfile(content)


def test_altered_archives_are_read_as_tarfile_reads_them_or_refused(tmp_path: Path) -> None:
    chance = random.Random(5)
    wholes = []
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = [("a.jpg", tarfile.REGTYPE, 700), ("b" * 150 + ".jpg", tarfile.REGTYPE, 20)]
        names += [("link", tarfile.SYMTYPE, 0), ("é.png", tarfile.REGTYPE, 512)]
        wholes.append(archive(names, layout, {}))
    read = num_whole = 0
    for number in range(3000):
        content = bytearray(wholes[number % 3])
        places = [chance.randrange(0, 12 * 512) for _ in range(chance.choice((1, 1, 2)))]
        if any(345 <= at % 512 < 500 for at in places):
            continue  # tarfile takes a prefix from headers that have none by their magic
        for at in places:
            content[at] = chance.choice((0, 32, 48, 55, 53, 255, content[at] ^ 1 << chance.randrange(8)))
            if chance.random() < 0.8:
                repair_checksum(content, at // 512 * 512)
        if chance.random() < 0.1:
            del content[chance.randrange(len(content)) :]
        found, refusal = None, ""
        try:
            found = by_wsl(bytes(content), tmp_path)
        except wsl.DataError as error:
            refusal = str(error)
        if found is None:
            assert re.search(r"s\.tar: at byte \d+: ", refusal)
            continue
        read += 1
        # Where a field that is not needed (times, owners) is damaged, tarfile ends there.
        theirs = by_tarfile(bytes(content), lenient=True)
        assert found[: len(theirs)] == theirs, number
        num_whole += found == theirs
    assert read > 300
    assert num_whole > 0.9 * read


def repair_checksum(content: bytearray, at: int) -> None:
    """Makes the checksum of what would be a header there hold again."""
    header = content[at : at + 512]
    if len(header) == 512 and any(header):
        total = sum(header[:148]) + sum(header[156:]) + 256
        content[at + 148 : at + 156] = b"%06o\0 " % total


def test_a_member_of_8_gib_is_left_out_and_counted(tmp_path: Path) -> None:
    size = 8 << 30
    for layout in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{layout}.tar"
        large = tarfile.TarInfo("large.png")
        large.size = size + 5
        small = tarfile.TarInfo("small.png")
        small.size = 3
        with path.open("wb") as file:
            file.write(large.tobuf(layout))
            file.seek(size + 512, os.SEEK_CUR)  # a hole
            file.write(small.tobuf(layout) + b"abc" + bytes(509 + 1024))
        with tarfile.open(path) as tar:
            expected = [(m.name.encode(), m.offset, m.offset_data, m.size) for m in tar]
        assert _core.scan_shard(path)[0] == expected
        index = wsl.build_index(tmp_path / f"index-{layout}", [path])
        assert index.manifest["counts"]["members_over_4_GiB"] == 1
        assert index.read([0]) == [b"abc"]
        path.unlink()


def headers(*members: tuple[str, bytes, int]) -> bytes:
    out = b""
    for name, kind, size in members:
        header = tarfile.TarInfo(name)
        header.type, header.size = kind, size
        out += header.tobuf(tarfile.USTAR_FORMAT) + b"x" * size + bytes(-size % 512)
    return out + bytes(1024)


def test_names_that_lead_outside_and_links_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    regular = tarfile.REGTYPE
    path.write_bytes(
        headers(
            ("../a.png", regular, 1),
            ("x/../../b.png", regular, 1),
            ("/etc/c.png", regular, 1),
            ("good.png", regular, 1),
            ("d.png", tarfile.SYMTYPE, 0),
            ("e.png", tarfile.LNKTYPE, 0),
            ("f.png", tarfile.FIFOTYPE, 0),
            ("a..b/g.png", regular, 1),
        )
    )
    index = wsl.build_index(tmp_path / "index", [path])
    assert index.keys(range(len(index))) == ["good", "a..b/g"]
    counts = index.manifest["counts"]
    assert counts["members_whose_path_leads_outside"] == 3
    assert counts["members_that_are_links"] == 2
    assert counts["members_that_are_devices"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends here without the end mark"),
        (b"x" * 5000, "no tar header here"),
        (headers(("a.png", tarfile.REGTYPE, 5))[:700], "past the end|ends here"),
        (headers(("a.png", tarfile.REGTYPE, 5))[:-1024] + bytes(100), "ends here"),
        (headers(("a.png", tarfile.GNUTYPE_SPARSE, 0)), "sparse"),
    ],
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(wsl.DataError, match=message):
        by_wsl(content, tmp_path)
    with pytest.raises(wsl.UsageError, match="must be a file"):
        _core.scan_shard(tmp_path)


def test_a_shard_cut_or_replaced_after_indexing_is_named_when_it_is_read(tmp_path: Path) -> None:
    samples: list[tuple[str, dict[str, bytes]]] = [(f"k{n}", {"png": bytes([n]) * 600}) for n in range(8)]
    write_shard(tmp_path / "s.tar", samples)
    whole = (tmp_path / "s.tar").read_bytes()
    index = wsl.build_index(tmp_path / "index", [tmp_path / "s.tar"])
    for length in range(0, 8 * 1536, 512):
        os.truncate(tmp_path / "s.tar", length)
        with pytest.raises(wsl.DataError, match=r"s\.tar.*replaced or cut"):
            index.read(range(8))
        (tmp_path / "s.tar").write_bytes(whole)
    for at in (*range(0, 512, 7), 1536 * 3 + 124):
        content = bytearray(whole)
        content[at] ^= 0x55
        (tmp_path / "s.tar").write_bytes(bytes(content))
        # The fields that say whose member it is and how long are checked; others may change.
        with contextlib.suppress(wsl.DataError):
            assert index.read(range(8)) == [image for _, members in samples for image in members.values()]
