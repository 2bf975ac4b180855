"""Every configuration of wsl: what `wsl.yaml` and `configs/stages/*.yaml` may say.

YAML keys equal the field names below, unknown keys are refused with the nearest known one, and
`--set a.b=c` reaches every field. This module knows no other of the package but the exceptions and sizes.
"""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from wsl._core import UsageError
from wsl.files.sizes import parse_size

Stage = Literal["pretrain", "teacher", "student", "finetune"]
STAGES: tuple[Stage, ...] = ("pretrain", "teacher", "student", "finetune")

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(BaseModel):
    """A group of settings; unknown keys and values of the wrong type are errors."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False
    )


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
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one request, its body included."""
    retry_s: float = Field(default=120.0, ge=0)
    """Seconds after which a request that failed is not made again."""
    request_bytes: Bytes = 8 * 2**20
    """The longest request, 64 KiB to 64 MiB."""
    gap_bytes: Bytes = 2**20
    """Images with less between them are read with one request."""
    num_requests: Positive = 64
    """Requests in flight at once."""
    cache: Path | None = None
    """A local folder that keeps whole shards; shared by all processes of a machine."""
    cache_bytes: Bytes | None = None
    """How much may lie in it."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if (self.cache is None) != (self.cache_bytes is None):
            raise ValueError("cache, a folder, and cache_bytes, its limit, are given together or not at all")
        return self

    def settings(self, root: Path) -> dict[str, Any]:
        """Fields that are set, as `wsl.files.stores.use_workspace` takes them, secrets in clear.

        The folder of the cache is seen from `root`.
        """
        found = {name: getattr(self, name) for name in self.model_fields_set}
        if self.options:
            found["options"] = {key: value.get_secret_value() for key, value in self.options.items()}
        if self.cache is not None:
            found["cache"] = str(root / self.cache)
        return found


class IndexConfig(Config):
    """One index of a workspace, built at `index/<name>/`."""

    shards: str | list[str] | None = None
    """Glob or globs of tar shards, relative to the workspace, or URIs of stores (s3://bucket/path-*.tar)."""
    records: str | list[str] | None = None
    """Glob or globs of record tables (Parquet, CSV/TSV, NDJSON, Arrow IPC)."""
    label_kind: Literal["hashtag", "class"] | None = None
    """What the labels are; absent for unlabelled shards."""
    key_column: str = "key"
    hashtags_column: str = "hashtags"
    key_scope: Literal["global", "shard"] = "global"
    """Whether a key names one sample of the whole set, or keys begin anew in every shard."""
    shard_column: str | None = None
    """The column of the records that names their shard, in scope "shard"; else tables stand beside shards."""
    key_format: str | None = None
    """How integer keys are written in the names of members, such as "{:09d}"."""
    vocabulary: VocabularyConfig = VocabularyConfig()
    class_names: Path | None = None
    """A text file with the name of class i on line i."""
    include: Path | None = None
    """A text file of the only keys to take, one a line."""
    exclude: Path | None = None
    """A text file of keys to leave out, one a line (takedowns, images of a test set)."""
    limits: dict[str, Share] = {}
    """Shares above which the build is refused, such as {samples_without_record: 0.5}."""


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
    """Where parts lie: a folder that all nodes see under this path, or the URI of one in a store; absent,
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


class ModelConfig(Config):
    """Which network, by torchvision's name or `narrow`, our own family for small images."""

    name: str = "narrow"
    widths: Annotated[list[Positive], Field(min_length=1)] = [32, 64, 128]
    """narrow: channels of each residual block; every block after the first halves the image."""
    stem: Literal["conv", "patch"] = "conv"
    """narrow: a 3x3 convolution of stride 2, or non-overlapping patches of 4x4."""
    stem_width: Positive = 32
    downsample_first: bool = False
    """narrow: let the first block halve the image too."""
    num_channels: Literal[1, 3] = 3
    """Colour channels of the images; 1 turns them grey."""
    image_size: Positive = 224
    """Side of the square the network sees, in pixels."""


class DataConfig(Config):
    """What happens to an image on its way in."""

    sampling: Literal["natural", "square-root", "uniform", "clip"] = "natural"
    threshold: float | None = Field(default=None, gt=0)
    """The t of the repeat factors; absent, it is solved for an epoch twice as long as the labelled images."""
    window: Positive | None = None
    """For disks and object stores: shuffle the samples of this many shards at a time; absent, of all."""
    label_noise: Share = 0.0
    """The share of labels replaced by others (Mahajan et al. 2018, section 3.1.2)."""
    target: Literal["pairs", "multilabel", "soft"] = "pairs"
    """How pseudo-labels become targets."""
    crop: bool = True
    """Train on random resized crops; otherwise the whole image, shifted."""
    shift: int = Field(default=0, ge=0)
    """Random translation by up to this many pixels."""
    flip: bool = True
    """Mirror every other image."""
    augment_layers: int = Field(default=0, ge=0)
    """RandAugment's operations an image (Cubuk et al. 2020); 0 is off."""
    augment_level: int = Field(default=9, ge=0, le=30)
    """Their strength."""
    mean: Annotated[list[float], Field(min_length=1, max_length=3)] = [0.485, 0.456, 0.406]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=3)] = [
        0.229,
        0.224,
        0.225,
    ]
    num_workers: int = Field(default=0, ge=0)
    """Threads that decode images ahead of the training, per rank; 0 decodes between steps."""
    cache_bytes: int = Field(default=256 * 2**20, ge=0)
    """Decoded images kept in memory, per rank; only whole images (`crop: false`) are kept."""
    max_corrupt_share: Share = 0.01
    """Above this share of undecodable images, each of which is replaced by another, the run fails."""
    max_pixels: Positive = 50_000_000
    """Images with more pixels count as corrupt."""


class OptimizerConfig(Config):
    """SGD with momentum, as both papers have it."""

    lr: float = Field(default=0.1, gt=0)
    """Peak learning rate, for the global batch or, with `lr_batch_size`, for that many images."""
    lr_batch_size: Positive | None = None
    """Scale the rate by batch_size over this number (Goyal et al. 2017, section 2.1)."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """After the warm-up: half a cosine to 0, drops at equal intervals, or unchanged."""
    num_drops: Positive = 20
    """steps: how often the rate drops until the end."""
    drop_factor: float = Field(default=0.5, gt=0, lt=1)
    """steps: what is left of the rate at each drop; a half as both papers have it."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the rate rises linearly to its peak."""
    gradient_clipping: float = Field(default=0.0, ge=0)
    """Norm to clip gradients to; 0 is off."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        changed = [
            name
            for name in ("num_drops", "drop_factor")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if changed and self.schedule != "steps":
            raise ValueError(f"{changed[0]} belongs to schedule: steps, and schedule is {self.schedule}")
        return self


class RegularizationConfig(Config):
    """What keeps a network from learning its labels by heart; all off unless set."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """This share of each target is spread evenly over all classes (Szegedy et al. 2016, section 7)."""
    mixup: float = Field(default=0.0, ge=0)
    """alpha of the Beta distribution that blends pairs of images (Zhang et al. 2018); teacher, finetune."""
    cutmix: float = Field(default=0.0, ge=0)
    """alpha of the Beta distribution of pasted areas (Yun et al. 2019); with mixup, one of both a pair."""


class DistillationConfig(Config):
    """The student learns the teacher's whole soft scores beside the selected class (Hinton et al. 2015)."""

    weight: Share = 0.0
    """Share of the loss that is the teacher's; 0 is off."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens both distributions; the gradient is scaled by its square."""


class ExecutionConfig(Config):
    """How steps are computed; what is learned stays the same up to rounding."""

    activation_checkpointing: bool = False
    """Keep only the input of each residual block and compute the block again in the backward pass."""
    channels_last: bool = False
    """Lay images out with channels innermost, which tensor cores prefer."""
    compile: str | None = None
    """A backend of torch.compile, such as inductor; absent, run as written."""


class StageConfig(Config):
    """One stage of training, the content of `configs/stages/*.yaml`."""

    stage: Stage
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    distillation: DistillationConfig = DistillationConfig()
    execution: ExecutionConfig = ExecutionConfig()
    deepspeed: Path = Path("configs/deepspeed/zero1.json")
    """DeepSpeed's own settings: ZeRO, precision; batch size and optimizer come from here."""
    batch_size: Positive = 256
    """Global batch, over all ranks."""
    micro_batch_size: Positive | None = None
    """Images of one rank's forward pass; absent, the rank's whole share of the batch."""
    num_steps: Positive = 1000
    train: Literal["all", "last-layer"] = "all"
    """Finetune the whole network, or the last layer alone (feature transfer)."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and publish an average of the weights, which keeps this share of itself each step."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every: Positive = 500
    keep_last: Positive = 2
    """Newest checkpoints kept while the stage trains."""
    keep_best: int = Field(default=0, ge=0)
    """Checkpoints with the best top-1 kept beside them; needs evaluate_every."""
    log_every: Positive = 10
    evaluate_every: Positive | None = None
    """Steps between evaluations; absent, once at the end."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """A rank that waits longer for the others, or for a file, ends the run and says what it waited for."""
    loader_timeout_s: float = Field(default=600.0, gt=0)
    """The same for the next batch of images."""

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        for holds, text in self._contradictions():
            if holds:
                raise ValueError(text)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        """Pairs of settings that exclude one another, with what to do."""
        data, channels = self.data, self.model.num_channels
        return [
            (
                len(data.mean) < channels or len(data.std) < channels,
                f"data.mean and data.std need a number for each of the {channels} channels of the images",
            ),
            (
                (self.micro_batch_size or 0) > self.batch_size,
                f"micro_batch_size {self.micro_batch_size} exceeds batch_size {self.batch_size}",
            ),
            (
                self.optimizer.warmup_steps > self.num_steps,
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} exceeds num_steps {self.num_steps}",
            ),
            (
                data.augment_level != type(data).model_fields["augment_level"].default
                and data.augment_layers == 0,
                "data.augment_level is the strength of data.augment_layers, which is 0: set it too",
            ),
            (
                data.threshold is not None and data.sampling == "natural",
                "data.threshold belongs to another data.sampling than natural",
            ),
            (
                self.keep_best > 0 and self.evaluate_every is None,
                "keep_best needs evaluate_every, the steps between evaluations",
            ),
            (
                self.execution.activation_checkpointing and self.train == "last-layer",
                "execution.activation_checkpointing saves nothing where only the last layer is trained",
            ),
            *self._contradictions_with_stage(),
        ]

    def _contradictions_with_stage(self) -> list[tuple[bool, str]]:
        """Settings that belong to other stages, with what to do."""
        data, mixed = self.data, self.regularization.mixup > 0 or self.regularization.cutmix > 0
        return [
            (
                self.train == "last-layer" and self.stage != "finetune",
                f"train: last-layer belongs to the stage finetune, and stage is {self.stage}",
            ),
            (
                mixed and self.stage not in ("teacher", "finetune"),
                f"mixup and cutmix belong to the stages teacher and finetune, and stage is {self.stage}",
            ),
            (
                self.distillation.weight > 0 and self.stage != "student",
                f"distillation belongs to the stage student, and stage is {self.stage}",
            ),
            (
                data.target != "pairs" and self.stage != "student",
                f"data.target belongs to the stage student, and stage is {self.stage}",
            ),
            (
                data.sampling != "natural" and self.stage == "student",
                f"the student trains on pseudo-labels, which data.sampling {data.sampling} does not weigh; "
                "set data.sampling=natural",
            ),
            (
                data.label_noise > 0 and self.stage == "student",
                "data.label_noise replaces labels of an index, and the student trains on pseudo-labels",
            ),
            (
                data.window is not None and self.stage == "student",
                "data.window shuffles shards of an index, and the student trains on rows of pseudo-labels",
            ),
        ]


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
    """Makes a `kind` of a parsed YAML tree; UsageError tells every fault at once."""
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
