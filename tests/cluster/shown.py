"""What is claimed of clusters, shown on this machine: a table of faults and what became of the bytes.

    python tests/cluster/shown.py [--only NAME ...] [--parts 200] [--folder DIR]

Makes two Ray nodes of one CPU each in two network namespaces that a veth pair joins, and runs the commands
there with a token. Wants root and iproute2; says so and ends with 0 where these cannot be had. Processes are
ended by their namespace: `ray stop` would end every Ray of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.help import clustered
from tests.help.pair import PORT, Pair, Store, ip
from tests.help.servers import find_server

WSL = [
    sys.executable,
    "-c",
    "import os, wsl.selection.states; wsl.selection.states.RANGE = int(os.environ['SHOWN_RANGE']); "
    "from wsl.cli import main; main()",
]

Strike = Callable[[subprocess.Popen[str]], object]


class Verb:
    """A command, what it makes on one machine, and what it makes here."""

    def __init__(self, name: str, arguments: list[str], result: str, size: int) -> None:
        self.name, self.arguments, self.result, self.size = name, arguments, result, size
        self.environment = {"SHOWN_RANGE": "16"}

    def command(self, out: Path, pair: Pair | None) -> list[str]:
        there = [] if pair is None else ["--cluster", f"{pair.hosts[0]}:{PORT}"]
        if pair is not None and self.name != "score":
            there += ["--cluster-group", "1", "--cluster-dir", self.place(out)]
        return [*WSL, *self.arguments, "--out", str(out), *there]

    def place(self, out: Path) -> str:
        """Where its parts lie, as the command is told."""
        return str(self.folder(out))

    def folder(self, out: Path) -> Path:
        """Where its parts lie."""
        return out if self.name == "score" else out.parent / f"{out.name}.parts"

    def marks(self, out: Path) -> dict[str, int]:
        marks = (self.folder(out) / "marks").glob("[!.]*.json")
        return {file.name: file.stat().st_mtime_ns for file in marks}

    def num_marks(self, out: Path, kind: str) -> int:
        return sum(name.startswith(kind) for name in self.marks(out))

    def same(self, one: Path, other: Path) -> bool:
        if one.is_file():
            return other.is_file() and one.read_bytes() == other.read_bytes()
        names = sorted(
            file.name for file in one.iterdir() if file.is_file() and not file.name.startswith(".")
        )
        return bool(names) and all(
            (other / name).is_file() and (one / name).read_bytes() == (other / name).read_bytes()
            for name in names
        )


class StoredVerb(Verb):
    """A command whose parts lie in a store; its server keeps objects as files."""

    def __init__(self, verb: Verb, store: Store, port: int) -> None:
        super().__init__(verb.name, verb.arguments, verb.result, verb.size)
        self.store = store
        self.environment = self.environment | store.environment(port)

    def place(self, out: Path) -> str:
        return f"s3://parts/{out.stem}"

    def folder(self, out: Path) -> Path:
        return self.store.root / "parts" / out.stem


class Show:
    """The rows of the table."""

    def __init__(self, pair: Pair, folder: Path, verbs: list[Verb], part_s: float) -> None:
        self.pair, self.folder, self.verbs = pair, folder, verbs
        self.failed = False
        self.part_s = part_s
        self.environment = pair.environment | {"SHOWN_RANGE": "16"}

    def row(self, name: str, verb: str, outcome: str, good: bool) -> None:
        self.failed |= not good
        print(f"{name:34} {verb:8} {'ok ' if good else 'NOT'} {outcome}", flush=True)

    def out(self, verb: Verb, name: str) -> Path:
        return (
            self.folder / f"{verb.name}-{name.replace(',', '').replace(' ', '-')}{Path(verb.result).suffix}"
        )

    def singles(self) -> None:
        """What one machine makes."""
        for verb in self.verbs:
            done = subprocess.run(
                verb.command(self.folder / verb.result, None),
                env=self.environment,
                check=False,
                text=True,
                capture_output=True,
                cwd=self.folder,
            )
            if done.returncode:
                raise SystemExit(done.stderr)

    def fault(
        self,
        name: str,
        verb: Verb,
        strike: Strike | None,
        *,
        again: bool = False,
        kind: str = "",
    ) -> None:
        """Runs a command, strikes when a fifth of its parts (of `kind`) are made, looks at what it left."""
        out = self.out(verb, name)
        begun = time.monotonic()
        process = self.pair.run(verb.command(out, self.pair), **verb.environment)
        kept: dict[str, int] = {}
        struck = begun
        if strike is not None:
            while process.poll() is None and verb.num_marks(out, kind) < verb.size // 5:
                time.sleep(0.05)
            kept = verb.marks(out)
            struck = time.monotonic()
            strike(process)
        code = process.wait()
        if again:
            self.pair.up(2)
            kept = verb.marks(out)
            process = self.pair.run(verb.command(out, self.pair), **verb.environment)
            code = process.wait()
        after = verb.marks(out)
        again_made = sum(after.get(mark) != at for mark, at in kept.items())
        same = verb.same(self.folder / verb.result, out)
        took = f"{time.monotonic() - struck:.0f} s" + (" after it" if strike is not None else "")
        said = f"same bytes {str(same).lower()}, {len(after)} parts, {again_made} of {len(kept)} made again"
        self.row(name, verb.name, f"{said}, {took}", code == 0 and same and again_made == 0)

    def kill_worker(self, _: object) -> None:
        """Kills a worker in the middle of a part; there is one within a second or two."""
        self.kill_one_of(self.pair.names[1:])

    def kill_one_of(self, names: list[str]) -> None:
        """Kills a worker of these namespaces in the middle of a part."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for pid in [pid for name in names for pid in self.pair.pids(name)]:
                with contextlib.suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if line.startswith((b"ray::make_part", b"ray::PartMaker.make_part")):
                        os.kill(pid, signal.SIGKILL)
                        return
        raise SystemExit("no worker was found in the middle of a part")

    def everything(self, only: list[str]) -> None:
        wanted: dict[str, Callable[[], None]] = {
            "one": lambda: self.all_verbs("one node", 1),
            "two": lambda: self.all_verbs("two nodes", 2),
            "worker": lambda: self.struck("a worker killed", self.kill_worker),
            "node": lambda: self.struck("a node killed", lambda _: self.pair.stop(self.pair.names[1])),
            "driver": lambda: self.struck("driver killed, run again", self.kill_driver, again=True),
            "head": lambda: self.struck("head killed, run again", self.kill_head, again=True),
            "joins": self.joins,
            "ends": self.ends,
            "cut": self.cut_off,
            "store": self.stored,
            "token": self.without_token,
            "memory": self.memory,
            "overhead": self.overhead,
        }
        for name in only or wanted:
            wanted[name]()

    def all_verbs(self, name: str, num_nodes: int) -> None:
        self.pair.up(num_nodes)
        for verb in self.verbs:
            self.fault(name, verb, None)

    def struck(self, name: str, strike: Strike, *, again: bool = False) -> None:
        for verb in self.verbs:
            self.pair.up(2)
            self.fault(name, verb, strike, again=again)

    def joins(self) -> None:
        """Records joined to shards: as often as not, what is struck is a worker that joins."""
        for verb in self.verbs:
            if verb.name != "index":
                continue
            number = Verb(verb.name, verb.arguments, verb.result, verb.size // 2)
            for num_nodes in (1, 2):
                self.pair.up(num_nodes)
                self.fault(f"join, nodes: {num_nodes}", number, None)
            faults: list[tuple[str, Strike, bool]] = [
                ("join, a worker killed", self.kill_worker, False),
                ("join, a node killed", lambda _: self.pair.stop(self.pair.names[1]), False),
                ("join, driver killed, run again", self.kill_driver, True),
                ("join, head killed, run again", self.kill_head, True),
            ]
            for name, strike, again in faults:
                self.pair.up(2)
                self.fault(name, number, strike, again=again, kind="join-")

    def ends(self) -> None:
        """The task that writes the manifest is struck, in the middle: it waits for a lock held here."""
        faults: list[tuple[str, Strike, bool]] = [
            ("end, a worker killed", lambda _: self.kill_one_of(self.pair.names), False),
            ("end, driver killed, run again", self.kill_driver, True),
            ("end, head killed, run again", self.kill_head, True),
        ]
        for verb in [verb for verb in self.verbs if verb.name == "index"]:
            number = Verb(verb.name, verb.arguments, verb.result, verb.size // 2)
            for name, strike, again in faults:
                self.pair.up(2)
                held = self.at_the_end(number, self.out(verb, name), strike)
                self.fault(name, number, held, again=again, kind="join-")

    def at_the_end(self, verb: Verb, out: Path, strike: Strike) -> Strike:
        """Strikes when all is made but the manifest, whose task cannot begin meanwhile."""

        def held(process: subprocess.Popen[str]) -> None:
            with (out / ".lock-ranks").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                while verb.num_marks(out, "part-") == 0 and process.poll() is None:
                    time.sleep(0.1)
                # Until the task is there, and waits.
                time.sleep(3)
                strike(process)
                time.sleep(1)

        return held

    def kill_driver(self, process: subprocess.Popen[str]) -> None:
        process.kill()

    def kill_head(self, _: object) -> None:
        """The driver lies in the same namespace and goes with it."""
        self.pair.stop(self.pair.names[0])

    def cut_off(self) -> None:
        for verb in self.verbs:
            self.pair.up(2)
            cable = f"{self.pair.names[1]}v"
            name = "a node cut off, then back"

            def strike(_: object, cable: str = cable) -> None:
                ip("-n", self.pair.names[1], "link", "set", cable, "down")

            begun = time.monotonic()
            self.fault(name, verb, strike)
            before = self.out(verb, name)
            ip("-n", self.pair.names[1], "link", "set", cable, "up")
            time.sleep(10)
            same = verb.same(self.folder / verb.result, before)
            self.row("the node that comes back", verb.name, f"bytes stay {str(same).lower()}", same)
            print(f"  ({time.monotonic() - begun:.0f} s in all)")

    def stored(self) -> None:
        """Parts in a store, reached as it is and through a proxy that fails at a third of all requests."""
        program = find_server()
        if program is None:
            print("skipped: no server of S3 (cargo install s3s-fs --locked --features binary)")
            return
        cable = ("-n", self.pair.names[1], "link", "set", f"{self.pair.names[1]}v")
        faults: list[tuple[str, Strike | None, bool]] = [
            ("", None, False),
            (", a worker killed", self.kill_worker, False),
            (", a node killed", lambda _: self.pair.stop(self.pair.names[1]), False),
            (", a node cut off", lambda _: ip(*cable, "down"), False),
            (", driver killed, again", self.kill_driver, True),
        ]
        with Store(self.pair, program, self.folder / "store") as store:
            for verb in self.verbs:
                if verb.name == "score":
                    continue
                self.pair.up(2)
                self.fault("store", StoredVerb(verb, store, store.PORT), None)
                for name, strike, again in faults:
                    self.pair.up(2)
                    faulty = StoredVerb(verb, store, store.FAULTY_PORT)
                    self.fault(f"faulty store{name}", faulty, strike, again=again)
                    ip(*cable, "up")

    def without_token(self) -> None:
        self.pair.up(1)
        verb = self.verbs[0]
        for name, token in (("no token", ""), ("another token", secrets.token_hex(32))):
            process = self.pair.run(
                verb.command(self.folder / "refused", self.pair), RAY_AUTH_TOKEN=token, **verb.environment
            )
            code = process.wait()
            self.row(name, verb.name, f"exit code {code}", code == 2)

    def memory(self) -> None:
        """The driver's peak over 100 and 10,000 parts that take no time.

        The peak is VmHWM: ru_maxrss outlives exec, and would say what this process took before it.
        """
        self.pair.up(2)
        code = (
            "import sys\n"
            "from pathlib import Path\n"
            "from wsl.cluster import ray, tasks\n"
            "from wsl.cluster.parts import Part, Parts\n"
            "from wsl.cluster.plan import Stage\n"
            "from wsl.workspace.config import ClusterConfig\n"
            "number, folder, address = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
            "level = [Part('note', n, {'text': 'x' * 100}) for n in range(number)]\n"
            "with ray.connect(ClusterConfig(address=address)) as cluster:\n"
            "    cluster.make(Parts(folder), Stage('note', [level]))\n"
            "said = Path('/proc/self/status').read_text()\n"
            "print('peak', int(said.split('VmHWM:')[1].split()[0]) // 1024, flush=True)\n"
        )
        peaks = []
        for number in (100, 10_000):
            begun = time.monotonic()
            done = subprocess.run(
                [
                    "ip",
                    "netns",
                    "exec",
                    self.pair.names[0],
                    sys.executable,
                    "-c",
                    code,
                    str(number),
                    str(self.folder / f"notes-{number}"),
                    f"{self.pair.hosts[0]}:{PORT}",
                ],
                env=self.environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=550,
            )
            if done.returncode:
                print(done.stderr)
            peaks.append(int(done.stdout.split("peak")[1]) if "peak" in done.stdout else 10**6)
            each = (time.monotonic() - begun) / number
            print(
                f"  {number:,} parts: {peaks[-1]:,} MiB at the driver's peak, {1000 * each:.0f} ms a part",
                flush=True,
            )
        more = peaks[1] - peaks[0]
        spilled = [*Path("/tmp").glob("r*/session_*/ray_spilled_objects*/*")]
        good = more <= 50 and not spilled
        self.row(
            "driver, 100 to 10,000 parts",
            "note",
            f"{more} MiB more, {len(spilled)} files spilled by Ray",
            good,
        )

    def overhead(self) -> None:
        """Two nodes of one core against one process with two threads, at parts of `part_s` seconds."""
        folder = self.folder / "large"
        folder.mkdir()
        first = folder / "records-0000.parquet"
        write_large(first)
        for number in range(1, 11):
            os.link(first, folder / f"records-{number:04}.parquet")
        times = []
        for pattern in ("records-0000.parquet", "records-*.parquet"):
            given = ["counts", "build", "--records", str(folder / pattern), "--workers", "1"]
            times.append(self.timed(Verb("count", given, "", 0)))
        # Without what the command takes to start.
        once = (times[1] - times[0]) / 10
        copies = max(round(self.part_s / once), 2)
        for number in range(11, 6 * copies):
            os.link(first, folder / f"records-{number:04}.parquet")
        group = str(copies * first.stat().st_size)
        given = ["counts", "build", "--records", str(folder / "*.parquet")]
        one = self.timed(Verb("count", [*given, "--workers", "2"], "", 0), POLARS_MAX_THREADS="2")
        self.pair.up(2)
        address = f"{self.pair.hosts[0]}:{PORT}"
        there = [
            "--cluster",
            address,
            "--cluster-group",
            group,
            "--cluster-dir",
            str(self.folder / "large.parts"),
        ]
        two = self.timed(Verb("count", [*given, *there], "", 0))
        said = (
            f"6 parts of {copies * once:.0f} s: one process {one:.0f} s, nodes {two:.0f} s, {one / two:.2f}"
        )
        self.row("overhead", "count", said, one / two >= 0.8)

    def timed(self, verb: Verb, **more: str) -> float:
        out = self.folder / "timed.counts"
        for file in (out, out.with_name("timed.counts.json")):
            file.unlink(missing_ok=True)
        begun = time.monotonic()
        code = self.pair.run(verb.command(out, None), **verb.environment, **more).wait()
        if code:
            raise SystemExit(f"a timed command ended with {code}; see {self.folder}/commands.log")
        return time.monotonic() - begun


def write_large(file: Path, num_rows: int = 2_000_000) -> None:
    """Two million records of four hashtags each, a million different ones among them."""
    draw = np.random.default_rng(0)
    numbers = np.minimum(draw.pareto(0.8, 4 * num_rows), 1e6).astype(np.int64)
    tags = pl.select(pl.format("#hashtag{}", pl.Series(numbers))).to_series().reshape((num_rows, 4))
    keys = pl.select(pl.format("k{}", pl.int_range(num_rows))).to_series()
    pl.DataFrame({"key": keys, "hashtags": tags.cast(pl.List(pl.String))}).write_parquet(file)


def main() -> int:
    """Shows everything, or what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--verbs", nargs="*", default=["count", "index", "alone", "score", "select"])
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--part-seconds", type=float, default=60.0, help="For the overhead.")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("skipped: namespaces need root and iproute2 (apt install iproute2)")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="wsl-shown-"))
    folder.mkdir(parents=True, exist_ok=True)
    number = options.parts
    records = clustered.write_records(folder / "records", number, 400)
    shards = clustered.write_shards(folder / "shards", number, 16)
    teacher = clustered.write_teacher(folder / "teacher")
    index = folder / "unlabelled"
    subprocess.run(
        [*WSL, "index", "build", "--shards", shards, "--out", str(index)],
        check=True,
        env=os.environ | {"SHOWN_RANGE": "16"},
    )
    subprocess.run(
        [*WSL, "score", "--checkpoint", str(teacher), "--index", str(index), "--out", str(folder / "scores")],
        check=True,
        env=os.environ | {"SHOWN_RANGE": "16", "OMP_NUM_THREADS": "1"},
    )
    lax = ["--limit", "records_without_sample=1", "--limit", "samples_without_record=1"]
    verbs = [
        Verb("count", ["counts", "build", "--records", records], "single.counts", number),
        Verb(
            "index",
            ["index", "build", "--shards", shards, "--records", records, "--label-kind", "hashtag", *lax],
            "single",
            2 * number,
        ),
        Verb("alone", ["index", "build", "--records", records], "single-alone", number),
        Verb(
            "score",
            ["score", "--checkpoint", str(teacher), "--index", str(index)],
            "single-scores",
            number,
        ),
        Verb(
            "select",
            ["pseudolabel", "--predictions", str(folder / "scores"), "--k", "50", "--p", "2"],
            "single.parquet",
            number,
        ),
    ]
    verbs = [verb for verb in verbs if verb.name in options.verbs]
    with Pair(folder) as pair:
        show = Show(pair, folder, verbs, options.part_seconds)
        show.singles()
        show.everything(options.only)
    return int(show.failed)


if __name__ == "__main__":
    sys.exit(main())
