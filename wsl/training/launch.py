"""Running a program once for each rank of this machine, and owning its processes.

DeepSpeed's launcher passes on neither signals nor exit codes and leaves shared memory behind, so on
one machine the ranks are started from here: each in a process group of its own, on a free port.

`launch_program` runs the `main` of a module. Where no GPU is visible its ranks are forked from a process
that has imported torch (`wsl.training.forking`), which saves each of them seconds; else each is started.
`launch_ranks` starts any command. The rest applies to both.

- SIGTERM, SIGINT and SIGHUP are passed on to every rank once. The ranks get `grace_s` seconds to
  write a checkpoint; a second SIGINT, or the end of that time, kills them.
- Where a rank fails the others are asked to stop and killed after `FAILURE_GRACE_S`. The exit code
  is that of the rank that failed first; one that a signal ended counts as 128 + its number.
- Nothing stays: every process group is killed at the end, and what DeepSpeed's shared-memory
  operator leaves in /dev/shm for this port is removed.
- A rank notices that its launcher has died: it finds the launcher's process id in
  `LAUNCHER` (see `wsl.training.stop`).

Several machines need DeepSpeed's own launcher or Slurm; see the README. No torch is loaded here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from wsl.errors import EXIT_INTERRUPTED, explain
from wsl.training.forking import NotForkedError, Process, fork_ranks, is_gpu_visible, kill

LAUNCHER = "WSL_LAUNCHER_PID"
"""Environment variable with the process id of the launcher."""
GRACE_S = 300.0
FAILURE_GRACE_S = 20.0
POLL_S = 0.05
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHARED_MEMORY = "deepspeed_allreduce_buffer"
"""How DeepSpeed's shared-memory operator names its files (user, address, port and rank follow)."""
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Say = Callable[[str], object]


def say_on_stderr(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def launch_program(
    module: str,
    arguments: Sequence[str],
    num_ranks: int,
    *,
    shared: Sequence[str] = ("torch",),
    forked: bool | None = None,
    environment: Mapping[str, str] | None = None,
    grace_s: float = GRACE_S,
    say: Say = say_on_stderr,
) -> int:
    """Runs `main(arguments)` of a module as `num_ranks` processes, as `launch_ranks` runs a command.

    Args:
        module: its name; `python -m` runs it too.
        arguments: what its `main` gets.
        num_ranks: how many.
        shared: modules that are imported once for all ranks, where these are forked. To import them may
            neither start threads nor ask a GPU.
        forked: whether ranks are forked; None: where no GPU is visible.
        environment, grace_s, say: as for `launch_ranks`.
    """
    given = dict(environment or os.environ)
    command = [sys.executable, "-m", module, *arguments]

    # CUDA does not work in a process that was forked after it was used, so with a GPU ranks are started anew.
    if forked is None:
        forked = not is_gpu_visible(given)

    def start(own: dict[str, str], signals: _Signals) -> Iterator[Process]:
        if forked:
            try:
                yield from fork_ranks(
                    module,
                    arguments,
                    num_ranks,
                    shared=shared,
                    environment=own,
                    interrupted=lambda: bool(signals.received),
                )
                return
            except NotForkedError as error:
                # Only where forking is not possible are ranks started instead; a signal or a crash stays an
                # error.
                if signals.received or error.code < 0:
                    raise
        yield from _started(command, num_ranks, own)

    return _own(start, num_ranks, given, grace_s, say)


def launch_ranks(
    command: Sequence[str],
    num_ranks: int,
    *,
    environment: Mapping[str, str] | None = None,
    grace_s: float = GRACE_S,
    say: Say = say_on_stderr,
) -> int:
    """Runs `command` as `num_ranks` processes and waits for them; their exit code.

    Each finds RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
    WSL_LAUNCHER_PID beside `environment` (default: this process's). 0 where every rank ended with 0;
    else the code of the first that did not, 128 + n where signal n ended it, 137 where the ranks had
    to be killed after a signal. Must be called from the main thread.
    """
    given = environment or os.environ
    return _own(lambda own, signals: _started(command, num_ranks, own), num_ranks, given, grace_s, say)


def _started(command: Sequence[str], num_ranks: int, environment: dict[str, str]) -> Iterator[Process]:
    """Starts the ranks one by one."""
    for rank in range(num_ranks):
        own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        yield subprocess.Popen(list(command), env=own, stdin=subprocess.DEVNULL, start_new_session=True)


def _own(
    start: Callable[[dict[str, str], _Signals], Iterator[Process]],
    num_ranks: int,
    environment: Mapping[str, str],
    grace_s: float,
    say: Say,
) -> int:
    """Waits for the ranks that `start` makes, given their environment; their exit code."""
    port = free_port()
    base = {key: value for key, value in environment.items() if key not in LAUNCH_VARIABLES}
    base |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks), LAUNCHER: str(os.getpid())}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks: list[Process] = []
    with _Signals() as signals:
        try:
            # One by one: where the second cannot be started the first is known, and killed.
            for process in start(base, signals):
                ranks.append(process)
            return _watch(ranks, signals, grace_s, say)
        except NotForkedError as error:
            if signals.received:
                # It came before there was a rank that it could be passed on to.
                say(explain(KeyboardInterrupt()))
                return EXIT_INTERRUPTED
            return _first_failure([error.code], say, "the process that ranks are forked from") or 0
        finally:
            for process in ranks:
                kill(process, wait=False)
            for process in ranks:
                process.wait()
            remove_shared_memory(port)


def _watch(ranks: list[Process], signals: _Signals, grace_s: float, say: Say) -> int:
    """Waits for the ranks, passing signals on; their exit code."""
    first: int | None = None
    deadline: float | None = None
    sent = 0
    while True:
        codes = [process.poll() for process in ranks]

        # The first failure is the exit code; ranks that end after it mostly do so because of it.
        if first is None:
            first = _first_failure(codes, say)
            if first is not None:
                _send(ranks, signal.SIGTERM)
                deadline = min(deadline or float("inf"), time.monotonic() + FAILURE_GRACE_S)
        if all(code is not None for code in codes):
            return first or 0

        # Only the first signal is passed on; a second Ctrl-C means that the user does not want to wait.
        if len(signals.received) > sent:
            number = signals.received[-1]
            if sent == 0:
                # A hang-up is for the launcher; a rank knows the other two.
                _send(ranks, number if number != signal.SIGHUP else signal.SIGTERM)
                deadline = time.monotonic() + grace_s
            elif number == signal.SIGINT:
                deadline = 0.0
            sent = len(signals.received)

        # Who calls kills the ranks that are left.
        if deadline is not None and time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            if first is None:
                say(f"error: ranks {', '.join(map(str, late))} did not end in time and were killed")
            return first or 128 + signal.SIGKILL
        time.sleep(POLL_S)


def _first_failure(codes: list[int | None], say: Say, who: str | None = None) -> int | None:
    """The exit code of a rank that failed, one ended by a signal before others; None where none did."""
    failed = sorted((code, rank) for rank, code in enumerate(codes) if code)
    if not failed:
        return None
    code, rank = failed[0]
    if code > 0:
        return code
    name = signal.Signals(-code).name
    reason = " (often: out of memory)" if name == "SIGKILL" else ""
    say(f"error: {who or f'rank {rank}'} was ended by {name}{reason}; run the same command again to go on")
    return 128 - code


def _send(ranks: list[Process], number: int) -> None:
    """A signal to every rank that lives, not to its children: workers end with their rank."""
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)


class _Signals:
    """Collects signals instead of ending the launcher; restores the old handlers at the end."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in PASSED_ON:
            # Under nohup a hang-up stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def remove_shared_memory(port: int, folder: Path = Path("/dev/shm")) -> None:
    """Removes what DeepSpeed's shared-memory operator left for ranks that met at `port`."""
    for file in shared_memory_files(port, folder):
        with contextlib.suppress(OSError):
            file.unlink()


def shared_memory_files(port: int, folder: Path = Path("/dev/shm")) -> Iterator[Path]:
    """The operator's files of this user for ranks that met at `port`."""
    yield from folder.glob(f"{SHARED_MEMORY}_{os.getuid()}_*_{port}_*")
