"""Decoding and augmentation as torchvision's transforms (v2) do it, a pure function of (seed, position).

The random choices are hashes (`wsl.data.transforms.uniforms`) and not torch's generator, so neither
threads nor workers nor a restart change a pixel. torchvision itself is imported for RandAugment alone
(see `wsl.data.pixels`).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from wsl.data.pixels import GREY, RGB, decode_jpeg, resize
from wsl.data.transforms import centre_box, crop_box, crop_boxes, flip, normalise, shift, uniforms

if TYPE_CHECKING:
    from wsl.workspace.stage import DataConfig, ModelConfig

# What Pillow warns of (odd metadata, large images) is no news in a million images. The filter is set once:
# `warnings.catch_warnings` around each image would race between the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")

DRAW_AUGMENT = 16
"""The first of the draws of RandAugment: operation and sign of each layer."""
NUM_LEVELS = 31
MAX_LEVEL = NUM_LEVELS - 1


@dataclass(frozen=True)
class ImageOptions:
    """What becomes of an encoded image."""

    image_size: int = 224
    """Side of the square, in pixels."""
    num_channels: int = 3
    """Colour channels; 1 turns images grey."""
    crop: bool = True
    """Train on a RandomResizedCrop: 8 to 100 % of the area, sides 3:4 to 4:3; elsewhere the middle is shown.
    Otherwise the whole image, shifted."""
    shift: int = 0
    """Random translation by up to this many pixels, where nothing is cropped."""
    flip: bool = True
    augment_layers: int = 0
    """RandAugment's operations an image (Cubuk et al. 2020); 0 is off."""
    augment_level: int = 9
    """Their strength, 0 to 30."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    max_pixels: int = 50_000_000
    """Images with more pixels count as corrupt."""

    @classmethod
    def of(cls, model: ModelConfig, data: DataConfig) -> ImageOptions:
        """Those of a stage."""
        return cls(
            image_size=model.image_size,
            num_channels=model.num_channels,
            crop=data.crop,
            shift=data.shift,
            flip=data.flip,
            augment_layers=data.augment_layers,
            augment_level=data.augment_level,
            mean=tuple(data.mean),
            std=tuple(data.std),
            max_pixels=data.max_pixels,
        )


def decode_image(content: bytes, max_pixels: int, num_channels: int = 3) -> torch.Tensor | None:
    """An encoded image as uint8 C x H x W, or None where it is not one or has too many pixels.

    The size in the header is checked before a pixel is decoded; transparency is laid on white. torchvision's
    operator decodes JPEG, Pillow everything else.
    """
    mode, jpeg_mode = ("L", GREY) if num_channels == 1 else ("RGB", RGB)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image: Image.Image = opened
            if image.width * image.height > max_pixels:
                return None
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return decode_jpeg(encoded, jpeg_mode)
            if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                shown = image.convert("RGBA")
                white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, shown)
            flat = np.array(image.convert(mode), dtype=np.uint8)
    except Exception:  # decoders of hostile bytes raise nearly everything
        return None
    return torch.from_numpy(flat).view(*flat.shape[:2], num_channels).permute(2, 0, 1)


def cut(
    image: torch.Tensor, options: ImageOptions, numbers: npt.NDArray[np.float64] | None = None
) -> torch.Tensor:
    """uint8 C x H x W to C x S x S: the random crop of `numbers` (a row of `crop_boxes`), or
    what is shown where nothing is random."""
    height, width = image.shape[1:]
    side = options.image_size
    if numbers is None and not options.crop:
        return resize(image, side, side)
    box = centre_box(width, height) if numbers is None else crop_box(width, height, numbers)
    left, top, right, bottom = box
    x, y = int(left), int(top)
    across, down = max(round(right - left), 1), max(round(bottom - top), 1)
    return resize(image[:, y : y + down, x : x + across], side, side)


def augment(
    images: torch.Tensor,
    options: ImageOptions,
    seed: int,
    positions: npt.NDArray[np.int64],
    *,
    each: Callable[..., Iterable[torch.Tensor]] = map,
) -> torch.Tensor:
    """uint8 N x C x S x S shifted, flipped and under RandAugment; `each` maps over images.

    `images` may be written to.
    """
    if not options.crop:
        images = shift(images, seed, positions, options.shift)
    if options.flip:
        images = flip(images, seed, positions)
    if not options.augment_layers:
        return images

    def one(image: torch.Tensor, position: np.int64) -> torch.Tensor:
        layers, level = options.augment_layers, options.augment_level
        return rand_augment(image, layers, level, seed, np.array([position]))

    return torch.stack(list(each(one, images, positions)))


def transform(image: torch.Tensor, options: ImageOptions, seed: int, position: int) -> torch.Tensor:
    """uint8 C x H x W to float32 C x S x S as it is trained on at `position`: cut, augmented, normalised."""
    positions = np.array([position], dtype=np.int64)
    numbers = crop_boxes(seed, positions)[0] if options.crop else None
    shown = augment(cut(image, options, numbers)[None].clone(), options, seed, positions)
    return normalise(shown, options.mean, options.std)[0]


def operators() -> Any:
    """torchvision's operations on images. The first call imports the package, which takes seconds: whoever
    has threads or processes that augment calls it before."""
    from torchvision.transforms.v2 import functional

    return functional


def rand_augment(
    image: torch.Tensor, layers: int, level: int, seed: int, positions: npt.NDArray[np.int64]
) -> torch.Tensor:
    """RandAugment (Cubuk et al. 2020): `layers` operations drawn uniformly, all of strength `level`.

    The operations and what a level of 0 to 30 means are torchvision's.
    """
    names = list(OPERATIONS)
    for layer in range(layers):
        pick = float(uniforms(seed, positions, DRAW_AUGMENT + 2 * layer)[0])
        sign = -1.0 if uniforms(seed, positions, DRAW_AUGMENT + 2 * layer + 1)[0] < 0.5 else 1.0
        image = OPERATIONS[names[int(pick * len(names))]](image, level / MAX_LEVEL, sign)
    return image


def _affine(
    image: torch.Tensor,
    *,
    shear: tuple[float, float] = (0.0, 0.0),
    translate: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    centre = [0.0, 0.0] if shear != (0.0, 0.0) else None
    moved: torch.Tensor = operators().affine(
        image,
        angle=0.0,
        translate=[int(translate[0]), int(translate[1])],
        scale=1.0,
        shear=list(shear),
        center=centre,
    )
    return moved


def _degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


Operation = Callable[[torch.Tensor, float, float], torch.Tensor]

OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, share, sign: image,
    "shear-x": lambda image, share, sign: _affine(image, shear=(_degrees(0.3 * share * sign), 0.0)),
    "shear-y": lambda image, share, sign: _affine(image, shear=(0.0, _degrees(0.3 * share * sign))),
    "translate-x": lambda image, share, sign: _affine(
        image, translate=(150.0 / 331.0 * image.shape[2] * share * sign, 0.0)
    ),
    "translate-y": lambda image, share, sign: _affine(
        image, translate=(0.0, 150.0 / 331.0 * image.shape[1] * share * sign)
    ),
    "rotate": lambda image, share, sign: operators().rotate(image, 30.0 * share * sign),
    "brightness": lambda image, share, sign: operators().adjust_brightness(image, 1.0 + 0.9 * share * sign),
    "color": lambda image, share, sign: operators().adjust_saturation(image, 1.0 + 0.9 * share * sign),
    "contrast": lambda image, share, sign: operators().adjust_contrast(image, 1.0 + 0.9 * share * sign),
    "sharpness": lambda image, share, sign: operators().adjust_sharpness(image, 1.0 + 0.9 * share * sign),
    "posterize": lambda image, share, sign: operators().posterize(image, 8 - round(4 * share)),
    "solarize": lambda image, share, sign: operators().solarize(image, 255.0 * (1.0 - share)),
    "autocontrast": lambda image, share, sign: operators().autocontrast(image),
    "equalize": lambda image, share, sign: operators().equalize(image),
}
