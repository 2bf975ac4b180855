"""The settings of one stage of training: the content of `configs/stages/*.yaml`.

YAML keys equal the field names below, and `--set a.b=c` reaches every field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsl.workspace.settings import Config, Positive, Share

Stage = Literal["pretrain", "teacher", "student", "finetune"]
STAGES: tuple[Stage, ...] = ("pretrain", "teacher", "student", "finetune")


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
    """A rank that waits longer for the others, or for a file, ends the run and reports what it waited for."""
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
