"""Parts: files that are made once, wherever, and known by what they are made of.

A part's name has the hash of its inputs, options and engine version, so that its bytes follow from its
name. The body is written first, whole; then a small mark with its SHA-256 and length. Only a part with a
mark is finished, and no finished part is made again. Two writers of one part are harmless, for their bytes
are equal; where they are not, the run stops. Nothing rests on a store that refuses to replace what is
there.

    <folder>/<name>                     the body
    <folder>/marks/<name>.json          {"sha256": ..., "size": ...}
    <folder>/failed/<name>.json         the error of the last try; gone when the part is made
    <folder>/runs/<root>.json           the names of all parts of a run, level by level

The folder is one that all nodes see, or the URI of one in a store (`wsl.files.stores`). What is made for a
store is written to a private temporary file and uploaded; what must be a file to be read comes to one, and
goes with its use.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from wsl._core import DataError, __version__
from wsl.files import stores
from wsl.files.publish import TEMPORARY_PREFIX, sync

MARKS, FAILED, RUNS = "marks", "failed", "runs"
ABANDONED_S = 3600.0
"""Seconds after which nobody writes to a file any more."""


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


@dataclass
class Run:
    """A run of a command, whose parts become known stage by stage."""

    name: str
    """The same whenever the run is resumed."""
    levels: list[list[str]] = field(default_factory=list)
    """The names of the parts that are known."""


class Parts:
    """The parts in a folder that all nodes see, or in a store. No more is asked of either than this."""

    def __init__(self, folder: stores.Place) -> None:
        named = os.fspath(folder)
        self.is_remote = stores.is_remote(named)
        self.folder = named.rstrip("/") if self.is_remote else os.path.abspath(named)
        """The folder's path, or its URI."""

    def begin(self) -> None:
        """Makes the folders; a store has none."""
        for name in () if self.is_remote else (MARKS, FAILED, RUNS):
            os.makedirs(self.place(name), exist_ok=True)

    def tidy(self) -> None:
        """Removes what killed workers left half-written, long enough ago that none is still at it."""
        for left in [] if self.is_remote else Path(self.folder).glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > ABANDONED_S:
                    _remove(left)

    def place(self, *names: str) -> str:
        """Where a body is: its path or URI, which the engine's readers of parts take."""
        return stores.join(self.folder, *names)

    def finished(self, part: Part) -> Mark | None:
        """The mark of a part where it is finished, with a body of the length that is in the mark."""
        mark = self._read_mark(part)
        if mark is None:
            return None
        seen = stores.head(self.place(part.name))
        return mark if seen is not None and seen.size == mark.size else None

    @contextmanager
    def held(self, *names: str) -> Iterator[list[Path]]:
        """The bodies of finished parts as files, checked against their marks; DataError where one is another.

        Those of a store are private files, which go at the end.
        """
        with ExitStack() as stack:
            files = [Path(self.place(name)) for name in names]
            if self.is_remote:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsl-parts-")))
                files = [folder / name for name in names]
                for name, file in zip(names, files, strict=True):
                    stores.download(self.place(name), file)
            for name, file in zip(names, files, strict=True):
                mark = json.loads(stores.read_bytes(self._mark_of(name)))
                if _sha256(file) != mark["sha256"]:
                    raise DataError(
                        f"{self.place(name)}: the part is not as it was written; remove it and run the "
                        f"command again"
                    )
            yield files

    @contextmanager
    def making(self, part: Part) -> Iterator[Path]:
        """The path to write the body to; at the end it is published, its mark last.

        Raises DataError where another writer has finished the part with other bytes.
        """
        self.begin()
        with ExitStack() as stack:
            if self.is_remote:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsl-parts-")))
            else:
                folder = Path(self.folder)
            owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            temporary = folder / f"{TEMPORARY_PREFIX}{owner}-{part.name}"
            stack.callback(_remove, temporary)
            yield temporary
            self._publish(part, temporary)

    def keep(self, kind: str, content: bytes) -> Part:
        """A part whose body is `content`: what the nodes need that is too long for arguments."""
        part = Part(kind, 0, {"sha256": hashlib.sha256(content).hexdigest()})
        if self.finished(part) is None:
            with self.making(part) as out:
                out.write_bytes(content)
        return part

    def _publish(self, part: Part, temporary: Path) -> None:
        sha256, size = _sha256(temporary), temporary.stat().st_size
        if self.finished(part) is not None:
            self._check_same(part, sha256)
        if self.is_remote:
            stores.upload(temporary, self.place(part.name))
        else:
            sync(temporary)
            temporary.replace(self.place(part.name))
            sync(Path(self.folder))
        self._mark(part, sha256, size)
        # One who wrote at the same time has seen no mark either; the last one to look stops.
        self._check_same(part, sha256)

    def _check_same(self, part: Part, sha256: str) -> None:
        known = self._read_mark(part)
        if known is not None and known.sha256 != sha256:
            raise DataError(
                f"{self.place(part.name)}: another worker made this part with other bytes (SHA-256 "
                f"{known.sha256[:12]}, here {sha256[:12]}), so one of them is wrong: is a file of the "
                "inputs being changed, or is a machine faulty? Remove the part and its mark, and run again"
            )

    def _mark(self, part: Part, sha256: str, size: int) -> Mark:
        text = json.dumps({"key": part.key, "sha256": sha256, "size": size})
        self._write(self._mark_of(part.name), text)
        stores.delete(self.place(FAILED, f"{part.name}.json"))
        return Mark(part.name, sha256, size)

    def note_failure(self, part: Part, text: str) -> None:
        """Keeps the error of a try, for `wsl cluster status`."""
        self._write(self.place(FAILED, f"{part.name}.json"), json.dumps({"error": text}))

    def forget(self, part: Part) -> None:
        """Removes the mark of a part, which is to be made again."""
        stores.delete(self._mark_of(part.name))

    def note_run(self, root: str, command: str, levels: list[list[str]], *, is_whole: bool = True) -> None:
        """Says which parts a run is of, all of them where `is_whole`; `root` is what the run is called."""
        about = {"command": command, "levels": levels, "is_whole": is_whole}
        self._write(self.place(RUNS, f"{root}.json"), json.dumps(about))

    def runs(self) -> list[tuple[str, dict[str, Any]]]:
        """All runs, by name."""
        return [(name, self._read(RUNS, name)) for name in self._names(RUNS)]

    def marked(self) -> set[str]:
        """The names of all parts with a mark: one listing for thousands of them."""
        return set(self._names(MARKS))

    def failures(self) -> dict[str, str]:
        """The last error of each failed part."""
        return {name: self._read(FAILED, name)["error"] for name in self._names(FAILED)}

    def _names(self, folder: str) -> list[str]:
        """What the notes in a folder are about."""
        place = self.place(folder)
        if self.is_remote:
            files = [one.uri.rpartition("/")[2] for one in stores.listing(f"{place}/")]
        else:
            files = os.listdir(place) if os.path.isdir(place) else []
        known = [name for name in files if name.endswith(".json") and not name.startswith(".")]
        return sorted(name.removesuffix(".json") for name in known)

    def _read(self, folder: str, name: str) -> Any:
        return json.loads(stores.read_bytes(self.place(folder, f"{name}.json")))

    def _write(self, place: str, text: str) -> None:
        stores.write_bytes(place, f"{text}\n".encode())

    def _mark_of(self, name: str) -> str:
        return self.place(MARKS, f"{name}.json")

    def _read_mark(self, part: Part) -> Mark | None:
        try:
            known = json.loads(stores.read_bytes(self._mark_of(part.name)))
        except (FileNotFoundError, ValueError):
            return None
        if known.get("key") != part.key:
            return None
        return Mark(part.name, known["sha256"], known["size"])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
