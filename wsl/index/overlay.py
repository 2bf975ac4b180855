"""Settings given for one build, over those that `wsl.yaml` has for an index.

What is given replaces what the file has; nothing that is given is ignored. Where several indexes are
built it applies to each that it can change, and what could change none of them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsl._core import UsageError
from wsl.workspace.config import IndexConfig
from wsl.workspace.settings import check

Given = Mapping[str, Any]
"""Settings by the names of the options that give them."""
Job = tuple[str, Path, IndexConfig, Path]
"""An index to build: name, folder, settings and the folder that globs start from."""

VOCABULARY = {
    "min_count": "min_count",
    "max_labels": "max_labels",
    "wordnet": "wordnet",
    "synsets": "synsets",
    "vocabulary": "file",
}
"""Options of the vocabulary, and what the settings call them."""
PATHS = ("vocabulary", "wordnet", "synsets", "include", "exclude")
OF_ONE_INDEX = ("out", "label_kind", "key_scope", "include")
"""What is right for one index of a workspace and, as a rule, wrong for the next."""


def overlay(jobs: list[Job], given: Given, out: Path | None = None) -> list[Job]:
    """The jobs with what is given; `out` is another folder for the one index that is built.

    UsageError, with the option's name, for what can change none of the indexes, and where several are to be
    built for what is about one.
    """
    if len(jobs) > 1:
        _check_several(jobs, given if out is None else {**given, "out": out})

    # An option is refused only where no index can use it: with several, each takes what is for it.
    used: set[str] = set()
    found = []
    why: dict[str, dict[str, str]] = {}
    for name, path, settings, root in jobs:
        reasons = pointless(with_settings(settings, given, root), given)
        kept = {option: value for option, value in given.items() if option not in reasons}
        used |= set(kept)
        for option, reason in reasons.items():
            why.setdefault(option, {}).setdefault(reason, name)
        found.append((name, out or path, with_settings(settings, kept, root), root))
    _refuse(
        {
            option: "; ".join(f"{name}: {reason}" for reason, name in each.items())
            for option, each in why.items()
            if option not in used
        }
    )
    return found


def alone(given: Given, **inputs: Any) -> IndexConfig:
    """Settings of an index without a workspace; UsageError for what changes nothing in it."""
    settings = with_settings(IndexConfig(), {**given, **inputs}, None)
    _refuse(pointless(settings, given))
    return settings


def with_settings(settings: IndexConfig, given: Given, root: Path | None) -> IndexConfig:
    """The settings with those given; paths, seen from the current folder, become paths from `root`.

    Without `root` they stay as they are. UsageError for a value that cannot be.
    """
    tree = settings.model_dump()
    for option, value in given.items():
        placed = _seen_from(root, value) if root is not None and option in PATHS else value
        if option in VOCABULARY:
            tree["vocabulary"][VOCABULARY[option]] = placed
        elif option == "limits":
            tree["limits"] |= value
        else:
            tree[option] = placed
    return check(IndexConfig, tree, "the options")


def pointless(settings: IndexConfig, given: Given) -> dict[str, str]:
    """What is given and changes nothing in an index of these settings, and why."""
    found: dict[str, str] = {}

    # An option keeps the first reason, which is the more general one.
    def mark(holds: bool, options: tuple[str, ...], reason: str) -> None:
        if holds:
            found.update({option: reason for option in options if option in given and option not in found})

    made_of_counts = tuple(option for option in VOCABULARY if option != "vocabulary")
    kind = settings.label_kind or "none"
    mark(kind == "none", ("vocabulary",), "an index without labels has no vocabulary")
    mark(
        kind != "hashtag",
        (*made_of_counts, "hashtags_column", "separator"),
        f"this is for labels that are hashtags, and label_kind is {kind}",
    )
    mark(
        settings.vocabulary.file is not None,
        made_of_counts,
        f"the vocabulary is not made but read from {settings.vocabulary.file}",
    )
    mark(
        settings.vocabulary.wordnet is None,
        ("synsets",),
        "synsets are chosen among WordNet's; name its folder with --wordnet too",
    )
    mark(
        settings.records is None,
        ("key_column", "key_format", "shard_column"),
        "there are no records with such a column",
    )
    mark(settings.key_scope != "shard", ("shard_column",), "this is for --key-scope shard")
    return found


def flag(option: str) -> str:
    """How an option is written."""
    return "--" + option.replace("_", "-")


def _check_several(jobs: list[Job], given: Given) -> None:
    for option in OF_ONE_INDEX:
        if option in given:
            names = ", ".join(name for name, *_ in jobs)
            raise UsageError(
                f"{flag(option)} is about one index, and several would be built: {names}; name one, as in "
                f"'wsl index build {jobs[0][0]} {flag(option)} ...'"
            )


def _refuse(reasons: Mapping[str, str]) -> None:
    if reasons:
        each = "; ".join(f"{flag(option)} would change nothing ({why})" for option, why in reasons.items())
        raise UsageError(each)


def _seen_from(root: Path, path: Path) -> Path:
    """A path of the command line as `wsl.yaml` would have it: from the workspace where it is within."""
    place = Path(os.path.abspath(path))
    return place.relative_to(root) if place.is_relative_to(root) else place
