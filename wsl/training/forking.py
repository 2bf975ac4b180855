"""The launcher's side of ranks that are forked: from a process that has imported what all of them need.

That process, `wsl.training.fork_server`, forks the ranks and ends. While it runs this process is the
one that the kernel gives the orphans of its family to (a "subreaper", prctl(2)), and so the ranks are its
children afterwards, as if it had started them. Nothing is forked from this process itself, which may
have threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

NOT_FORKED = 75
"""Exit code of the server where it may not fork."""
GPU_DEVICES = ("nvidia*", "nvhost-gpu", "nvmap", "dxg", "kfd")
"""The files in /dev that a GPU is used through: NVIDIA's, its Jetson's, Windows' in Linux, AMD's."""
SET_SUBREAPER, GET_SUBREAPER = 36, 37
"""Options of prctl(2)."""
POLL_S = 0.05


class NotForkedError(Exception):
    """No rank was forked, or none is left; `code` is the server's exit code, -n where signal n ended it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the process that ranks are forked from ended with {code}")
        self.code = code


class Process(Protocol):
    """What is asked of the process of a rank, which leads a group: a Popen has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...


class Adopted:
    """A child of this process that another one forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, -n where signal n ended it; None while it runs."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Its exit code, when it has ended."""
        return self._reap(0)

    def send_signal(self, number: int, /) -> None:
        """Sends it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _reap(self, options: int) -> int | None:
        # Until it is reaped its id cannot be another process's.
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def fork_ranks(
    module: str,
    arguments: Sequence[str],
    num_ranks: int,
    *,
    shared: Sequence[str],
    environment: Mapping[str, str],
    interrupted: Callable[[], bool],
) -> list[Adopted]:
    """Forks ranks that run `main(arguments)` of `module`; `environment` is theirs, but for their numbers.

    NotForkedError where that may not be done here, where `interrupted` came true meanwhile, or where the
    server or a rank was killed.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "wsl.training.fork_server"]
    command += [str(writing), module, *shared, "--", *arguments]
    with _adopting() as adopts, open(reading, "rb", buffering=0) as reports:
        if not adopts:
            os.close(writing)
            raise NotForkedError(NOT_FORKED)

        # The server is a process of its own, with one thread when it forks.
        try:
            server = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        ranks = [Adopted(pid) for pid in _process_ids(reports.fileno(), server, interrupted)]
        code = server.wait()

    # A part of the ranks is of no use: they would wait for the others.
    if code or interrupted() or len(ranks) < num_ranks:
        for rank in ranks:
            kill(rank)
        raise NotForkedError(code or -signal.SIGKILL)
    return ranks


def _process_ids(reports: int, server: subprocess.Popen[bytes], interrupted: Callable[[], bool]) -> list[int]:
    """The ids of the ranks, in their order, when the server and all that it forked are ready or dead."""
    text = b""
    while True:
        if interrupted():
            # What it has forked is known by its id, or is of its group and ends with it.
            kill(server, wait=False)
        if select.select([reports], [], [], POLL_S)[0]:
            read = os.read(reports, 1 << 16)
            if not read:
                # Ranks write when they run first, which may be in another order than they were forked.
                numbered = sorted(tuple(map(int, line.split())) for line in text.splitlines())
                return [pid for _, pid in numbered]
            text += read


def kill(process: Process, *, wait: bool = True) -> None:
    """Kills a process that leads a group, and its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if wait:
        process.wait()


@contextlib.contextmanager
def _adopting() -> Iterator[bool]:
    """Within it this process becomes the parent of its family's orphans; False where it cannot."""
    before = ctypes.c_int()
    try:
        control = ctypes.CDLL(None, use_errno=True).prctl
        adopts = control(GET_SUBREAPER, ctypes.byref(before)) == 0 and control(SET_SUBREAPER, 1) == 0
    except (OSError, AttributeError):
        # Another system than Linux.
        adopts = False
    try:
        yield adopts
    finally:
        if adopts:
            control(SET_SUBREAPER, before.value)


def is_gpu_visible(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether a rank may find a GPU, as far as is known without asking one's driver.

    A driver that was asked before a fork cannot be used after it.
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(True for pattern in GPU_DEVICES for _ in devices.glob(pattern))
