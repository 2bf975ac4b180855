"""Parts: files that are made once, wherever, and known by what they are made of.

A part's name holds the hash of its inputs, options and engine version, so that its bytes follow from its
name. The body is written first, under a temporary name, synced and renamed; then a small mark with its
SHA-256 and length. Only a part with a mark is finished, and no finished part is made again. Two writers of
one part are harmless, for their bytes are equal; where they are not, the run stops. Nothing rests on a
store that refuses to replace what is there.

    <folder>/<name>                     the body
    <folder>/marks/<name>.json          {"sha256": ..., "size": ...}
    <folder>/failed/<name>.json         what the last try said; gone when the part is made
    <folder>/runs/<root>.json           the names of all parts of a run, level by level
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wsl._core import DataError, __version__
from wsl.publish import publish_text, sync

MARKS, FAILED, RUNS = "marks", "failed", "runs"


@dataclass(frozen=True)
class Mark:
    """What is known of a finished part."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Part:
    """A part to be made: by which function of `wsl.cluster.tasks`, with what, of which other parts."""

    kind: str
    number: int
    arguments: Mapping[str, Any]
    """JSON values that determine the bytes."""
    inputs: tuple[str, ...] = ()
    """Names of the parts that it is made of."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that change how, and never what, is made: memory, threads."""
    file: str | None = None
    """The name of the body, where it is a result that has one of its own."""

    @cached_property
    def key(self) -> str:
        """The hash of all that determines the bytes."""
        made_of = [__version__, self.kind, self.arguments, self.inputs, self.file]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """The name of the body in its folder."""
        return self.file or f"{self.kind}-{self.number:06}-{self.key[:20]}"


class Parts:
    """The parts in a folder that all nodes see. These few operations are all that is asked of it."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def begin(self) -> None:
        """Makes the folders."""
        for name in (MARKS, FAILED, RUNS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where a body lies."""
        return self.folder / name

    def finished(self, part: Part) -> Mark | None:
        """The mark of a part where it is finished, with a body of the length that the mark says."""
        mark = self._read_mark(part)
        try:
            there = mark is not None and self._size(part.name) == mark.size
        except FileNotFoundError:
            return None
        return mark if there else None

    def checked(self, name: str) -> Path:
        """The body of a finished part, held against its mark; DataError where it is another."""
        mark = json.loads((self.folder / MARKS / f"{name}.json").read_text(encoding="utf-8"))
        if _sha256(self.path(name)) != mark["sha256"]:
            raise DataError(
                f"{self.path(name)}: the part is not as it was written; remove it and run the command again"
            )
        return self.path(name)

    @contextmanager
    def making(self, part: Part) -> Iterator[Path]:
        """The path to write the body to, a file or a folder; at the end it is published, its mark last.

        Raises DataError where another writer has finished the part with other bytes.
        """
        self.begin()
        owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary = self.folder / f".tmp-{owner}-{part.name}"
        try:
            yield temporary
            self._publish(part, temporary)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.unlink(missing_ok=True)

    def adopt(self, part: Part) -> Mark:
        """Marks a body that is there, whole, as finished."""
        self.begin()
        return self._mark(part, _sha256(self.path(part.name)), self._size(part.name))

    def _publish(self, part: Part, temporary: Path) -> None:
        sha256, size = _sha256(temporary), temporary.stat().st_size
        known = self._read_mark(part)
        if known is not None and self.finished(part) is not None and known.sha256 != sha256:
            raise DataError(
                f"{self.path(part.name)}: another worker made this part with other bytes (SHA-256 "
                f"{known.sha256[:12]}, here {sha256[:12]}), so one of them is wrong: is a file of the "
                "inputs being changed, or is a machine faulty? Remove the part and its mark, and run again"
            )
        sync(temporary)
        temporary.replace(self.path(part.name))
        sync(self.folder)
        self._mark(part, sha256, size)

    def _mark(self, part: Part, sha256: str, size: int) -> Mark:
        text = json.dumps({"key": part.key, "sha256": sha256, "size": size})
        publish_text(self.folder / MARKS / f"{part.name}.json", text + "\n")
        (self.folder / FAILED / f"{part.name}.json").unlink(missing_ok=True)
        return Mark(part.name, sha256, size)

    def note_failure(self, part: Part, text: str) -> None:
        """Keeps what a try said, for `wsl cluster status`."""
        publish_text(self.folder / FAILED / f"{part.name}.json", json.dumps({"error": text}) + "\n")

    def note_run(self, root: str, command: str, levels: list[list[str]]) -> None:
        """Says which parts a run is of; `root` is what its result is called."""
        text = json.dumps({"command": command, "levels": levels})
        publish_text(self.folder / RUNS / f"{root}.json", text + "\n")

    def runs(self) -> list[tuple[str, dict[str, Any]]]:
        """All runs, by name."""
        files = sorted((self.folder / RUNS).glob("*.json"))
        return [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files]

    def marked(self) -> set[str]:
        """The names of all parts with a mark: one listing for thousands of them."""
        return {file.stem for file in (self.folder / MARKS).glob("*.json")}

    def failures(self) -> dict[str, str]:
        """What failed parts said last."""
        files = sorted((self.folder / FAILED).glob("*.json"))
        return {file.stem: json.loads(file.read_text(encoding="utf-8"))["error"] for file in files}

    def _size(self, name: str) -> int:
        return self.path(name).stat().st_size

    def _read_mark(self, part: Part) -> Mark | None:
        try:
            known = json.loads((self.folder / MARKS / f"{part.name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if known.get("key") != part.key:
            return None
        return Mark(part.name, known["sha256"], known["size"])


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
