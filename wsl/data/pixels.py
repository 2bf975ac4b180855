"""Decoding JPEG and resizing, to the bit as torchvision does both, without importing torchvision.

To import the package takes 2 CPU seconds, for its operators pull in torch's compiler, and every command
that shows an image to a network would pay them. What is needed of it are a library of operators, which is
loaded alone, and `resize`, which is torch's `interpolate`. Where the library is not found the package's own
function is taken.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import platform
from collections.abc import Callable
from typing import Any

import torch

GREY, RGB = 1, 3
"""What is decoded to, by the numbers of torchvision's `ImageReadMode`, which are those of channels too."""
LIBRARIES = ("image_stable", "image")
"""What torchvision calls its library of image operators: now, and before."""

Decode = Callable[[torch.Tensor, int], torch.Tensor]


def find_decoder() -> Decode:
    """A function from encoded bytes (uint8) and a mode to uint8 C x H x W; it raises for what is no JPEG.

    ModuleNotFoundError where torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    loaders = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for name in LIBRARIES:
            library = importlib.machinery.FileFinder(folder, loaders).find_spec(name)
            if library is not None and library.origin is not None:
                decode = _decoder_of(library.origin)
                if decode is not None:
                    return decode
    return _decoder_of_package()


def _decoder_of(library: str) -> Decode | None:
    """The operator of a library; None where it has none that is called as we know it."""
    try:
        operators: Any = torch.ops
        operators.load_library(library)
        operator: Any = operators.image.decode_jpeg.default
    except (OSError, RuntimeError, AttributeError):
        return None
    takes = [str(argument.type) for argument in operator._schema.arguments]
    if takes != ["Tensor", "int", "bool"]:
        return None
    decode: Decode = operator
    return decode


def _decoder_of_package() -> Decode:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(encoded: torch.Tensor, mode: int) -> torch.Tensor:
        pixels: torch.Tensor = decode_jpeg(encoded, mode=ImageReadMode(mode))
        return pixels

    return decode


decode_jpeg: Decode = find_decoder()

FAST_IN_BYTES = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
    "aarch64",
    "arm64",
)
"""Whether torchvision resizes bytes as they are on this processor; elsewhere as float32, rounded."""


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 C x H x W to C x `height` x `width`: bilinear, antialiased; itself where it has that size."""
    if image.shape[1:] == (height, width):
        return image
    batch = image[None]
    if batch.is_contiguous(memory_format=torch.channels_last):
        # With the stride that a batch would have the result is laid out alike, and not converted.
        batch = batch.as_strided(batch.shape, (image.numel(), *image.stride()))
    if not FAST_IN_BYTES:
        batch = batch.float()
    resized = torch.nn.functional.interpolate(
        batch, size=(height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0] if FAST_IN_BYTES else resized[0].round_().to(torch.uint8)
