"""What a stage trains on, and the network that it starts with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from wsl._core import DataError, UsageError
from wsl.data.dataset import Examples, ImageIndex, LabelledExamples, PseudolabelledExamples, read_pseudolabels
from wsl.data.sampler import Order
from wsl.files.globs import fingerprint
from wsl.index.mapped import Index, JoinedIndex
from wsl.index.order import EpochOrder, MixedOrder
from wsl.index.sampling import repeat_factors
from wsl.training.distillation import prediction_files
from wsl.training.export import WEIGHTS, apply_weights, load_run, load_weights, read_weights
from wsl.training.models import build_model, last_layer
from wsl.workspace.layout import StageInputs
from wsl.workspace.settings import Config
from wsl.workspace.stage import StageConfig

MAX_NAMED = 5
"""Classes named in a warning."""


@dataclass
class Task:
    """Everything a stage trains on."""

    index: ImageIndex
    examples: Examples
    num_labels: int
    class_names: list[str] | None
    vocabulary_fingerprint: Any
    inputs: dict[str, Any]
    """What determines the run beside its config."""
    warnings: list[str] = field(default_factory=list)
    samples: npt.NDArray[np.int64] | None = None
    """The samples of the selection, where the student needs the teacher's scores of them."""
    teacher: str | None = None
    """Fingerprint of the teacher of the selection."""
    weights: list[float] | None = None
    """Of the indexes that `index`, a joined one, mixes."""


def prepare_task(config: StageConfig, inputs: StageInputs, settings: dict[str, Any]) -> Task:
    """Opens what the stage reads and fixes its label set; `settings` are DeepSpeed's.

    UsageError where the pieces do not belong together, DataError where one is damaged. Both are found
    here, before a step is taken, those of the held-out index too.
    """
    weights = [weight for _, weight in inputs.mixed] or None
    index: ImageIndex = Index.open(inputs.index)
    if weights is not None:
        index = JoinedIndex([Index.open(path) for path, _ in inputs.mixed])

    # By the facts a run that is there is known again.
    facts: dict[str, Any] = {"index_fingerprint": index.fingerprint, "deepspeed": settings}
    if weights is not None:
        facts["index_weights"] = weights
    if inputs.init is not None:
        if not inputs.init.exists():
            raise UsageError(f"--init {inputs.init} is not there: expected a run, or a file of weights")
        facts["init"] = fingerprint(inputs.init / WEIGHTS if inputs.init.is_dir() else inputs.init)
    if config.stage == "student":
        task = _student_task(config, inputs, index, facts)
    else:
        if index.num_labels < 1:
            raise UsageError(
                f"the stage {config.stage!r} needs labels, and the index {inputs.named} has none; "
                "build it with --label-kind class or hashtag"
            )
        examples = LabelledExamples(index, label_noise=config.data.label_noise, seed=config.seed)
        names, vocabulary = getattr(index, "class_names", None), index.vocabulary_fingerprint
        task = Task(index, examples, index.num_labels, names, vocabulary, facts, weights=weights)
        task.warnings += _missing(_label_counts(index), names, f"no image in {inputs.named}")
    if task.examples.num_examples < 1:
        raise UsageError(f"{inputs.named} holds no image to train on")

    # Last, since it compares the held-out index with what is trained on.
    if inputs.evaluate is not None:
        _check_held_out(task, inputs)
    return task


def _student_task(config: StageConfig, inputs: StageInputs, index: ImageIndex, facts: dict[str, Any]) -> Task:
    if inputs.pseudolabels is None:
        raise UsageError("the student trains on pseudo-labels; make them with 'wsl pseudolabel --k K --p P'")
    table, metadata = read_pseudolabels(inputs.pseudolabels, index)
    facts["pseudolabels"] = fingerprint(inputs.pseudolabels)
    highest = int(table["class"].max() or 0) + 1  # type: ignore[arg-type]
    num_labels = int(metadata.get("num_labels") or metadata.get("num_classes") or highest)
    names = metadata.get("class_names")

    # The held-out set may have classes that no pseudo-label has, and the network needs an output for each.
    if inputs.evaluate is not None:
        held_out: ImageIndex = Index.open(inputs.evaluate)
        num_labels = max(num_labels, held_out.num_labels)
        names = getattr(held_out, "class_names", None) or names
    if highest > num_labels:
        raise DataError(
            f"{inputs.pseudolabels}: class {highest - 1} is beyond the {num_labels} classes it names"
        )
    examples = PseudolabelledExamples(table, config.data.target)
    task = Task(index, examples, num_labels, names, metadata.get("vocabulary_fingerprint"), facts)
    counts = np.bincount(table["class"].to_numpy().astype(np.int64), minlength=num_labels)
    task.warnings += _missing(counts, names, f"no pseudo-label in {inputs.pseudolabels}")

    # Missing predictions are found here, and not at the first step.
    if config.distillation.weight > 0:
        if inputs.predictions is None:
            raise UsageError(
                "distillation learns from the teacher's predictions, and none are named; run 'wsl score' and "
                "give their folder with --predictions DIR, or set distillation.weight=0"
            )
        prediction_files(inputs.predictions)
        task.samples = np.unique(table["sample"].to_numpy().astype(np.int64))
        task.teacher = metadata.get("teacher_fingerprint")
    return task


def make_order(config: StageConfig, task: Task) -> Order:
    """The stream of the task's examples: each index in its own order, as `data.sampling` weighs its samples,
    and several mixed by their weights."""

    def own(index: ImageIndex, num_examples: int, seed: int) -> EpochOrder:
        factors, data = None, config.data
        if data.sampling != "natural":
            opened = cast("Index", index)
            factors = repeat_factors(opened, scheme=data.sampling, threshold=data.threshold)
        if data.window is not None:
            return EpochOrder(cast("Index", index), factors, seed=seed, window=data.window)
        return EpochOrder(num_examples, factors, seed=seed)

    if task.weights is None:
        return own(task.index, task.examples.num_examples, config.seed)
    parts = cast("JoinedIndex", task.index).indexes
    # Indexes of one length must not run through the same permutation side by side.
    orders = [own(part, len(part), (config.seed + number) % 2**63) for number, part in enumerate(parts)]
    return MixedOrder(orders, task.weights, seed=config.seed)


def _label_counts(index: ImageIndex) -> npt.NDArray[np.uint64] | None:
    count = getattr(index, "label_counts", None)
    return None if count is None else np.asarray(count())


def _missing(counts: npt.NDArray[Any] | None, names: list[str] | None, what: str) -> list[str]:
    """A warning that names the classes without an example."""
    if counts is None:
        return []
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return []
    shown = ", ".join(str(names[n]) if names and n < len(names) else str(n) for n in empty[:MAX_NAMED])
    more = ", ..." if len(empty) > MAX_NAMED else ""
    return [f"{len(empty):,} of {len(counts):,} classes have {what} and cannot be learned: {shown}{more}"]


def _check_held_out(task: Task, inputs: StageInputs) -> None:
    assert inputs.evaluate is not None
    held_out: ImageIndex = Index.open(inputs.evaluate)
    made, found = task.vocabulary_fingerprint, held_out.vocabulary_fingerprint
    if made is not None and found is not None and made != found:
        raise UsageError(
            f"the held-out index {inputs.evaluate} has vocabulary {found}, training has {made}; "
            "build it with --vocabulary FILE of the training index"
        )
    if not len(held_out) or held_out.num_labels < 1:
        raise UsageError(f"the held-out index {inputs.evaluate} holds no labelled image to evaluate on")
    if held_out.num_labels > task.num_labels:
        raise UsageError(
            f"the held-out index {inputs.evaluate} has {held_out.num_labels} classes, and the stage knows "
            f"{task.num_labels}; evaluate on an index of the same classes"
        )


def make_model(config: StageConfig, inputs: StageInputs, task: Task) -> torch.nn.Module:
    """The network with fresh weights or those of `init`; a last layer of another label set stays fresh."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, task.num_labels)
    name, layer = last_layer(model)
    if inputs.init is not None and inputs.init.is_dir():
        loaded = load_run(inputs.init)
        _same_network(config.model, loaded.config.model, inputs.init)

        # With another label set the last layer's outputs would mean other classes.
        before = loaded.info.get("vocabulary_fingerprint")
        same = loaded.info["num_labels"] == task.num_labels and before in (None, task.vocabulary_fingerprint)
        load_weights(model, inputs.init / WEIGHTS, skip=None if same else name)
    elif inputs.init is not None:
        state = read_weights(inputs.init)

        # A file of weights has no vocabulary, so the shape of the last layer is all there is to compare.
        own = model.state_dict()[f"{name}.weight"].shape
        found = state.get(f"{name}.weight")
        same = found is not None and found.shape == own
        apply_weights(model, state, inputs.init, skip=None if same else name)
    elif config.train == "last-layer":
        raise UsageError("train: last-layer needs the weights of an earlier run; name one with --init RUN")
    if config.train == "last-layer":
        model.requires_grad_(False)
        layer.requires_grad_(True)
    return model


def _same_network(new: Config, old: Config, run: Path) -> None:
    fields = new.model_dump()
    changed = [key for key, value in old.model_dump().items() if fields[key] != value and key != "image_size"]
    if changed:
        settings = ", ".join(f"model.{key}={old.model_dump()[key]}" for key in changed)
        raise UsageError(f"the run {run} has another network; set {settings} to start from it")
