"""Groups of settings: read from YAML, checked, changed by `--set a.b=c`, written back.

Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wsl._core import UsageError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """A group of settings; unknown keys and values of the wrong type are errors."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False
    )


C = TypeVar("C", bound=Config)


def load(kind: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """Reads `path` as a `kind` and applies `a.b=c` overrides.

    Raises FileNotFoundError, and UsageError that names the file, the key and the nearest known key.
    """
    text = path.read_text(encoding="utf-8")
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path}: expected a YAML mapping, found {type(tree).__name__}")
    for override in overrides or []:
        _override(tree, override)
    return check(kind, tree, str(path))


def check(kind: type[C], tree: dict[str, Any], where: str) -> C:
    """Makes a `kind` of a parsed YAML tree; UsageError names every fault at once."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        faults = "; ".join(_fault(kind, dict(fault)) for fault in error.errors(include_url=False))
        raise UsageError(f"{where}: {faults}") from None


def dump(config: Config) -> str:
    """The YAML text of `config`, every field resolved; `load` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level of ``a.b`` keys."""
    level: dict[str, Any] = {}
    for key, value in tree.items():
        level |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return level


def change(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets ``a.b`` within a parsed tree; UsageError where ``a`` is no group of settings."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {key}: {parent!r} is a value, not a group of settings")
    tree[last] = value


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: expected KEY=VALUE, for example --set optimizer.lr=0.05")
    try:
        change(tree, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: not a YAML value: {error}") from None


def _fault(kind: type[Config], fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"]) or "(top)"
    if fault["type"] == "literal_error":
        return f"{place}: expected {fault['ctx']['expected']}, got {fault['input']!r}"
    if fault["type"] != "extra_forbidden":
        message = str(fault["msg"]).removeprefix("Value error, ")
        return f"{place}: {message}"
    known = _fields_at(kind, fault["loc"][:-1])
    nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
    return f"unknown key {place!r}; {hint}"


def _fields_at(kind: type[Config], location: tuple[Any, ...]) -> list[str]:
    annotation: Any = kind
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = annotation.model_fields[part].annotation
        else:
            annotation = typing.get_args(annotation)[-1]
        if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            annotation = next(arm for arm in typing.get_args(annotation) if arm is not type(None))
    return list(annotation.model_fields)
