"""Building an index on a cluster: the join of records to samples, and the parts of the index.

Workers read the headers of groups of shards, and the records of groups of tables; both write their keys in
buckets by hash, one file for each group. Others join some buckets of all files, each reading its range of
every one, and others again write the parts of the index, byte for byte those of one machine, for every step
is the engine's own. The process that started the build takes the parts over, counts what was counted, and
writes the keys and the manifest.

    vocabulary, lists                 what all workers are told
    scan  -> samples  \\
              records  > join -> part -> this process
    known, of the index that is appended to, is made by this process too
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wsl import _core, storage
from wsl._core import UsageError
from wsl.building import SHARD, PartsWanted
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import absolute, file_groups, record_groups, size_of
from wsl.cluster.running import connect
from wsl.config import ClusterConfig
from wsl.files import find_files, kind_of

HEADERS = 16
"""How much more of shards than of records makes a group: only their headers are read."""
NUM_BUCKETS = 256
"""What the engine parts keys into."""

Make = Callable[[Parts, list[list[Part]], str], object]
"""Makes what is missing of the last level and of all that it asks for; the text names the step."""


def make_parts(
    builder: _core.IndexBuilder, wanted: PartsWanted, settings: ClusterConfig, folder: storage.Place
) -> None:
    """Lets the cluster make the parts of an index, which lie in `folder`, and hands them to `builder`."""
    parts = Parts(folder)
    plan = IndexPlan(wanted, settings, parts)
    with connect(settings) as cluster:
        cluster.check(parts.folder, [*plan.shards, *plan.records])
        plan.make(cluster.make)
    plan.hand_over(builder)


@dataclass(frozen=True)
class Group:
    """A group of shards: its scans, and where its shards and samples stand among all."""

    scans: str
    shards: tuple[str, ...]
    number: int
    first_shard: int
    first_sample: int
    num_samples: tuple[int, ...]
    """Samples that are taken of each shard."""

    def within(self, start: int, stop: int) -> dict[str, Any] | None:
        """What a part that holds the samples `start` to `stop` wants of the group; None where nothing."""
        first = max(start - self.first_sample, 0)
        last = min(stop - self.first_sample, sum(self.num_samples))
        if first >= last:
            return None
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


class IndexPlan:
    """The parts of the build of an index. They follow from its inputs and options, not from the nodes."""

    def __init__(self, wanted: PartsWanted, settings: ClusterConfig, parts: Parts) -> None:
        self._wanted, self._settings, self._parts = wanted, settings, parts
        self.shards = [absolute(os.fspath(shard).removeprefix("file://")) for shard in wanted.shards]
        self.records = [absolute(file) for file in _files(wanted)]
        self._is_joined = wanted.labels == "records"
        self._limits: dict[str, Any] = {
            "num_threads": settings.num_cpus,
            "memory_bytes": wanted.memory_bytes,
            "spill_dir": None if wanted.spill_dir is None else os.fspath(wanted.spill_dir),
        }
        self._records: list[Part] = []
        self._samples: list[Part] = []
        self._joins: list[Part] = []
        self._made: list[tuple[Part, int]] = []

    def make(self, make: Make) -> None:
        """Has all parts made; `make` makes levels of them.

        Files of records and samples are asked for by themselves: what was counted stands in them.
        """
        self._parts.begin()
        lists = self._keep_lists()
        scans = self._scans()
        self._samples = [self._sample_part(scan, lists) for scan in scans]
        self._records = self._record_parts(lists) if self._is_joined else []
        make(self._parts, [scans, [*self._records, *self._samples]], "read")
        if self._is_joined:
            self._joins = self._join_parts(self._keep_known())
            make(self._parts, [self._joins], "join")
        self._made = self._index_parts(lists, self._groups(scans))
        if self._made:
            make(self._parts, [[part for part, _ in self._made]], "index")

    def hand_over(self, builder: _core.IndexBuilder) -> None:
        """Gives `builder` what was made."""
        places = [[self._parts.place(p.name) for p in kind] for kind in (self._records, self._samples)]
        builder.add_spread(
            list(self._wanted.names),
            records=places[0],
            samples=places[1],
            labels=[self._parts.place(part.name) for part in self._joins],
            again=self._wanted.again,
        )
        for part, num_rows in self._made:
            with self._parts.held(part.name) as (file,):
                builder.add_part(file, num_rows)

    def _scans(self) -> list[Part]:
        about = {"with_classes": self._wanted.labels == "members", "key_scope": self._wanted.key_scope}
        limits = {"num_threads": self._settings.num_cpus}
        groups = file_groups(self.shards, HEADERS * self._settings.group_bytes, size_of)
        return [
            Part("scan", number, {"shards": _stamps(group), **about}, (), limits)
            for number, group in enumerate(groups)
        ]

    def _sample_part(self, scan: Part, lists: str) -> Part:
        about = {
            "shards": list(scan.arguments["shards"]),
            "joined": self._is_joined,
            "key_scope": self._wanted.key_scope,
        }
        return Part("samples", scan.number, about, (scan.name, lists), self._limits)

    def _record_parts(self, lists: str) -> list[Part]:
        wanted = self._wanted
        is_by_path = wanted.key_scope == "shard" and wanted.columns.shard_column is None
        about = {
            "columns": asdict(wanted.columns),
            "path_column": SHARD if is_by_path else None,
            "key_scope": wanted.key_scope,
        }
        inputs = (self._keep_vocabulary(), lists)
        return [
            Part(
                "records",
                number,
                {"records": _stamps(group), **about},
                inputs,
                self._limits,
            )
            for number, group in enumerate(record_groups(self.records, self._settings.group_bytes))
        ]

    def _join_parts(self, known: tuple[str, ...]) -> list[Part]:
        """One for each group of records, so that each holds about as much as one of them."""
        number = max(min(len(self._records), NUM_BUCKETS), 1)
        names = tuple(part.name for part in [*self._records, *self._samples]) + known
        about = {"num_records": len(self._records), "num_samples": len(self._samples)}
        bounds = [NUM_BUCKETS * place // number for place in range(number + 1)]
        return [
            Part("join", place, {"first_bucket": first, "stop_bucket": stop, **about}, names, self._limits)
            for place, (first, stop) in enumerate(itertools.pairwise(bounds))
        ]

    def _groups(self, scans: Sequence[Part]) -> list[Group]:
        """Where the shards of each group stand, now that it is known how many samples they have."""
        known = self._wanted.known
        first_shard = 0 if known is None else len(known.shards())
        first_sample, groups = 0, []
        places = [self._parts.place(samples.name) for samples in self._samples]
        found = _core.num_samples_taken(places, storage=storage.core())
        for scan, samples, numbers in zip(scans, self._samples, found, strict=True):
            shards = tuple(samples.arguments["shards"])
            groups.append(Group(scan.name, shards, scan.number, first_shard, first_sample, tuple(numbers)))
            first_shard += len(shards)
            first_sample += sum(numbers)
        return groups

    def _index_parts(self, lists: str, groups: Sequence[Group]) -> list[tuple[Part, int]]:
        """The parts of the index, and the rows of each."""
        wanted = self._wanted
        labels = tuple(part.name for part in self._joins)
        num_samples = groups[-1].first_sample + sum(groups[-1].num_samples) if groups else 0
        made, first = [], 0
        for number, start in enumerate(range(0, num_samples, wanted.part_rows)):
            stop = min(start + wanted.part_rows, num_samples)
            while groups[first].first_sample + sum(groups[first].num_samples) <= start:
                first += 1
            some = []
            for group in groups[first:]:
                if group.first_sample >= stop:
                    break
                some.append((group, group.within(start, stop)))
            some = [(group, held) for group, held in some if held is not None]
            about = {
                "groups": [held for _, held in some],
                "labels": wanted.labels,
                "key_scope": wanted.key_scope,
            }
            inputs = (lists, *(group.scans for group, _ in some), *labels)
            made.append((Part("part", number, about, inputs, self._limits), stop - start))
        return made

    def _keep_lists(self) -> str:
        lists = self._wanted.lists
        text = {
            "include": None if lists.include is None else list(lists.include),
            "exclude": list(lists.exclude),
        }
        return self._parts.keep("lists", json.dumps(text).encode()).name

    def _keep_vocabulary(self) -> str:
        assert self._wanted.vocabulary is not None
        with tempfile.TemporaryDirectory(prefix="wsl-") as folder:
            file = Path(folder) / "vocabulary.parquet"
            self._wanted.vocabulary.write(file)
            return self._parts.keep("vocabulary", file.read_bytes()).name

    def _keep_known(self) -> tuple[str, ...]:
        """The keys of the index that is appended to, whose samples use up records too."""
        known, scope = self._wanted.known, self._wanted.key_scope
        if known is None:
            return ()
        about = {
            "fingerprint": known.fingerprint,
            "shards": known.manifest["shards"]["checksum"],
            "key_scope": scope,
        }
        part = Part("known", 0, about)
        if self._parts.finished(part) is None:
            memory = {name: self._limits[name] for name in ("memory_bytes", "spill_dir")}
            with self._parts.making(part) as out:
                _core.save_known(known.path, out, key_scope=scope, **memory)
        return (part.name,)


def _stamps(files: Sequence[str]) -> dict[str, list[Any]]:
    return {file: storage.stamp(file) for file in files}


def _files(wanted: PartsWanted) -> list[str]:
    """The files of the records."""
    if wanted.labels != "records":
        return []
    if not isinstance(wanted.records, (str, os.PathLike, list, tuple)):
        raise UsageError("records: a cluster reads them from files; name these by paths, globs or URIs")
    if not wanted.records:
        return []
    files = find_files(wanted.records)
    kind_of(files)
    return files
