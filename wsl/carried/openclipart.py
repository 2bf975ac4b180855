"""Open Clip Art as a workspace: tags that its authors wrote, and folders as a clean task.

Pretraining reads the hashtag records and all images but those of the clean task; the task has a few
labelled images of each folder and a test set, chosen by a hash of the key. Folders of at least 100
images are classes, without `special` and `unsorted`; they are as unequal as they come, so accuracy is
averaged over classes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from wsl._core import UsageError
from wsl.carried.arrays import read_arrays
from wsl.index.shards import Sample, write_shards

FILE = "openclipart.xz"
SIDE = 48
NO_CLASSES = ("special", "unsorted")
MIN_CLASS = 100
NUM_LABELLED = 20
"""Labelled images of each class."""
NUM_TEST = 150
"""At most this many test images of each class, and at most a third of it."""
SHARD_SAMPLES = 2000
SUBJECT = re.compile(r"<dc:subject\b[^>]*>(.*?)</dc:subject>", re.DOTALL)
ITEM = re.compile(r"<rdf:li\b[^>]*?(?:/>|>(.*?)</rdf:li>)", re.DOTALL)

WORKSPACE = """\
# Open Clip Art: pretraining on the tags of its authors, then the folders as a task with few labels.
indexes:
  hashtags:
    shards: data/tagged-*.tar
    records: data/tags.parquet
    label_kind: hashtag
    # The names of the folders stay out, so that pretraining does not see the task.
    vocabulary: {{min_count: 5, exclude_tags: [{excluded}]}}
  labelled: {{shards: data/labelled-*.tar, label_kind: class, class_names: data/classes.txt}}
  test: {{shards: data/test-*.tar, label_kind: class, class_names: data/classes.txt}}
stages:
  pretrain: {{config: configs/stages/openclipart-pretrain.yaml, index: hashtags}}
  finetune:
    {{config: configs/stages/openclipart-finetune.yaml, index: labelled, evaluate: test, init: pretrain}}
"""


@dataclass(frozen=True)
class Collection:
    """Records with their tags as written, and how to get the image of one (None: it has none)."""

    keys: list[str]
    tags: list[list[str]]
    image: Callable[[int], bytes | None]


def folder_of(key: str) -> str:
    """The top folder, which is the class."""
    return key.split("/", 1)[0]


def find_keys(folder: Path) -> list[str]:
    """The names of all PNG files under `folder`, without the suffix, sorted."""
    found = []
    for root, _, names in os.walk(folder):
        inside = os.path.relpath(root, folder)
        found += [f"{inside}/{name[:-4]}" for name in names if name.endswith(".png") and inside != "."]
    if not found:
        raise UsageError(
            f"{folder}: no PNG files in folders; --source wants the folder that holds png/ and svg/ of Open "
            "Clip Art (Debian: openclipart-png and openclipart-svg have them in /usr/share/openclipart)"
        )
    return sorted(found, key=os.fsencode)


def read_carried(file: Path) -> Collection:
    """The bundled images, 48 x 48 pixels, PNG-encoded when they are asked for."""
    about, arrays = read_arrays(file)
    rows = {number: row for row, number in enumerate(about["with_image"])}
    planes = arrays["images"]

    def image(number: int) -> bytes | None:
        if number not in rows:
            return None
        # Five bits a channel, spread over the whole range: 31 becomes 255.
        values = planes[rows[number]].astype(np.uint16)
        pixels = (values * 255 // 31).astype(np.uint8).transpose(1, 2, 0)
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
        return out.getvalue()

    return Collection(about["keys"], about["tags"], image)


def read_tags(path: Path) -> list[str]:
    """The items of dc:subject in the metadata, empty ones too; nothing where there is no file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    subjects = SUBJECT.findall(text)
    return [unescape(item) for subject in subjects for item in ITEM.findall(subject)]


def read_source(source: Path) -> Collection:
    """All original files under `source`, as they are."""
    keys = find_keys(source / "png")
    tags = [read_tags(source / "svg" / f"{key}.svg") for key in keys]
    return Collection(keys, tags, lambda number: (source / "png" / f"{keys[number]}.png").read_bytes())


def split(keys: list[str]) -> tuple[list[str], dict[int, int], set[int], set[int]]:
    """Classes, the class of each record that has one, and the records of the labelled and test sets."""
    folders: dict[str, list[int]] = {}
    for number, key in enumerate(keys):
        folders.setdefault(folder_of(key), []).append(number)
    classes = sorted(f for f, members in folders.items() if len(members) >= MIN_CLASS and f not in NO_CLASSES)
    class_of: dict[int, int] = {}
    labelled: set[int] = set()
    test: set[int] = set()
    for label, folder in enumerate(classes):
        members = sorted(folders[folder], key=lambda n: hashlib.sha256(keys[n].encode()).digest())
        class_of.update(dict.fromkeys(members, label))
        labelled.update(members[:NUM_LABELLED])
        test.update(members[NUM_LABELLED:][: min(NUM_TEST, len(members) // 3)])
    return classes, class_of, labelled, test


def write_data(folder: Path, file: Path, source: Path | None) -> tuple[list[Path], str]:
    """Writes shards, records and class names to `folder`; the files, and the text of `wsl.yaml`."""
    collection = read_carried(file) if source is None else read_source(source)
    classes, class_of, labelled, test = split(collection.keys)
    tagged = set(range(len(collection.keys))) - labelled - test
    written = []
    for name, members in (("tagged", tagged), ("labelled", labelled), ("test", test)):
        samples = _samples(collection, sorted(members), None if name == "tagged" else class_of)
        written += write_shards(folder, name, samples, max_shard_samples=SHARD_SAMPLES)
    records = pl.DataFrame(
        {"key": [_sample_key(key) for key in collection.keys], "hashtags": collection.tags},
        schema={"key": pl.String, "hashtags": pl.List(pl.String)},
    )
    records.write_parquet(folder / "tags.parquet")
    names = folder / "classes.txt"
    names.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    words = sorted({word for name in classes for word in (name, name.replace("_", " "), name.rstrip("s"))})
    excluded = ", ".join(f'"{word}"' for word in words)
    return [*written, folder / "tags.parquet", names], WORKSPACE.format(excluded=excluded)


def _sample_key(key: str) -> str:
    """A key that readers of shards do not cut: no dot in its last part."""
    head, slash, tail = key.rpartition("/")
    return f"{head}{slash}{tail.replace('.', '_')}"


def _samples(collection: Collection, members: list[int], class_of: dict[int, int] | None) -> Iterator[Sample]:
    for number in members:
        image = collection.image(number)
        if image is None:
            continue
        content = {"png": image}
        if class_of is not None:
            content["cls"] = str(class_of[number]).encode()
        yield _sample_key(collection.keys[number]), content
