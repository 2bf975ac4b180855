"""The process that ranks are forked from: it imports once what all of them need, forks them, and ends.

    python -m wsl.training.fork_server REPORT MODULE SHARED... -- ARGUMENT...

`wsl.training.forking` starts it, and is the parent of the ranks when it has ended. Each rank writes its
number and process id to the file descriptor REPORT, waits for that moment, and calls
`MODULE.main(ARGUMENTS)`. The modules SHARED are imported before the fork.

A fork copies memory and one thread. A lock that another thread holds would stay locked in the ranks, and
a pool of threads would have none; and CUDA cannot be used after a fork by who asked it before. So no
operator of torch runs here and nothing asks a GPU. Where an import has started a thread all the same no
rank is forked: the exit code is then NOT_FORKED, and the launcher starts the ranks one by one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Sequence

from wsl.training.forking import NOT_FORKED
from wsl.training.launch import LAUNCHER

POLL_S = 0.002


def main(arguments: Sequence[str]) -> int:
    """Forks the ranks. It returns in each of them, with its exit code; the process that forks ends here."""
    report, module, *others = arguments
    end = others.index("--")
    if not _share(others[:end]):
        return NOT_FORKED
    rank = _fork(int(report), int(os.environ["WORLD_SIZE"]))
    return _become(rank, module, others[end + 1 :])


def _share(modules: Sequence[str]) -> bool:
    """Imports `modules`; whether the process may be forked then."""
    # NumPy's linear algebra starts threads at its import, and ends them itself before a fork.
    with contextlib.suppress(ImportError):
        importlib.import_module("numpy")
    before = _num_threads()
    for name in modules:
        # A rank that needs what is missing reports it itself.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return threading.active_count() == 1 and _num_threads() == before


def _num_threads() -> int:
    """Threads of this process, those of libraries too."""
    return len(os.listdir("/proc/self/task"))


def _fork(report: int, num_ranks: int) -> int:
    """The number of the rank, in each rank."""
    server = os.getpid()
    for rank in range(num_ranks):
        try:
            pid = os.fork()
        except OSError:
            os._exit(NOT_FORKED)
        if pid == 0:
            _leave(server, report, rank)
            return rank
    # What the imports registered for the end is the ranks' to do.
    os._exit(0)


def _leave(server: int, report: int, rank: int) -> None:
    """Makes a fork a process of the launcher: in a session of its own, known by its id, its child."""
    os.setsid()
    os.write(report, f"{rank} {os.getpid()}\n".encode())
    os.close(report)
    while os.getppid() == server:
        time.sleep(POLL_S)
    if os.getppid() != int(os.environ[LAUNCHER]):
        # The launcher has died meanwhile.
        os._exit(1)


def _become(rank: int, module: str, arguments: list[str]) -> int:
    """Runs the program as the rank `rank`; its exit code."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    _seed()
    program = importlib.import_module(module)
    sys.argv = [str(program.__file__), *arguments]
    return int(program.main(arguments))


def _seed() -> None:
    """Gives this process random numbers of its own, as a fresh one has; Python's generator has them."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
