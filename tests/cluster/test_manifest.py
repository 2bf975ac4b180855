"""The task that ends a build: killed anywhere and begun again, it makes one index, of one machine's bytes."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import wsl
from tests.help.parts import Here, World, both_ways, content_of
from wsl import DataError, UsageError
from wsl.cluster import index_tasks, tasks
from wsl.cluster.parts import Part, Parts
from wsl.cluster.status import status


class Killed(BaseException):
    """Ends a task as a signal would: nothing is tidied up that is not tidied on the way out."""


class Twice(Here):
    """Begins the manifest again after it was killed at a place."""

    def __init__(self, folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, 1)
        self.place, self.monkeypatch = place, monkeypatch
        self.killed = 0

    def make(self, parts: Parts, levels: list[list[Part]]) -> None:
        if levels[-1][0].kind == "manifest":
            with self.monkeypatch.context() as patched:
                self.strike(patched)
                with pytest.raises(Killed):
                    tasks.make(parts, levels[-1][0])
                self.killed += 1
        super().make(parts, levels)

    def strike(self, patched: pytest.MonkeyPatch) -> None:
        def kill(*_: object, **__: object) -> None:
            raise Killed

        if self.place == "parts":
            patched.setattr(index_tasks, "prepare", kill)
        elif self.place == "body":
            patched.setattr(index_tasks.stores, "write_bytes", kill)
        else:
            # The index is there, its mark is not.
            patched.setattr(Parts, "_publish", kill)


@pytest.mark.parametrize("place", ["parts", "body", "mark"])
def test_a_task_that_was_killed_is_begun_again(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 5, "global", num_shards=3, num_tables=3)
    first = world.options() | {"shards": world.shards, "part_rows": 3}
    world.add_shard()
    second = first | {"shards": world.shards[3:], "append": "all records", "limits": {"keys_doubled": 1.0}}
    second["limits"] |= first["limits"]
    here = Twice(tmp_path / "parts", place, monkeypatch)
    for step in (first, second):
        given: dict[str, Any] = dict(step)
        shards = given.pop("shards")
        wsl.build_index(tmp_path / "one", shards, **given)
        wsl.build_index(tmp_path / "two", shards, **given, elsewhere=here)
        assert content_of(tmp_path / "one") == content_of(tmp_path / "two")
    assert here.killed == 2


def test_an_index_that_somebody_changed_meanwhile_stays(tmp_path: Path) -> None:
    world = World(tmp_path, 5, "global", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards}
    both_ways(tmp_path, 1, given)

    class Changed(Here):
        def make(self, parts: Parts, levels: list[list[Part]]) -> None:
            if levels[-1][0].kind == "manifest":
                (tmp_path / "two" / "manifest.json").write_text("another")
            super().make(parts, levels)

    options = {name: value for name, value in given.items() if name != "shards"}
    with pytest.raises(DataError, match="the index was changed while the run went on"):
        wsl.build_index(
            tmp_path / "two",
            world.shards,
            **options,
            overwrite=True,
            elsewhere=Changed(tmp_path / "parts", 1),
        )
    assert (tmp_path / "two" / "manifest.json").read_text() == "another"


@contextmanager
def held(folder: Path) -> Iterator[threading.Event]:
    """Another task that holds the folder until it is told to go."""
    handle = os.open(folder / ".lock-ranks", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    told = threading.Event()

    def wait() -> None:
        told.wait(30)
        os.close(handle)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield told
    finally:
        told.set()
        thread.join()


def test_a_task_that_was_given_up_for_lost_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, 5, "global", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards, "overwrite": True}
    both_ways(tmp_path, 1, given)

    class Late(Here):
        def make(self, parts: Parts, levels: list[list[Part]]) -> None:
            if levels[-1][0].kind != "manifest":
                super().make(parts, levels)
                return
            with held(tmp_path / "two") as told:
                monkeypatch.setattr("wsl.files.locking.TASK_WAITS_S", 0.0)
                with pytest.raises(UsageError, match="another task is building this index"):
                    super().make(parts, levels)
                monkeypatch.setattr("wsl.files.locking.TASK_WAITS_S", 30.0)
                threading.Timer(1.0, told.set).start()
                super().make(parts, levels)

    options = {name: value for name, value in given.items() if name != "shards"}
    wsl.build_index(tmp_path / "one", world.shards, **options)
    wsl.build_index(tmp_path / "two", world.shards, **options, elsewhere=Late(tmp_path / "parts", 1))
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_an_index_that_was_removed_is_made_of_the_parts_that_are_there(tmp_path: Path) -> None:
    world = World(tmp_path, 5, "global", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards}
    both_ways(tmp_path, 1, given)
    for name in ("one", "two"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
    assert both_ways(tmp_path, 1, given).made == []


def test_a_run_is_open_until_its_last_stage_is_known_and_made(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.begin()
    leaves = [Part("scan", number, {}) for number in range(2)]
    levels = [[part.name for part in leaves]]
    parts.note_run("root", "wsl index build", levels, is_whole=False)
    for part in leaves:
        with parts.making(part) as out:
            out.write_bytes(b"x")
    (run,) = status(parts)
    assert (run["done"], run["parts"], run["complete"]) == (2, 2, False)
    last = Part("manifest", 0, {})
    parts.note_run("root", "wsl index build", [*levels, [last.name]])
    (run,) = status(parts)
    assert (run["done"], run["parts"], run["complete"]) == (2, 3, False)
    with parts.making(last) as out:
        out.write_bytes(b"x")
    (run,) = status(parts)
    assert run["complete"]
    assert [level["kind"] for level in run["levels"]] == ["scan", "manifest"]
    json.dumps(run)
    parts.forget(last)
    assert not status(parts)[0]["complete"]


@pytest.mark.parametrize("kind", ["class", None])
def test_shards_with_classes_or_nothing_are_built_and_appended(tmp_path: Path, kind: Any) -> None:
    world = World(tmp_path, 4, "shard", num_shards=3, num_tables=0)
    given: dict[str, Any] = {"label_kind": kind, "key_scope": "shard", "part_rows": 3}
    if kind is not None:
        given["class_names"] = [f"class {number}" for number in range(5)]
    for number in range(2):
        added = world.shards if number == 0 else world.shards[3:]
        both_ways(tmp_path, 1, given | {"shards": list(added), "append": "new records" if number else None})
        world.add_shard()
    taken = wsl.Index.open(tmp_path / "two").keys([0])
    for name in ("one", "two"):
        assert wsl.index.build.drop_samples(tmp_path / name, [f"shard-000:{taken[0]}"])[0] == 1
    # What was taken down stays so when the index is built anew.
    both_ways(tmp_path, 1, given | {"shards": world.shards[:4], "overwrite": True})
    assert wsl.Index.open(tmp_path / "two").manifest["counts"]["samples_dropped"] == 1
