"""The report of the demo: its results, and both workspaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl.figures import plots
from wsl.figures.page import Page, Section, SvgBlock, TableBlock
from wsl.report.workspace import page_facts, workspace_sections
from wsl.workspace.layout import Workspace


@dataclass(frozen=True)
class Outcome:
    """One trained network of the demo."""

    data: str
    what: str
    num_parameters: int
    num_steps: int
    accuracy: float
    """Top-1 on Fashion-MNIST, the mean of the classes' recalls on Open Clip Art."""
    measure: str
    seconds: float


def demo_page(outcomes: Sequence[Outcome], first: Path, second: Path, seconds: float) -> Page:
    """The report of the demo."""
    rows: list[list[Any]] = [
        [o.data, o.what, f"{o.num_parameters:,}", f"{o.num_steps:,}", f"{o.accuracy:.1%}", f"{o.seconds:.0f}"]
        for o in outcomes
    ]
    bars = [(f"{o.data}: {o.what}", o.accuracy, o.seconds) for o in outcomes]
    results = Section(
        "Results",
        "Accuracy on held-out images: top-1 for Fashion-MNIST, the mean over classes for Open Clip Art, "
        "whose classes are unequal. Steps count all training that a network has behind it; seconds are "
        "those of its last stage.",
        [
            TableBlock(["data", "network", "parameters", "steps", "accuracy", "seconds"], rows, ""),
            SvgBlock(plots.accuracies(bars), "Accuracy of this very run."),
        ],
    )
    return Page(
        title="wsl demo",
        subtitle="From hashtags and unlabelled images to finetuned classifiers, on the data the package "
        "carries",
        facts=[*page_facts(), ("time", f"{seconds:.0f} s")],
        sections=[
            results,
            *workspace_sections(Workspace.find(first), "Fashion-MNIST: "),
            *workspace_sections(Workspace.find(second), "Open Clip Art: "),
        ],
    )
