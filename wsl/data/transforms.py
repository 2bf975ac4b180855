"""What happens to a batch of images on its way in: pure functions of (seed, position).

Every random choice is a hash of the run's seed, the sample's position in the stream of all epochs
and the number of the draw (the finaliser of SplitMix64), so neither resuming nor another number
of ranks or workers changes a single pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
LARGE = 1 << 16
"""Numbers of an image from which it is worth a call of its own."""
DRAW_SHIFT_Y, DRAW_SHIFT_X, DRAW_FLIP, DRAW_AREA, DRAW_RATIO, DRAW_TOP, DRAW_LEFT = range(7)


def uniforms(seed: int, positions: npt.NDArray[np.int64], draw: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each position, the same wherever and whenever it is asked for."""
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed], dtype=np.uint64) * _GOLDEN + np.uint64(draw + 1))
        bits = _mix(_mix(positions.astype(np.uint64) * _GOLDEN + key))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shift(images: torch.Tensor, seed: int, positions: npt.NDArray[np.int64], pixels: int) -> torch.Tensor:
    """Moves every image of N x C x H x W by up to `pixels` each way; what comes in is 0."""
    if pixels == 0:
        return images
    span = 2 * pixels + 1
    dy = torch.from_numpy((uniforms(seed, positions, DRAW_SHIFT_Y) * span).astype(np.int64))
    dx = torch.from_numpy((uniforms(seed, positions, DRAW_SHIFT_X) * span).astype(np.int64))
    num, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    rows = (torch.arange(height) + dy[:, None])[:, :, None]
    columns = (torch.arange(width) + dx[:, None])[:, None, :]
    return padded[torch.arange(num)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def flip(images: torch.Tensor, seed: int, positions: npt.NDArray[np.int64]) -> torch.Tensor:
    """Mirrors every other image, by chance; large ones where they are."""
    chosen = uniforms(seed, positions, DRAW_FLIP) < 0.5
    if images[0:1].numel() < LARGE:
        return torch.where(torch.from_numpy(chosen)[:, None, None, None], images.flip(3), images)
    for at in np.flatnonzero(chosen).tolist():
        images[at] = images[at].flip(2)
    return images


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], out: torch.Tensor | None = None
) -> torch.Tensor:
    """uint8 N x C x H x W to float32, scaled to [0, 1], less `mean`, over `std` (one each channel).

    Laid out in memory as `images` are, or written to `out`. It goes by pieces that stay in the cache.
    """
    channels = images.shape[1]
    centre = torch.tensor(mean[:channels]).view(1, -1, 1, 1)
    scale = torch.tensor(std[:channels]).view(1, -1, 1, 1)
    shown = torch.empty_like(images, dtype=torch.float32) if out is None else out
    step = max(1, 2 * LARGE // max(1, images[0:1].numel()))
    for start in range(0, len(images), step):
        piece = shown[start : start + step]
        piece.copy_(images[start : start + step]).div_(255.0).sub_(centre).div_(scale)
    return shown


def crop_boxes(seed: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """For each position four numbers that `crop_box` turns into a crop: N x 4 in [0, 1)."""
    draws = (DRAW_AREA, DRAW_RATIO, DRAW_TOP, DRAW_LEFT)
    return np.stack([uniforms(seed, positions, draw) for draw in draws], axis=1)


def crop_box(width: int, height: int, numbers: npt.NDArray[np.float64]) -> tuple[float, float, float, float]:
    """A random crop of 8 to 100 % of the area, sides 3:4 to 4:3 (Szegedy et al. 2015): left, top, right,
    bottom."""
    area = width * height * (0.08 + 0.92 * float(numbers[0]))
    ratio = math.exp((2 * float(numbers[1]) - 1) * math.log(4 / 3))
    crop_width = min(math.sqrt(area * ratio), width)
    crop_height = min(math.sqrt(area / ratio), height)
    top = float(numbers[2]) * (height - crop_height)
    left = float(numbers[3]) * (width - crop_width)
    return left, top, left + crop_width, top + crop_height


def centre_box(width: int, height: int) -> tuple[float, float, float, float]:
    """The middle square of 7/8 of the shorter side, as 224 of 256 pixels."""
    side = 0.875 * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
