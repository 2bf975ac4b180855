"""Building an index on a cluster: the join of records to samples, the parts of the index, the manifest.

Workers read the headers of groups of shards, and the records of groups of tables; both write their keys in
buckets by hash, one file for each group. Others join some buckets of all files, each reading its range of
every one, and others again write the parts of the index, byte for byte those of one machine, for every step
is the engine's own. Records that are an index by themselves become rows, group by group, and parts out of
these. One task takes the parts over, counts what was counted, and writes the keys and the manifest.

    vocabulary, recipe                what all workers get
    scan  -> samples  \\
              records  > join -> part -> manifest
    known, of the index that is appended to
    rows ----------------------> alone -> manifest
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import UsageError
from wsl.cluster.index_tasks import hash_of_manifest
from wsl.cluster.parts import Part, Parts, Run
from wsl.cluster.plan import Stage, absolute, cut, file_groups, record_groups, size_of
from wsl.cluster.ray import connect
from wsl.files import stores
from wsl.files.globs import find_files, kind_of
from wsl.index.build import Wanted
from wsl.workspace.config import ClusterConfig
from wsl.workspace.recipe import Recipe

HEADERS = 16
"""How much more of shards than of records makes a group: only their headers are read."""
NUM_BUCKETS = 256
"""What the engine parts keys into."""


def build(wanted: Wanted, settings: ClusterConfig, folder: stores.Place, run: Run | None = None) -> None:
    """Lets the cluster build an index out of parts that are in `folder`; `run` is what that is a part of."""
    parts = Parts(folder)
    plan = plan_of(wanted, settings, parts)
    with connect(settings) as cluster:
        cluster.check(parts.folder, [*plan.shards, *plan.records])
        for stage in plan.stages():
            run = run or Run(stage.name)
            cluster.make(parts, stage, run)


def plan_of(wanted: Wanted, settings: ClusterConfig, parts: Parts) -> Plan:
    """How the index is built."""
    return ShardsPlan(wanted, settings, parts) if wanted.shards else RecordsPlan(wanted, settings, parts)


@dataclass(frozen=True)
class Group:
    """A group of shards: its scans, and where its shards are among all."""

    scans: str
    shards: tuple[str, ...]
    number: int
    first_shard: int
    num_samples: tuple[int, ...]
    """Samples that are taken of each shard."""

    def wanted(self, first: int, last: int) -> dict[str, Any]:
        """What a part wants that has these of the group's samples."""
        shard = before = 0
        while before + self.num_samples[shard] <= first:
            before += self.num_samples[shard]
            shard += 1
        return {
            "shards": list(self.shards),
            "number": self.number,
            "first_shard": self.first_shard,
            "skip": [shard, before],
            "rows": [first, last],
        }


class Plan:
    """The parts of the build of an index. They follow from its inputs and options, not from the nodes."""

    def __init__(self, wanted: Wanted, settings: ClusterConfig, parts: Parts) -> None:
        self._wanted, self._settings, self._parts = wanted, settings, parts
        self.shards = [absolute(os.fspath(shard).removeprefix("file://")) for shard in wanted.shards]
        self.records = [absolute(file) for file in _files(wanted)]
        self._limits = wanted.resources.with_threads(settings.num_cpus).to_json()

    def stages(self) -> Iterator[Stage]:
        """What is to be made, each stage planned when those before it are made."""
        raise NotImplementedError

    def _manifest(self, made: Sequence[tuple[Part, int]], **taken: Sequence[Part]) -> Stage:
        """The end of the build: the parts of the index that were made, and what else is taken over."""
        wanted = self._wanted
        about = {
            "again": wanted.again,
            "names": list(wanted.names),
            "ending": asdict(wanted.ending),
            "parts": [[part.name, num_rows] for part, num_rows in made],
            "taken": {kind: [part.name for part in some] for kind, some in taken.items()},
        }
        inputs = [self._parts.keep("build", json.dumps(about).encode()).name, self._keep(wanted.recipe)]
        if wanted.vocabulary is not None:
            inputs.append(self._keep_vocabulary())
        arguments = {"folder": wanted.folder, "replaces": hash_of_manifest(wanted.folder)}
        part = Part("manifest", 0, arguments, tuple(inputs), self._limits)
        # What one contains is true only as long as the index stays as it was then.
        self._parts.forget(part)
        return Stage("manifest", [[part]], folder=wanted.folder, is_one=True)

    def _keep(self, recipe: Recipe) -> str:
        return self._parts.keep("recipe", recipe.model_dump_json().encode()).name

    def _keep_vocabulary(self) -> str:
        assert self._wanted.vocabulary is not None
        with tempfile.TemporaryDirectory(prefix="wsl-") as folder:
            file = Path(folder) / "vocabulary.parquet"
            self._wanted.vocabulary.write(file)
            return self._parts.keep("vocabulary", file.read_bytes()).name

    def _record_parts(self, kind: str, recipe: str) -> list[Part]:
        """Parts of groups of tables."""
        inputs = (self._keep_vocabulary(), recipe)
        return [
            Part(kind, number, {"records": _stamps(group)}, inputs, self._limits)
            for number, group in enumerate(record_groups(self.records, self._settings.group_bytes))
        ]

    def _num_taken(self, parts: Sequence[Part]) -> list[list[int]]:
        """Samples that are taken of each shard, or of the records, of each part."""
        places = [self._parts.place(part.name) for part in parts]
        return _core.num_samples_taken(places, storage=stores.core())


class ShardsPlan(Plan):
    """An index over shards, whose labels may come from records."""

    def stages(self) -> Iterator[Stage]:
        """Files of records and samples are asked for by themselves: what was counted is in them."""
        wanted = self._wanted
        self._parts.begin()
        is_joined = wanted.recipe.label_kind == "hashtag"
        recipe = self._keep(wanted.recipe.of_rows())
        scans = self._scans()
        samples = [self._sample_part(scan, recipe) for scan in scans]
        records, joins = [], []
        if is_joined:
            records = self._record_parts("records", recipe)
        yield Stage("read", [scans, [*records, *samples]], is_last=False)
        if is_joined:
            known = self._known_part()
            if known is not None:
                yield Stage("known", [[known]], folder=wanted.folder, is_last=False)
            joins = self._join_parts(records, samples, () if known is None else (known.name,))
            yield Stage("join", [joins], is_last=False)

        # The parts can be cut only now, since what was read has the number of samples.
        made = self._index_parts(recipe, self._groups(scans, samples), joins)
        if made:
            yield Stage("index", [[part for part, _ in made]], is_last=False)
        yield self._manifest(made, records=records, samples=samples, joins=joins)

    def _scans(self) -> list[Part]:
        about = {"label_kind": self._wanted.recipe.label_kind, "key_scope": self._wanted.recipe.key_scope}
        limits = {"num_threads": self._settings.num_cpus}
        groups = file_groups(self.shards, HEADERS * self._settings.group_bytes, size_of)
        return [
            Part("scan", number, {"shards": _stamps(group), **about}, (), limits)
            for number, group in enumerate(groups)
        ]

    def _sample_part(self, scan: Part, recipe: str) -> Part:
        about = {"shards": list(scan.arguments["shards"])}
        return Part("samples", scan.number, about, (scan.name, recipe), self._limits)

    def _known_part(self) -> Part | None:
        """The keys of the index that is appended to, whose samples use up records too."""
        known = self._wanted.known
        if known is None:
            return None
        about = {
            "fingerprint": known.fingerprint,
            "shards": known.manifest["shards"]["checksum"],
            "key_scope": self._wanted.recipe.key_scope,
        }
        # The folder does not enter the name: another one with such an index has the same keys.
        limits = self._limits | {"folder": self._wanted.folder}
        return Part("known", 0, about, (), limits)

    def _join_parts(
        self, records: Sequence[Part], samples: Sequence[Part], known: tuple[str, ...]
    ) -> list[Part]:
        """One for each group of records, so that each has about as much as one of them."""
        number = max(min(len(records), NUM_BUCKETS), 1)
        names = tuple(part.name for part in [*records, *samples]) + known
        about = {"num_records": len(records), "num_samples": len(samples)}
        bounds = [NUM_BUCKETS * place // number for place in range(number + 1)]
        return [
            Part("join", place, {"first_bucket": first, "stop_bucket": stop, **about}, names, self._limits)
            for place, (first, stop) in enumerate(itertools.pairwise(bounds))
        ]

    def _groups(self, scans: Sequence[Part], samples: Sequence[Part]) -> list[Group]:
        """Where the shards of each group are, now that it is known how many samples they have."""
        known = self._wanted.known
        first_shard = 0 if known is None else len(known.shards())
        groups = []
        for scan, of_scan, numbers in zip(scans, samples, self._num_taken(samples), strict=True):
            shards = tuple(of_scan.arguments["shards"])
            groups.append(Group(scan.name, shards, scan.number, first_shard, tuple(numbers)))
            first_shard += len(shards)
        return groups

    def _index_parts(
        self, recipe: str, groups: Sequence[Group], joins: Sequence[Part]
    ) -> list[tuple[Part, int]]:
        """The parts of the index, and the rows of each."""
        labels = tuple(part.name for part in joins)
        made = []
        sizes = [sum(group.num_samples) for group in groups]
        for number, some in enumerate(cut(sizes, self._wanted.recipe.part_rows)):
            about = {"groups": [groups[group].wanted(first, last) for group, first, last in some]}
            inputs = (recipe, *(groups[group].scans for group, _, _ in some), *labels)
            num_rows = sum(last - first for _, first, last in some)
            made.append((Part("part", number, about, inputs, self._limits), num_rows))
        return made


class RecordsPlan(Plan):
    """Records that are an index by themselves."""

    def stages(self) -> Iterator[Stage]:
        """Groups of tables become rows, in their order; ranges of these the parts."""
        self._parts.begin()
        rows = self._record_parts("rows", self._keep(self._wanted.recipe.of_rows()))
        yield Stage("read", [rows], is_last=False)
        made = self._index_parts(rows)
        if made:
            yield Stage("index", [[part for part, _ in made]], is_last=False)
        yield self._manifest(made, rows=rows)

    def _index_parts(self, rows: Sequence[Part]) -> list[tuple[Part, int]]:
        """The parts of the index, and the rows of each."""
        made = []
        sizes = [number for (number,) in self._num_taken(rows)]
        for number, some in enumerate(cut(sizes, self._wanted.recipe.part_rows)):
            about = {"rows": [[first, last] for _, first, last in some]}
            inputs = tuple(rows[group].name for group, _, _ in some)
            num_rows = sum(last - first for _, first, last in some)
            made.append((Part("alone", number, about, inputs, self._limits), num_rows))
        return made


def _stamps(files: Sequence[str]) -> dict[str, list[Any]]:
    return {file: stores.stamp(file) for file in files}


def _files(wanted: Wanted) -> list[str]:
    """The files of the records."""
    if wanted.recipe.label_kind != "hashtag":
        return []
    if not isinstance(wanted.records, (str, os.PathLike, list, tuple)):
        raise UsageError("records: a cluster reads them from files; name these by paths, globs or URIs")
    if not wanted.records:
        return []
    files = find_files(wanted.records)
    kind_of(files)
    return files
