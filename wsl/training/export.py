"""Models that leave a run: loading, exporting, classes of single images.

Only `model.safetensors` is read, never a pickle. Where the network is torchvision's its weights
keep torchvision's names, so `torchvision.models.get_model(name).load_state_dict` takes them.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from wsl._core import DataError, UsageError
from wsl.data import transforms
from wsl.data.augment import ImageOptions, cut, decode_image
from wsl.files.publish import publish_text, publishing
from wsl.training.card import LoadedModel, model_card, preprocessing
from wsl.training.models import build_model, torchvision_name
from wsl.workspace.run import read_run
from wsl.workspace.settings import check, load
from wsl.workspace.stage import DataConfig, ModelConfig, StageConfig

WEIGHTS = "model.safetensors"
BEST = "best.safetensors"


def load_run(run: Path) -> LoadedModel:
    """The model of a complete run; UsageError where the folder is none, DataError where it is damaged."""
    if not (run / "run.json").is_file() or not (run / WEIGHTS).is_file():
        raise UsageError(
            f"{run} is not a complete run: expected run.json and {WEIGHTS} in it; "
            "finish it by running its stage again, for example 'wsl train --stage teacher'"
        )
    info = read_run(run)
    config = load(StageConfig, run / "config.yaml")
    if not isinstance(info.get("num_labels"), int):
        raise DataError(f"{run / 'run.json'}: expected num_labels as a stage writes it, found none")
    model = build_model(config.model, info["num_labels"])
    load_weights(model, run / WEIGHTS)
    return LoadedModel(model.eval(), config, info)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a safetensors file, or in a file that `torch.save` wrote.

    The latter is a pickle, of which only tensors and plain containers are read (`weights_only`), such
    as torchvision's downloads are. UsageError where there is no such file, DataError for other content.
    """
    if not file.is_file():
        raise UsageError(f"{file} is not there; expected weights as safetensors or a state dict (.pth)")
    try:
        content: Any
        if file.suffix == ".safetensors":
            content = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: expected tensors alone, as safetensors or a state dict: {reason}") from None

    # Training scripts save the state dict within another dict, and that of DistributedDataParallel with a
    # prefix.
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values())
    if not content or not tensors:
        raise DataError(f"{file}: expected a state dict of tensors, found {type(content).__name__}")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def load_weights(model: nn.Module, file: Path, *, skip: str | None = None) -> None:
    """Reads `file` into `model`, all but the layer `skip`; DataError where names or shapes differ."""
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: expected a safetensors file, found: {error}") from None
    apply_weights(model, state, file, skip=skip)


def apply_weights(
    model: nn.Module, state: dict[str, torch.Tensor], file: Path, *, skip: str | None = None
) -> None:
    """Puts a state dict into `model`, all but the layer `skip`; DataError where names or shapes differ."""
    own = model.state_dict()
    prefix = f"{skip}." if skip else None
    if prefix:
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        state |= {key: value for key, value in own.items() if key.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{file} does not hold the weights of this network: {reason}") from None


def export_run(run: Path, out: Path, *, best: bool = False, overwrite: bool = False) -> Path:
    """Writes `model.safetensors`, `config.json` and the card `README.md` of a run to the folder `out`.

    `best` takes the weights of the best evaluation (a run with keep_best) instead of the last. UsageError
    where `out` has a model and `overwrite` is not given, or the run kept no best weights.
    """
    loaded = load_run(run)
    if (out / "config.json").exists() and not overwrite:
        raise UsageError(f"{out} holds an exported model already; pass --overwrite to replace it")
    source = run / (BEST if best else WEIGHTS)
    if not source.is_file():
        raise UsageError(
            f"{run} kept no best weights; train it with keep_best=1 and evaluate_every, or leave --best out"
        )

    # The config comes last: a folder that has one is an exported model.
    out.mkdir(parents=True, exist_ok=True)
    with publishing(out / WEIGHTS) as temporary:
        shutil.copyfile(source, temporary)
    publish_text(out / "README.md", model_card(loaded, best=best))
    config = loaded.config
    content = {
        "format": "wsl-model",
        "format_version": 1,
        "num_labels": loaded.info["num_labels"],
        "class_names": loaded.info.get("class_names"),
        "vocabulary_fingerprint": loaded.info.get("vocabulary_fingerprint"),
        "torchvision": torchvision_name(config.model),
        "preprocessing": preprocessing(config.model, config.data),
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
    }
    publish_text(out / "config.json", json.dumps(content, indent=2) + "\n")
    return out


def predict(model_path: Path, images: list[Path], *, num_best: int = 5) -> list[list[tuple[str, float]]]:
    """For each image its best classes with their probabilities; `model_path` is a run or an export."""
    model, model_config, data, names = _open(model_path)
    options = ImageOptions.of(model_config, data)
    results: list[list[tuple[str, float]]] = []
    for file in images:
        pixels = decode_image(file.read_bytes(), options.max_pixels, options.num_channels)
        if pixels is None:
            raise DataError(f"{file}: expected an image of at most {data.max_pixels} pixels")
        batch = cut(pixels, options)[None]
        with torch.inference_mode():
            logits = model(transforms.normalise(batch, data.mean, data.std)).float()
        best = torch.softmax(logits, 1)[0].topk(min(num_best, logits.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        results.append([(names[i] if names else str(i), p) for i, p in pairs])
    return results


def _open(path: Path) -> tuple[nn.Module, ModelConfig, DataConfig, list[str] | None]:
    if not (path / "config.json").is_file():
        loaded = load_run(path)
        return loaded.model, loaded.config.model, loaded.config.data, loaded.info.get("class_names")
    file = path / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        num_labels = int(content["num_labels"])
        trees = content["model"], content["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: expected the config that 'wsl export' writes, found: {error!r}") from None
    model_config, data = check(ModelConfig, trees[0], str(file)), check(DataConfig, trees[1], str(file))
    model = build_model(model_config, num_labels)
    load_weights(model, path / WEIGHTS)
    return model.eval(), model_config, data, content.get("class_names")


__all__ = ["BEST", "WEIGHTS", "LoadedModel", "export_run", "load_run", "load_weights", "predict"]
