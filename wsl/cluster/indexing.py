"""Building an index on a cluster: its nodes read the headers of the shards, a part for each group of them.

One process then joins the scans with their records and writes the parts of the index and its manifest, by
the same steps as where it scans itself, so the index is the same to the byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wsl import storage
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import absolute, file_groups, size_of
from wsl.cluster.running import connect
from wsl.config import ClusterConfig

HEADERS = 16
"""How much more of shards than of records makes a group: only their headers are read."""


def scan_shards(
    shards: Sequence[str | os.PathLike[str]],
    with_classes: bool,
    key_scope: str,
    settings: ClusterConfig,
    folder: Path,
) -> list[Path]:
    """Files of scans of all shards, in their order, for `wsl.build_index`."""
    parts = Parts(folder.absolute())
    paths = [absolute(os.fspath(shard).removeprefix("file://")) for shard in shards]
    limits = {"num_threads": settings.num_cpus}
    about = {"with_classes": with_classes, "key_scope": key_scope}
    level = [
        Part("scan", number, {"shards": {path: storage.stamp(path) for path in group}, **about}, (), limits)
        for number, group in enumerate(file_groups(paths, HEADERS * settings.group_bytes, size_of))
    ]
    with connect(settings) as cluster:
        cluster.check(parts.folder, paths)
        cluster.make(parts, [level], "scan")
    return [parts.checked(part.name) for part in level]
