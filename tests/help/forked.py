"""Commands run by forks of a process that has imported what they need: no start costs imports.

with ForkServer() as server:
    child = server.start(["pseudolabel", ...], limit_bytes=1000)
    shown, said = child.communicate()
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


class Forked:
    """A running command, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, server: ForkServer, pid: int, out: IO[str], error: IO[str]) -> None:
        self.server, self.pid, self.out, self.error = server, pid, out, error
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired where the command goes on for longer."""
        begun = time.monotonic()
        while self.poll() is None:
            if timeout is not None and time.monotonic() - begun > timeout:
                raise subprocess.TimeoutExpired("a forked command", timeout)
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while the command goes on."""
        if self.returncode is None:
            self.returncode = self.server.ask({"look": self.pid})
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal to the command."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the command."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What the command printed and said, once it has ended."""
        self.wait(timeout)
        with self.out, self.error:
            return self.out.read(), self.error.read()


class ForkServer:
    """The process that forks; with `scores` it has imported torch and what scores too."""

    def __init__(self, *, scores: bool = False) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        }
        command = [sys.executable, "-m", "tests.help.forked", *(["scores"] if scores else [])]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._folder = tempfile.TemporaryDirectory()
        self._number = 0
        self._pipes: list[IO[str]] = []

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer to a request."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self, command: list[str], *, limit_bytes: int = 0, environment: dict[str, str] | None = None
    ) -> Forked:
        """Runs a command of `wsl`, whose files may have so many bytes; 0 is no limit.

        The command `rank FILE` is one rank of scoring.
        """
        self._number += 1
        pipes = [f"{self._folder.name}/{self._number}.{name}" for name in ("out", "error")]
        for pipe in pipes:
            os.mkfifo(pipe)
        request = {"command": command, "limit": limit_bytes, "environment": environment or {}, "pipes": pipes}
        pid = self.ask(request)
        out, error = (open(pipe) for pipe in pipes)  # noqa: SIM115
        self._pipes += [out, error]
        return Forked(self, pid, out, error)


def _run(request: dict[str, Any]) -> int:
    """What a fork does."""
    for number, pipe in enumerate(request["pipes"], 1):
        os.dup2(os.open(pipe, os.O_WRONLY), number)
    os.environ.update(request["environment"])
    if request["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], hard))
    command: list[str] = request["command"]
    if command[0] == "rank":
        from wsl.scoring import rank

        return rank.main(command[1:])
    import wsl.cli

    return wsl.cli.run(command)


def _end(request: dict[str, Any]) -> None:
    """Runs a command and ends this fork with its code."""
    code = 1
    try:
        code = _run(request)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answers requests until there are no more."""
    import polars.io.plugins  # noqa: F401

    import wsl.cli
    import wsl.index.jobs
    import wsl.scoring.pseudolabels

    if "scores" in sys.argv:
        import torch

        import wsl.scoring.rank
        import wsl.selection.states

        torch.set_num_threads(1)
        wsl.selection.states.RANGE = 128
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "look" in request:
            pid, status = os.waitpid(request["look"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                _end(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
