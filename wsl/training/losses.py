"""Softmax cross-entropy with weights on labels.

An image with k hashtags puts 1/k on each (Mahajan et al. 2018, section 3.1); a class label is the
case k = 1, and soft targets put the teacher's renormalised scores there. Every batch has labels
N x L, padded with weight 0.
"""

from __future__ import annotations

import torch


def weighted_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum over images of -sum_l w_l log softmax(z)_l, a float32 scalar.

    `logits` N x C, `labels` int64 N x L, `weights` float32 N x L; an image whose weights are 0
    (it could not be decoded, or it has no label) adds nothing, nor does it get a gradient.
    """
    logarithms = torch.log_softmax(logits.float(), dim=1)
    return -(logarithms.gather(1, labels) * weights).sum()
