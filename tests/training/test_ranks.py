"""Two ranks: equality of ZeRO stages, exact resuming, signals, other worlds; see `ranks.py`.

A launch costs seconds, so the fixtures do a whole series once and the tests read what it left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.help import ranks
from tests.help.thoroughness import runs_long
from wsl.training import checkpoint, task

ROOT = Path(__file__).resolve().parents[2]


def launch(folder: Path, *parts: str) -> tuple[int, str]:
    """Runs parts on two ranks as `wsl train` would; exit code and what was said."""
    log = folder / "log.txt"
    code = (
        "import sys; from wsl.train import SHARED; from wsl.training import launch; "
        "launch.FAILURE_GRACE_S = 5.0; "
        "sys.exit(launch.launch_program('tests.help.ranks', sys.argv[1:], 2, shared=SHARED))"
    )
    command = [sys.executable, "-c", code, str(folder), *parts]
    own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    # Neither a compiler nor ninja nor anything compiled before is there, and none is missed.
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    environment |= {"PATH": str(folder), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    with log.open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False)
    return done.returncode, log.read_text(encoding="utf-8", errors="replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder in which two ranks did everything that needs no end of theirs; then rank 1 was killed."""
    path = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "build_model", task.build_model)
        ranks.Part(path).shrink()
    equal = "equal_long" if runs_long(request.config) else "equal"
    parts = (equal, "options", "not_finite", "full", "world", "grown", "chain", "whole", "killed")
    code, log = launch(path, *parts)
    (path / "first.json").write_text(json.dumps([code, log]))
    return path


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def losses(folder: Path, run: str) -> list[float]:
    lines = (folder / run / "metrics.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_as_many_steps_give_the_losses_of_plain_ddp_under_every_zero_stage(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    found = read(folder, "equal-0")
    # A hundred steps learn the four classes, thirty begin to.
    num_steps, left = (100, 0.2) if runs_long(request.config) else (30, 0.9)
    assert len(found["ddp"]) == num_steps
    assert found["ddp"][-1] < left * found["ddp"][0]
    for number in range(4):
        assert found[f"zero{number}"] == pytest.approx(found["ddp"], rel=1e-5, abs=1e-6)


def test_options_that_change_only_how_steps_are_computed_change_no_loss(folder: Path) -> None:
    found = read(folder, "options-0")
    for name in ("checkpointed", "checkpointed zero3", "channels-last", "channels-last zero0", "compiled"):
        assert found[name] == pytest.approx(found["plain"], rel=1e-5), name
    for name in ("offload zero2", "offload zero3"):
        assert found[name] == pytest.approx(found["plain"], rel=1e-5), name


def test_options_that_change_the_training_do_so_alike_under_every_zero_stage(folder: Path) -> None:
    found = read(folder, "options-0")
    for name in ("clipped zero0", "clipped zero3"):
        assert found[name] == pytest.approx(found["clipped"], rel=1e-5)
    for name in ("clipped", "smoothed", "mixed"):
        assert found[name][1:] != pytest.approx(found["plain"][1:], rel=1e-3), name
    # BatchNorm sees other groups of images where the batch is cut into more pieces.
    assert found["accumulated"] == pytest.approx(found["plain"], rel=0.1)


@pytest.mark.parametrize("kind", ["gradient", "loss"])
@pytest.mark.parametrize("number", range(4))
def test_what_is_not_finite_stops_every_rank_before_the_weights_change(
    folder: Path, number: int, kind: str
) -> None:
    name = f"not finite {kind} {number}"
    for rank in range(2):
        found = read(folder, f"not_finite-{rank}")[name]
        assert f"the {kind} of step 3 is not finite" in found["error"]
        assert found["unchanged"]
    written = json.loads((folder / name / "not-finite.json").read_text())
    assert written["step"] == 3
    assert len(written["samples"]) == 16
    assert [path.name for path in checkpoint.find_all(folder / name / "checkpoints")] == ["step-000002"]
    if kind == "loss":
        # The second image of rank 1.
        assert written["ranks"] == [1]
        assert written["samples_with_a_loss_that_is_not_finite"][0] in written["samples"][8:]


def test_a_full_disk_is_said_on_every_rank_and_costs_no_checkpoint(folder: Path) -> None:
    for rank in range(2):
        by_python, by_torch = read(folder, f"full-{rank}")
        assert "no space is left on the disk" in by_python
        assert "is the disk or a quota full?" in by_torch
    for run in ("full True", "full False"):
        found = checkpoint.find_all(folder / run / "checkpoints")
        assert [path.name for path in found] == ["step-000002"]


def ordinals(folder: Path, name: str, num_ranks: int) -> dict[int, list[int]]:
    """The samples of every step over all ranks; a step taken twice must have the same."""
    found: dict[int, list[int]] = {}
    for rank in range(num_ranks):
        taken: dict[int, list[int]] = {}
        for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines():
            step, _, samples, _ = json.loads(line)
            assert taken.setdefault(step, samples) == samples
        for step, samples in taken.items():
            found[step] = found.get(step, []) + samples
    return found


@pytest.mark.parametrize("name", ranks.CHANGED)
def test_one_rank_goes_on_where_two_stopped(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "build_model", lambda config, labels: ranks.Net(labels, plain=True))
    part = ranks.Part(folder)
    cut = f"world cut {name}"
    assert "stopped after step 6 of 12 (SIGTERM)" in read(folder, f"{cut}-0")
    with ranks.Trace(folder / f"alone {name}-0.jsonl"):
        part.run(cut, **ranks.CHANGED[name])
    whole = losses(folder, f"world whole {name}")
    assert losses(folder, cut) == pytest.approx(whole, abs=1e-6)
    before, after = ordinals(folder, cut, 2), ordinals(folder, f"alone {name}", 1)
    assert sorted(before) == list(range(6))
    assert sorted(after) == list(range(6, 12))
    order = [sample for step in range(12) for sample in {**before, **after}[step]]
    expected = part.maker.order(12 * 16)
    assert order == expected


@pytest.mark.parametrize("number", range(4))
def test_two_ranks_go_on_where_one_stopped(folder: Path, number: int) -> None:
    whole = losses(folder, f"world whole zero{number}")
    assert losses(folder, f"grown {number}") == pytest.approx(whole, abs=1e-6)
    assert not list((folder / f"grown {number}").glob("checkpoints/.*"))


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_stopped_run_goes_on_bit_for_bit_under_other_zero_stages(folder: Path, number: int) -> None:
    """Loss to the last bit, samples, and the generator's state, with BatchNorm and dropout on each rank."""
    whole, cut = f"chain whole {number}", f"chain cut {number}"
    assert "stopped after step 6 of 12 (SIGTERM)" in read(folder, f"{cut}-0")
    streams = []
    for rank in range(2):
        expected = steps(folder / f"{whole}-{rank}.jsonl")
        assert [row[0] for row in expected] == list(range(12))
        assert steps(folder / f"{cut}-{rank}.jsonl") == expected
        streams.append([row[3] for row in expected])
    assert all(one != other for one, other in zip(*streams, strict=True))
    weights = [load_file(folder / run / "model.safetensors") for run in (whole, cut)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_a_run_cut_again_and_again_is_bit_for_bit_one_never_stopped(folder: Path) -> None:
    """SIGKILL of a rank in a step and in a save, SIGTERM, the launcher's death; 0 and 2 workers."""
    code, log = read(folder, "first")
    assert code == 128 + signal.SIGKILL, log
    assert "rank 1 was ended by SIGKILL" in log
    checkpoints = folder / "cut" / "checkpoints"
    assert names(checkpoints) == ["step-000002", "step-000004"]
    code, log = launch(folder, "killed_in_save")
    assert code == 128 + signal.SIGKILL, log
    assert names(checkpoints) == ["step-000002", "step-000004"]
    code, log = launch(folder, "stopped")
    assert code == 130, log
    assert "(SIGTERM)" in log
    assert len(names(checkpoints)) == 2
    assert "step-000008" <= names(checkpoints)[-1] <= "step-000010"
    code, log = launch(folder, "orphaned")
    assert code == -signal.SIGKILL
    for rank in range(2):
        wait_for_end(int((folder / f"pid-{rank}").read_text()))
    assert "step-000012" <= names(checkpoints)[-1] <= "step-000015"
    code, log = launch(folder, "finished")
    assert code == 0, log
    streams = []
    for rank in range(2):
        whole = steps(folder / f"whole-{rank}.jsonl")
        cut = steps(folder / f"cut-{rank}.jsonl")
        assert {number for number, *_ in cut} == set(range(16))
        for row in cut:
            # Loss to the last bit, samples, and the state of the generator after the step.
            assert row == whole[row[0]]
        streams.append([row[3] for row in whole])
    assert all(one != other for one, other in zip(*streams, strict=True))
    assert losses(folder, "cut") == losses(folder, "whole")
    whole_weights, cut_weights = (load_file(folder / run / "model.safetensors") for run in ("whole", "cut"))
    assert all(whole_weights[key].equal(cut_weights[key]) for key in whole_weights)


def names(checkpoints: Path) -> list[str]:
    return [path.name for path in checkpoint.find_all(checkpoints)]


def steps(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def wait_for_end(pid: int) -> None:
    for _ in range(1200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"rank {pid} goes on without its launcher")


def test_a_rank_that_hangs_ends_the_run_and_is_named(tmp_path: Path) -> None:
    code, log = launch(tmp_path, "hanging")
    assert code == 1
    assert "rank 0: nothing moved for" in log
    assert "this rank takes a step; rank 1 takes a step at step 3, last heard of" in log
