"""Bad records: a clear error or a counted rejection, with bounded memory, and nothing half-written."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import wsl
from wsl.cli import run
from wsl.files import tables

# Counts each file named; one line for each: what became of it.
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import wsl
for path in sys.argv[1:]:
    try:
        counts = wsl.count_hashtags(path, num_threads=1)
        print("counted", counts.num_hashtags, flush=True)
    except (wsl.WslError, OSError) as error:
        print(type(error).__name__, " ".join(str(error).split()), flush=True)
"""


def frame(rows: int = 300) -> pl.DataFrame:
    tags = [[f"longer-than-a-view-{j % 7}" if j % 3 else f"t{j}" for j in range(i % 6)] for i in range(rows)]
    return pl.DataFrame({"key": [f"k{i}" for i in range(rows)], "hashtags": tags})


def damaged(data: bytes, number: int, chance: random.Random) -> bytes:
    """Cut short, or bytes changed: anywhere, or in the footer."""
    if number % 4 == 0:
        return data[: chance.randrange(1, len(data))]
    bad = bytearray(data)
    for _ in range(1 if number % 2 else 4):
        place = chance.randrange(len(bad))
        if number % 3 == 0:
            place = len(bad) - 1 - chance.randrange(min(len(bad), 900))
        bad[place] = chance.randrange(256) if number % 5 else bad[place] ^ 1 << chance.randrange(8)
    return bytes(bad)


@pytest.mark.parametrize("kind", ["parquet", "plain.parquet", "arrow", "zstd.arrow"])
def test_damaged_files_are_counted_or_refused_and_never_end_the_process(tmp_path: Path, kind: str) -> None:
    good = tmp_path / f"good.{kind}"
    if kind == "parquet":
        frame().write_parquet(good, row_group_size=100)
    elif kind == "plain.parquet":
        frame().write_parquet(good, compression="uncompressed", use_pyarrow=True)
    else:
        frame().write_ipc(good, compression="zstd" if kind.startswith("zstd") else "uncompressed")
    chance = random.Random(kind)
    files = []
    for number in range(120):
        files.append(tmp_path / f"{number}.{kind}")
        files[-1].write_bytes(damaged(good.read_bytes(), number, chance))
    command = [sys.executable, "-c", CHILD, str(good), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, len(lines)) == (0, len(files) + 1), done.stderr[-2000:]
    assert lines[0] == f"counted {sum(map(len, frame()['hashtags']))}"
    told = Counter(line.split()[0] for line in lines)
    assert set(told) <= {"counted", "DataError", "UsageError"}
    assert told["DataError"] > 40


def test_what_is_no_hashtag_is_rejected_and_counted_by_cause() -> None:
    tags: list[list[Any] | None] = [
        [b"ok", b"\xff\xfe", b"nul\x00inside", b"", b"###", b"x" * (1 << 20), None, b"OK"],
        None,
        [],
        [b"\xe2\x80\x8b"],
    ]
    found = wsl.count_hashtags(pa.table({"hashtags": pa.array(tags, pa.list_(pa.binary()))}))
    assert found.table().rows() == [("ok", 1)]
    assert (found.num_records, found.num_duplicates) == (4, 1)
    expected = {"not_utf8": 1, "control_character": 1, "empty": 3, "too_long": 1, "null": 1}
    assert found.rejected == expected
    assert found.num_hashtags + found.num_duplicates + sum(found.rejected.values()) == 9


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("r.csv", b"key,hashtags\n1,\xff\xfe\n", 3, "cannot be read"),
        ("r.ndjson", b'{"hashtags": ["a"]}\n{"hashtags": \n', 3, "cannot be read"),
        ("r.ndjson", b'{"hashtags": 5}\n', 2, "of type Int64"),
        ("r.csv", b"key,tags\n1,a\n", 2, "columns are: key, tags"),
        ("r.parquet", b"PAR1 this is no table PAR1", 3, "cannot be read"),
        ("r.arrow", b"ARROW1\0\0" + b"\xff" * 64, 3, "cannot be read"),
        ("r.csv.gz", b"\x1f\x8b no gzip at all", 3, "cannot be read"),
        ("r.xlsx", b"x", 2, "unknown kind"),
        ("r.parquet.gz", b"x", 2, "unknown kind"),
        ("r.parquet", b"", 3, "the file is empty"),
    ],
)
def test_wrong_files_are_named_with_the_right_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, code: int, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out" / "c.counts"
    assert run(["counts", "build", "--records", str(tmp_path / name), "--out", str(out)]) == code
    text = " ".join(capsys.readouterr().err.split())
    assert message in text
    assert "Traceback" not in text
    assert not out.exists()


def test_globs_and_folders_without_records_are_wrong_usage(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "*.parquet", tmp_path / "none.parquet"):
        with pytest.raises(wsl.UsageError, match="no file matches"):
            wsl.count_hashtags(missing)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.ndjson"
    with path.open("wb") as file:
        file.write(b'{"hashtags": ["a"]}\n{"hashtags": ["')
        file.seek(1 << 30)  # a hole: a line of a GiB that takes no room on the disk
        file.write(b'"]}\n{"hashtags": ["b"]}\n')
    with pytest.raises(wsl.DataError, match="the line at byte 20 has more than"):
        wsl.count_hashtags(path)
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 64)
    short = tmp_path / "short.ndjson"
    short.write_bytes(b'{"hashtags": ["a"]}\n' * 5000)
    assert wsl.count_hashtags(short).num_hashtags == 5000


def test_a_stream_that_fails_in_the_middle_leaves_the_counts_as_they_were() -> None:
    def batches() -> Any:
        yield pa.record_batch({"hashtags": pa.array([["a"]])})
        raise RuntimeError("the disk went away")

    schema = pa.schema({"hashtags": pa.list_(pa.string())})
    counts = wsl.count_hashtags(pa.table({"hashtags": pa.array([["b"]])}))
    with pytest.raises(wsl.DataError, match="the disk went away"):
        counts.core.update(pa.RecordBatchReader.from_batches(schema, batches()), hashtags_column="hashtags")
    assert counts.table().rows() == [("b", 1)]


def test_a_full_disk_while_spilling_says_where_and_what_to_do(tmp_path: Path) -> None:
    code = f"""
import resource, wsl, polars as pl
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
tags = pl.int_range(400_000, eager=True).cast(pl.String).reshape((-1, 4)).arr.to_list()
try:
    counts = wsl.count_hashtags(
        pl.DataFrame({{"hashtags": tags}}), memory_bytes=1 << 20, spill_dir={str(tmp_path)!r}
    )
    counts.table()
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200
    )
    assert str(tmp_path) in done.stdout
    assert "free space" in done.stdout
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        wsl.count_hashtags(
            pl.DataFrame({"hashtags": pl.int_range(400_000, eager=True).cast(pl.String)}),
            memory_bytes=1 << 20,
            spill_dir=tmp_path / "none",
        ).table()


def test_ctrl_c_stops_a_count_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""
import pyarrow as pa, wsl
batch = pa.record_batch({{"hashtags": pa.array([["a", "b"]] * 50_000)}})
def batches():
    print("reading", flush=True)
    while True:
        yield batch
reader = pa.RecordBatchReader.from_batches(batch.schema, batches())
try:
    wsl.count_hashtags(reader, memory_bytes=1 << 20, spill_dir={str(tmp_path)!r})
except KeyboardInterrupt:
    print("interrupted")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted\n"
        assert child.wait(timeout=1200) == 0
    assert list(tmp_path.iterdir()) == []
