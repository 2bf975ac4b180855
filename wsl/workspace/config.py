"""The settings of a workspace: the content of `wsl.yaml`.

YAML keys equal the field names below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from wsl._core import STORE_LIMITS
from wsl.files.sizes import parse_size
from wsl.workspace.recipe import IndexOptions
from wsl.workspace.settings import Config, Positive
from wsl.workspace.stage import Stage


class VocabularyConfig(Config):
    """How a vocabulary is made when the index has none yet."""

    min_count: Positive = 1
    """Tags on fewer records are left out."""
    max_labels: Positive | None = None
    """At most this many labels, the most frequent first, after those left out."""
    exclude_tags: list[str] = []
    """Hashtags left out, such as the names of the classes that the finetuned network is tested on."""
    wordnet: Path | None = None
    """The dict folder of WordNet 3.0; tags that match nouns of one synset become one label."""
    synsets: Path | None = None
    """A text file of WNIDs, one a line, which are chosen before others where a tag has several senses."""
    file: Path | None = None
    """Use this `vocabulary.parquet` and make none."""


def _as_text(value: Any) -> Any:
    """YAML's true and 5 as stores take them: text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def _as_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    size = parse_size(value)
    if size is None:
        raise ValueError("expected a size such as 200GiB or a number of bytes")
    return size


Option = Annotated[SecretStr, BeforeValidator(_as_text)]
Bytes = Annotated[int, BeforeValidator(_as_bytes), Field(ge=0)]


class StorageConfig(Config):
    """How object stores are reached; values of options are never shown."""

    options: dict[str, Option] = {}
    """As Polars and the object_store crate call them: aws_access_key_id, aws_endpoint_url, aws_region,
    aws_skip_signature, google_service_account, azure_storage_account_name and so on. What is not here comes
    from the environment."""
    timeout_s: float = Field(default=STORE_LIMITS["timeout_s"], gt=0)
    """Seconds for one request, its body included."""
    retry_s: float = Field(default=STORE_LIMITS["retry_s"], ge=0)
    """Seconds after which a request that failed is not made again."""
    request_bytes: Bytes = STORE_LIMITS["request_bytes"]
    """The longest request, 64 KiB to 64 MiB."""
    gap_bytes: Bytes = STORE_LIMITS["gap_bytes"]
    """Images with less between them are read with one request."""
    num_requests: Positive = STORE_LIMITS["num_requests"]
    """Requests in flight at once."""
    cache: Path | None = None
    """A local folder that keeps whole shards; shared by all processes of a machine."""
    cache_bytes: Bytes | None = None
    """How much may be in it."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if (self.cache is None) != (self.cache_bytes is None):
            raise ValueError("cache, a folder, and cache_bytes, its limit, are given together or not at all")
        return self

    def settings(self, root: Path) -> dict[str, Any]:
        """Fields that are set, as `wsl.files.stores.as_set_by` takes them, secrets in clear.

        The folder of the cache is seen from `root`.
        """
        found = {name: getattr(self, name) for name in self.model_fields_set}
        if self.options:
            found["options"] = {key: value.get_secret_value() for key, value in self.options.items()}
        if self.cache is not None:
            found["cache"] = str(root / self.cache)
        return found


class IndexConfig(IndexOptions):
    """One index of a workspace, built at `index/<name>/`."""

    shards: str | list[str] | None = None
    """Glob or globs of tar shards, relative to the workspace, or URIs of stores (s3://bucket/path-*.tar)."""
    records: str | list[str] | None = None
    """Glob or globs of record tables (Parquet, CSV/TSV, NDJSON, Arrow IPC)."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    class_names: Path | None = None
    """A text file with the name of class i on line i."""
    include: Path | None = None
    """A text file of the only keys to take, one a line."""
    exclude: Path | None = None
    """A text file of keys to leave out, one a line (removed images, images of a test set)."""

    def options(self) -> dict[str, Any]:
        """What is the same in a recipe."""
        return {name: getattr(self, name) for name in IndexOptions.model_fields}


class StageSource(Config):
    """Which config a stage starts from, and what it reads."""

    config: Path
    index: str | list[str] | dict[str, Annotated[float, Field(gt=0)]]
    """Name of the index it trains on; or several of one vocabulary, which are mixed: each with the same share
    of the batches, or as {name: weight} with a share of its own."""
    evaluate: str | None = None
    """Name of the held-out index it is evaluated on."""
    init: Stage | None = None
    """The stage whose weights it starts from."""

    @property
    def weights(self) -> dict[str, float]:
        """The names of the indexes it trains on, with their weights."""
        if isinstance(self.index, dict):
            return self.index
        return dict.fromkeys([self.index] if isinstance(self.index, str) else self.index, 1.0)


class ClusterConfig(Config):
    """The Ray cluster that commands over much data run on; `cluster: ADDRESS` is enough."""

    address: str = "auto"
    """HOST:PORT of the head, or auto: the cluster that this machine is a node of."""
    folder: str | None = None
    """Where parts are: a folder that all nodes see under this path, or the URI of one in a store; absent,
    beside the result."""
    group_bytes: Bytes = 2 * 2**30
    """Files are taken together up to so many bytes; a part should take one to five minutes."""
    group_samples: Positive = 4 * 65_536
    """Samples that are scored into one state of a selection."""
    num_cpus: Positive = 1
    """CPUs, and so threads, of one task."""
    memory_bytes: Bytes | None = None
    """Memory that Ray reserves for one task; absent, --memory and what Python takes beside it."""


class WorkspaceConfig(Config):
    """The file `wsl.yaml`."""

    cluster: ClusterConfig | None = None
    """Where commands run; absent, on this machine."""
    indexes: dict[str, IndexConfig]
    stages: dict[Stage, StageSource] = {}
    storage: StorageConfig = StorageConfig()
    """How object stores are reached."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _address_alone(cls, value: Any) -> Any:
        return {"address": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _stages_name_indexes(self) -> Self:
        for stage, source in self.stages.items():
            names = [("index", name) for name in source.weights] + [("evaluate", source.evaluate)]
            for field, name in names:
                if name is not None and name not in self.indexes:
                    raise ValueError(f"stages.{stage}.{field}: there is no index named {name!r}")
            if not source.weights:
                raise ValueError(f"stages.{stage}.index: expected at least one index")
            if stage == "student" and len(source.weights) > 1:
                raise ValueError(
                    "stages.student.index: the student trains on pseudo-labels, of one index; name one"
                )
        return self
