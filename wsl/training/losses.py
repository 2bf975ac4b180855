"""Softmax cross-entropy with weights on labels, smoothed or joined by the teacher's scores.

An image with k hashtags puts 1/k on each (Mahajan et al. 2018, section 3.1); a class label is the
case k = 1, and soft targets put the teacher's renormalised scores there. Every batch has labels
N x L, padded with weight 0.
"""

from __future__ import annotations

import torch


def cross_entropy_of_images(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """-sum_c t_c log softmax(z)_c of each image, float32 N, with t the image's (smoothed) target.

    `logits` N x C, `labels` int64 N x L, `weights` float32 N x L; t puts (1 - smoothing) w_l on label
    l and spreads smoothing sum(w) evenly over the C classes. An image whose weights are 0 (it could
    not be decoded, or it has no label) has loss 0 and no gradient.
    """
    logarithms = torch.log_softmax(logits.float(), dim=1)
    losses = -(logarithms.gather(1, labels) * weights).sum(1)
    if smoothing == 0:
        return losses
    return (1 - smoothing) * losses - smoothing * logarithms.mean(1) * weights.sum(1)


def distillation_of_images(
    logits: torch.Tensor, teacher: torch.Tensor, temperature: float, shown: torch.Tensor
) -> torch.Tensor:
    """T^2 times the cross-entropy of the softened student under the softened teacher, float32 N.

    Hinton et al. 2015, section 2: both distributions are softmax(z / T). `teacher` has the logarithms
    of its probabilities, N x C; `shown` float32 N is 0 for images that do not count.
    """
    target = torch.softmax(teacher / temperature, dim=1)
    logarithms = torch.log_softmax(logits.float() / temperature, dim=1)
    return -(target * logarithms).sum(1) * temperature**2 * shown
