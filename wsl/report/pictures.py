"""Sample images of a workspace: the best of a class, those at its cut, those that disagree; tagged ones.

An image larger than the page shows it is made small first, so that the page stays small too; one that
cannot be decoded is left out and counted.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from wsl._core import UsageError
from wsl.figures.page import Block, GalleryBlock, Group, Picture, Section, TextBlock
from wsl.index.mapped import Index
from wsl.report.selection import Selected, best_classes, disagreeing

NUM_PICTURES = 8
"""Pictures in a row."""
MAX_CLASSES = 12
MAX_SIDE = 144
"""Pixels of the longer side of a picture on the page, twice what it takes there."""
MAX_BYTES = 1 << 14
"""A picture that is no larger stays as it is."""
MAX_PIXELS = 50_000_000


def thumbnail(content: bytes) -> bytes | None:
    """An encoded image, small enough for a page; None where it cannot be decoded or is too large.

    The size in the header is checked before a pixel is decoded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None

                # Browsers show these formats, so a small image goes into the page as it is.
                small = max(image.size) <= 2 * MAX_SIDE and len(content) <= MAX_BYTES
                if small and image.format in ("PNG", "JPEG", "WEBP"):
                    image.load()
                    return content
                shown = image.convert("RGBA")
        shown.thumbnail((MAX_SIDE, MAX_SIDE))
        out = io.BytesIO()

        # RGB has no transparency, so transparent parts become white.
        white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
        Image.alpha_composite(white, shown).convert("RGB").save(out, "WEBP", quality=80)
    except Exception:  # decoders of hostile bytes raise nearly everything
        return None
    return out.getvalue()


def selection_pictures(
    selected: Selected | None, index: Index | None, predictions: Path | None, prefix: str = ""
) -> list[Section]:
    """Of every class the best images, those at the cut, and those that disagree, with their scores."""
    if selected is None or index is None or not len(selected.pairs):
        return []
    title = f"{prefix}pseudo-labelled images"
    labels = selected.pairs["class"].unique().sort()
    shown = labels.head(MAX_CLASSES)
    samples = selected.pairs.filter(pl.col("class").is_in(shown.implode()))["sample"]
    best = None if predictions is None else best_classes(predictions, samples)
    rows = {int(label): _rows(selected, int(label), best) for label in shown}
    tables = [table for parts in rows.values() for _, table in parts]

    # Ordinals of an index that was built anew are those of other images.
    if not _is_of(index, selected, pl.concat([table["sample"] for table in tables])):
        text = f"The index {index.path.name} was built anew since the selection: its images are others."
        return [Section(title, "", [TextBlock(text)])]
    reader = _Reader(index)
    groups = [
        Group(
            selected.name(label),
            [(heading, reader.pictures(table, selected)) for heading, table in parts],
        )
        for label, parts in rows.items()
    ]
    text = "Rank within the class, score (log-odds) and probability by the teacher. " + _words(
        selected, best is not None
    )
    if len(labels) > MAX_CLASSES:
        text += f" The first {MAX_CLASSES} of {len(labels):,} classes."
    blocks: list[Block] = [GalleryBlock(groups, text), *reader.left_out()]
    return [Section(title, "", blocks)]


def _words(selected: Selected, teacher_is_asked: bool) -> str:
    """When an image disagrees."""
    if selected.has_truth:
        return "An image disagrees where its true class is another one."
    rival = "another class selected it with a higher score"
    if teacher_is_asked:
        rival = f"the teacher prefers another class for it, or {rival}"
    return f"An image disagrees where {rival}; the true classes are not known here."


def _rows(selected: Selected, label: int, teacher: pl.DataFrame | None) -> list[tuple[str, pl.DataFrame]]:
    """The tables of a class by their headings; an image at the cut is not shown among the best too."""
    ranked = selected.pairs.filter(pl.col("class") == label).sort("rank")
    best = ranked.head(min(NUM_PICTURES, (len(ranked) + 1) // 2))
    cut = ranked.tail(min(NUM_PICTURES, len(ranked) // 2))
    wrong = disagreeing(selected, label, teacher)
    heading = f"disagreeing: {len(wrong):,} of {len(ranked):,}, the surest first"
    return [("best", best), ("at the cut", cut), (heading, wrong.head(NUM_PICTURES))]


def _is_of(index: Index, selected: Selected, samples: pl.Series) -> bool:
    """Whether these samples are those of the index: by its fingerprint, else by their keys."""
    if selected.about.get("index_fingerprint") == index.fingerprint:
        return True
    shown = selected.pairs.filter(pl.col("sample").is_in(samples.unique().to_list()))
    if "key" not in shown.columns or int(str(shown["sample"].max())) >= len(index):
        return False
    return index.keys(shown["sample"].to_numpy().astype(np.int64)) == shown["key"].to_list()


class _Reader:
    """Reads pictures, and counts those that cannot be shown."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.num_left_out = 0
        self.why: str | None = None
        """Why no image can be read, where the shards are elsewhere."""

    def images(self, samples: Sequence[int]) -> list[bytes | None]:
        """Small pictures of samples."""
        if not len(samples) or self.why is not None:
            return [None] * len(samples)
        try:
            contents = self.index.read(np.asarray(samples, dtype=np.int64))
        except UsageError as error:
            self.why = str(error)
            return [None] * len(samples)
        found = [thumbnail(bytes(content)) for content in contents]
        self.num_left_out += sum(image is None for image in found)
        return found

    def pictures(self, table: pl.DataFrame, selected: Selected) -> list[Picture]:
        """The pictures of rows of a selection."""
        found = []
        for row, image in zip(
            table.iter_rows(named=True), self.images(table["sample"].to_list()), strict=True
        ):
            if image is None:
                continue
            caption = f"rank {row['rank']:,}, {row['score']:.1f} ({row['probability']:.1%})"
            if "other" in row:
                caption += f"; {row['why']} {selected.name(row['other'])}"
            is_wrong = selected.has_truth and row.get("truth") not in (None, row.get("class"))
            found.append(Picture(image, caption, marked="other" in row or is_wrong))
        return found

    def left_out(self) -> list[Block]:
        """Remarks on pictures that are not shown."""
        if self.why is not None:
            return [TextBlock(f"Images cannot be shown: {self.why}")]
        if not self.num_left_out:
            return []
        return [TextBlock(f"{self.num_left_out:,} images were taken down or cannot be decoded.")]


def tagged_pictures(index: Index, prefix: str = "") -> list[Section]:
    """Images of the most frequent hashtags of an index, with their tags."""
    vocabulary = index.class_names or []
    if not vocabulary or not index.shard_paths():
        return []
    reader = _Reader(index)
    # The first million samples have enough of each frequent hashtag.
    ordinals = np.arange(min(len(index), 1 << 20), dtype=np.int64)
    labels, offsets = index.flat_labels(ordinals)
    groups: list[Group] = []
    for label in range(min(MAX_CLASSES, len(vocabulary))):
        places = np.flatnonzero(labels == label)
        chosen = places[np.linspace(0, len(places) - 1, min(NUM_PICTURES, len(places))).astype(np.int64)]
        shown = (np.searchsorted(offsets, chosen, side="right") - 1).tolist()
        pictures = []
        for ordinal, image in zip(shown, reader.images(shown), strict=True):
            if image is not None:
                tags = [vocabulary[tag] for tag in labels[offsets[ordinal] : offsets[ordinal + 1]]]
                pictures.append(Picture(image, ", ".join(tags[:4])))
        groups.append(Group(vocabulary[label], [("", pictures)]))
    words = "Images of the most frequent hashtags of the vocabulary, with their tags."
    return [Section(f"{prefix}tagged images", "", [GalleryBlock(groups, words), *reader.left_out()])]
