"""Mixup and CutMix of neighbours in the stream of samples.

The samples at positions 2i and 2i + 1 form a pair: in a pseudo-random order each is a random partner
for the other. What happens to a pair is a function of (seed, i), so it is the same on every number
of ranks and after every restart, as long as a pair is never split (each rank's forward pass has an
even number of images).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from wsl._core import UsageError
from wsl.data.transforms import uniforms
from wsl.workspace.stage import RegularizationConfig

DRAW_SHARE, DRAW_KIND, DRAW_Y, DRAW_X = range(100, 104)


def check_even(options: RegularizationConfig, micro: int) -> None:
    """UsageError where pairs would be split between forward passes."""
    if (options.mixup > 0 or options.cutmix > 0) and micro % 2:
        raise UsageError(
            f"mixup and cutmix take images in pairs, and a rank's forward pass holds {micro}; choose "
            "batch_size and micro_batch_size so that it is even"
        )


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    positions: npt.NDArray[np.int64],
    options: RegularizationConfig,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blends each pair, or pastes a box of each image into the other; images, labels and weights.

    `images` float32 N x C x H x W at consecutive `positions` from an even one, N even; `labels` and
    `weights` N x L become N x 2L. A pair with an image that does not count is left as it is. The
    share lambda of an image's own pixels is drawn from Beta(alpha, alpha) (Zhang et al. 2018, section 2);
    the box of CutMix covers 1 - lambda of the image, less what the border cuts off (Yun et al. 2019).
    """
    # All is drawn for a pair of positions, so that it does not depend on ranks or on a restart.
    pairs = positions[::2] // 2
    cut = options.mixup == 0 if options.cutmix > 0 else None
    kinds = uniforms(seed, pairs, DRAW_KIND) < 0.5 if cut is False else np.full(len(pairs), bool(cut))
    alphas = np.where(kinds, options.cutmix, options.mixup)
    shares = _beta(alphas, seed, pairs)
    counted = (weights.sum(1) > 0).numpy()
    shares[~(counted[::2] & counted[1::2])] = 1.0
    partners = images.view(-1, 2, *images.shape[1:]).flip(1).reshape(images.shape)
    mixed = images.clone()
    for number, (share, pastes) in enumerate(zip(shares, kinds, strict=True)):
        both = slice(2 * number, 2 * number + 2)
        if share == 1.0:
            continue
        if pastes:
            top, bottom, left, right = _box(share, images.shape[2], images.shape[3], seed, pairs[number])
            mixed[both, :, top:bottom, left:right] = partners[both, :, top:bottom, left:right]

            # The border may have cut the box, and labels count for as much as is really seen of their image.
            area = (bottom - top) * (right - left)
            shares[number] = 1 - area / (images.shape[2] * images.shape[3])
        else:
            mixed[both] = share * images[both] + (1 - share) * partners[both]
    own = torch.from_numpy(np.repeat(shares, 2)).to(weights.dtype)[:, None]
    others = _swapped(labels), _swapped(weights)
    return (
        mixed,
        torch.cat([labels, others[0]], dim=1),
        torch.cat([weights * own, others[1] * (1 - own)], dim=1),
    )


def _swapped(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, 2, values.shape[1]).flip(1).reshape(values.shape)


def _beta(
    alphas: npt.NDArray[np.float64], seed: int, pairs: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """A draw from Beta(alpha, alpha) for each pair, from a generator that the pair alone seeds."""
    keys = (uniforms(seed, pairs, DRAW_SHARE) * 2.0**53).astype(np.uint64)
    draws = [
        np.random.Generator(np.random.Philox(key=int(key))).beta(alpha, alpha)
        for key, alpha in zip(keys, alphas, strict=True)
    ]
    return np.asarray(draws, dtype=np.float64)


def _box(share: float, height: int, width: int, seed: int, pair: np.int64) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of 1 - share of the area, around a random middle."""
    one = np.array([pair], dtype=np.int64)
    middle_y = int(uniforms(seed, one, DRAW_Y)[0] * height)
    middle_x = int(uniforms(seed, one, DRAW_X)[0] * width)
    side = np.sqrt(1 - share)
    half_y, half_x = round(height * side / 2), round(width * side / 2)
    return (
        max(middle_y - half_y, 0),
        min(middle_y + half_y, height),
        max(middle_x - half_x, 0),
        min(middle_x + half_x, width),
    )
