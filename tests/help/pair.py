"""Two Ray nodes of one CPU each in two network namespaces, and a store in a third that both reach."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.help.servers import KEY, SECRET

ROOT = Path(__file__).resolve().parents[2]
PORT = 6379
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
KEEPALIVE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_grpc_keepalive_time_ms": "10000",
    "RAY_grpc_keepalive_timeout_ms": "10000",
    "RAY_grpc_client_keepalive_time_ms": "10000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Pair:
    """Two namespaces, and a Ray node in each."""

    def __init__(self, folder: Path) -> None:
        self.tag = f"wsl{os.getpid() % 10_000}"
        self.names = [f"{self.tag}a", f"{self.tag}b"]
        self.hosts = ["10.77.0.1", "10.77.0.2"]
        self.folder = folder
        self.environment = (
            os.environ
            | KEEPALIVE
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "RAY_USAGE_STATS_ENABLED": "0",
                "OMP_NUM_THREADS": "1",
                "POLARS_MAX_THREADS": "1",
            }
        )
        self.environment.pop("RAY_ADDRESS", None)

    def __enter__(self) -> Pair:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        one, other = (f"{name}v" for name in self.names)
        ip(
            "link",
            "add",
            one,
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            "name",
            other,
            "netns",
            self.names[1],
        )
        for name, host in zip(self.names, self.hosts, strict=True):
            ip("-n", name, "addr", "add", f"{host}/24", "dev", f"{name}v")
            ip("-n", name, "link", "set", f"{name}v", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            self.stop(name)
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def pids(self, name: str) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def stop(self, name: str) -> None:
        """Ends all processes of a namespace at once, as a machine that loses its power."""
        for _ in range(20):
            pids = self.pids(name)
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)

    def start(self, number: int) -> None:
        """Starts the node of a namespace: the head in the first."""
        name, host = self.names[number], self.hosts[number]
        command = ["ip", "netns", "exec", name, *RAY, "start", "--block", "--node-ip-address", host]
        command += ["--num-cpus", "1", "--object-store-memory", "80000000", "--disable-usage-stats"]
        if number == 0:
            temporary = tempfile.mkdtemp(prefix="r", dir="/tmp")
            command += [
                "--head",
                "--port",
                str(PORT),
                "--include-dashboard",
                "false",
                "--temp-dir",
                temporary,
            ]
        else:
            command += ["--address", f"{self.hosts[0]}:{PORT}"]
        with (self.folder / f"node-{number}.log").open("a") as log:
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def up(self, num_nodes: int) -> None:
        """A fresh cluster of so many nodes, which answers."""
        for name in self.names:
            self.stop(name)
        self.start(0)
        self.wait_for(1)
        if num_nodes == 2:
            self.start(1)
            self.wait_for(2)

    def wait_for(self, num_nodes: int, timeout_s: float = 120.0) -> None:
        code = (
            "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); "
            "sys.exit(sum(n['Alive'] for n in ray.nodes()) != int(sys.argv[2]))"
        )
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends:
            asked = self.run([sys.executable, "-c", code, f"{self.hosts[0]}:{PORT}", str(num_nodes)])
            if asked.wait() == 0:
                return
            time.sleep(1)
        raise SystemExit(f"the cluster did not come up; see {self.folder}/node-*.log")

    def run(self, command: list[str], **more: str) -> subprocess.Popen[str]:
        """Starts a process in the head's namespace."""
        log = (self.folder / "commands.log").open("a")
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[0], *command],
            env=self.environment | more,
            stdout=log,
            stderr=log,
            text=True,
            cwd=self.folder,
            start_new_session=True,
        )


class Store:
    """A server of S3, and a proxy before it that fails at a third of all requests.

    Both listen in a namespace that each node has a cable to, so that it outlives nodes, and is seen by one
    that is cut off from the other.
    """

    HOST = "10.80.0.1"
    PORT, FAULTY_PORT = 9000, 9001

    def __init__(self, pair: Pair, program: str, root: Path) -> None:
        self.pair, self.program, self.root = pair, program, root
        self.name = f"{pair.tag}c"

    def __enter__(self) -> Store:
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "addr", "add", f"{self.HOST}/32", "dev", "lo")
        for number, node in enumerate(self.pair.names):
            near, far, net = f"{node}s", f"{self.name}{number}", f"10.{78 + number}.0"
            ip("link", "add", near, "netns", node, "type", "veth", "peer", "name", far, "netns", self.name)
            for name, cable, host in ((node, near, 1), (self.name, far, 2)):
                ip("-n", name, "addr", "add", f"{net}.{host}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
            ip("-n", node, "route", "add", f"{self.HOST}/32", "via", f"{net}.2")
        (self.root / "parts").mkdir(parents=True)
        server = [self.program, "--host", self.HOST, "--port", str(self.PORT)]
        self._start([*server, "--access-key", KEY, "--secret-key", SECRET, str(self.root)])
        faulty = [sys.executable, str(Path(__file__).with_name("faulty.py"))]
        self._start([*faulty, self.HOST, str(self.FAULTY_PORT), str(self.PORT)])
        code = (
            "import socket, sys, time\n"
            "for port in sys.argv[2:]:\n"
            "    while socket.socket().connect_ex((sys.argv[1], int(port))): time.sleep(0.1)"
        )
        ports = [str(self.PORT), str(self.FAULTY_PORT)]
        if self.pair.run([sys.executable, "-c", code, self.HOST, *ports]).wait(timeout=60):
            raise SystemExit("the store did not come up")
        return self

    def __exit__(self, *_: object) -> None:
        self.pair.stop(self.name)
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def _start(self, command: list[str]) -> None:
        with (self.pair.folder / "store.log").open("a") as log:
            subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                env=self.pair.environment | {"RUST_LOG": "error"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def environment(self, port: int) -> dict[str, str]:
        """How the store is reached through one of its ports."""
        options = {
            "aws_endpoint_url": f"http://{self.HOST}:{port}",
            "aws_access_key_id": KEY,
            "aws_secret_access_key": SECRET,
            "aws_region": "us-east-1",
        }
        return {"WSL_STORAGE": json.dumps({"options": options, "timeout_s": 1.0})}
