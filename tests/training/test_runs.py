"""Runs of one rank: what is kept, what is refused, what a run starts from and what comes out of it."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import wsl
from tests.help.stages import CLASSES, StageMaker, key_of, stopped, write_index
from wsl.training import checkpoint, watch
from wsl.training.distillation import TeacherScores, collect_scores
from wsl.training.evaluation import evaluate_run
from wsl.training.export import export_run, predict
from wsl.training.loop import Batches
from wsl.training.stages import RunSummary, run_stage
from wsl.training.step import Stepper
from wsl.training.stop import Stopped
from wsl.training.trainer import Trainer
from wsl.workspace.stage import StageConfig


def names(checkpoints: Path) -> list[str]:
    return [path.name for path in checkpoint.find_all(checkpoints)]


def test_the_newest_and_the_best_checkpoints_stay_and_others_go(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.8, 0.4, 0.1])
    plain = Trainer.evaluate

    def evaluate(self: Trainer, done: int) -> Any:
        result = plain(self, done)
        return type(result)(**{**vars(result), "top1": next(scores)})

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    options = {"num_steps": 14, "checkpoint_every": 1, "evaluate_every": 2, "keep_last": 3, "keep_best": 2}
    checkpoints = stopped(stages, 13, **options)
    # Evaluated at 2, 4, ..., 12: the best are 4 (0.9) and 10 (0.8).
    assert names(checkpoints) == ["step-000004", *(f"step-0000{number}" for number in (10, 11, 12, 13))]
    run_stage(stages.config(**options), stages.inputs())
    assert names(checkpoints) == ["step-000004", "step-000010"]
    assert (stages.root / "run" / "best.safetensors").is_file()


def test_a_checkpoint_counts_only_while_every_file_of_it_is_whole(stages: StageMaker) -> None:
    checkpoints = stopped(stages, 4)
    newest, older = checkpoints / "step-000004", checkpoints / "step-000002"
    assert names(checkpoints) == [older.name, newest.name]
    marker = json.loads((newest / "complete.json").read_text())
    assert marker["step"] == 4
    assert marker["world_size"] == 1
    assert "rank-00000.pt" in marker["files"]
    file = newest / "rank-00000.pt"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert names(checkpoints) == [older.name]
    with pytest.raises(wsl.DataError, match="missing or was cut"):
        run_stage(stages.config(), stages.inputs(), resume=newest)
    file.unlink()
    assert names(checkpoints) == [older.name]
    (checkpoints / ".step-000099.tmp").mkdir()
    (checkpoints / "step-000099").mkdir()
    summary = run_stage(stages.config(), stages.inputs())
    assert summary.num_steps == 6
    whole = run_stage(stages.config(), stages.inputs("whole"))
    same = [load_file(one.run / "model.safetensors") for one in (summary, whole)]
    assert all(same[0][key].equal(same[1][key]) for key in same[0])


def test_a_named_checkpoint_must_be_there_whole_and_of_this_run(stages: StageMaker) -> None:
    checkpoints = stopped(stages, 4)
    with pytest.raises(wsl.UsageError, match=r"complete ones of .*: step-000002, step-000004"):
        run_stage(stages.config(), stages.inputs(), resume=checkpoints / "step-000003")
    with pytest.raises(wsl.DataError, match="not a complete checkpoint"):
        run_stage(stages.config(), stages.inputs(), resume=stages.root)
    with pytest.raises(wsl.UsageError, match="is no checkpoint of the run"):
        run_stage(stages.config(), stages.inputs("other"), resume=checkpoints / "step-000002")
    for options, said in (
        ({"model": {"widths": [4]}}, "model.widths"),
        ({"seed": 1}, "seed"),
        ({"deepspeed": "configs/deepspeed/zero2.json"}, "deepspeed"),
    ):
        with pytest.raises(wsl.UsageError, match=said):
            run_stage(stages.config(**options), stages.inputs(), resume=checkpoints / "step-000002")
    write_index(stages.root / "elsewhere", seed=5)
    with pytest.raises(wsl.UsageError, match="index_fingerprint"):
        run_stage(
            stages.config(),
            stages.inputs(index=stages.root / "elsewhere"),
            resume=checkpoints / "step-000002",
        )
    summary = run_stage(stages.config(), stages.inputs(), resume=checkpoints / "step-000002")
    assert summary.num_steps == 6


def test_checkpoints_without_a_run_are_not_taken_up(stages: StageMaker) -> None:
    stopped(stages, 4)
    (stages.root / "run" / "run.json").unlink()
    steps = []
    plain = Stepper.step

    def step(self: Stepper, batch: Any, lr: float, number: int, *, stop: bool = False) -> Any:
        steps.append(number)
        return plain(self, batch, lr, number, stop=stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        run_stage(stages.config(), stages.inputs())
    assert steps == list(range(6))


def test_evaluating_on_the_way_changes_nothing_of_the_training(stages: StageMaker) -> None:
    runs = [
        run_stage(stages.config(ema_decay=0.9, **options), stages.inputs(out))
        for out, options in (("never", {}), ("often", {"evaluate_every": 1, "keep_best": 1}))
    ]
    never, often = (load_file(run.run / "model.safetensors") for run in runs)
    assert all(never[key].equal(often[key]) for key in never)
    assert len(metrics(runs[1])) == 6
    assert all(0 <= float(row["top1"]) <= 1 for row in metrics(runs[1])[:-1])


def metrics(run: RunSummary) -> list[dict[str, str]]:
    with (run.run / "metrics.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_average_of_the_weights_is_what_is_published(stages: StageMaker) -> None:
    plain = run_stage(stages.config(log_every=1), stages.inputs("plain"))
    averaged = run_stage(stages.config(log_every=1, ema_decay=0.5), stages.inputs("averaged"))
    losses = [[row["loss"] for row in metrics(run)] for run in (plain, averaged)]
    assert losses[0] == losses[1]
    one, two = (load_file(run.run / "model.safetensors") for run in (plain, averaged))
    assert not one["fc.weight"].equal(two["fc.weight"])
    row = metrics(averaged)[0]
    assert int(row["memory_bytes"]) > 1 << 20
    assert 0 <= float(row["waiting_share"]) <= 1
    assert list((averaged.run / "events").iterdir())


def test_a_run_starts_from_downloaded_weights_and_refuses_other_content(
    stages: StageMaker, tmp_path: Path
) -> None:
    first = run_stage(stages.config(), stages.inputs("first"))
    weights = load_file(first.run / "model.safetensors")
    torch.save(weights, tmp_path / "download.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "wrapped.pth")
    other = {**weights, "fc.weight": torch.zeros(9, 8), "fc.bias": torch.zeros(9)}
    save_file(other, tmp_path / "other-classes.safetensors")
    slow = {"num_steps": 1, "optimizer": {"lr": 1e-12}}
    for name in ("download.pth", "wrapped.pth", "other-classes.safetensors"):
        started = run_stage(stages.config(**slow), stages.inputs(f"from {name}", init=tmp_path / name))
        after = load_file(started.run / "model.safetensors")
        torch.testing.assert_close(after["blocks.0.conv1.weight"], weights["blocks.0.conv1.weight"])
        assert after["fc.weight"].allclose(weights["fc.weight"]) == (name != "other-classes.safetensors")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    for name in ("evil.pth", "text.pth", "list.pth", "other.pth"):
        with pytest.raises(wsl.DataError, match=name):
            run_stage(stages.config(**slow), stages.inputs("refused", init=tmp_path / name))
    assert not Path("/tmp/wsl-evil").exists()
    with pytest.raises(wsl.UsageError, match="is not there"):
        run_stage(stages.config(**slow), stages.inputs("refused", init=tmp_path / "none.pth"))
    with pytest.raises(wsl.UsageError, match="another network"):
        run_stage(stages.config(model={"widths": [4]}), stages.inputs("refused", init=first.run))


class Evil:
    """Runs a command where it is unpickled without care."""

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", "/tmp/wsl-evil"],)


@pytest.fixture
def student(stages: StageMaker) -> StageMaker:
    """Pseudo-labels of three classes of four, and the teacher's scores."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(96, 4)).astype(np.float32)
    table = pl.DataFrame({"sample": np.arange(0, 96, 2), "class": np.arange(48) % 3})
    table = table.with_columns(
        pl.col("sample").cast(pl.UInt64), pl.col("class").cast(pl.UInt32), probability=pl.lit(0.5)
    )
    provenance = {"index_fingerprint": wsl.Index.open(stages.index).fingerprint, "num_classes": 4}
    provenance["teacher_fingerprint"] = "the teacher"
    table.write_parquet(stages.root / "d-hat.parquet", metadata={"wsl": json.dumps(provenance)})
    folder = stages.root / "predictions"
    folder.mkdir()
    for start in (0, 50):
        stop = min(start + 50, 96)
        part = pl.DataFrame(
            {"sample": np.arange(start, stop).astype(np.uint64), "scores": scores[start:stop]},
            schema_overrides={"scores": pl.Array(pl.Float32, 4)},
        )
        part.write_parquet(
            folder / f"scores-{start:03}.parquet",
            metadata={"wsl": json.dumps({"teacher_fingerprint": "the teacher"})},
        )
    np.save(stages.root / "scores.npy", scores)
    return stages


def test_the_student_learns_the_teachers_scores(
    student: StageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"pseudolabels": student.root / "d-hat.parquet", "predictions": student.root / "predictions"}
    options: dict[str, Any] = {"stage": "student", "log_every": 1}
    plain = run_stage(student.config(**options), student.inputs("plain", **paths))
    assert "1 of 4 classes have no pseudo-label" in " ".join(capsys.readouterr().err.split())
    options["distillation"] = {"weight": 1.0, "temperature": 2.0}
    soft = run_stage(student.config(**options), student.inputs("soft", **paths))
    assert metrics(plain)[0]["loss"] != metrics(soft)[0]["loss"]
    samples = np.arange(0, 96, 2)
    collect_scores(paths["predictions"], student.root / "copy", samples, 4, "the teacher")
    rows = TeacherScores(student.root / "copy", samples).of(np.array([4, 90]))
    odds = torch.from_numpy(np.load(student.root / "scores.npy"))[[4, 90]]
    torch.testing.assert_close(rows, torch.log(torch.sigmoid(odds)))
    with pytest.raises(wsl.UsageError, match=r"--predictions DIR, or set distillation\.weight=0"):
        run_stage(student.config(**options), student.inputs("x", pseudolabels=paths["pseudolabels"]))
    empty = student.root / "empty"
    empty.mkdir()
    with pytest.raises(wsl.UsageError, match="run 'wsl score' first"):
        run_stage(student.config(**options), student.inputs("x", **paths | {"predictions": empty}))
    with pytest.raises(wsl.UsageError, match="another teacher"):
        collect_scores(paths["predictions"], student.root / "copy", samples, 4, "someone else")
    with pytest.raises(wsl.UsageError, match="the student has 5 labels"):
        collect_scores(paths["predictions"], student.root / "copy", samples, 5, None)
    with pytest.raises(wsl.DataError, match="no scores of sample 96"):
        collect_scores(paths["predictions"], student.root / "copy", np.arange(97), 4, None)


def test_what_cannot_be_shown_is_replaced_and_a_run_goes_on_to_the_same_bits(
    tmp_path: Path, stages: StageMaker
) -> None:
    corrupt = (3, 40, 41)
    damaged = StageMaker(tmp_path / "damaged", corrupt=corrupt)
    options: dict[str, Any] = {"num_steps": 18, "data": {"max_corrupt_share": 0.1}}
    seen: dict[str, dict[int, list[int]]] = {}
    plain = Stepper.step

    def run(out: str, *, stop_at: int | None = None) -> RunSummary:
        def step(self: Stepper, batch: Any, lr: float, number: int, *, stop: bool = False) -> Any:
            seen.setdefault(out, {})[number] = batch.ordinals.tolist()
            assert (batch.weights.sum(1) == 1).all()
            return plain(self, batch, lr, number, stop=stop or number == stop_at)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "step", step)
            return run_stage(damaged.config(**options), damaged.inputs(out))

    whole = run("whole")
    asked = damaged.order(18 * 16)
    shown = [sample for number in range(18) for sample in seen["whole"][number]]
    assert not set(corrupt) & set(shown)
    assert all(one == other for one, other in zip(shown, asked, strict=True) if other not in corrupt)
    # Three epochs of three such samples, and those that were drawn in their place.
    assert 9 <= whole.num_corrupt <= 12
    with pytest.raises(Stopped):
        run("cut", stop_at=7)
    cut = run("cut")
    assert seen["cut"] == seen["whole"]
    assert cut.num_corrupt == whole.num_corrupt
    one, two = (load_file(summary.run / "model.safetensors") for summary in (whole, cut))
    assert all(one[key].equal(two[key]) for key in one)
    with pytest.raises(wsl.DataError, match=r"more than data\.max_corrupt_share 0\.01 allows"):
        run_stage(damaged.config(num_steps=18), damaged.inputs("refused"))


def test_samples_that_were_taken_down_are_replaced_and_are_not_corrupt(
    tmp_path: Path,
) -> None:
    taken = (3, 40, 41)
    damaged = StageMaker(tmp_path / "damaged", corrupt=taken)
    wsl.drop_samples(damaged.index, [key_of(sample) for sample in taken])
    options: dict[str, Any] = {"data": {"max_corrupt_share": 0.0}}
    summary = run_stage(damaged.config(**options), damaged.inputs(evaluate=damaged.index))
    assert summary.num_corrupt == 0
    assert summary.evaluation is not None
    result = evaluate_run(summary.run, damaged.index)
    assert (result.num_samples, result.num_corrupt) == (93, 0)


def test_randaugment_is_an_option_and_depends_on_no_worker(stages: StageMaker) -> None:
    losses = []
    for name, data in (
        ("plain", {}),
        ("augmented", {"augment_layers": 2}),
        ("by workers", {"augment_layers": 2, "num_workers": 2}),
        ("stronger", {"augment_layers": 2, "augment_level": 20}),
    ):
        run = run_stage(stages.config(log_every=1, data=data), stages.inputs(name))
        losses.append([row["loss"] for row in metrics(run)])
    assert losses[1] == losses[2]
    assert len({tuple(found) for found in losses}) == 3


def test_data_that_do_not_belong_together_are_refused_before_the_first_step(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wsl.Index, "label_counts", lambda self: np.array([5, 0, 91, 0]))
    run_stage(stages.config(num_steps=1), stages.inputs("empty"))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 2 of 4 classes have no image in" in said
    assert "cannot be learned: bee, dog" in said
    steps: list[int] = []
    monkeypatch.setattr(Stepper, "step", lambda *_, **__: steps.append(1))
    with monkeypatch.context() as patch:
        known = {stages.index: 3, stages.held_out: 4}
        patch.setattr(wsl.Index, "num_labels", property(lambda self: known[self.path]))
        with pytest.raises(wsl.UsageError, match="has 4 classes, and the stage knows 3"):
            run_stage(stages.config(), stages.inputs("x"))
    renamed = write_index(stages.root / "renamed", 50, seed=1, classes=[*CLASSES[:3], "fox"])
    made, other = (wsl.Index.open(path).vocabulary_fingerprint for path in (stages.index, renamed))
    with pytest.raises(wsl.UsageError, match=f"has vocabulary {other}, training has {made}"):
        run_stage(stages.config(), stages.inputs("x", evaluate=renamed))
    with pytest.raises(wsl.UsageError, match="does not divide"):
        run_stage(stages.config(batch_size=16, micro_batch_size=3), stages.inputs("x"))
    with pytest.raises(wsl.UsageError, match="it is even"):
        run_stage(stages.config(micro_batch_size=1, regularization={"mixup": 0.5}), stages.inputs("x"))
    assert steps == []


def test_a_file_that_cannot_be_read_ends_the_run_with_its_name(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: wsl.Index, *_: Any, **__: Any) -> list[bytes]:
        raise OSError(5, "Input/output error", "shards/000.tar")

    monkeypatch.setattr(wsl.Index, "read", read)
    for workers in (0, 2):
        with pytest.raises(OSError, match=r"shards/000\.tar"):
            run_stage(stages.config(data={"num_workers": workers}), stages.inputs())


def test_a_loader_that_starves_is_said(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread ends the process; here it only says so, and the batch comes then."""
    plain = Batches.get
    ended: list[int] = []

    def get(self: Batches, step: int) -> Any:
        for _ in range(400):
            if step != 3 or ended:
                break
            time.sleep(0.05)
        return plain(self, step)

    monkeypatch.setattr(Batches, "get", get)
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    for workers in (0, 2):
        ended.clear()
        options = {"loader_timeout_s": 2.0, "data": {"num_workers": workers}}
        run_stage(stages.config(**options), stages.inputs(f"{workers}"))
        assert set(ended) == {1}
        said = capfd.readouterr().err
        assert "no batch of images came for" in said
        assert "before step 4: the loader starves" in said


def test_what_is_exported_loads_predicts_and_is_described(stages: StageMaker, tmp_path: Path) -> None:
    options = {"evaluate_every": 2, "keep_best": 1, "num_steps": 8, "checkpoint_every": 100}
    run = run_stage(stages.config(**options), stages.inputs("run")).run
    export_run(run, tmp_path / "model")
    export_run(run, tmp_path / "best", best=True)
    assert (
        load_file(tmp_path / "model" / "model.safetensors").keys()
        == load_file(run / "model.safetensors").keys()
    )
    best = load_file(tmp_path / "best" / "model.safetensors")
    kept = load_file(run / "best.safetensors")
    assert all(best[key].equal(kept[key]) for key in kept)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["preprocessing"]["mean"] == [0.3]
    assert config["preprocessing"]["resize"] == [12, 12]
    card = (tmp_path / "model" / "README.md").read_text()
    for text in ("narrow, teacher", "On 50 held-out images", "| top-1 |", "wsl predict", "8 steps of 16"):
        assert text in card
    with pytest.raises(wsl.UsageError, match="--overwrite"):
        export_run(run, tmp_path / "model")
    other = run_stage(stages.config(num_steps=1), stages.inputs("other")).run
    with pytest.raises(wsl.UsageError, match="kept no best weights"):
        export_run(other, tmp_path / "none", best=True)
    picture = tmp_path / "picture.png"
    picture.write_bytes(wsl.Index.open(stages.held_out).read([0])[0])
    ((first, *_),) = predict(tmp_path / "model", [picture])
    assert first == predict(run, [picture])[0][0]
    result = evaluate_run(run, stages.held_out)
    assert result.top1_interval is not None
    assert result.top1_interval[0] <= result.top1 <= result.top1_interval[1]
    assert len(result.per_class_interval or []) == 4


def test_a_network_of_torchvision_is_exported_under_its_names(stages: StageMaker, tmp_path: Path) -> None:
    import torchvision

    options: dict[str, Any] = {"model": {"name": "squeezenet1_1", "num_channels": 3, "image_size": 32}}
    options |= {"num_steps": 1, "data": {"mean": [0.3] * 3, "std": [0.3] * 3}}
    run = run_stage(stages.config(**options), stages.inputs()).run
    export_run(run, tmp_path / "model")
    model = torchvision.models.get_model("squeezenet1_1", num_classes=4)
    model.load_state_dict(load_file(tmp_path / "model" / "model.safetensors"))
    assert 'get_model("squeezenet1_1", num_classes=4)' in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_a_teacher_starts_from_the_weights_that_torchvision_publishes(
    stages: StageMaker, tmp_path: Path, name: str
) -> None:
    """All but the last layer, whose thousand classes are others."""
    import torchvision

    published = torchvision.models.get_model(name, num_classes=1000).state_dict()
    torch.save(published, tmp_path / "published.pth")
    options: dict[str, Any] = {"model": {"name": name, "num_channels": 3, "image_size": 32}}
    options |= {"num_steps": 1, "data": {"mean": [0.3] * 3, "std": [0.3] * 3}, "optimizer": {"lr": 1e-12}}
    inputs = stages.inputs(init=tmp_path / "published.pth", evaluate=None)
    found = load_file(run_stage(stages.config(**options), inputs).run / "model.safetensors")
    assert found.keys() == published.keys()
    last = [key for key in found if found[key].shape != published[key].shape]
    assert [found[key].shape[0] for key in last] == [4, 4]
    for key, _ in torchvision.models.get_model(name, num_classes=4).named_parameters():
        if key not in last:
            torch.testing.assert_close(found[key], published[key])


def test_a_terminal_shows_one_line_of_progress_and_files_show_plain_ones(stages: StageMaker) -> None:
    shown = []
    for terminal in (True, False):
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=200)
        run_stage(stages.config(log_every=1, num_steps=10), stages.inputs(f"{terminal}"), console=console)
        shown.append(text.getvalue())
    for text_shown in shown:
        assert re.search(r"10/10  loss \d\.\d+  lr \S+  [\d,]+ images/s  data \d+%  [\d,]+ MiB", text_shown)
    assert "\x1b[2K" in shown[0]
    assert "\x1b" not in shown[1]


def test_half_a_line_of_metrics_is_dropped_when_a_run_goes_on(stages: StageMaker) -> None:
    stopped(stages, 4, log_every=1)
    file = stages.root / "run" / "metrics.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1][:9]]))
    summary = run_stage(stages.config(log_every=1), stages.inputs())
    assert [row["step"] for row in metrics(summary)] == ["1", "2", "3", "5", "6"]


def test_the_state_of_a_run_tells_what_it_was(stages: StageMaker) -> None:
    summary = run_stage(stages.config(), stages.inputs())
    info = json.loads((summary.run / "run.json").read_text())
    assert info["summary"]["world_size"] == 1
    assert info["summary"]["peak_memory_bytes"][0] > 1 << 20
    assert StageConfig(**info["config"]) == stages.config()
    assert info["inputs"]["deepspeed"]["zero_optimization"]["stage"] == 1
