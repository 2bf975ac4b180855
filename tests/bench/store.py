"""Reading samples out of a store: requests a second beside obstore, and what a gap saves at 20 ms.

    python tests/bench/store.py [--samples 4096] [--rounds 5]

Needs a server of S3 (`s3s-fs`) and `obstore` (pip install obstore). One server serves both, which run in
turns in processes of their own; the table shows medians. wsl reads samples of an index, so it checks every
header and etag; obstore gets the same ranges by `get_range_async`, and by `get_range` where one is in flight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.help.proxy import Fault, proxy
from tests.help.servers import Server, find_server, serving

IN_FLIGHT = (1, 16, 64)
SIZE, NUM_SHARDS = 20_000, 128
"""Small shards: the server takes longer for a range the larger its object is."""

OURS = """
import json, sys, time, numpy as np
from wsl.files import stores
from wsl import Index
asked = json.loads(sys.argv[1])
stores.use(asked["options"], num_requests=asked["in_flight"], gap_bytes=asked["gap"])
index = Index.open(asked["index"])
wanted = np.random.default_rng(1).permutation(len(index))[: asked["number"]]
index.read(wanted[:64])
before = index.read_report()
begun, cpu = time.perf_counter(), time.process_time()
images = index.read(wanted)
wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
report = index.read_report()
read = {key: report[key] - before[key] for key in ("num_requests", "read_bytes", "wanted_bytes")}
assert all(len(image) == asked["size"] for image in images)
print(json.dumps({"wall": wall, "cpu": cpu, **read}))
"""

THEIRS = """
import asyncio, json, sys, time, numpy as np, obstore
from obstore.store import S3Store
from wsl import Index
asked = json.loads(sys.argv[1])
index = Index.open(asked["index"])
wanted = np.random.default_rng(1).permutation(len(index))[: asked["number"]]
rows = [index.row(int(n)) for n in wanted]
config = {key.removeprefix("aws_"): value for key, value in asked["options"].items()}
store = S3Store(asked["bucket"], config=config, client_options={"allow_http": True})
ranges = [(row["shard"].split("/", 3)[3], row["offset"] - 512, row["offset"] + row["size"]) for row in rows]

async def run(ranges):
    slots = asyncio.Semaphore(asked["in_flight"])
    async def one(key, start, end):
        async with slots:
            return bytes(await obstore.get_range_async(store, key, start=start, end=end))
    return await asyncio.gather(*[one(*each) for each in ranges])

def in_turn(ranges):
    return [bytes(obstore.get_range(store, key, start=start, end=end)) for key, start, end in ranges]

read = in_turn if asked["in_flight"] == 1 else lambda ranges: asyncio.run(run(ranges))
read(ranges[:64])
begun, cpu = time.perf_counter(), time.process_time()
images = read(ranges)
wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
assert all(len(image) == asked["size"] + 512 for image in images)
print(json.dumps({"wall": wall, "cpu": cpu}))
"""


def child(code: str, asked: dict[str, Any]) -> dict[str, float]:
    """Runs a reader in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def prepare(server: Server, folder: Path, num_samples: int) -> dict[str, Any]:
    """An index over shards in the server."""
    import numpy as np

    import wsl
    from wsl.files import stores
    from wsl.index.shards import write_shard

    bucket = server.bucket("bench")
    rng = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        samples = [
            (f"s{shard}-{n:06}", {"jpg": rng.bytes(SIZE), "cls": b"1"})
            for n in range(num_samples // NUM_SHARDS)
        ]
        write_shard(server.root / "bench" / f"part-{shard}.tar", samples)
    stores.use(server.options())
    uris = [f"{bucket}/part-{shard}.tar" for shard in range(NUM_SHARDS)]
    wsl.build_index(folder / "index", uris, label_kind="class")
    return {"index": str(folder / "index"), "bucket": "bench", "size": SIZE}


def requests_a_second(server: Server, known: dict[str, Any], number: int, rounds: int) -> None:
    """The first table."""
    print(f"\nAt most {number:,} reads of {SIZE // 1000} kB, medians of {rounds} rounds in turns")
    print("| in flight | wsl, requests/s | obstore | wsl / obstore | CPU of wsl / obstore |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for in_flight in IN_FLIGHT:
        few = min(number, 64 * in_flight)
        asked = known | {"options": server.options(), "in_flight": in_flight, "gap": 0, "number": few}
        found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            found["ours"].append(child(OURS, asked))
            found["theirs"].append(child(THEIRS, asked))
        wall = {name: statistics.median(one["wall"] for one in runs) for name, runs in found.items()}
        cpu = {name: statistics.median(one["cpu"] for one in runs) for name, runs in found.items()}
        print(
            f"| {in_flight} | {few / wall['ours']:,.0f} | {few / wall['theirs']:,.0f} | "
            f"{wall['theirs'] / wall['ours']:.2f} | {cpu['ours'] / cpu['theirs']:.2f} |",
            flush=True,
        )


def gaps(server: Server, known: dict[str, Any], rounds: int) -> None:
    """The second table: through a proxy that answers 20 ms later."""
    print(f"\n512 reads of {SIZE // 1000} kB at 20 ms")
    print("| gap | in flight | seconds | requests | bytes read / wanted |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with proxy(server.address, lambda *_: Fault(delay_s=0.02)) as (url, _):
        for in_flight in (4, 64):
            for gap in (0, 1 << 20):
                asked = known | {"options": server.options(url), "gap": gap, "number": 512}
                runs = [child(OURS, asked | {"in_flight": in_flight}) for _ in range(rounds)]
                wall = statistics.median(one["wall"] for one in runs)
                last = runs[-1]
                amplification = last["read_bytes"] / last["wanted_bytes"]
                print(
                    f"| {gap >> 10:,} KiB | {in_flight} | {wall:.2f} | {last['num_requests']:.0f} | "
                    f"{amplification:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    program = find_server()
    if program is None:
        raise SystemExit("no server of S3: cargo install s3s-fs --version 0.14.1 --locked --features binary")
    with tempfile.TemporaryDirectory() as folder, serving(program, Path(folder) / "root") as server:
        known = prepare(server, Path(folder), asked.samples)
        requests_a_second(server, known, min(asked.samples, 4096), asked.rounds)
        gaps(server, known, asked.rounds)


if __name__ == "__main__":
    main()
