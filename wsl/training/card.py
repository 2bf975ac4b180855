"""The model card: what an exported model is, how to load it, and how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from wsl.training.models import num_parameters, torchvision_name
from wsl.training.schedule import peak_rate
from wsl.workspace.stage import DataConfig, ModelConfig, StageConfig

MAX_CLASSES = 50
"""Classes that the card lists one by one."""
TRAINED_ON = {
    "pretrain": "hashtags, as noisy as their authors wrote them",
    "teacher": "labelled images",
    "student": "pseudo-labels that a teacher gave",
    "finetune": "labelled images, from the weights of an earlier stage",
}


@dataclass(frozen=True)
class LoadedModel:
    """A trained network in evaluation mode with what is known of it."""

    model: nn.Module
    config: StageConfig
    info: dict[str, Any]
    """The content of `run.json`."""


def preprocessing(model: ModelConfig, data: DataConfig) -> dict[str, Any]:
    """What turns an image into the network's input, in words of torchvision's transforms."""
    channels, side = model.num_channels, model.image_size
    crop = "the middle square of 7/8 of the shorter side" if data.crop else "the whole image"
    return {
        "mode": "L" if channels == 1 else "RGB",
        "transparency": "white",
        "crop": crop,
        "resize": [side, side],
        "interpolation": "bilinear",
        "scale": "to [0, 1]",
        "mean": data.mean[:channels],
        "std": data.std[:channels],
    }


def model_card(loaded: LoadedModel, *, best: bool = False) -> str:
    """The card as Markdown."""
    config, info = loaded.config, loaded.info
    steps = preprocessing(config.model, config.data)
    lines = [
        f"# {config.model.name}, {config.stage}",
        "",
        f"An image classifier of {info['num_labels']:,} classes and {num_parameters(loaded.model):,} "
        f"parameters, trained by `wsl` on {TRAINED_ON[config.stage]}"
        + ("; the weights of its best evaluation." if best else "."),
        "",
        "## Input",
        "",
        f"{steps['mode']}, transparent parts {steps['transparency']}; {steps['crop']}, resized to "
        f"{steps['resize'][0]} x {steps['resize'][1]} ({steps['interpolation']}), scaled {steps['scale']}, "
        f"less {steps['mean']}, over {steps['std']}.",
        "",
        "## Accuracy",
        "",
        *_accuracy(info.get("evaluation")),
        "",
        "## Training",
        "",
        *_training(config, info),
        "",
        "## Loading",
        "",
        *_loading(config, int(info["num_labels"])),
        "",
        "## Classes",
        "",
        *_classes(info),
    ]
    return "\n".join(lines) + "\n"


def _accuracy(evaluation: dict[str, Any] | None) -> list[str]:
    if not evaluation:
        return ["Not evaluated."]
    lines = [
        f"On {evaluation['num_samples']:,} held-out images, at the end of training, with 95 % intervals:",
        "",
        "| measure | value | interval |",
        "| --- | ---: | --- |",
    ]
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("macro-averaged recall", "macro")):
        interval = evaluation.get(f"{key}_interval")
        shown = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %" if interval else "-"
        lines.append(f"| {name} | {evaluation[key]:.1%} | {shown} |")
    recalls = [recall for recall in evaluation["per_class_recall"] if recall is not None]
    if recalls:
        lines += ["", f"The recall of single classes runs from {min(recalls):.1%} to {max(recalls):.1%}."]
    return lines


def _training(config: StageConfig, info: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in (info.get("versions") or {}).items())
    options = config.optimizer
    lines = [
        f"- {config.num_steps:,} steps of {config.batch_size:,} images, SGD, learning rate "
        f"{peak_rate(options, config.batch_size):g}, {options.schedule} schedule, weight decay "
        f"{options.weight_decay:g}, seed {config.seed}",
        f"- {versions or 'versions unknown'}",
    ]
    inputs = info.get("inputs") or {}
    lines += [f"- {name}: `{value}`" for name, value in inputs.items() if isinstance(value, str)]
    return lines


def _loading(config: StageConfig, num_labels: int) -> list[str]:
    name = torchvision_name(config.model)
    if name is None:
        return [
            "`wsl predict FOLDER IMAGE...`, or in Python `wsl.training.export.predict(folder, images)`; "
            "torchvision has no builder of this network."
        ]
    return [
        "```python",
        "import torchvision",
        "from safetensors.torch import load_file",
        "",
        f'model = torchvision.models.get_model("{name}", num_classes={num_labels})',
        'model.load_state_dict(load_file("model.safetensors"))',
        "```",
    ]


def _classes(info: dict[str, Any]) -> list[str]:
    names = info.get("class_names")
    if not names:
        return [f"{info['num_labels']:,}, without names."]
    shown = [f"{number}. {name}" for number, name in enumerate(names[:MAX_CLASSES])]
    more = len(names) - len(shown)
    return [*shown, *([f"and {more:,} more, in `config.json`"] if more > 0 else [])]
