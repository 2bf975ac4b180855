"""The index, reads and the order of an epoch beside wids, MDS, Energon and torch's samplers.

Run it with `python tests/bench/index.py PART...`. The parts:

- `scan`: headers of six shards of 10,000 small PNGs with a `.cls` member (Fashion-MNIST's 60,000 images
  where Debian's `dataset-fashion-mnist` is installed, else random bytes of such sizes), and of a shard of
  32,768 members of 64 KB: `wsl index build` and a scan alone, beside Energon's preparation and `widsindex`.
  The bare scan of a mapped file is `cargo bench --bench index -- SHARD...`.
- `read`: random whole samples from the page cache, in calls of 256, beside `os.pread`, MDS (its
  `LocalDataset`, and its `StreamingDataset`, which loaders use) and wids. What a bare `pread` reaches is
  shown by `cargo bench --bench index -- FOLDER/small-index`.
- `read64k`: members of 64 KB with an evicted cache, beside `fio` with the same pattern and threads, and
  with 32 direct reads in flight, which is what the disk can.
- `join`: shuffled records joined to their samples within `--memory 2GiB`; `--samples` of them.
- `open`: an index of `--samples` samples (made by `join`): opening, label lookups, bytes on disk.
- `epoch`: orders of `--samples` samples without factors and with a mapped file of them, beside torch's
  samplers and a plain form of detectron2's RepeatFactorTrainingSampler at sizes they bear.
- `load`: a training loader on JPEGs of 224 pixels (`tests/bench/loading.py`).

Rates are for CPU seconds (user and system) of the process and its children unless a line says wall.
Peers that are not installed are passed over: `pip install -e '.[bench]'`, and, since their pins lie
apart from ours, `pip install mosaicml-streaming megatron-energon wids` in an environment of their
own, whose interpreter is given with `--peers PYTHON`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loading
import numpy as np

SHARDS, PER_SHARD = 6, 10_000
LARGE_COUNT = 32_768
BATCH = 256
CALL = 65_536


def show(name: str, value: float, unit: str, note: str = "") -> None:
    print(f"{name:42}{value:>16,.4g} {unit:12}{note}", flush=True)


def cpu() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def timed(work: Callable[[], object]) -> float:
    before = cpu()
    work()
    return cpu() - before


def memory_mib(key: str = "VmRSS") -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def images() -> Iterator[bytes]:
    """Fashion-MNIST as PNG, or bytes like it."""
    import gzip

    from PIL import Image

    source = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    if source.exists():
        pixels = np.frombuffer(gzip.decompress(source.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
        for image in pixels:
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            yield out.getvalue()
        return
    rng = np.random.default_rng(0)
    for _ in range(SHARDS * PER_SHARD):
        yield rng.bytes(int(rng.integers(300, 800)))


def small_shards(folder: Path) -> list[Path]:
    from wsl.index.shards import write_shard

    paths = [folder / f"small-{number}.tar" for number in range(SHARDS)]
    if not paths[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        contents = images()
        for number, path in enumerate(paths):
            keys = (f"{number * PER_SHARD + n:06d}" for n in range(PER_SHARD))
            write_shard(path, ((key, {"png": next(contents), "cls": b"3"}) for key in keys))
    return paths


def large_shard(folder: Path) -> Path:
    from wsl.index.shards import write_shard

    path = folder / "large.tar"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        write_shard(path, ((f"{n:06d}", {"png": rng.bytes(65_536)}) for n in range(LARGE_COUNT)))
    return path


def run_peer(options: argparse.Namespace, code: str, *arguments: object) -> dict[str, Any] | None:
    """Runs code of a peer in its environment; it prints a JSON object."""
    command = [options.peers or sys.executable, "-c", code, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"  (a peer did not run: {done.stderr.strip().splitlines()[-1:]})")
        return None
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


TIMER = """
import sys, time, json, resource
def cpu():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))
"""

ENERGON = (
    TIMER
    + """
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator
root, names = EPath(sys.argv[1]), sys.argv[2:]
before = cpu()
for name in names:
    list(WebdatasetPreparator._preprocess_tar(name, {n: i for i, n in enumerate(names)}, root, 10))
print(json.dumps({"seconds": cpu() - before}))
"""
)

WIDSINDEX = (
    TIMER
    + """
import argparse, contextlib
from wids import wids_index
options = argparse.Namespace(files=sys.argv[2:], output=sys.argv[1], name="bench", base=None, info=None)
before = cpu()
with contextlib.redirect_stdout(sys.stderr):
    wids_index.main_create(options)
print(json.dumps({"seconds": cpu() - before}))
"""
)


def bench_scan(options: argparse.Namespace) -> None:
    print("\nsmall PNGs with a class")
    scan_set(options, small_shards(options.folder), 2 * SHARDS * PER_SHARD, "class")
    print("\nmembers of 64 KB")
    scan_set(options, [large_shard(options.folder)], LARGE_COUNT, None)


def scan_set(options: argparse.Namespace, shards: list[Path], members: int, label_kind: Any) -> None:
    import wsl
    from wsl import _core

    for shard in shards:
        shard.read_bytes()
    peers = {
        "Energon prepare (its scan alone)": (ENERGON, [options.folder, *(shard.name for shard in shards)]),
        "widsindex create": (WIDSINDEX, [options.folder / "shardindex.json", *shards]),
    }
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as out:

        def build(threads: int) -> None:
            wsl.build_index(
                Path(out) / "i", shards, label_kind=label_kind, num_threads=threads, overwrite=True
            )

        build(1)
        for _ in range(options.rounds):
            for threads in (1, 2):
                rate = members / timed(lambda n=threads: build(n))
                rates.setdefault(f"wsl index build, {threads} thread(s)", []).append(rate)
            rate = members / timed(lambda: [*map(_core.scan_shard, shards)])
            rates.setdefault("wsl, headers to a Python list", []).append(rate)
            for name, (code, arguments) in peers.items():
                found = run_peer(options, code, *arguments)
                if found:
                    rates.setdefault(name, []).append(members / found["seconds"])
    ours = float(np.median(rates["wsl index build, 1 thread(s)"]))
    for name, some in rates.items():
        show(
            name,
            float(np.median(some)),
            "members/s",
            f"the build on one {ours / float(np.median(some)):.1f} x",
        )


MDS = (
    TIMER
    + """
import os, shutil, numpy as np
from streaming import MDSWriter, LocalDataset, StreamingDataset
folder, number = sys.argv[1], int(sys.argv[3])
import tarfile
if not os.path.exists(folder + "/index.json"):
    shutil.rmtree(folder, ignore_errors=True)
    with MDSWriter(out=folder, columns={"png": "bytes", "cls": "int"}) as out:
        for name in sys.argv[4:]:
            with tarfile.open(name) as tar:
                for member in tar:
                    if member.name.endswith("png"):
                        out.write({"png": tar.extractfile(member).read(), "cls": 3})
data = LocalDataset(folder) if sys.argv[2] == "local" else StreamingDataset(local=folder, batch_size=256)
order = np.random.default_rng(0).integers(0, len(data), number).tolist()
[data[i] for i in order[:100]]
before = cpu()
for i in order:
    data[i]["png"]
print(json.dumps({"seconds": cpu() - before}), flush=True)
os._exit(0)
"""
)

WIDS = (
    TIMER
    + """
import numpy as np, wids
number = int(sys.argv[1])
shards = [{"url": name, "nsamples": 10000} for name in sys.argv[2:]]
data = wids.ShardListDataset(shards, keep=True, transformations=[], lru_size=16)
order = np.random.default_rng(0).integers(0, len(data), number).tolist()
for i in range(0, len(data), 10000):
    data[i]
before = cpu()
for i in order:
    data[i][".png"].read()
print(json.dumps({"seconds": cpu() - before}))
"""
)


def bench_read(options: argparse.Namespace) -> None:
    import wsl

    shards = small_shards(options.folder)
    index = wsl.build_index(options.folder / "small-index", shards, label_kind="class", overwrite=True)
    for shard in shards:
        shard.read_bytes()
    order = np.random.default_rng(0).integers(0, len(index), 300_000)
    rows = [index.row(int(ordinal)) for ordinal in order[:100_000]]
    open_files = {path: os.open(path, os.O_RDONLY) for path in {row["shard"] for row in rows}}
    places = [(open_files[row["shard"]], row["size"] + 512, row["offset"] - 512) for row in rows]

    def read_all() -> None:
        for at in range(0, len(order), BATCH):
            index.read(order[at : at + BATCH])

    rates: dict[str, list[float]] = {"wsl, index.read": [], "os.pread": []}
    for _ in range(options.rounds):
        rates["wsl, index.read"].append(len(order) / timed(read_all))
        rates["os.pread"].append(len(places) / timed(lambda: [os.pread(*place) for place in places]))
        for name, code, arguments in (
            ("MDS LocalDataset", MDS, [options.folder / "mds", "local", 20_000, *shards]),
            ("MDS StreamingDataset", MDS, [options.folder / "mds", "streaming", 20_000, *shards]),
            ("wids", WIDS, [20_000, *shards]),
        ):
            found = run_peer(options, code, *arguments)
            if found:
                rates.setdefault(name, []).append(20_000 / found["seconds"])
    ours = float(np.median(rates["wsl, index.read"]))
    for name, some in rates.items():
        show(name, float(np.median(some)), "samples/s", f"wsl {ours / float(np.median(some)):.2f} x")


def bench_read64k(options: argparse.Namespace) -> None:
    import wsl

    path, count, threads = large_shard(options.folder), LARGE_COUNT, 4
    index = wsl.build_index(options.folder / "large-index", [path], overwrite=True)
    order = np.random.default_rng(1).permutation(count)[:16_384]

    def evict() -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    # The same pattern: whole members of a file in random order, none twice (each thread has a quarter of
    # the file), as many threads, the page cache between.
    part = path.stat().st_size // threads // 66048 * 66048
    fio = ["fio", "--name=r", f"--filename={path}", "--rw=randread", "--bs=66048", "--ioengine=psync"]
    fio += [f"--numjobs={threads}", f"--io_size={len(order) * 66048 // threads}", "--group_reporting"]
    fio += [f"--size={part}", f"--offset_increment={part}"]
    fio += ["--thread", "--output-format=json", "--allow_file_create=0", "--invalidate=1"]
    limit = ["fio", "--name=r", f"--filename={path}", "--rw=randread", "--bs=65536", "--ioengine=libaio"]
    limit += ["--direct=1", "--iodepth=32", f"--io_size={len(order) * 65536}", "--output-format=json"]
    rates: dict[str, list[float]] = {"wsl, index.read": [], "fio": [], "fio, 32 in flight": []}
    seconds, fio_seconds = [], []
    for _ in range(options.rounds):
        evict()
        started, before = time.perf_counter(), cpu()
        for at in range(0, len(order), 1024):
            index.read(order[at : at + 1024], num_threads=threads)
        rates["wsl, index.read"].append(len(order) / (time.perf_counter() - started))
        seconds.append(cpu() - before)
        for name, command in (("fio", fio), ("fio, 32 in flight", limit)):
            evict()
            if shutil.which("fio"):
                before = cpu()
                text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rates[name].append(json.loads(text)["jobs"][0]["read"]["iops"])
                if command is fio:
                    fio_seconds.append(cpu() - before)
    ours = float(np.median(rates["wsl, index.read"]))
    for name, some in rates.items():
        if some:
            rate = float(np.median(some))
            show(
                name, rate, "samples/s", f"wall; wsl {ours / rate:.2f} x; {min(some):.0f} to {max(some):.0f}"
            )
    for name, some in (("wsl, CPU", seconds), ("fio, CPU", fio_seconds)):
        if some:
            show(name, 1e6 * float(np.median(some)) / len(order), "us/sample", f"{threads} threads")


def bench_join(options: argparse.Namespace) -> None:
    """One archive of 100,000 empty members under many names; keys are those of a shard."""
    import polars as pl
    import pyarrow as pa

    import wsl

    per, num = 100_000, options.samples
    data = options.folder / f"join-{num}"
    data.mkdir(parents=True, exist_ok=True)
    base = options.folder / "base.tar"
    if not base.exists():
        with base.open("wb") as file:
            for number in range(per):
                file.write(tarfile.TarInfo(f"{number:06d}.png").tobuf(tarfile.USTAR_FORMAT))
            file.write(bytes(1024))
    shards = [data / f"{number:05d}.tar" for number in range(num // per)]
    for shard in shards:
        if not shard.exists():
            os.link(base, shard)
    tags = pa.array([f"tag{number}" for number in range(1000)])
    keys, names = (pa.array([f"{n:0{w}d}" for n in range(c)]) for w, c in ((6, per), (5, len(shards))))
    step = int(num * 0.6180339887) | 1
    while np.gcd(step, num) != 1:
        step += 2

    def batches() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        for start in range(0, num, 1 << 17):
            place = np.arange(start, min(start + (1 << 17), num), dtype=np.int64) * step % num
            drawn = np.minimum(rng.zipf(1.3, 3 * len(place)) - 1, 999)
            offsets = pa.array(np.arange(0, 3 * len(place) + 1, 3, dtype=np.int32))
            hashtags = pa.ListArray.from_arrays(offsets, tags.take(pa.array(drawn)))
            columns = [keys.take(pa.array(place % per)), names.take(pa.array(place // per)), hashtags]
            yield pa.record_batch(columns, names=["key", "shard", "hashtags"])

    schema = next(batches()).schema
    generating = timed(lambda: sum(batch.num_rows for batch in batches()))
    table = pl.DataFrame({"hashtags": [tags.to_pylist()]})
    vocabulary = wsl.Vocabulary.build(wsl.count_hashtags(table))
    started = time.perf_counter()
    before = cpu()
    wsl.build_index(
        options.folder / f"join-index-{num}",
        shards,
        records=pa.RecordBatchReader.from_batches(schema, batches()),
        label_kind="hashtag",
        key_scope="shard",
        shard_column="shard",
        vocabulary=vocabulary,
        memory_bytes=2 << 30,
        spill_dir=options.folder,
        overwrite=True,
    )
    seconds = cpu() - before - generating
    show("join within 2 GiB", num / seconds, "samples/s", f"wall {time.perf_counter() - started:.0f} s")
    show("largest resident memory", memory_mib("VmHWM"), "MiB")


def bench_open(options: argparse.Namespace) -> None:
    import polars  # noqa: F401

    import wsl

    path = options.folder / f"join-index-{options.samples}"
    wsl.Index.open(options.folder / "small-index")
    before, started = memory_mib(), time.perf_counter()
    index = wsl.Index.open(path)
    show("open", 1e3 * (time.perf_counter() - started), "ms", f"{memory_mib() - before:.1f} MiB")
    order = np.random.default_rng(0).integers(0, len(index), 4_000_000)
    for _ in range(3):
        seconds = timed(
            lambda: [index.flat_labels(order[at : at + CALL]) for at in range(0, len(order), CALL)]
        )
        show("label lookups", len(order) / seconds, "samples/s", "one thread")
    size = sum(file.stat().st_size for file in path.iterdir() if file.suffix in (".arrow", ".idx"))
    labels = int(index.label_counts().sum())
    keys = index.scan().select(__import__("polars").col("key").str.len_bytes().sum()).collect().item()
    bar = (20 + 4 + 8) * len(index) + 4 * labels + keys
    show(
        "bytes a sample on disk", size / len(index), "bytes", f"the sum of its fields {bar / len(index):.1f}"
    )


def bench_epoch(options: argparse.Namespace) -> None:
    import wsl
    import wsl.index.order

    num, path = options.samples, options.folder / f"factors-{options.samples}.f32"
    if not path.exists():
        rng = np.random.default_rng(0)
        with path.open("wb") as file:
            for start in range(0, num, 1 << 24):
                size = min(1 << 24, num - start)
                file.write((rng.random(size, dtype=np.float32) * 1.5 + 0.25).tobytes())
    wsl.EpochOrder(1000)[0:10]
    started = time.perf_counter()
    plain = wsl.EpochOrder(num, seed=1)
    plain[0:BATCH]
    show("first batch without factors", 1e3 * (time.perf_counter() - started), "ms")
    if not path.with_name(path.name + ".sums").exists():
        started = time.perf_counter()
        wsl.EpochOrder(num, path, seed=1)
        show("sums of the factors, made once", time.perf_counter() - started, "s")
    before, started = memory_mib(), time.perf_counter()
    order = wsl.EpochOrder(num, path, seed=1)
    order[0:BATCH]
    show("first batch with factors", time.perf_counter() - started, "s", f"{memory_mib() - before:.1f} MiB")
    for name, stream, calls in (("without factors", plain, 200), ("with factors", order, 100)):
        for _ in range(3):
            seconds = timed(lambda s=stream, c=calls: [s[at * CALL : (at + 1) * CALL] for at in range(c)])
            show(f"positions {name}", calls * CALL / seconds, "positions/s", "one thread")
    _torch_samplers(options)


SAMPLER = (
    TIMER
    + """
import torch
from torch.utils.data import DistributedSampler, RandomSampler, WeightedRandomSampler

def repeated(factors):
    # detectron2's RepeatFactorTrainingSampler in a plain form: an epoch is a list, made and shuffled.
    whole = torch.trunc(factors)
    repeats = whole + (torch.rand(len(factors)) < factors - whole).float()
    ids = [i for i, n in enumerate(repeats.tolist()) for _ in range(int(n))]
    yield from torch.tensor(ids)[torch.randperm(len(ids))].tolist()

name, num = sys.argv[1], int(sys.argv[2])
factors = torch.rand(num) * 1.5 + 0.25
samplers = {
    "RandomSampler": lambda: iter(RandomSampler(range(num))),
    "DistributedSampler": lambda: iter(DistributedSampler(range(num), 2, 0)),
    "WeightedRandomSampler": lambda: iter(WeightedRandomSampler(factors, num)),
    "RepeatFactorTrainingSampler": lambda: repeated(factors),
}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
base, started, before = peak(), time.perf_counter(), cpu()
stream = samplers[name]()
next(stream)
first = time.perf_counter() - started
shown = 1 + sum(1 for _ in stream)
print(json.dumps({"first": first, "rate": shown / (cpu() - before), "mib": peak() - base}))
"""
)


def _torch_samplers(options: argparse.Namespace) -> None:
    sizes = {
        "RandomSampler": options.peer_samples,
        "DistributedSampler": options.peer_samples,
        # It refuses more.
        "WeightedRandomSampler": min(options.peer_samples, 1 << 24),
        "RepeatFactorTrainingSampler": options.peer_samples,
    }
    for name, size in sizes.items():
        found = run_peer(options, SAMPLER, name, min(size, options.samples))
        if found:
            note = f"{size:,} samples: first after {found['first']:.1f} s, {found['mib']:,.0f} MiB"
            show(f"torch, {name}", found["rate"], "positions/s", note)


PARTS = {
    "scan": bench_scan,
    "read": bench_read,
    "read64k": bench_read64k,
    "join": bench_join,
    "open": bench_open,
    "epoch": bench_epoch,
    "load": loading.bench,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "wsl-bench-index")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--peer-samples", type=int, default=20_000_000)
    parser.add_argument("--peers", help="the interpreter of an environment that has the peers")
    loading.add_options(parser)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        print(f"\n== {part}")
        PARTS[part](options)


if __name__ == "__main__":
    main()
