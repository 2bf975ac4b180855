"""Settings of a stage: every key wrong in turn, and those that exclude one another."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

import pytest
from pydantic.fields import FieldInfo

import wsl
from wsl.workspace.settings import Config, check
from wsl.workspace.stage import StageConfig

BASE = {"stage": "finetune"}


def fields(kind: type[Config], prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], FieldInfo]]:
    """Every setting of a group and of the groups in it, with the path to it."""
    found: list[tuple[tuple[str, ...], FieldInfo]] = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found += fields(field.annotation, (*prefix, name))
        else:
            found.append(((*prefix, name), field))
    return found


SETTINGS = fields(StageConfig)


def tree(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A stage's config with one setting."""
    whole: dict[str, Any] = dict(BASE)
    inner = whole
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    return whole


def out_of_range(field: FieldInfo) -> list[Any]:
    """Values of the right type that the setting cannot have."""
    text, annotation = f"{field.annotation}{field.metadata}", field.annotation
    arms = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    if any(typing.get_origin(arm) is Literal for arm in arms) or field.annotation is bool:
        return ["no such thing"]
    if "list" in text:
        return [[], [-1.0]] if "int" in text else [[], [1.0] * 4]
    if "int" in text:
        return [-1]
    if "float" in text:
        return [-0.5, float("nan"), float("inf")]
    return []


@pytest.mark.parametrize("path, field", SETTINGS, ids=[".".join(path) for path, _ in SETTINGS])
def test_each_setting_is_refused_where_it_is_wrong(path: tuple[str, ...], field: FieldInfo) -> None:
    place = ".".join(path)
    for wrong in ({"a": 1}, *out_of_range(field)):
        with pytest.raises(wsl.UsageError, match="here") as error:
            check(StageConfig, tree(path, wrong), "here")
        assert place in str(error.value), wrong
    misspelt = (*path[:-1], path[-1] + "s")
    with pytest.raises(wsl.UsageError, match="did you mean") as error:
        check(StageConfig, tree(misspelt, 1), "here")
    assert repr(path[-1]) in str(error.value)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "exceeds batch_size": {"batch_size": 8, "micro_batch_size": 16},
    "exceeds num_steps": {"num_steps": 5, "optimizer": {"warmup_steps": 6}},
    "last-layer belongs to the stage finetune": {"stage": "teacher", "train": "last-layer"},
    "mixup and cutmix belong": {"stage": "pretrain", "regularization": {"mixup": 0.2}},
    "distillation belongs to the stage student": {"distillation": {"weight": 0.5}},
    "data.target belongs to the stage student": {"data": {"target": "soft"}},
    "does not weigh": {"stage": "student", "data": {"sampling": "uniform"}},
    "trains on pseudo-labels": {"stage": "student", "data": {"label_noise": 0.1}},
    "data.window shuffles": {"stage": "student", "data": {"window": 4}},
    "data.augment_level is the strength": {"data": {"augment_level": 5}},
    "data.threshold belongs to another": {"data": {"threshold": 0.1}},
    "keep_best needs evaluate_every": {"keep_best": 1},
    "saves nothing": {"train": "last-layer", "execution": {"activation_checkpointing": True}},
    "num_drops belongs to schedule": {"optimizer": {"num_drops": 3}},
    "for each of the 3 channels": {"data": {"mean": [0.5]}},
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_settings_that_exclude_one_another_are_refused(said: str) -> None:
    with pytest.raises(wsl.UsageError, match=said):
        check(StageConfig, BASE | CONTRADICTIONS[said], "here")
