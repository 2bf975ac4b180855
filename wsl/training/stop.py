"""Whether a rank should stop: a signal came, or its launcher has died.

Inside the loop of steps SIGTERM and SIGINT only set a flag. The ranks reduce it with what they
reduce at each step anyway, so all of them stop after the same step, write one checkpoint and leave
with exit code 130. A second SIGINT stops at once. Threads that load data never see signals; a worker
process must call `ignore_signals` first.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from wsl.training.launch import LAUNCHER

HANDLED = (signal.SIGTERM, signal.SIGINT)
DEEPSPEED_LAUNCHER = "CROSS_RANK"
"""An environment variable that DeepSpeed's launcher sets for its ranks."""


class Stopped(KeyboardInterrupt):
    """The stage stopped as it was asked to, after a checkpoint; the message has where it resumes."""


class StopRequest:
    """A context in which signals set a flag; outside the main thread only the launcher is watched."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._launcher = _launcher()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "SIGINT":
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    @property
    def wanted(self) -> bool:
        """Whether this rank has been asked to stop."""
        if self.reason is None and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "its launcher has died"
        return self.reason is not None


def ignore_signals(worker: int = 0) -> None:
    """For worker processes that load data: they end with their rank, not by its signals."""
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


def remember_launcher() -> None:
    """Notes DeepSpeed's launcher as this process's parent; to be called early in a rank's life."""
    if LAUNCHER not in os.environ and DEEPSPEED_LAUNCHER in os.environ:
        os.environ[LAUNCHER] = str(os.getppid())


def _launcher() -> int | None:
    """The process id of this rank's launcher, None where it has none that it should end with."""
    text = os.environ.get(LAUNCHER, "")
    if not text.isdigit() or "RANK" not in os.environ:
        return None
    return int(text)
