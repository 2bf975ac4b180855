"""What is seen of a run: one line while it runs, and what its marks show at any time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wsl.cluster.parts import Parts

QUIET_S = 30.0
"""Seconds between two lines where standard error is no terminal."""


@dataclass
class Tally:
    """Parts of a run by what has become of them."""

    total: int
    done: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0
    made: int = 0
    """Those of `done` that were made now."""
    begun: float = 0.0

    def line(self) -> str:
        """The progress line: how many, how fast, how long."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        rate = self.made / seconds
        left = self.total - self.done - self.failed
        time_left = "" if not self.made else f", {_duration(left / rate)} left"
        speed = f"{rate:.1f} parts/s" if rate >= 1 else f"{60 * rate:.1f} parts/min"
        return (
            f"{self.done:,} of {self.total:,} parts done, {self.running:,} running, {self.waiting:,} "
            f"waiting, {self.failed:,} failed, {speed}{time_left}"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Line:
    """One line on standard error that is written anew; now and then a new one where that is no terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._title = title
        self._shown_at = time.monotonic()
        self._live: Any = None

    @contextmanager
    def shown(self) -> Iterator[Line]:
        """Shows the line while it is used."""
        if not self._console.is_terminal:
            yield self
            return
        from rich.live import Live

        with Live(console=self._console, transient=True, auto_refresh=False) as live:
            self._live = live
            yield self
            self._live = None

    def update(self, tally: Tally) -> None:
        """Shows where the run is."""
        text = f"{self._title}: {tally.line()}"
        if self._live is not None:
            self._live.update(text, refresh=True)
        elif not self._console.is_terminal and time.monotonic() - self._shown_at > QUIET_S:
            self._shown_at = time.monotonic()
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A paragraph above the line."""
        console = self._console if self._live is None else self._live.console
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def status(parts: Parts) -> list[dict[str, Any]]:
    """Each run in a folder: its command, its parts by level and how many are done, and failures."""
    marked, failures = parts.marked(), parts.failures()
    found = []
    for root, run in parts.runs():
        names = [name for level in run["levels"] for name in level]

        # A part that was made after all did not fail, whatever an earlier try left.
        failed = {name: failures[name] for name in names if name in failures and name not in marked}
        levels = [
            {
                "kind": level[0].split("-")[0] if level else "",
                "parts": len(level),
                "done": sum(n in marked for n in level),
            }
            for level in run["levels"]
        ]
        found.append(
            {
                "root": root,
                "command": run["command"],
                "complete": run["is_whole"] and all(name in marked for name in run["levels"][-1]),
                "parts": len(names),
                "done": sum(name in marked for name in names),
                "failed": len(failed),
                "levels": levels,
                "failures": failed,
            }
        )
    return found
