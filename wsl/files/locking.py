"""Folders that one process at a time writes to.

A lock is on a file in the folder, and goes with the process that holds it, however it ends. The ranks of
a command share a second lock: they may outlive the command, and as long as they do no other one starts. So
may a task of a command on a cluster, which has it for itself.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from wsl._core import UsageError

LOCK = ".lock"
RANKS_LOCK = ".lock-ranks"
TASK_WAITS_S = 120.0
"""Seconds after which a task that was lost has ended too."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Holds `folder` against other processes, and makes it where it is missing.

    UsageError where another process holds it, or ranks of one that has ended are at work; `doing` says
    with what.
    """
    with _hold(
        folder, LOCK, fcntl.LOCK_EX, f"another process is {doing}; wait until it has ended, or end it"
    ):
        if (folder / RANKS_LOCK).exists():
            said = (
                f"ranks of a command that has ended are {doing}, or a task of it is; wait until they have "
                f"too, or end them"
            )
            with _hold(folder, RANKS_LOCK, fcntl.LOCK_EX, said):
                pass
        yield


def shared_by_ranks(folder: Path) -> AbstractContextManager[None]:
    """Says that a rank works in `folder`, beside others."""
    return _hold(folder, RANKS_LOCK, fcntl.LOCK_SH, "another process is about to begin; start again")


@contextmanager
def held_by_task(folder: Path, doing: str) -> Iterator[None]:
    """Holds `folder` for a task of a command that holds it too.

    Another task of the command, which was given up for lost, is waited for; UsageError where it does not end.
    """
    ends = time.monotonic() + TASK_WAITS_S
    said = f"another task is {doing}; end it, or the node that it is on, and run the command again"
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(_hold(folder, RANKS_LOCK, fcntl.LOCK_EX, said))
            except UsageError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.5)
                continue
            yield
            return


@contextmanager
def _hold(folder: Path, name: str, kind: int, refusal: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder}: {refusal}") from None
        yield
    finally:
        os.close(handle)
