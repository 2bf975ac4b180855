"""The carried data, and the workspaces made of them."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import wsl
from wsl import carried
from wsl.carried import arrays, make, openclipart
from wsl.cli import run
from wsl.workspace.config import WorkspaceConfig
from wsl.workspace.settings import load


def members(folder: Path, pattern: str) -> dict[str, bytes]:
    content = {}
    for path in sorted(folder.glob(pattern)):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                content[member.name] = file.read()
    return content


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    carried.make_workspace(folder, "fashion-mnist")
    return folder


@pytest.fixture(scope="module")
def clipart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clipart")
    carried.make_workspace(folder, "openclipart")
    return folder


def test_the_package_carries_at_most_fifteen_megabytes() -> None:
    assert sum(file.stat().st_size for file in carried.data_files()) <= 15_000_000


def test_fashion_mnist_has_balanced_labels_and_sets_apart(fashion: Path) -> None:
    labelled = members(fashion / "data", "labelled-*.tar")
    unlabelled = members(fashion / "data", "unlabelled-*.tar")
    test = members(fashion / "data", "test-*.tar")
    classes = [int(content) for name, content in labelled.items() if name.endswith(".cls")]
    assert np.bincount(classes).tolist() == [50] * 10
    assert len(unlabelled) == 20_000
    assert not any(name.endswith(".cls") for name in unlabelled)
    assert len(test) == 2 * 5000
    assert not set(labelled) & set(unlabelled)
    pixels = {content for name, content in labelled.items() if name.endswith(".png")}
    assert not pixels & set(test.values())
    with Image.open(io.BytesIO(next(iter(unlabelled.values())))) as image:
        assert (image.size, image.mode) == ((28, 28), "L")


def test_open_clip_art_keeps_the_dirt_of_its_records(clipart: Path) -> None:
    records = pl.read_parquet(clipart / "data" / "tags.parquet")
    assert len(records) == 8121
    tags = records["hashtags"].explode()
    assert (tags == "").sum() > 1000
    counts = wsl.count_hashtags(records)
    assert counts.num_distinct == 2074
    assert counts.num_duplicates > 0
    assert counts.rejected["empty"] > 1000


def test_the_task_of_open_clip_art_is_kept_out_of_pretraining(clipart: Path) -> None:
    classes = (clipart / "data" / "classes.txt").read_text().split()
    assert len(classes) == 11
    assert not {"special", "unsorted"} & set(classes)
    tagged, labelled, test = (
        {name for name in members(clipart / "data", f"{part}-*.tar") if name.endswith(".png")}
        for part in ("tagged", "labelled", "test")
    )
    assert len(labelled) == 220
    assert not (tagged & labelled) | (tagged & test) | (labelled & test)
    config = load(WorkspaceConfig, clipart / "wsl.yaml")
    assert set(classes) <= set(config.indexes["hashtags"].vocabulary.exclude_tags)


def test_a_workspace_made_again_is_left_alone_and_another_is_refused(fashion: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in fashion.rglob("*") if path.is_file()}
    assert carried.make_workspace(fashion, "fashion-mnist") == []
    assert {path: path.stat().st_mtime_ns for path in fashion.rglob("*") if path.is_file()} == before
    with pytest.raises(wsl.UsageError, match="other data"):
        carried.make_workspace(fashion, "openclipart")
    with pytest.raises(wsl.UsageError, match="multiple of 10"):
        carried.make_workspace(fashion, "fashion-mnist", num_labelled=15, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in fashion.rglob("*") if path.is_file()} == before


def test_a_small_workspace_is_the_beginning_of_the_large_one(fashion: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    sizes = {"num_labelled": 20, "num_unlabelled": 30, "num_test": 40}
    carried.make_workspace(small, "fashion-mnist", **sizes)
    for pattern, number in (("unlabelled-*.tar", 30), ("test-*.tar", 80)):
        found, whole = members(small / "data", pattern), members(fashion / "data", pattern)
        assert list(found.items()) == list(whole.items())[:number]
    assert len(members(small / "data", "labelled-*.tar")) == 40
    truth, of_all = (pl.read_parquet(folder / "data" / "truth.parquet") for folder in (small, fashion))
    assert truth.equals(of_all[:30])
    assert carried.make_workspace(small, "fashion-mnist", **sizes) == []
    with pytest.raises(wsl.UsageError, match="other data"):
        carried.make_workspace(small, "fashion-mnist", num_labelled=20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_unlabelled": 20_001}, "--num-unlabelled 20001: expected a number from 1 to 20,000"),
        ({"num_test": 0}, "--num-test 0: expected a number from 1 to 5,000"),
    ],
)
def test_more_images_than_there_are_are_refused(tmp_path: Path, options: dict[str, int], said: str) -> None:
    with pytest.raises(wsl.UsageError, match=said):
        carried.make_workspace(tmp_path / "w", "fashion-mnist", **options)
    assert not (tmp_path / "w" / "wsl.yaml").exists()


@pytest.mark.parametrize("dataset", ["openclipart", "none"])
def test_sizes_of_another_set_are_refused(tmp_path: Path, dataset: str) -> None:
    assert run(["init", str(tmp_path / "w"), "--dataset", dataset, "--num-test", "5"]) == 2
    assert not (tmp_path / "w").exists()


def test_configs_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    own = tmp_path / "configs" / "stages" / "teacher.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("stage: teacher\n")
    carried.make_workspace(tmp_path, "none")
    assert own.read_text() == "stage: teacher\n"
    assert (tmp_path / "configs" / "deepspeed" / "zero1.json").is_file()
    assert load(WorkspaceConfig, tmp_path / "wsl.yaml").indexes == {}


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def write_source(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, number in (("train", 60), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (number, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(number) % 10)


def test_the_full_set_comes_from_its_original_files(tmp_path: Path) -> None:
    write_source(tmp_path)
    carried.make_workspace(tmp_path / "w", "fashion-mnist", source=tmp_path, num_labelled=20)
    assert len(members(tmp_path / "w" / "data", "labelled-*.tar")) == 40
    assert len(members(tmp_path / "w" / "data", "unlabelled-*.tar")) == 40
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no")
    with pytest.raises(wsl.DataError, match="expected a gzip file"):
        carried.make_workspace(tmp_path / "v", "fashion-mnist", source=tmp_path, num_labelled=20)
    assert not (tmp_path / "v" / "wsl.yaml").exists()
    with pytest.raises(wsl.UsageError, match="is not there"):
        carried.make_workspace(tmp_path / "u", "fashion-mnist", source=tmp_path / "w")
    with pytest.raises(wsl.UsageError, match="no PNG files"):
        carried.make_workspace(tmp_path / "t", "openclipart", source=tmp_path)


def test_damaged_carried_files_are_refused(tmp_path: Path) -> None:
    whole = carried.data_files()[1].read_bytes()
    for content in (b"", b"no xz", whole[:-100], whole[:5000] + b"x" + whole[5001:]):
        (tmp_path / "a.xz").write_bytes(content)
        with pytest.raises(wsl.DataError, match="damaged"):
            arrays.read_arrays(tmp_path / "a.xz")


def test_the_carried_files_are_made_the_same_again(tmp_path: Path) -> None:
    source = tmp_path / "clip"
    for number in range(3):
        png = source / "png" / "food" / f"pie_{number}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (100, 60 + number), (200, 10 * number, 0, 255)).save(png)
        svg = source / "svg" / "food" / f"pie_{number}.svg"
        svg.parent.mkdir(parents=True, exist_ok=True)
        items = "<rdf:li>pie</rdf:li><rdf:li></rdf:li><rdf:li/><rdf:li>a &amp; b</rdf:li>"
        svg.write_text(f"<svg><dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject></svg>")
    (source / "png" / "food" / "broken.png").write_bytes(b"no image")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make.make_openclipart(source, tmp_path / name)
    assert (tmp_path / "one" / openclipart.FILE).read_bytes() == (
        tmp_path / "two" / openclipart.FILE
    ).read_bytes()
    collection = openclipart.read_carried(tmp_path / "one" / openclipart.FILE)
    assert collection.keys == ["food/broken", "food/pie_0", "food/pie_1", "food/pie_2"]
    assert collection.tags[1] == ["pie", "", "", "a & b"]
    assert collection.image(0) is None
    image = collection.image(1)
    assert image is not None
    with Image.open(io.BytesIO(image)) as opened:
        assert opened.size == (48, 48)
        assert opened.getpixel((0, 0)) == (255, 255, 255)
