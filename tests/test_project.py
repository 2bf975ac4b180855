"""The repository as a whole: README, configs, names, the wheel, and the pipeline on two ranks."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.help.workspaces import NUM_TEST, SIZES
from tests.test_pages import PAGES, README, blocks
from wsl.cli import run
from wsl.workspace.settings import load
from wsl.workspace.stage import StageConfig

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """PATH with this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # What a stage trained in this process has left is for this process.
    own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, "PATH": path, **more}


def set_up(name: str) -> list[str]:
    """The lines of one of the README's two set-up commands."""
    (found,) = (block for block in blocks(README) if block.before == f"<!-- setup: {name} -->")
    return found.text.strip().splitlines()


def test_every_stage_config_and_every_deepspeed_config_loads() -> None:
    stages = sorted((ROOT / "configs" / "stages").glob("*.yaml"))
    assert len(stages) >= 11
    for path in stages:
        config = load(StageConfig, path)
        assert (ROOT / config.deepspeed).is_file()
    for number in (1, 2, 3):
        tree = json.loads((ROOT / "configs" / "deepspeed" / f"zero{number}.json").read_text())
        assert tree["zero_optimization"]["stage"] == number


def test_no_module_hides_one_of_the_standard_library() -> None:
    names = {path.stem for path in (ROOT / "wsl").iterdir()}
    assert not names & sys.stdlib_module_names


def test_the_tree_names_files_that_are_there() -> None:
    (tree,) = (block for page in PAGES for block in blocks(page) if block.before == "<!-- tree -->")
    for line in tree.text.splitlines():
        name = line.split("  ")[0].strip()
        if name:
            assert (ROOT / name).exists(), name


def test_the_set_up_commands_are_what_the_check_runs() -> None:
    assert set_up("demo")[-1].endswith("wsl demo")
    assert set_up("test")[-1].endswith("python -m pytest")
    check = (ROOT / ".ci" / "run").read_text()
    assert "run_readme_command demo" in check
    assert "run_readme_command test" in check
    assert 'step "README: install and test" run_all_tests' in check


def walk() -> list[str]:
    """The commands of the blocks that are run, page after page, without what is said of them."""
    texts = [block.text for page in PAGES for block in blocks(page) if block.before.startswith("<!-- walk: ")]
    lines = [line.split("#")[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line]


def like_the_root(folder: Path) -> None:
    """Makes a folder that commands take for the repository's root."""
    for name in ("wsl", "configs", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)


def cut_down(command: str) -> list[str]:
    """The same command for `wsl.cli.run`, with few steps, few images, and ranks in this process.

    `deepspeed wsl/train.py` becomes `wsl train`, which is the same program; with two ranks it is started in
    the test of the pipeline.
    """
    program, *arguments = shlex.split(command)
    if program == "deepspeed":
        arguments = ["train", *arguments[arguments.index("wsl/train.py") + 1 :]]
    else:
        assert program == "wsl", command
    if arguments == ["init"]:
        arguments += SIZES
    if arguments[0] == "train":
        arguments += ["--set", "num_steps=3", "--set", "optimizer.warmup_steps=0"]
    return arguments


def test_every_command_of_the_pages_runs_in_this_process_with_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    like_the_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in walk():
        code = run(cut_down(command))
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
    for name in ("finetune", "teacher", "student"):
        info = json.loads((tmp_path / "runs" / name / "run.json").read_text())
        assert info["state"] == "complete"
    assert info["evaluation"]["num_samples"] == NUM_TEST


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_every_command_of_the_pages_runs_as_written(tmp_path: Path) -> None:
    """The walk in a folder like the repository's root; the student trains on two ranks in it."""
    like_the_root(tmp_path)
    for command in walk():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    info = json.loads((tmp_path / "runs" / "finetune" / "run.json").read_text())
    assert info["state"] == "complete"
    assert info["evaluation"]["top1"] > 0.6


def test_a_cut_down_pipeline_trains_on_two_ranks_and_as_two_machines_under_zero_1_to_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def wsl(*arguments: str) -> None:
        assert run(list(arguments)) == 0, arguments

    wsl("init", *SIZES)
    wsl("index", "build")
    two = ["--num-accelerators", "2", "--set", "num_steps=6", "--set", "checkpoint_every=2"]
    wsl("train", "--stage", "teacher", *two)
    wsl("pseudolabel", "--k", "100", "--p", "1")
    wsl("train", "--stage", "student", *two, "--set", "deepspeed=configs/deepspeed/zero2.json")
    settings = [*two[2:], "--set", "deepspeed=configs/deepspeed/zero3.json"]
    _train_on_two_machines(tmp_path, "--stage", "finetune", *settings)
    for stage in ("teacher", "student", "finetune"):
        info = json.loads((tmp_path / "runs" / stage / "run.json").read_text())
        assert info["state"] == "complete"
        assert info["evaluation"]["num_samples"] == NUM_TEST
        assert (tmp_path / "runs" / stage / "model.safetensors").is_file()


def _train_on_two_machines(folder: Path, *arguments: str) -> None:
    """As the README says for several machines, with this one as both: a launch for each."""
    (folder / "hostfile").write_text("first slots=1\nsecond slots=1\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launches = []
    for number in range(2):
        command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hostfile", "--no_ssh"]
        command += ["--node_rank", str(number), "--master_addr", "127.0.0.1", "--master_port", str(port)]
        command += ["--module", "wsl.train", *arguments]
        with (folder / f"machine-{number}.txt").open("w") as log:
            launch = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log)
        launches.append(launch)
    for number, launch in enumerate(launches):
        assert launch.wait(timeout=1200) == 0, (folder / f"machine-{number}.txt").read_text()


@pytest.mark.long
def test_a_wheel_installed_elsewhere_lacks_nothing(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "maturin", "build", "--release", "--out", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for name in ("_core.pyi", "py.typed", "carried/openclipart.xz", "configs/deepspeed/zero1.json"):
        assert (target / "wsl" / name).is_file(), name
    code = (
        "import wsl; from wsl.cli import run; from pathlib import Path\n"
        f"assert Path(wsl.__file__).is_relative_to(r'{target}')\n"
        "assert run(['init', 'w']) == 0 and run(['index', 'build', '-w', 'w']) == 0\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment(PYTHONPATH=str(target)), check=True
    )
