"""How far a study is: a table of its steps, with what each costs and the time left."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from wsl.studies.plan import Place
from wsl.studies.steps import Step

MEASURES = ("top1", "precision", "loss")
"""The first of these that a step has is shown when it is made."""


@dataclass
class Progress:
    """The steps of a study, and the seconds of those that are made."""

    title: str
    steps: dict[Place, Step]
    console: Console = field(default_factory=lambda: Console(stderr=True))
    seconds: dict[str, float] = field(default_factory=dict)
    """By fingerprint."""
    now: Place | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The table, alive on a terminal; elsewhere it is printed once, and then a line for each step."""
        if not self.console.is_terminal:
            self.console.print(self.table())
            yield
            return
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=2, transient=True):
            yield

    def begin(self, place: Place) -> None:
        """A step is under way."""
        self.now = place

    def end(self, place: Place, seconds: float, measures: dict[str, float] | None = None) -> None:
        """A step is made; `measures` are given where it was made now."""
        self.seconds[self.steps[place].fingerprint] = seconds
        self.now = None
        if measures is None:
            return
        key = next((key for key in MEASURES if key in measures), None)
        result = "" if key is None else f"{key} {_shown(key, measures[key])}, "
        place_text = f"[{self.num_made}/{len(self.distinct())}] {place}"
        self.console.print(
            f"{place_text}: {result}{seconds:,.0f} s{self._left()}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )

    def distinct(self) -> dict[str, Step]:
        """The steps by fingerprint; equal ones are made once."""
        return {step.fingerprint: step for step in self.steps.values()}

    @property
    def num_made(self) -> int:
        """Steps that are made."""
        return len(self.seconds)

    def seconds_left(self) -> float | None:
        """An estimate from the steps that are made; None while nothing speaks for a step that is not.

        A step costs what the mean of its name does, else what its steps of training would at the mean
        rate of all runs.
        """
        by_name = self._seconds_by_name()
        rate = self._seconds_a_step()
        left = 0.0
        for mark, step in self.distinct().items():
            if mark in self.seconds:
                continue
            known = by_name.get(step.plan.place.name)
            if known:
                left += sum(known) / len(known)
            elif step.num_steps and rate is not None:
                left += step.num_steps * rate
            elif step.num_steps:
                return None
        return left

    def table(self) -> RenderableType:
        """What is made and what remains, by name."""
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("step", "made", "of", "seconds each"):
            table.add_column(column, justify="left" if column == "step" else "right")
        by_name = self._seconds_by_name()
        names: dict[str, list[str]] = {}
        for mark, step in self.distinct().items():
            names.setdefault(step.plan.place.name, []).append(mark)
        for name, marks in names.items():
            made = sum(mark in self.seconds for mark in marks)
            known = by_name.get(name, [])
            each = f"{sum(known) / len(known):,.1f}" if known else "-"
            table.add_row(name, str(made), str(len(marks)), each)
        if self.now is not None:
            table.caption = f"{self.now}{self._left()}"
        return table

    def _left(self) -> str:
        left = self.seconds_left()
        if left is None or self.num_made == len(self.distinct()):
            return ""
        minutes = math.ceil(left / 60)
        return f"; about {minutes:,} min left" if left > 90 else f"; about {left:,.0f} s left"

    def _seconds_by_name(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for mark, step in self.distinct().items():
            if mark in self.seconds:
                found.setdefault(step.plan.place.name, []).append(self.seconds[mark])
        return found

    def _seconds_a_step(self) -> float | None:
        runs = [step for mark, step in self.distinct().items() if mark in self.seconds and step.num_steps]
        number = sum(step.num_steps for step in runs)
        return sum(self.seconds[step.fingerprint] for step in runs) / number if number else None


def _shown(key: str, value: Any) -> str:
    return f"{value:.4f}" if key == "loss" else f"{value:.1%}"
