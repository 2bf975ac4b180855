"""Decoding and resizing without torchvision's package: to the bit as with it."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg as decode_as_torchvision
from torchvision.transforms.v2 import functional as F

from wsl.data import pixels
from wsl.data.augment import ImageOptions, cut, decode_image
from wsl.data.pixels import GREY, RGB, decode_jpeg, find_decoder, resize
from wsl.data.transforms import centre_box, crop_box

SIZES = st.integers(1, 90)
NEW_SIZES = st.integers(2, 90)
"""To a single pixel torch itself resizes only some images."""


def noise(channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Pixels that hide no rounding."""
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    )


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """Laid out as Pillow's pixels are."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype == torch.uint8 and torch.equal(found, expected)


@settings(max_examples=400, deadline=None)
@given(SIZES, SIZES, NEW_SIZES, NEW_SIZES, st.sampled_from([1, 3]), st.booleans())
def test_images_are_resized_as_torchvision_does(
    height: int, width: int, new_height: int, new_width: int, channels: int, last: bool
) -> None:
    image = noise(channels, height, width, seed=height)
    image = channels_last(image) if last else image
    found, expected = resize(image, new_height, new_width), F.resize(image, [new_height, new_width])
    assert same(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(500, 375), (333, 640), (224, 224), (225, 224), (7, 900)])
def test_photographs_are_resized_as_torchvision_does(
    height: int, width: int, channels: int, last: bool
) -> None:
    image = noise(channels, height, width)
    image = channels_last(image) if last else image
    for side in (224, 112, 32, 3):
        assert same(resize(image, side, side), F.resize(image, [side, side]))


def test_processors_that_resize_floats_round_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms.v2.functional import _geometry

    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda interpolation: False)
    monkeypatch.setattr(pixels, "FAST_IN_BYTES", False)
    for height, width in ((50, 37), (12, 90), (31, 32)):
        for image in (noise(3, height, width), channels_last(noise(3, height, width))):
            assert same(resize(image, 32, 31), F.resize(image, [32, 31]))


def test_this_processor_is_known_as_torchvision_knows_it() -> None:
    from torchvision.transforms.v2.functional._geometry import _do_native_uint8_resize_on_cpu

    assert _do_native_uint8_resize_on_cpu(F.InterpolationMode.BILINEAR) == pixels.FAST_IN_BYTES


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
    st.booleans(),
    st.sampled_from([8, 28, 64]),
)
def test_crops_are_torchvisions(height: int, width: int, numbers: list[float], last: bool, side: int) -> None:
    image = noise(3, height, width, seed=width)
    image = channels_last(image) if last else image
    options = ImageOptions(image_size=side)
    for drawn in (np.array(numbers), None):
        found = cut(image, options, drawn)
        box = centre_box(width, height) if drawn is None else crop_box(width, height, drawn)
        left, top, right, bottom = box
        x, y = int(left), int(top)
        across, down = max(round(right - left), 1), max(round(bottom - top), 1)
        part = [y, x, min(down, height - y), min(across, width - x)]
        assert same(found, F.resized_crop(image, *part, [side, side]))


def jpeg(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    shown = noise(1 if mode == "L" else 3, height, width).permute(1, 2, 0).numpy()
    image = Image.fromarray(shown[:, :, 0] if mode == "L" else shown)
    (image.convert(mode) if mode == "CMYK" else image).save(out, "JPEG", **options)
    return out.getvalue()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best": {"quality": 100, "subsampling": 0},
    "poor": {"quality": 5, "subsampling": 2},
    "progressive": {"progressive": True, "subsampling": 1},
    "grey": {"mode": "L"},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (17, 31), (333, 500)])
def test_jpeg_is_decoded_as_torchvision_does(kind: str, height: int, width: int) -> None:
    content = jpeg(height, width, **KINDS[kind])
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    for mode, theirs in ((RGB, ImageReadMode.RGB), (GREY, ImageReadMode.GRAY)):
        expected = decode_as_torchvision(encoded, mode=theirs)
        assert same(decode_jpeg(encoded, mode), expected)
        found = decode_image(content, 10**6, mode)
        assert found is not None
        assert same(found, expected)


def test_what_torchvision_cannot_decode_is_no_image() -> None:
    content = jpeg(40, 40)
    for hurt in (content[:100], content[:2] + b"\0" * 400, b"", content[:-200]):
        encoded = torch.frombuffer(bytearray(hurt or b"\0"), dtype=torch.uint8)
        try:
            expected = decode_as_torchvision(encoded, mode=ImageReadMode.RGB)
        except RuntimeError:
            assert decode_image(hurt, 10**6) is None
        else:
            found = decode_image(hurt, 10**6)
            assert found is None or same(found, expected)


def test_without_the_library_the_package_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = jpeg(20, 30)
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    monkeypatch.setattr(pixels, "LIBRARIES", ("not there",))
    assert same(find_decoder()(encoded, RGB), decode_jpeg(encoded, RGB))
    assert same(find_decoder()(encoded, GREY), decode_jpeg(encoded, GREY))


def test_a_library_without_the_operator_is_not_taken(tmp_path: Any) -> None:
    other = tmp_path / "image.so"
    other.write_bytes(b"no library")
    assert pixels._decoder_of(str(other)) is None


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_image_is_shown_without_torchvision_and_torchvision_can_still_be_imported() -> None:
    code = (
        "import sys, io, torch; from PIL import Image; from wsl.data.augment import *\n"
        "out = io.BytesIO(); Image.new('RGB', (40, 30), 'red').save(out, 'JPEG')\n"
        "pixels = decode_image(out.getvalue(), 10**6); shown = transform(pixels, ImageOptions(8), 1, 2)\n"
        "loaded = [m for m in ('torchvision', 'torch._dynamo', 'deepspeed') if m in sys.modules]\n"
        "import torchvision\n"
        "again = torchvision.io.decode_jpeg(torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8))\n"
        "kept = torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)\n"
        "print(loaded, torch.equal(pixels, again), len(kept))"
    )
    assert run("import warnings; warnings.simplefilter('ignore')\n" + code) == "[] True 0"


def test_without_torchvision_the_error_names_it() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torchvision': raise ModuleNotFoundError(name, name='torchvision')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from wsl.errors import explain\n"
        "try: import wsl.data.augment\n"
        "except ModuleNotFoundError as error: print(explain(error))"
    )
    assert "this command needs torchvision" in run(code)
