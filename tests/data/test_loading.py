"""The torch dataset and sampler: the same global batches whatever ranks, workers and restarts."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.transforms import v2

import wsl
from wsl.data.augment import OPERATIONS, ImageOptions, decode_image, rand_augment, transform
from wsl.data.dataset import Images, LabelledExamples, sharing_decoded
from wsl.data.epochs import EpochDataset, ImageBatch, collate
from wsl.data.loader import Loader
from wsl.data.sampler import StepSampler
from wsl.index.shards import write_shard

BATCH, STEPS = 12, 10
OPTIONS = ImageOptions(image_size=16, augment_layers=2)


def encoded(number: int, kind: str = "PNG") -> bytes:
    rng = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20 + number % 5, 24, 3), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wsl.Index:
    folder = tmp_path_factory.mktemp("loading")
    for shard in range(3):
        samples = [(f"s{shard}-{n}", {"png": encoded(shard * 20 + n), "cls": b"1"}) for n in range(20)]
        write_shard(folder / f"{shard}.tar", samples)
    return wsl.build_index(folder / "index", sorted(folder.glob("*.tar")), label_kind="class")


def make(index: wsl.Index, rank: int = 0, world_size: int = 1) -> tuple[EpochDataset, StepSampler]:
    order = wsl.EpochOrder(index, np.linspace(0.5, 2, len(index)).astype(np.float32), seed=7)
    sampler = StepSampler(order, BATCH, num_steps=STEPS, rank=rank, world_size=world_size)
    return EpochDataset(index, order, OPTIONS, seed=7), sampler


def loader(data: EpochDataset, sampler: StepSampler, num_workers: int) -> Any:
    return StatefulDataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,
    )


def global_batches(index: wsl.Index, world_size: int, num_workers: int, state: Any, num: int) -> list[Any]:
    """The batches of all ranks put together: ordinals and pixels."""
    ranks = []
    for rank in range(world_size):
        data, sampler = make(index, rank, world_size)
        if state is not None:
            sampler.load_state_dict(state)
        stream = iter(loader(data, sampler, num_workers))
        ranks.append([next(stream) for _ in range(num)])
        del stream
    batches = []
    for parts in zip(*ranks, strict=True):
        samples = torch.cat([part.samples for part in parts]).tolist()
        batches.append((samples, torch.cat([part.images for part in parts])))
    return batches


@pytest.mark.parametrize(("stopped", "world_size", "num_workers"), [(3, 2, 0), (1, 3, 2), (7, 1, 1)])
def test_a_run_goes_on_with_other_ranks_and_workers_and_the_batches_are_the_same(
    index: wsl.Index, stopped: int, world_size: int, num_workers: int
) -> None:
    whole = global_batches(index, 1, 0, None, STEPS)
    _, sampler = make(index)
    before = global_batches(index, 2, 1, None, stopped)
    after = global_batches(index, world_size, num_workers, sampler.state_at(stopped), STEPS - stopped)
    for (samples, images), (expected, pixels) in zip(before + after, whole, strict=True):
        assert samples == expected
        assert torch.equal(images, pixels)
    order = sampler.order
    assert [s for samples, _ in whole for s in samples] == order[0 : BATCH * STEPS].tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stateful_loader_saves_and_restores_its_place(index: wsl.Index, num_workers: int) -> None:
    expected = [samples for samples, _ in global_batches(index, 1, 0, None, STEPS)]
    data, sampler = make(index)
    first = loader(data, sampler, num_workers)
    stream = iter(first)
    seen = [next(stream).samples.tolist() for _ in range(4)]
    state = first.state_dict()
    data, sampler = make(index)
    second = loader(data, sampler, num_workers)
    second.load_state_dict(state)
    seen += [batch.samples.tolist() for batch in second]
    assert seen == expected
    # The next pass goes on in the stream.
    assert next(iter(loader(data, sampler, 0))).positions[0] == BATCH * STEPS


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize(
    "options",
    [
        ImageOptions(image_size=16, augment_layers=2),
        ImageOptions(image_size=16, crop=False, shift=3, num_channels=1, mean=(0.4,), std=(0.2,)),
        ImageOptions(image_size=12, crop=False, flip=False, augment_layers=1, augment_level=20),
    ],
)
def test_a_batch_is_its_images_one_by_one(index: wsl.Index, options: ImageOptions, num_threads: int) -> None:
    order = wsl.EpochOrder(index, seed=3)
    images = Images(index, options, num_threads=num_threads, cache_bytes=10_000)
    loader = Loader(images, LabelledExamples(index), order, seed=5)
    positions = np.array([7, 8, 9, 60, 61, 2])
    for _ in range(2):  # the second time from the cache, where there is one
        loaded = loader.at(positions)
        assert loaded.images.shape == (6, options.num_channels, options.image_size, options.image_size)
        assert loaded.samples.tolist() == [int(order[p : p + 1][0]) for p in positions]
        assert loaded.targets.labels.tolist() == [[1]] * 6
        for at, position in enumerate(positions.tolist()):
            content = index.read(loaded.samples[at : at + 1])[0]
            image = decode_image(content, 10**6, options.num_channels)
            assert image is not None
            assert torch.equal(loaded.images[at], transform(image, options, 5, position))


def test_a_state_of_another_index_or_batch_is_refused(index: wsl.Index, tmp_path: Path) -> None:
    _, sampler = make(index)
    state = sampler.state_at(3)
    assert len(pickle.dumps(state)) < 400
    write_shard(tmp_path / "a.tar", [(f"o{n}", {"png": b"x"}) for n in range(len(index))])
    other = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    with pytest.raises(wsl.UsageError, match="index fingerprint"):
        make(other)[1].load_state_dict(state)
    with pytest.raises(wsl.UsageError, match="global batch of 12"):
        StepSampler(sampler.order, 24, num_steps=5).load_state_dict(state)
    with pytest.raises(wsl.UsageError, match="cannot be shared by 5 ranks"):
        StepSampler(sampler.order, BATCH, num_steps=5, world_size=5)


def test_an_index_works_in_workers_that_are_forked_or_spawned(index: wsl.Index) -> None:
    data, sampler = make(index)
    expected = [batch.samples.tolist() for batch in loader(data, sampler, 0)]
    for kind in ("fork", "spawn"):
        data, sampler = make(index)
        workers = DataLoader(
            data, batch_sampler=sampler, collate_fn=collate, num_workers=1, multiprocessing_context=kind
        )
        assert [batch.samples.tolist() for batch in workers] == expected
    again = pickle.loads(pickle.dumps(index))
    assert again.read([0]) == index.read([0])
    assert threading.active_count() < 20


def read_in_child(index: wsl.Index, pipe: Any) -> None:
    pipe.send(len(index.read(np.arange(len(index)))))


def test_reading_goes_on_in_a_child_forked_while_other_threads_read(index: wsl.Index) -> None:
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            index.read(np.arange(len(index)))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(10):
            here, there = context.Pipe()
            child = context.Process(target=read_in_child, args=(index, there))
            child.start()
            assert here.poll(30)
            assert here.recv() == len(index)
            child.join()
            child.close()
            here.close()
            there.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_cannot_be_shown_is_replaced_the_same_way_and_counted(tmp_path: Path) -> None:
    samples = [(f"s{n}", {"png": encoded(n) if n % 5 else b"no image"}) for n in range(40)]
    write_shard(tmp_path / "a.tar", samples)
    index = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    wsl.drop_samples(index.path, ["s7"])
    index = wsl.Index.open(index.path)
    order = wsl.EpochOrder(index, seed=1)
    options = ImageOptions(image_size=8, max_pixels=24 * 23)
    data = EpochDataset(index, order, options, seed=1, max_corrupt_share=1.0)
    batch = collate(data.__getitems__(list(range(40))))
    assert isinstance(batch, ImageBatch)
    asked = order[0:40]
    # Heights run from 20 to 24: those of 24 have too many pixels.
    bad = {n for n in range(40) if n % 5 in (0, 4) or n == 7}
    assert not bad & set(batch.samples.tolist())
    good = np.array([sample not in bad for sample in asked])
    assert (batch.samples.numpy()[good] == asked[good]).all()
    assert batch.num_replaced >= len(bad)
    # What was taken down is replaced too, and is no corrupt image.
    assert 1 <= batch.num_replaced - data.corrupt.num_corrupt <= 3
    one_by_one = [data[position].sample for position in reversed(range(40))]
    assert one_by_one[::-1] == batch.samples.tolist()
    strict = EpochDataset(index, order, options, seed=1)
    with pytest.raises(wsl.DataError, match="max_corrupt_share"):
        strict.__getitems__([position % 40 for position in range(1200)])
    write_shard(tmp_path / "b.tar", [("s", {"png": b"no image"})])
    nothing = wsl.build_index(tmp_path / "nothing", [tmp_path / "b.tar"])
    with pytest.raises(wsl.DataError, match="nor can 16 drawn"):
        EpochDataset(nothing, wsl.EpochOrder(nothing), options)[0]


def test_images_are_decoded_as_pillow_does_and_cut_to_size() -> None:
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        content = encoded(3, kind)
        pixels = decode_image(content, 10**6)
        assert pixels is not None
        assert pixels.shape == (3, 23, 24)
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)
        assert np.abs(pixels.numpy().astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)
        grey = decode_image(content, 10**6, 1)
        assert grey is not None
        assert grey.shape == (1, 23, 24)
        with Image.open(io.BytesIO(content)) as image:
            image.draft("L", image.size)  # a JPEG holds the grey as it is
            expected = np.asarray(image.convert("L"))[None].astype(int)
        assert np.abs(grey.numpy().astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)
    assert decode_image(encoded(3), 100) is None
    assert decode_image(b"", 100) is None
    flat = torch.full((3, 40, 30), 51, dtype=torch.uint8)
    out = transform(flat, ImageOptions(image_size=8), seed=1, position=2)
    assert out.shape == (3, 8, 8)
    expected_row = [(0.2 - m) / s for m, s in zip(ImageOptions.mean, ImageOptions.std, strict=True)]
    assert torch.allclose(out[:, 0, 0], torch.tensor(expected_row), atol=1e-6)


def test_decoding_in_threads_leaves_the_filters_of_warnings_as_they_were() -> None:
    content, before = encoded(1), list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: decode_image(content, 10**6), range(2000)))
    assert all(image is not None for image in found)
    assert list(warnings.filters) == before


@pytest.mark.parametrize("name", [*OPERATIONS])
def test_operations_are_those_of_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 40), dtype=np.uint8))
    theirs = {
        "identity": "Identity", "shear-x": "ShearX", "shear-y": "ShearY", "translate-x": "TranslateX",
        "translate-y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
        "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
        "autocontrast": "AutoContrast", "equalize": "Equalize",
    }  # fmt: skip
    level = 9
    augment = v2.RandAugment(num_ops=1, magnitude=level)
    space = augment._AUGMENTATION_SPACE[theirs[name]]
    magnitudes = space[0](augment.num_magnitude_bins, 32, 40)
    magnitude = float(magnitudes[level]) if magnitudes is not None else 0.0
    for sign in (1.0, -1.0) if space[1] else (1.0,):
        expected = augment._apply_image_or_video_transform(
            image, theirs[name], magnitude * sign, interpolation=augment.interpolation, fill=augment._fill
        )
        # Theirs come through float32, which moves a rounding here and there.
        found = OPERATIONS[name](image, level / 30, sign)
        assert int((found.int() - expected.int()).abs().max()) <= 1
    assert rand_augment(image, 2, level, 0, np.array([1])).shape == image.shape


def test_importing_starts_no_thread() -> None:
    code = (
        "import os, numpy, polars; count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count(); import wsl, wsl.index.build, wsl.index.order, wsl.index.jobs\n"
        "print(count() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


def test_images_that_are_shared_are_decoded_once(index: wsl.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = wsl.Index.read

    def count(self: wsl.Index, ordinals: Any, **options: Any) -> list[bytes]:
        read.extend(np.asarray(ordinals).tolist())
        return whole(self, ordinals, **options)

    monkeypatch.setattr(wsl.Index, "read", count)
    options = ImageOptions(image_size=4, crop=False)
    some, every = np.array([1, 3], dtype=np.int64), np.arange(6, dtype=np.int64)
    alone = Images(index, options).load(every)
    read.clear()
    with sharing_decoded():
        Images(index, options).load(some)
        shared = Images(wsl.Index.open(index.path), options).load(every)
        Images(index, dataclasses.replace(options, image_size=5)).load(some)
    assert read == [1, 3, 0, 2, 4, 5, 1, 3]
    assert torch.equal(shared.images, alone.images)
    Images(index, options).load(some)
    assert read[-2:] == [1, 3]
