"""A small workspace with a teacher, made once in a run and copied for each file of tests."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from wsl.cli import run

NUM_LABELLED, NUM_UNLABELLED, NUM_TEST = 50, 600, 300
SIZES = [
    "--num-labelled",
    str(NUM_LABELLED),
    "--num-unlabelled",
    str(NUM_UNLABELLED),
    "--num-test",
    str(NUM_TEST),
]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process of the run that asks for it makes, and the others wait for."""
    base = factory.getbasetemp()
    # Each process of pytest-xdist has a folder in that of the run.
    shared = base.parent if base.name.startswith("popen-gw") else base
    folder, done = shared / name, shared / f"{name}.made"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def _make(root: Path) -> None:
    assert run(["init", str(root), *SIZES]) == 0
    assert run(["index", "build", "-w", str(root)]) == 0
    assert run(["train", "-w", str(root), "--stage", "teacher", "--set", "num_steps=8"]) == 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny workspace with a teacher; the tests of a file may write to it."""
    root = tmp_path_factory.mktemp("workspace") / "w"
    shutil.copytree(made_once(tmp_path_factory, "small-workspace", _make), root)
    return root
