"""Losses, mixing of images, averages of weights, recalls: against plain twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.help.thoroughness import examples
from wsl.training.ema import Ema
from wsl.training.execution import prepare_model
from wsl.training.losses import cross_entropy_of_images, distillation_of_images
from wsl.training.metrics import Accuracy, Evaluation
from wsl.training.mixing import check_even, mix
from wsl.workspace.stage import ExecutionConfig, RegularizationConfig


def batch(num: int = 8, num_classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    logits = torch.randn(num, num_classes, generator=generator, requires_grad=True)
    labels = torch.randint(0, num_classes, (num, 1), generator=generator)
    return logits, labels, torch.ones(num, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_loss_of_one_label_is_that_of_torch(smoothing: float) -> None:
    logits, labels, weights = batch()
    theirs = nn.functional.cross_entropy(logits, labels[:, 0], label_smoothing=smoothing, reduction="none")
    ours = cross_entropy_of_images(logits, labels, weights, smoothing)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_labels_are_a_dense_target_and_an_image_without_weight_counts_nothing(
    smoothing: float,
) -> None:
    logits, _, _ = batch(4)
    labels = torch.tensor([[0, 1, 0], [2, 0, 0], [1, 3, 4], [0, 0, 0]])
    weights = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5], [0, 0, 0]])
    dense = torch.zeros(4, 5).scatter_add(1, labels, weights)
    theirs = nn.functional.cross_entropy(logits, dense, label_smoothing=smoothing, reduction="none")
    ours = cross_entropy_of_images(logits, labels, weights, smoothing)
    torch.testing.assert_close(ours[:3], theirs[:3])
    assert ours[3].item() == 0
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert not gradient[3].any()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_of_torch_up_to_the_entropy_of_the_teacher(temperature: float) -> None:
    logits, _, _ = batch()
    teacher = torch.log_softmax(torch.randn(8, 5), 1)
    soft = torch.log_softmax(teacher / temperature, 1)
    divergence = nn.functional.kl_div(
        torch.log_softmax(logits / temperature, 1), soft, log_target=True, reduction="none"
    ).sum(1)
    entropy = -(soft.exp() * soft).sum(1)
    ours = distillation_of_images(logits, teacher, temperature, torch.ones(8))
    torch.testing.assert_close(ours, temperature**2 * (divergence + entropy))


def pictures(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of one colour each, whose label is the colour."""
    labels = torch.arange(num)[:, None]
    return labels[:, :, None, None].float().expand(num, 1, 12, 10).clone(), labels, torch.ones(num, 1)


@examples(40)
@given(st.integers(0, 2**62), st.integers(0, 2**40), st.floats(0.05, 5), st.booleans())
def test_targets_are_mixed_as_the_pixels_are(seed: int, start: int, alpha: float, pastes: bool) -> None:
    options = RegularizationConfig(cutmix=alpha) if pastes else RegularizationConfig(mixup=alpha)
    images, labels, weights = pictures(6)
    positions = np.arange(2 * start, 2 * start + 6)
    mixed, names, shares = mix(images, labels, weights, positions, options, seed)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    # An image of one colour: the mean of the pixels is the mean of the labels.
    torch.testing.assert_close(mixed.mean((1, 2, 3)), (names * shares).sum(1), rtol=1e-4, atol=1e-4)
    assert names[:, 1].tolist() == [1, 0, 3, 2, 5, 4]
    if pastes:
        assert set(mixed[0].flatten().tolist()) <= {0.0, 1.0}


def test_what_happens_to_a_pair_is_the_same_in_every_batch_and_on_every_rank() -> None:
    options = RegularizationConfig(mixup=0.4, cutmix=1.0)
    images, labels, weights = pictures(16)
    positions = np.arange(32, 48)
    whole = mix(images, labels, weights, positions, options, 5)
    for part in (slice(0, 4), slice(4, 16)):
        cut = mix(images[part], labels[part], weights[part], positions[part], options, 5)
        for ours, theirs in zip(cut, whole, strict=True):
            assert torch.equal(ours, theirs[part])
    pasted = [len(set(image.flatten().tolist())) > 1 for image in whole[0][::2]]
    assert any(pasted)
    assert not all(pasted)
    with pytest.raises(Exception, match="holds 3"):
        check_even(options, 3)


def test_an_image_that_does_not_count_is_mixed_with_nothing() -> None:
    images, labels, weights = pictures(4)
    weights[1] = 0
    mixed, _, shares = mix(images, labels, weights, np.arange(4), RegularizationConfig(mixup=1.0), 0)
    assert torch.equal(mixed[:2], images[:2])
    assert shares[0].tolist() == [1.0, 0.0]
    assert shares[1].tolist() == [0.0, 0.0]


def test_shares_of_mixup_follow_the_beta_distribution() -> None:
    images, labels, weights = pictures(4000)
    _, _, shares = mix(images, labels, weights, np.arange(4000), RegularizationConfig(mixup=0.5), 3)
    own = shares[::2, 0].numpy()
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); 2,000 draws.
    assert own.mean() == pytest.approx(0.5, abs=0.03)
    assert own.var() == pytest.approx(0.125, rel=0.1)


def test_the_average_follows_its_formula_and_leaves_the_weights_as_they_were() -> None:
    model = nn.Linear(3, 2)
    ema = Ema(model, 0.75)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        ema.update()
        for name, weight in model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * weight.detach()
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with ema.applied():
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.detach(), expected[name])
    for name, weight in model.named_parameters():
        assert torch.equal(weight, own[name])


def test_recomputing_blocks_gives_the_same_gradients_and_counts_no_batch_twice() -> None:
    import torchvision

    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=4)
    again = torchvision.models.resnet18(num_classes=4)
    again.load_state_dict(plain.state_dict())
    prepare_model(again, ExecutionConfig(activation_checkpointing=True), 1)
    images = torch.randn(2, 3, 32, 32)
    for model in (plain, again):
        model(images).square().sum().backward()
    for (name, one), two in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    for (name, one), two in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(one, two), name


def plain_recall(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, depth: int
) -> list[float | None]:
    """For each class the share of its images that have it among the `depth` best, by sorting each row."""
    found: list[list[bool]] = [[] for _ in range(logits.shape[1])]
    for row, names, shares in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda label: -row[label])[:depth]
        for label, share in zip(names, shares, strict=True):
            if share > 0:
                found[label].append(label in best)
    return [sum(hits) / len(hits) if hits else None for hits in found]


@pytest.mark.parametrize(("num_classes", "batch_size"), [(3, 4), (10, 7), (11, 1), (40, 60)])
def test_recalls_are_those_of_a_plain_count(num_classes: int, batch_size: int) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(60, num_classes, generator=generator)
    # Distinct labels of each image, some of them padding, and some images without any; the last class never.
    labels = torch.stack([torch.randperm(num_classes - 1, generator=generator)[:2] for _ in range(60)])
    weights = torch.tensor([[1.0, 1.0], [0.5, 0.0], [0.0, 0.0]]).repeat(20, 1)
    accuracy = Accuracy(num_classes)
    for start in range(0, 60, batch_size):
        part = slice(start, start + batch_size)
        accuracy.update(logits[part], labels[part], weights[part])
    result = accuracy.finish()
    assert result.per_class_recall == plain_recall(logits, labels, weights, 1)
    at_10 = plain_recall(logits, labels, weights, 10) if num_classes > 10 else None
    assert result.per_class_recall_at_10 == at_10
    assert result.num_samples == 40
    rank = (-logits).argsort(1).argsort(1).gather(1, labels).masked_fill(weights == 0, num_classes).amin(1)
    kept = weights.any(1)
    assert result.top1 == pytest.approx((rank[kept] < 1).double().mean().item())
    assert result.top5 == pytest.approx((rank[kept] < 5).double().mean().item())


def test_an_evaluation_written_before_recall_at_10_loads() -> None:
    known = Accuracy(2).finish().to_dict()
    del known["per_class_recall_at_10"]
    assert Evaluation(**known).per_class_recall_at_10 is None
