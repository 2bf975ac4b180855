"""Makes the data that the package carries, out of the packages of a Debian system.

    apt-get install dataset-fashion-mnist openclipart-png openclipart-svg
    python -m wsl.carried.make --out wsl/carried

Fashion-MNIST (MIT licence, Zalando SE): class-balanced labelled images and an unlabelled pool out of
the training set, test images out of the test set; their own pixels. Open Clip Art (public domain):
every image drawn on white and scaled to fit 48 x 48 pixels with 5 bits a channel, its folder, and its
tags as the authors wrote them in the metadata of the SVG, the dirt included. Images of more than
50 million pixels and those that cannot be decoded have a record but no image.

The same packages make the same bytes.
"""

from __future__ import annotations

import argparse
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from wsl.carried import fashion_mnist, openclipart
from wsl.carried.arrays import write_arrays

MAX_PIXELS = 50_000_000
DEBIAN = Path("/usr/share")


def make_fashion_mnist(
    source: Path, out: Path, num_labelled: int, num_unlabelled: int, num_test: int
) -> None:
    """Writes `fashion-mnist.xz`: arrays (images, labels) of labelled, unlabelled and test."""
    train_images, train_labels = fashion_mnist.read_original(source, "train")
    test_images, test_labels = fashion_mnist.read_original(source, "t10k")
    labelled = fashion_mnist.balanced(train_labels, num_labelled)
    unlabelled = np.setdiff1d(np.arange(len(train_labels)), labelled)[:num_unlabelled]
    arrays = {
        "labelled_images": train_images[labelled],
        "labelled_labels": train_labels[labelled],
        "unlabelled_images": train_images[unlabelled],
        "unlabelled_labels": train_labels[unlabelled],
        "test_images": test_images[:num_test],
        "test_labels": test_labels[:num_test],
    }
    about = {
        "licence": "MIT, Copyright 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist",
        "labelled": labelled.tolist(),
        "unlabelled": unlabelled.tolist(),
    }
    write_arrays(out / fashion_mnist.FILE, about, arrays)


def make_openclipart(source: Path, out: Path) -> None:
    """Writes `openclipart.xz`: the records, and an array of the images that could be made."""
    keys = openclipart.find_keys(source / "png")
    with ProcessPoolExecutor() as pool:
        images = list(pool.map(small_image, [source / "png" / f"{key}.png" for key in keys], chunksize=32))
    tags = [openclipart.read_tags(source / "svg" / f"{key}.svg") for key in keys]
    there = [number for number, image in enumerate(images) if image is not None]
    stacked = np.stack([images[number] for number in there])  # type: ignore[misc]
    about = {
        "licence": "public domain, Open Clip Art Library 0.18",
        "keys": keys,
        "tags": tags,
        "with_image": there,
    }
    # Channel by channel, and with the five bits that are kept in front: both pack better.
    planes = np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))
    write_arrays(out / openclipart.FILE, about, {"images": (planes >> 3).astype(np.uint8)})


def small_image(path: Path) -> npt.NDArray[np.uint8] | None:
    """The picture on white within 48 x 48, uint8 H x W x 3; None where it cannot or shall not be decoded."""
    side = openclipart.SIDE
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                drawn = image.convert("RGBA")
    except Exception:  # decoders of damaged files raise nearly everything
        return None
    scale = side / max(drawn.size)
    size = (max(round(drawn.width * scale), 1), max(round(drawn.height * scale), 1))
    drawn = drawn.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    white = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    white.alpha_composite(drawn, ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(white.convert("RGB"), dtype=np.uint8)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, default=DEBIAN / "datasets/fashion-mnist")
    parser.add_argument("--openclipart", type=Path, default=DEBIAN / "openclipart")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-labelled", type=int, default=1000)
    parser.add_argument("--num-unlabelled", type=int, default=20_000)
    parser.add_argument("--num-test", type=int, default=5000)
    options = parser.parse_args()
    make_fashion_mnist(
        options.fashion_mnist, options.out, options.num_labelled, options.num_unlabelled, options.num_test
    )
    make_openclipart(options.openclipart, options.out)
    for file in sorted(options.out.glob("*.xz")):
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
