"""Weakly and semi-supervised training of image classifiers, from hashtags and tar shards to a model.

The names below are the engine's verbs and need no torch; they are loaded when first used, so that
``import wsl`` costs next to nothing. Training lives in `wsl.training`, commands in `wsl.cli`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsl._core import DataError, UsageError, WslError, __version__
    from wsl.hashtags.counts import HashtagCounts, ZipfFit, count_hashtags, fit_zipf
    from wsl.hashtags.vocabulary import Vocabulary
    from wsl.index.build import build_index, drop_samples
    from wsl.index.mapped import Index, JoinedIndex
    from wsl.index.order import EpochOrder, MixedOrder, label_noise
    from wsl.index.sampling import repeat_factors
    from wsl.index.shards import pack_shards
    from wsl.selection.topk import TopK

_HOME = {
    "DataError": "wsl._core",
    "UsageError": "wsl._core",
    "WslError": "wsl._core",
    "__version__": "wsl._core",
    "HashtagCounts": "wsl.hashtags.counts",
    "Vocabulary": "wsl.hashtags.vocabulary",
    "ZipfFit": "wsl.hashtags.counts",
    "count_hashtags": "wsl.hashtags.counts",
    "fit_zipf": "wsl.hashtags.counts",
    "EpochOrder": "wsl.index.order",
    "MixedOrder": "wsl.index.order",
    "Index": "wsl.index.mapped",
    "JoinedIndex": "wsl.index.mapped",
    "build_index": "wsl.index.build",
    "drop_samples": "wsl.index.build",
    "label_noise": "wsl.index.order",
    "pack_shards": "wsl.index.shards",
    "repeat_factors": "wsl.index.sampling",
    "TopK": "wsl.selection.topk",
}

__all__ = [
    "DataError",
    "EpochOrder",
    "HashtagCounts",
    "Index",
    "JoinedIndex",
    "MixedOrder",
    "TopK",
    "UsageError",
    "Vocabulary",
    "WslError",
    "ZipfFit",
    "__version__",
    "build_index",
    "count_hashtags",
    "drop_samples",
    "fit_zipf",
    "label_noise",
    "pack_shards",
    "repeat_factors",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'wsl' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
