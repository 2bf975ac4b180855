"""Top-K/top-P selection beside Polars, DuckDB, ClickHouse (chdb), NumPy and torch.

Run it with `python tests/bench/selection.py`; the `bench` and `train` extras have the others.

**pairs.** The task: of each of 1,000 classes the 8,000 best-scored samples, ties to the smaller sample,
then of each sample the 3 best of the classes that took it; the rows are counted. The workload is made by
this program: 10 M samples with 10 (class, score) pairs each, classes of uneven frequency, scores a softmax
over the ten, as zstd Parquet in four files. Every program runs in a process of its own with two threads, in
turns, `--rounds` times; the table shows medians of CPU seconds (user and system) and wall seconds, and the
largest peak of resident memory, each over the whole process, its start included. "decoding alone" is Polars
reading the columns and doing nothing with them. wsl has the environment that its commands set
(``wsl.cli.ENVIRONMENT``). The others break ties as they like, which is less work.

**dense.** Rows of 1,000 scores, K = 8,000, the thresholds of a state that has seen 4 M rows of the same
distribution, loaded from its file; then a fresh block of 256 MB. Beside it the maximum of the same block by
NumPy (a bare pass over memory) and a streaming `torch.topk` (the best so far and the next rows together).
Rows a second of one process, the best of `--rounds` turns each.

The workloads of a billion are in `cargo bench --bench selection`.
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
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from peak import peak_mib

if TYPE_CHECKING:
    import wsl.selection.topk

THREADS = 2
NUM_CLASSES = 1000
PAIRS_PER_SAMPLE = 10
K, P = 8000, 3
FILES = 4
SAMPLES_PER_BATCH = 250_000
DENSE_ROWS = (256 << 20) // (4 * NUM_CLASSES)
DENSE_SEEN = 4_000_000
Array = np.ndarray
Run = dict[str, float]


def distinct_classes(size: int, cumulative: Array, rng: np.random.Generator) -> Array:
    """uint32 size x PAIRS_PER_SAMPLE, no class twice in a row."""

    def draw(shape: tuple[int, ...]) -> Array:
        found = np.searchsorted(cumulative, rng.random(shape)).astype(np.uint32)
        return np.minimum(found, NUM_CLASSES - 1)

    classes = draw((size, PAIRS_PER_SAMPLE))
    rows = np.arange(size)
    while len(rows):
        ordered = np.sort(classes[rows], axis=1)
        rows = rows[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        classes[rows] = draw((len(rows), PAIRS_PER_SAMPLE))
    return classes


def make_workload(folder: Path, num_samples: int) -> None:
    """Writes the Parquet files, unless they are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = folder / "done"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    weights = (np.arange(NUM_CLASSES) + 100.0) ** -0.7
    cumulative = np.cumsum(weights) / weights.sum()
    left, first = num_samples, 0
    for number in range(FILES):
        share = left // (FILES - number)
        left -= share
        writer = None
        for start in range(0, share, SAMPLES_PER_BATCH):
            size = min(SAMPLES_PER_BATCH, share - start)
            logits = np.exp(rng.normal(0, 0.7, (size, PAIRS_PER_SAMPLE)))
            scores = (logits / logits.sum(axis=1, keepdims=True)).astype(np.float32)
            samples = np.repeat(np.arange(first, first + size, dtype=np.uint64), PAIRS_PER_SAMPLE)
            classes = distinct_classes(size, cumulative, rng)
            first += size
            table = pa.table({"sample": samples, "class": classes.ravel(), "score": scores.ravel()})
            writer = writer or pq.ParquetWriter(
                folder / f"pairs-{number}.parquet", table.schema, compression="zstd"
            )
            writer.write_table(table)
        if writer is not None:
            writer.close()
    done.touch()


def run_wsl(folder: str) -> int:
    import wsl

    top = wsl.TopK(NUM_CLASSES, k=K, p=P, num_threads=THREADS)
    top.update_pairs(f"{folder}/*.parquet")
    return num_rows(top.finish())


def run_wsl_limited(folder: str) -> int:
    import wsl

    top = wsl.TopK(NUM_CLASSES, k=K, p=P, num_threads=THREADS, memory_bytes=64 << 20, spill_dir=folder)
    top.update_pairs(f"{folder}/*.parquet")
    return num_rows(top.finish())


def num_rows(selection: wsl.selection.topk.Selection) -> int:
    """The rows of sample, class, score and rank, all of which are made."""
    import pyarrow as pa

    return sum(batch.num_rows for batch in pa.RecordBatchReader.from_stream(selection.stream()))


def run_wsl_stream(folder: str) -> int:
    """The same out of Polars' batches."""
    import wsl
    from wsl.files.tables import open_stream

    top = wsl.TopK(NUM_CLASSES, k=K, p=P, num_threads=THREADS)
    top.update_pairs(open_stream(f"{folder}/*.parquet", ["sample", "class", "score"]))
    return num_rows(top.finish())


def run_decoding(folder: str) -> int:
    import pyarrow as pa

    from wsl.files.tables import open_stream

    stream = open_stream(f"{folder}/*.parquet", ["sample", "class", "score"])
    return sum(batch.num_rows for batch in pa.RecordBatchReader.from_stream(stream))


def run_polars(folder: str) -> int:
    import polars as pl

    best = (
        pl.scan_parquet(f"{folder}/*.parquet")
        .group_by("class")
        .agg(pl.struct("sample", "score").top_k_by("score", K))
        .explode("sample")
        .unnest("sample")
    )
    cut = best.group_by("sample").agg(pl.struct("class", "score").top_k_by("score", P)).explode("class")
    return len(cut.collect(engine="streaming"))


def run_duckdb(folder: str) -> int:
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS})
    query = f"""with best as (select * from '{folder}/pairs-*.parquet' qualify
        row_number() over (partition by class order by score desc, sample) <= {K})
        select * from best qualify
        row_number() over (partition by sample order by score desc, class) <= {P}"""
    return len(connection.sql(query).to_arrow_table())


def run_duckdb_max_by(folder: str) -> int:
    import duckdb

    connection = duckdb.connect(config={"threads": THREADS})
    query = f"""with best as (select class, unnest(max_by(struct_pack(sample, score), score, {K})) pair
        from '{folder}/pairs-*.parquet' group by class),
        cut as (select pair.sample sample, unnest(max_by(struct_pack(class, score := pair.score),
        pair.score, {P})) pair from best group by pair.sample)
        select sample, pair.class, pair.score from cut"""
    return len(connection.sql(query).to_arrow_table())


def run_chdb(folder: str) -> int:
    import chdb

    query = f"""select * from (select * from file('{folder}/pairs-*.parquet', Parquet)
        order by class, score desc, sample limit {K} by class)
        order by sample, score desc, class limit {P} by sample settings max_threads = {THREADS}"""
    return int(chdb.query(query, "ArrowTable").num_rows)


def run_numpy(folder: str) -> int:
    import pyarrow.parquet as pq

    files = sorted(Path(folder).glob("*.parquet"))
    table = pq.read_table(files, columns=["sample", "class", "score"])
    sample, kind, score = (table[name].to_numpy() for name in ("sample", "class", "score"))
    del table
    order = np.argsort(kind, kind="stable")
    parts = []
    for rows in np.split(order, np.cumsum(np.bincount(kind, minlength=NUM_CLASSES))[:-1]):
        best = np.argpartition(-score[rows], K)[:K] if len(rows) > K else np.arange(len(rows))
        parts.append(rows[best])
    del order
    rows = np.concatenate(parts)
    rows = rows[np.lexsort((-score[rows], sample[rows]))]
    samples = sample[rows]
    starts = np.r_[True, samples[1:] != samples[:-1]]
    place = np.arange(len(rows)) - np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    return int((place < P).sum())


PAIRS = {
    "wsl": run_wsl,
    "wsl, 64 MiB": run_wsl_limited,
    "wsl, Polars' batches": run_wsl_stream,
    "decoding alone": run_decoding,
    "polars": run_polars,
    "duckdb": run_duckdb,
    "duckdb, max_by": run_duckdb_max_by,
    "chdb": run_chdb,
    "numpy": run_numpy,
}


def make_state(folder: Path) -> Path:
    """A state with the thresholds that `DENSE_SEEN` rows of uniform scores leave behind."""
    import polars as pl

    import wsl

    path = folder / "dense.state"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    top = wsl.TopK(NUM_CLASSES, k=K, p=P)
    tail = K / DENSE_SEEN
    for kind in range(NUM_CLASSES):
        scores = (1 - tail * rng.random(K)).astype(np.float32)
        samples = rng.choice(DENSE_SEEN, K, replace=False).astype(np.uint64)
        classes = np.full(K, kind, dtype=np.uint32)
        top.update_pairs(pl.DataFrame({"sample": samples, "class": classes, "score": scores}))
    top.save(path)
    return path


def dense_block() -> Array:
    return np.random.default_rng(3).random((DENSE_ROWS, NUM_CLASSES), dtype=np.float32)


def timed(work: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def dense_wsl(folder: Path) -> dict[str, float]:
    import wsl

    top, block = wsl.TopK.load(make_state(folder), num_threads=THREADS), dense_block()
    return timed(lambda: top.update(range(DENSE_SEEN, DENSE_SEEN + len(block)), block)) | {"rows": len(block)}


def dense_maximum(folder: Path) -> dict[str, float]:
    block = dense_block()
    return timed(block.max) | {"rows": len(block)}


def dense_torch(folder: Path) -> dict[str, float]:
    import torch

    torch.set_num_threads(THREADS)
    size = 8192
    block = torch.from_numpy(dense_block()[: 2 * size])
    best = 1 - K / DENSE_SEEN * torch.rand(K, NUM_CLASSES)
    places = torch.zeros(K, NUM_CLASSES, dtype=torch.int64)

    def stream() -> None:
        nonlocal best, places
        for first in range(0, len(block), size):
            rows = torch.arange(first, first + size).unsqueeze(1).expand(-1, NUM_CLASSES)
            together = torch.cat([best, block[first : first + size]])
            best, chosen = together.topk(K, dim=0)
            places = torch.cat([places, rows]).gather(0, chosen)

    return timed(stream) | {"rows": len(block)}


DENSE = {"wsl": dense_wsl, "maximum alone": dense_maximum, "torch.topk": dense_torch}


def environment(program: str) -> dict[str, str]:
    from wsl.cli import ENVIRONMENT

    number = str(THREADS)
    threads = {"POLARS_MAX_THREADS": number, "OMP_NUM_THREADS": number, "RAYON_NUM_THREADS": number}
    return os.environ | threads | (ENVIRONMENT if program.startswith("wsl") else {})


def measure(task: str, program: str, folder: Path) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--child", task, program, "--folder", str(folder)]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, env=environment(program))
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{program} failed on {folder}")
    # What it measured itself counts.
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall} | json.loads(text.splitlines()[-1])


def measure_all(task: str, programs: list[str], folder: Path, rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, kept in runs.items():
            kept.append(measure(task, name, folder))
    return runs


def show_pairs(options: argparse.Namespace) -> None:
    folder = options.folder / f"pairs-{options.samples}"
    make_workload(folder, options.samples)
    runs = measure_all("pairs", options.only, folder, options.rounds)
    middle = {name: statistics.median(run["cpu"] for run in kept) for name, kept in runs.items()}
    number = options.samples * PAIRS_PER_SAMPLE
    print(f"\npairs: {number:,} pairs, K = {K:,}, P = {P}, {THREADS} threads, {options.rounds} rounds")
    print(f"{'':16}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}{'rows':>11}{'wsl / it':>10}")
    for name, kept in runs.items():
        wall = statistics.median(run["wall"] for run in kept)
        peak = max(run["peak"] for run in kept)
        ratio = middle["wsl"] / middle[name] if "wsl" in middle else float("nan")
        print(f"{name:16}{middle[name]:8.2f}{wall:8.2f}{peak:10.0f}{kept[0]['rows']:11,.0f}{ratio:10.2f}")


def show_dense(options: argparse.Namespace) -> None:
    make_state(options.folder)
    runs = measure_all("dense", list(DENSE), options.folder, options.rounds)
    rate = {name: max(run["rows"] / run["wall"] for run in kept) for name, kept in runs.items()}
    print(f"\ndense: {DENSE_ROWS:,} rows of {NUM_CLASSES:,} scores, K = {K:,}, {options.rounds} rounds")
    print(f"{'':16}{'rows/s':>12}{'rows/CPU s':>12}{'wsl / it':>10}")
    for name, kept in runs.items():
        per_cpu = max(run["rows"] / run["cpu"] for run in kept)
        print(f"{name:16}{rate[name]:12,.0f}{per_cpu:12,.0f}{rate['wsl'] / rate[name]:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wsl-bench-selection")
    parser.add_argument("--only", nargs="*", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--tasks", nargs="*", choices=["pairs", "dense"], default=["pairs", "dense"])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        task, program = options.child
        if task == "pairs":
            rows = PAIRS[program](str(options.folder))
            print(json.dumps({"rows": rows, "peak": peak_mib()}))
        else:
            print(json.dumps(DENSE[program](options.folder)))
        return
    if "pairs" in options.tasks:
        show_pairs(options)
    if "dense" in options.tasks:
        show_dense(options)


if __name__ == "__main__":
    main()
