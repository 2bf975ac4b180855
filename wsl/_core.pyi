"""The engine of wsl, compiled from Rust (`rust/src/python/`); `stubtest` holds this file to it.

Arrays cross as C-contiguous buffers (NumPy arrays in, `bytes` out), tables through the Arrow
PyCapsule interface. Long calls release the interpreter, hear Ctrl-C and call `progress(done)`
about ten times a second. Friendlier forms of everything here are exported by `import wsl`.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, final, type_check_only

import numpy.typing as npt

_Array = npt.NDArray[Any]

@type_check_only
class ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...

__all__ = [
    "HAS_STORES",
    "STORE_LIMITS",
    "UNICODE_VERSION",
    "DataError",
    "EpochOrder",
    "HashtagCounts",
    "Index",
    "IndexBuilder",
    "LabelNoise",
    "SelectedBatches",
    "SelectedPairs",
    "SpillFolder",
    "Spool",
    "Storage",
    "Table",
    "TopK",
    "UsageError",
    "Vocabulary",
    "WslError",
    "__version__",
    "drop_keys",
    "is_remote",
    "join_samples",
    "log_odds",
    "member_records",
    "normalize_hashtag",
    "num_samples_taken",
    "save_known",
    "save_parquet_rows",
    "save_records",
    "save_rows",
    "save_samples",
    "save_scans",
    "scan_shard",
    "write_alone",
    "write_part",
]
__version__: str
UNICODE_VERSION: str
HAS_STORES: bool
STORE_LIMITS: dict[str, Any]

class WslError(Exception): ...
class UsageError(WslError): ...
class DataError(WslError): ...

@final
class Table:
    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...
    def __len__(self) -> int: ...

# --- counts (rust/src/python/counts.rs) ---

def normalize_hashtag(tag: str) -> str | None: ...
def member_records(
    shards: list[str | PathLike[str]],
    *,
    key_column: str,
    hashtags_column: str,
    separator: str | None = None,
    shard_column: str | None = None,
    storage: Storage | None = None,
) -> Table: ...

@final
class HashtagCounts:
    def __new__(
        cls, *, memory_bytes: int | None = None, spill_dir: str | PathLike[str] | None = None
    ) -> HashtagCounts: ...
    def update(
        self,
        stream: ArrowStream,
        *,
        hashtags_column: str,
        separator: str | None = None,
        num_threads: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...
    def update_parquet(
        self,
        files: list[str | PathLike[str]],
        *,
        hashtags_column: str,
        num_threads: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> bool: ...
    def merge(self, other: HashtagCounts) -> None: ...
    def save(self, path: str | PathLike[str]) -> None: ...
    @staticmethod
    def load(
        path: str | PathLike[str],
        *,
        memory_bytes: int | None = None,
        spill_dir: str | PathLike[str] | None = None,
    ) -> HashtagCounts: ...
    def table(self) -> Table: ...
    def top(self, number: int) -> list[tuple[str, int]]: ...
    def multiplicities(self) -> dict[int, int]: ...
    def tally(self) -> dict[str, int | dict[str, int]]: ...
    @property
    def num_distinct(self) -> int: ...
    def tags_per_record(self) -> dict[int, int]: ...
    def count_of(self, tag: str) -> int: ...
    def fit_zipf(self, x_min: int | None = None) -> tuple[float, float, int, float, int, float, float]: ...
    def head_shares(self, heads: list[int]) -> list[float]: ...
    def head_sizes(self, shares: list[float]) -> list[int]: ...

# --- vocabulary (rust/src/python/vocabulary.rs) ---

@final
class Vocabulary:
    @staticmethod
    def from_counts(
        counts: HashtagCounts,
        *,
        min_count: int = 1,
        max_labels: int | None = None,
        wordnet: str | PathLike[str] | None = None,
        synsets: list[str] = ...,
    ) -> tuple[Vocabulary, list[tuple[int, int]]]: ...
    def cover(
        self,
        stream: ArrowStream,
        *,
        hashtags_column: str,
        separator: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[int, int]: ...
    @staticmethod
    def from_class_names(names: list[str]) -> Vocabulary: ...
    @staticmethod
    def from_table(stream: ArrowStream) -> Vocabulary: ...
    def table(self) -> Table: ...
    @property
    def fingerprint(self) -> str: ...
    def names(self) -> list[str]: ...
    def encode(self, tag: str) -> int | None: ...
    def __len__(self) -> int: ...

# --- spooled records (rust/src/python/spool.rs) ---

@final
class Spool:
    @staticmethod
    def read(
        files: list[str | PathLike[str]],
        recipe: object,
        *,
        resources: object,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[HashtagCounts, Spool] | None: ...

# --- index (rust/src/python/index.rs) ---

def drop_keys(folder: str | PathLike[str], keys: list[str]) -> tuple[int, int, list[str]]: ...
def scan_shard(
    path: str | PathLike[str], *, storage: Storage | None = None
) -> tuple[list[tuple[bytes, int, int, int]], int]: ...

@final
class IndexBuilder:
    def __new__(
        cls,
        folder: str | PathLike[str],
        recipe: object,
        *,
        resources: object,
        resume_key: str | None = None,
        append: bool = False,
        storage: Storage | None = None,
    ) -> IndexBuilder: ...
    @property
    def is_resumed(self) -> bool: ...
    def add_records(
        self,
        stream: ArrowStream,
        recipe: object,
        *,
        vocabulary: Vocabulary,
        again: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...
    def index_records(
        self,
        stream: ArrowStream,
        recipe: object,
        *,
        vocabulary: Vocabulary,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...
    def index_parquet(
        self,
        files: list[str | PathLike[str]],
        recipe: object,
        *,
        vocabulary: Vocabulary,
        progress: Callable[[int], object] | None = None,
    ) -> bool: ...
    def index_spooled(
        self, spool: Spool, *, vocabulary: Vocabulary, progress: Callable[[int], object] | None = None
    ) -> None: ...
    def add_shards(
        self,
        paths: list[tuple[str | PathLike[str], str]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...
    def check_names(self, names: list[str]) -> None: ...
    def add_spread(
        self,
        names: list[str],
        *,
        records: list[str],
        samples: list[str],
        labels: list[str],
        again: bool = True,
    ) -> None: ...
    def add_rows(self, places: list[str]) -> None: ...
    def add_part(self, path: str | PathLike[str], num_rows: int) -> None: ...
    @property
    def highest_class(self) -> int | None: ...
    def prepare(
        self,
        vocabulary: Vocabulary | None,
        *,
        vocabulary_file: str,
        shard_root: str,
        provenance: str,
    ) -> bytes: ...
    def publish(self) -> None: ...

@final
class Index:
    @staticmethod
    def open(
        folder: str | PathLike[str],
        *,
        shard_root: str | PathLike[str] | None = None,
        storage: Storage | None = None,
    ) -> Index: ...
    def read_report(self) -> tuple[int, int, int, int]: ...
    def shard_paths(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def manifest(self) -> str: ...
    def shards(self) -> list[tuple[str, int, int, int]]: ...
    def row(self, ordinal: int) -> tuple[str, str, int, int]: ...
    def keys(self, ordinals: _Array) -> list[str]: ...
    def labels(self, ordinals: _Array) -> tuple[bytes, bytes]: ...
    def read(
        self,
        ordinals: _Array,
        *,
        num_threads: int = 1,
        progress: Callable[[int], object] | None = None,
    ) -> list[bytes]: ...
    def find(self, key: str) -> int | None: ...
    def find_all(self, key: str) -> list[int]: ...
    def dropped(self) -> bytes: ...
    def label_counts(self) -> bytes: ...
    def repeat_factors(
        self, scheme: str, *, threshold: float | None = None, epoch_length: float | None = None
    ) -> tuple[bytes, float | None]: ...
    def write_factors(
        self,
        path: str | PathLike[str],
        scheme: str,
        *,
        threshold: float | None = None,
        epoch_length: float | None = None,
    ) -> float | None: ...
    def verify(self, *, progress: Callable[[int], object] | None = None) -> None: ...

# --- builds of many processes (rust/src/python/spread.rs) ---

def save_scans(
    shards: list[str | PathLike[str]],
    out: str | PathLike[str],
    recipe: object,
    *,
    num_threads: int = 1,
    storage: Storage | None = None,
    progress: Callable[[int], object] | None = None,
) -> None: ...
def save_records(
    stream: ArrowStream,
    out: str | PathLike[str],
    recipe: object,
    *,
    vocabulary: Vocabulary,
    resources: object,
) -> None: ...
def save_samples(
    scans: str | PathLike[str],
    shards: list[str],
    out: str | PathLike[str],
    recipe: object,
    *,
    resources: object,
) -> None: ...
def save_known(
    folder: str | PathLike[str], out: str | PathLike[str], recipe: object, *, resources: object
) -> None: ...
def num_samples_taken(places: list[str], *, storage: Storage | None = None) -> list[list[int]]: ...
def join_samples(
    records: list[str],
    samples: list[str],
    out: str | PathLike[str],
    *,
    known: str | None = None,
    first_bucket: int,
    stop_bucket: int,
    resources: object,
    storage: Storage | None = None,
) -> None: ...
def write_part(
    groups: list[tuple[Path, list[str], int, int, tuple[int, int], tuple[int, int]]],
    labels: list[str],
    out: str | PathLike[str],
    recipe: object,
    *,
    storage: Storage | None = None,
) -> None: ...
def save_rows(
    stream: ArrowStream,
    out: str | PathLike[str],
    recipe: object,
    *,
    vocabulary: Vocabulary,
    num_threads: int | None = None,
) -> None: ...
def save_parquet_rows(
    files: list[str | PathLike[str]],
    out: str | PathLike[str],
    recipe: object,
    *,
    vocabulary: Vocabulary,
    num_threads: int | None = None,
) -> bool: ...
def write_alone(
    wanted: list[tuple[str, tuple[int, int]]],
    out: str | PathLike[str],
    *,
    storage: Storage | None = None,
) -> None: ...

# --- epoch (rust/src/python/epoch.rs) ---

@final
class EpochOrder:
    def __new__(
        cls,
        num_samples: int,
        factors: _Array | None,
        seed: int,
        *,
        factors_file: str | PathLike[str] | None = None,
        window: int | None = None,
        first_samples: _Array | None = None,
    ) -> EpochOrder: ...
    def take(self, start: int, stop: int) -> bytearray: ...
    def epoch_length(self, epoch: int) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

@final
class LabelNoise:
    def __new__(cls, counts: _Array, share: float, seed: int) -> LabelNoise: ...
    def apply(
        self, samples: _Array, labels: _Array, offsets: _Array
    ) -> tuple[bytearray, tuple[int, int, int]]: ...

# --- selection (rust/src/python/selection.rs) ---

def log_odds(logits: _Array) -> bytearray: ...

@final
class TopK:
    def __new__(
        cls,
        num_classes: int,
        k: int,
        p: int,
        order: str = "class-first",
        *,
        memory_bytes: int | None = None,
        spill_dir: str | PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> TopK: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def p(self) -> int: ...
    @property
    def order(self) -> str: ...
    @property
    def num_pairs(self) -> int: ...
    def update_pairs(
        self,
        stream: ArrowStream,
        *,
        grouped: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> None: ...
    def update_parquet(
        self, files: list[str | PathLike[str]], *, progress: Callable[[int], object] | None = None
    ) -> bool: ...
    def update(
        self, scores: _Array, samples: _Array | None = None, first_sample: int | None = None
    ) -> None: ...
    def update_logits(
        self, logits: _Array, samples: _Array | None = None, first_sample: int | None = None
    ) -> None: ...
    def merge(self, other: TopK) -> None: ...
    def spill(self) -> None: ...
    def save(self, path: str | PathLike[str]) -> None: ...
    @staticmethod
    def load(
        path: str | PathLike[str],
        *,
        memory_bytes: int | None = None,
        spill_dir: str | PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> TopK: ...
    def finish(self, k: int | None = None, p: int | None = None) -> SelectedPairs: ...

@final
class SelectedPairs:
    def table(self) -> Table: ...
    def batches(self) -> SelectedBatches: ...
    def num_before(self) -> bytes: ...
    def num_after(self) -> bytes: ...
    def lowest(self) -> bytes: ...
    def images_by_classes(self) -> list[tuple[int, int]]: ...
    def num_common(self, other: SelectedPairs) -> int: ...

@final
class SelectedBatches:
    def __iter__(self) -> SelectedBatches: ...
    def __next__(self) -> Table: ...

# --- object stores (rust/src/python/storage.rs) ---

_Seen = tuple[str, int, str, int]

def is_remote(path: str) -> bool: ...

@final
class Storage:
    def __new__(
        cls,
        options: dict[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        retry_s: float | None = None,
        request_bytes: int | None = None,
        gap_bytes: int | None = None,
        num_requests: int | None = None,
        cache: str | PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> Storage: ...
    def head(self, uri: str) -> _Seen | None: ...
    def list(self, uri: str, *, recursive: bool = True) -> list[_Seen]: ...
    def read(self, uri: str) -> bytes: ...
    def read_range(self, uri: str, start: int, stop: int) -> bytes: ...
    def write(self, uri: str, content: bytes) -> None: ...
    def delete(self, uri: str) -> None: ...
    def upload(self, path: str | PathLike[str], uri: str) -> None: ...
    def download(self, uri: str, path: str | PathLike[str]) -> _Seen: ...
    def report(self) -> tuple[int, int, int, int]: ...

# --- spilling (rust/src/python/spill.rs) ---

@final
class SpillFolder:
    def __new__(cls, parent: str | PathLike[str] | None = None) -> SpillFolder: ...
    @property
    def path(self) -> Path: ...
    def close(self) -> None: ...
