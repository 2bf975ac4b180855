"""The networks: torchvision's classifiers by name, wider ResNeXts, and `narrow` for small images.

`resnext101_32x48d` and the like are ResNeXts (Xie et al. 2017) of any cardinality and width, built of
torchvision's blocks with its names for the weights, though it has no builder for them.

torchvision's residual nets refuse narrow widths and take seconds a step on a CPU, so small data
gets nets of its own: a stem, residual blocks of two 3x3 convolutions with a projection where the
shape changes, global average pooling and a linear layer (He et al. 2016, section 3.3).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from wsl._core import UsageError
from wsl.workspace.stage import ModelConfig


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, ReLU and a shortcut; N x in x H x W to N x out x H/s x W/s."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(images))


class NarrowResNet(nn.Module):
    """The family `narrow`; N x channels x H x W float images to N x num_labels logits."""

    def __init__(self, config: ModelConfig, num_labels: int) -> None:
        super().__init__()
        kernel, stride, padding = (3, 2, 1) if config.stem == "conv" else (4, 4, 0)
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, config.stem_width, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(config.stem_width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        width = config.stem_width
        for number, next_width in enumerate(config.widths):
            blocks.append(Block(width, next_width, 2 if number or config.downsample_first else 1))
            width = next_width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, num_labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


def build_model(config: ModelConfig, num_labels: int) -> nn.Module:
    """The network of `config` with `num_labels` outputs and fresh weights (torch's global generator).

    UsageError for a name that torchvision has no classifier of.
    """
    if config.name == "narrow":
        return NarrowResNet(config, num_labels)
    import torchvision

    # The papers use ResNeXts that torchvision has no name for.
    resnext = re.fullmatch(r"resnext(50|101)_(\d{1,3})x(\d{1,3})d", config.name)
    names = torchvision.models.list_models(module=torchvision.models)
    if config.name not in names and resnext is None:
        import difflib

        near = difflib.get_close_matches(config.name, names, n=3)
        raise UsageError(
            f"model.name: {config.name!r} is neither 'narrow' nor a classifier of torchvision"
            + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
        )
    options: dict[str, Any] = {"num_classes": num_labels}

    # The embeddings of positions depend on the size of the images.
    if config.name.startswith("vit_"):
        options["image_size"] = config.image_size

    # With their auxiliary classifiers these networks return more than logits.
    if config.name in ("googlenet", "inception_v3"):
        options.update(aux_logits=False, init_weights=True)
    model: nn.Module
    if resnext is not None:
        from torchvision.models.resnet import Bottleneck, ResNet

        depth, groups, width = (int(number) for number in resnext.groups())
        layers = [3, 4, 23, 3] if depth == 101 else [3, 4, 6, 3]
        model = ResNet(Bottleneck, layers, groups=groups, width_per_group=width, **options)
    else:
        model = torchvision.models.get_model(config.name, weights=None, **options)
    if config.num_channels == 1:
        _make_grey(model)
    return model


def torchvision_name(config: ModelConfig) -> str | None:
    """The torchvision builder that takes the weights of `config`'s network; None where it has none."""
    if config.name == "narrow":
        return None
    import torchvision

    known = config.name in torchvision.models.list_models(module=torchvision.models)
    return config.name if known and config.num_channels == 3 else None


def last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the layer that makes the logits (the last linear or 1x1 convolution)."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def num_parameters(model: nn.Module) -> int:
    """How many numbers are trained, frozen ones included (whole sizes under ZeRO 3)."""
    return sum(int(getattr(weight, "ds_numel", weight.numel())) for weight in model.parameters())


def _make_grey(model: nn.Module) -> None:
    """Replaces the first convolution by one of a single input channel."""
    name, first = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    grey = nn.Conv2d(
        1,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, grey)
