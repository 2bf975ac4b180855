"""Recipes that load and build, and the settings of a network and of DeepSpeed that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import wsl
from wsl.cli import run
from wsl.training import deepspeed
from wsl.training.execution import find_blocks, prepare_model
from wsl.training.models import build_model, num_parameters
from wsl.training.schedule import learning_rate, peak_rate
from wsl.workspace.config import WorkspaceConfig
from wsl.workspace.settings import check, dump, load
from wsl.workspace.stage import StageConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs" / "stages").glob("*.yaml"))
BASE = {"stage": "finetune"}


@pytest.mark.parametrize("recipe", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_loads_and_its_network_is_built(recipe: Path) -> None:
    config = load(StageConfig, recipe)
    assert check(StageConfig, yaml.safe_load(dump(config)), "again") == config
    assert recipe.read_text().startswith("#")
    settings = deepspeed.read_settings(config.deepspeed, recipe)
    with torch.device("meta"):
        model = build_model(config.model, 1000)
    prepare_model(model, config.execution, deepspeed.zero_stage(settings))
    assert num_parameters(model) > 1000


def test_the_recipes_are_the_sizes_of_the_papers() -> None:
    # Parameters with 1,000 classes, as published with the weights (88 M, 194 M, 466 M, 829 M).
    sizes = {"32x8d": 88, "32x16d": 194, "32x32d": 466, "32x48d": 829}
    names = {path.stem for path in RECIPES}
    for size, millions in sizes.items():
        stem = "teacher" if size == "32x48d" else f"teacher-resnext101-{size}"
        config = load(StageConfig, ROOT / "configs" / "stages" / f"{stem}.yaml")
        with torch.device("meta"):
            model = build_model(config.model, 1000)
        assert num_parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
        assert len(find_blocks(model)) == 33
    assert {"student-resnet18", "student", "student-resnext50-32x4d", "finetune-last-layer"} <= names
    workspace = load(WorkspaceConfig, ROOT / "configs" / "workspaces" / "papers.yaml")
    limits = [workspace.indexes[f"hashtags-{size}"].vocabulary.max_labels for size in ("1.5k", "8.5k", "17k")]
    assert limits == [1500, 8500, 17000]


def test_wider_resnexts_have_the_names_of_torchvision() -> None:
    import torchvision

    config = check(StageConfig, {**BASE, "model": {"name": "resnext101_32x16d"}}, "x")
    with torch.device("meta"):
        ours = build_model(config.model, 7)
        theirs = torchvision.models.resnext101_32x8d(num_classes=7)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_the_rate_scales_with_the_batch_warms_up_and_drops() -> None:
    options = load(StageConfig, ROOT / "configs" / "stages" / "pretrain.yaml").optimizer
    peak = peak_rate(options, 8064)
    assert peak == pytest.approx(3.15)
    rates = [learning_rate(options, step, 124000, 8064) for step in range(0, 124000, 500)]
    assert max(rates) == pytest.approx(peak)
    assert learning_rate(options, 4999, 124000, 8064) == pytest.approx(peak)
    assert learning_rate(options, 123999, 124000, 8064) == pytest.approx(peak * 0.5**20)
    after = rates[10:]
    assert after == sorted(after, reverse=True)
    assert len(set(after)) == 21
    cosine = options.model_copy(update={"schedule": "cosine", "warmup_steps": 0})
    assert learning_rate(cosine, 500, 1000, 8064) == pytest.approx(peak / 2)
    constant = options.model_copy(update={"schedule": "constant", "warmup_steps": 0})
    assert learning_rate(constant, 999, 1000, 8064) == pytest.approx(peak)


def test_print_config_shows_the_resolved_recipe_which_loads_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "configs" / "stages" / "student.yaml"
    assert run(["train", "-s", "student", "-c", str(recipe), "--set", "seed=7", "--print-config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(text)
    again = load(StageConfig, tmp_path / "again.yaml")
    assert again.seed == 7
    assert again == load(StageConfig, recipe, ["seed=7"])


@pytest.mark.parametrize(
    "settings, said",
    [
        ('{"zero_optimization": {"stage": 5}}', "stage from 0 to 3"),
        ('{"fp16": {"enabled": true}}', "use bf16"),
        ('{"optimizer": {}}', "come from the stage's YAML"),
        ("[1]", "expected a JSON object"),
        ("{", "expected DeepSpeed's settings as JSON"),
    ],
)
def test_settings_of_deepspeed_that_cannot_be_are_refused(tmp_path: Path, settings: str, said: str) -> None:
    (tmp_path / "zero.json").write_text(settings)
    with pytest.raises(wsl.UsageError, match=said):
        deepspeed.read_settings(tmp_path / "zero.json")


def test_bf16_is_for_gpus_that_have_it_and_clipping_is_always_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = check(StageConfig, {**BASE, "batch_size": 32, "micro_batch_size": 4}, "x")
    resolved = deepspeed.resolve_settings(config, {"bf16": {"enabled": "auto"}}, 4, 2)
    assert resolved["bf16"] == {"enabled": False}
    assert resolved["gradient_accumulation_steps"] == 4
    assert resolved["gradient_clipping"] == 0.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    resolved = deepspeed.resolve_settings(config, {"bf16": {"enabled": "auto"}}, 4, 2)
    assert resolved["bf16"] == {"enabled": True}
    assert resolved["data_types"] == {"grad_accum_dtype": "fp32"}


def test_the_average_of_weights_is_refused_under_zero_3(tmp_path: Path) -> None:
    from wsl.training.stages import _check_zero

    config = check(StageConfig, {**BASE, "ema_decay": 0.9}, "x")
    _check_zero(config, {"zero_optimization": {"stage": 2}})
    with pytest.raises(wsl.UsageError, match="ema_decay needs the whole weights"):
        _check_zero(config, {"zero_optimization": {"stage": 3}})


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("vgg11", {"activation_checkpointing": True}, "no blocks to recompute"),
        ("resnet18", {"compile": "no-such-backend"}, "torch has no backend"),
    ],
)
def test_an_execution_that_a_network_does_not_allow_is_refused(
    name: str, options: dict[str, Any], said: str
) -> None:
    config = check(StageConfig, {**BASE, "model": {"name": name}, "execution": options}, "x")
    with torch.device("meta"):
        model = build_model(config.model, 5)
    with pytest.raises(wsl.UsageError, match=said):
        prepare_model(model, config.execution, 1)
