"""Writing tar shards: reproducible archives in WebDataset's layout, each published whole.

A sample is a key and its members, one file for each extension (``{"jpg": ..., "cls": b"3"}``);
the members of a sample are together under ``key.extension``. The same samples make the same
bytes on every machine: names, sizes and contents are all that enters a header. A shard is written
under a temporary name, synced and renamed, so nobody ever sees half of one.
"""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

from wsl._core import UsageError
from wsl.files.publish import publish_text, sync

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff"})

Sample = tuple[str, Mapping[str, bytes]]


class ShardWriter:
    """One tar shard being written; ``with`` publishes it at the end, or removes it on an error."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.num_samples = 0
        self.num_bytes = 0
        self._temporary = self.path.with_name(f".tmp-{os.getpid()}-{self.path.name}")
        self._file = self._temporary.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Adds the sample `key`; a member for each extension, in the order given.

        Raises UsageError for a key whose base name has a dot (WebDataset would cut it there), and
        for an empty key or extension.
        """
        if not key.rpartition("/")[2] or "." in key.rpartition("/")[2] or key.startswith("/"):
            raise UsageError(
                f"{self.path}: the key {key!r} cannot name a sample: its last part must not be empty "
                "or hold a dot (readers cut a key there), and it must not begin with a slash"
            )
        for extension, content in members.items():
            if not extension or "/" in extension:
                raise UsageError(f"{self.path}: sample {key!r}: {extension!r} is no member extension")
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size = len(content)
            header.mode = 0o644
            self._tar.addfile(header, io.BytesIO(content))
            self.num_bytes += _member_size(len(content))
        self.num_samples += 1

    def publish(self) -> None:
        """Ends the archive, syncs it and gives it its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        sync(self.path.parent)

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.publish()
        else:
            self.abandon()


def write_shard(path: str | os.PathLike[str], samples: Iterable[Sample]) -> int:
    """Writes `samples` as one tar shard at `path`, whole or not at all; returns their number.

    Each sample is ``(key, {extension: content})``. A file already at `path` is replaced.
    """
    with ShardWriter(path) as shard:
        for key, members in samples:
            shard.write(key, members)
    return shard.num_samples


def write_shards(
    folder: str | os.PathLike[str],
    name: str,
    samples: Iterable[Sample],
    *,
    max_shard_bytes: int = 1 << 30,
    max_shard_samples: int | None = None,
) -> list[Path]:
    """Writes `samples` to ``folder/name-000000.tar`` and so on; returns the paths in order.

    A shard is closed before the sample that would take it over `max_shard_bytes` (headers and
    padding included) or `max_shard_samples`; a sample larger than a shard gets one of its own.
    """
    if max_shard_bytes < 1 or (max_shard_samples is not None and max_shard_samples < 1):
        raise UsageError("max_shard_bytes and max_shard_samples must be at least 1")
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    shard: ShardWriter | None = None
    try:
        for key, members in samples:
            size = sum(_member_size(len(content)) for content in members.values())
            if shard is not None and (
                shard.num_bytes + size > max_shard_bytes or shard.num_samples == max_shard_samples
            ):
                shard.publish()
                shard = None
            if shard is None:
                paths.append(Path(folder) / f"{name}-{len(paths):06}.tar")
                shard = ShardWriter(paths[-1])
            shard.write(key, members)
        if shard is not None:
            shard.publish()

    # Also where it is interrupted: an unfinished shard must not stay.
    except BaseException:
        if shard is not None:
            shard.abandon()
        raise
    return paths


def pack_shards(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    max_shard_bytes: int = 1 << 30,
    max_shard_samples: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Path]:
    """Packs an ImageFolder tree (a folder for each class) into tar shards; returns their paths.

    Class i is the i-th class folder by name, and ``out/classes.txt`` has its name on line i. Every
    image becomes a sample ``<class>/<path without extension>`` (dots become ``_``) with a ``.cls``
    member that contains i; other files are left out. `seed` shuffles the images over the shards, as
    training from a window of shards wants; without it they are by class, then by name. Shards are
    called ``<name>-NNNNNN.tar``, by default after `folder`.

    Raises UsageError where there are no class folders or images, where two images get one key, and
    where `out` already has shards of that name unless `overwrite`.
    """
    source, target = Path(folder), Path(out)
    if not source.is_dir():
        raise UsageError(f"{source}: expected a folder with one folder for each class")

    # The classes are numbered by their sorted names, so that the same folders give the same numbers anywhere.
    name = name or source.resolve().name
    classes = sorted(entry.name for entry in source.iterdir() if entry.is_dir() and entry.name[0] != ".")
    images = list(_images(source, classes))
    if not images:
        raise UsageError(
            f"{source}: no images found; expected one folder for each class with images "
            f"({', '.join(sorted(IMAGE_EXTENSIONS))}) in it"
        )
    if seed is not None:
        random.Random(seed).shuffle(images)

    # Looked for before anything is written, so that a refusal leaves the folder as it was.
    old = sorted(target.glob(f"{name}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"))
    if old and not overwrite:
        raise UsageError(f"{target}: there are shards already ({old[0].name}, ...); overwrite replaces them")
    paths = write_shards(
        target,
        name,
        _samples(images, progress),
        max_shard_bytes=max_shard_bytes,
        max_shard_samples=max_shard_samples,
    )

    # Shards of a larger set that was here before would be read as part of this one.
    for leftover in set(old) - set(paths):
        leftover.unlink()
    publish_text(target / "classes.txt", "".join(f"{class_name}\n" for class_name in classes))
    return paths


def _images(source: Path, classes: list[str]) -> Iterator[tuple[str, int, Path]]:
    seen: dict[str, Path] = {}
    for label, class_name in enumerate(classes):
        if "\n" in class_name or "\r" in class_name:
            raise UsageError(f"{source}: the class folder {class_name!r} has a line break in its name")
        for path in sorted((source / class_name).rglob("*")):
            if path.suffix[1:].lower() not in IMAGE_EXTENSIONS or not path.is_file():
                continue
            inner = path.relative_to(source).with_suffix("")
            key = inner.with_name(inner.name.replace(".", "_")).as_posix()
            if key in seen:
                raise UsageError(f"{seen[key]} and {path} would both get the key {key!r}; rename one of them")
            seen[key] = path
            yield key, label, path


def _samples(
    images: list[tuple[str, int, Path]], progress: Callable[[int], object] | None
) -> Iterator[Sample]:
    for done, (key, label, path) in enumerate(images, start=1):
        yield key, {path.suffix[1:].lower(): path.read_bytes(), "cls": str(label).encode()}
        if progress is not None and (done % 1000 == 0 or done == len(images)):
            progress(done)


def _member_size(size: int) -> int:
    """Bytes a member takes in the archive: its header, and its content padded to 512."""
    return 512 + -(-size // 512) * 512
