"""Counting hashtags beside DuckDB, Polars, ClickHouse (chdb) and DataFusion.

Run it with `python tests/bench/hashtags.py`; the `bench` extra has the others.

The task: the number of records that hold each tag, a tag twice in a record once, sorted by count. The
workload is made by this program: records of 1 + Poisson(3) tags, Zipf-distributed with exponent 1.05
over a million distinct tags, as zstd Parquet in four files. "plain" has tags of at most 15 bytes in
normal form; in "mixed" a fifth of the tags are longer and a tenth have capitals or are not ASCII.
wsl normalizes what it reads, the others count the bytes as they are, which is less work; so on
"mixed" their tables have more rows.

Every program runs in a process of its own with two threads, in turns, `--rounds` times. The table
shows the medians of CPU seconds (user and system) and wall seconds, and the largest peak of resident
memory, each over the whole process, its start included; "decoding alone" is Polars reading the
column and doing nothing with it; "wsl, index" is `wsl index build --records`: counting, making the
vocabulary of all tags, encoding every record and writing the index.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peak import peak_mib

THREADS = 2
NUM_DISTINCT = 1_000_000
EXPONENT = 1.05
FILES = 4
RECORDS_PER_BATCH = 250_000


def tag_names(mixed: bool, rng: np.random.Generator) -> list[str]:
    """Distinct pronounceable tags, shorter for lower ranks as real ones are."""
    consonants, vowels = list("bcdfghjklmnprstvz"), list("aeiou")
    names: set[str] = set()
    result: list[str] = []
    lengths = rng.integers(2, 6, NUM_DISTINCT)
    kinds = rng.random(NUM_DISTINCT)
    picks = rng.integers(0, len(consonants) * len(vowels), (NUM_DISTINCT, 16))
    for rank in range(NUM_DISTINCT):
        syllables = int(lengths[rank])
        if mixed and kinds[rank] < 0.2:
            syllables += 6
        name = "".join(consonants[p // 5] + vowels[p % 5] for p in picks[rank, :syllables])
        while name in names:
            name += consonants[int(rng.integers(len(consonants)))] if len(name) < 15 or mixed else ""
            if len(name) >= 15 and not mixed:
                name = f"{name[:8]}{rank}"
        names.add(name)
        if mixed and 0.2 <= kinds[rank] < 0.25:
            name = name.capitalize()
        elif mixed and 0.25 <= kinds[rank] < 0.3:
            name = name.replace("a", "ä").replace("o", "ö") + "é"
        result.append(name)
    return result


def make_workload(folder: Path, num_records: int, mixed: bool) -> None:
    """Writes the Parquet files, unless they are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = folder / f"records-{num_records}"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1 + mixed)
    names = pa.array(tag_names(mixed, rng))
    weights = np.arange(1, NUM_DISTINCT + 1, dtype=np.float64) ** -EXPONENT
    cumulative = np.cumsum(weights) / weights.sum()
    left, key = num_records, 0
    for number in range(FILES):
        share = left // (FILES - number)
        left -= share
        writer = None
        for start in range(0, share, RECORDS_PER_BATCH):
            size = min(RECORDS_PER_BATCH, share - start)
            lengths = 1 + rng.poisson(3, size)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            ranks = np.searchsorted(cumulative, rng.random(offsets[-1]))
            tags = pa.ListArray.from_arrays(
                offsets, names.take(pa.array(np.minimum(ranks, NUM_DISTINCT - 1)))
            )
            keys = pa.array([f"{number:09d}" for number in range(key, key + size)])
            key += size
            table = pa.table({"key": keys, "hashtags": tags})
            writer = writer or pq.ParquetWriter(
                folder / f"records-{number}.parquet", table.schema, compression="zstd"
            )
            writer.write_table(table)
        if writer is not None:
            writer.close()
    done.touch()


def run_wsl(folder: str, memory: int | None = None) -> int:
    import wsl

    counts = wsl.count_hashtags(f"{folder}/*.parquet", num_threads=THREADS, memory_bytes=memory)
    return len(counts.table())


def run_index(folder: str) -> int:
    import wsl

    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as out:
        index = wsl.build_index(
            out, records=f"{folder}/*.parquet", label_kind="hashtag", num_threads=THREADS, overwrite=True
        )
        return len(index)


def run_decoding(folder: str) -> int:
    import pyarrow as pa

    from wsl.files.tables import open_stream

    reader = pa.RecordBatchReader.from_stream(open_stream(f"{folder}/*.parquet", ["hashtags"]))
    return sum(batch.num_rows for batch in reader)


def run_polars(folder: str) -> int:
    import polars as pl

    tags = pl.scan_parquet(f"{folder}/*.parquet").select(pl.col("hashtags").list.unique().explode())
    counted = tags.group_by("hashtags").len().sort("len", descending=True)
    return len(counted.collect(engine="streaming"))


def run_duckdb(folder: str) -> int:
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS})
    query = f"""select tag, count(*) n from (
        select unnest(list_distinct(hashtags)) tag from '{folder}/*.parquet') group by tag order by n desc"""
    return len(connection.sql(query).to_arrow_table())


def run_chdb(folder: str) -> int:
    import chdb

    query = f"""select tag, count() n from (
        select arrayJoin(arrayDistinct(hashtags)) tag from file('{folder}/*.parquet', Parquet))
        group by tag order by n desc settings max_threads = {THREADS}"""
    return int(chdb.query(query, "ArrowTable").num_rows)


def run_datafusion(folder: str) -> int:
    from datafusion import SessionConfig, SessionContext

    context = SessionContext(SessionConfig().with_target_partitions(THREADS))
    context.register_parquet("records", folder)
    query = """select tag, count(*) n from (
        select unnest(array_distinct(hashtags)) tag from records) group by tag order by n desc"""
    return sum(batch.num_rows for batch in context.sql(query).collect())


PROGRAMS = {
    "wsl": run_wsl,
    "wsl, index": run_index,
    "decoding alone": run_decoding,
    "polars": run_polars,
    "duckdb": run_duckdb,
    "chdb": run_chdb,
    "datafusion": run_datafusion,
}


def measure(program: str, folder: Path) -> dict[str, float]:
    """One run in a process of its own."""
    environment = os.environ | {"POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--child", program, "--folder", str(folder)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{program} failed on {folder}")
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": wall,
    } | json.loads(text.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wsl-bench-hashtags")
    parser.add_argument("--only", nargs="*", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--workloads", nargs="*", choices=["plain", "mixed"], default=["plain", "mixed"])
    parser.add_argument("--child", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        rows = PROGRAMS[options.child](str(options.folder))
        print(json.dumps({"rows": rows, "peak": peak_mib()}))
        return
    for workload in options.workloads:
        folder = options.folder / f"{workload}-{options.records}"
        make_workload(folder, options.records, workload == "mixed")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
        for _ in range(options.rounds):
            for name, kept in runs.items():
                kept.append(measure(name, folder))
        middle = {name: statistics.median(run["cpu"] for run in kept) for name, kept in runs.items()}
        print(f"\n{workload}: {options.records:,} records, {THREADS} threads, {options.rounds} rounds")
        print(f"{'':16}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}{'rows':>11}{'wsl / it':>10}")
        for name, kept in runs.items():
            wall = statistics.median(run["wall"] for run in kept)
            peak = max(run["peak"] for run in kept)
            ratio = middle["wsl"] / middle[name] if "wsl" in middle else float("nan")
            rows = kept[0]["rows"]
            print(f"{name:16}{middle[name]:8.2f}{wall:8.2f}{peak:10.0f}{rows:11,.0f}{ratio:10.2f}")


if __name__ == "__main__":
    main()
