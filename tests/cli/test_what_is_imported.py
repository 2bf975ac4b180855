"""What each command imports: a command over data starts fast, and runs where no torch is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
from PIL import Image

import wsl
from tests.help.workspaces import SIZES
from wsl.cli import app, run
from wsl.training.launch import LAUNCH_VARIABLES

NETWORKS = {"train", "score", "evaluate", "export", "predict", "demo", "study", "doctor"}
"""The commands that run a network, or look whether one could run."""
HEAVY = ("torch", "torchvision", "deepspeed", "ray", "safetensors", "tensorboard")
"""What no command over data imports."""

COMMANDS: dict[str, list[str]] = {
    "init": ["init", "{out}/new", *SIZES],
    "shards pack": ["shards", "pack", "{out}/images", "--out", "{out}/packed"],
    "stats": ["stats", "--records", "{out}/records.parquet", "--json"],
    "counts build": ["counts", "build", "--records", "{out}/records.parquet", "--out", "{out}/counts"],
    "counts merge": ["counts", "merge", "{out}/counts", "--out", "{out}/merged"],
    "vocabulary build": ["vocabulary", "build", "--counts", "{out}/counts", "--out", "{out}/v.parquet"],
    "weights": ["weights", "{root}/index/labelled"],
    "index build": ["index", "build", "-w", "{root}"],
    "index info": ["index", "info", "{root}/index/labelled"],
    "index verify": ["index", "verify", "{root}/index/labelled"],
    "index get": ["index", "get", "{root}/index/labelled", "3"],
    "index export": ["index", "export", "{root}/index/test", "--out", "{out}/wids.json", "--format", "wids"],
    "pseudolabel": [
        *("pseudolabel", "--k", "3", "--p", "1", "--predictions", "{out}/scores.parquet"),
        *("--out", "{out}/selected.parquet", "--state", "{out}/selected.state", "-w", "{root}"),
    ],
    "pseudolabel merge": ["pseudolabel", "merge", "{out}/selected.state", "--out", "{out}/again.parquet"],
    "compare": ["compare", "{root}/runs/teacher"],
    "report": ["report", "-w", "{root}", "--out", "{out}/report.html"],
    "cluster status": ["cluster", "status", "{out}"],
    "index drop": ["index", "drop", "{root}/index/labelled", "train-000000"],
}
"""Every command over data, as it is run here, in this order."""
PLOTS = {"report"}
"""Those that draw without being asked to."""
ENDS = {"cluster status": "holds no parts of a run on a cluster"}
"""How a command ends that finds nothing here."""
COMPLETE = "pseudolabel, of states that are complete"

PROGRAM = '''
import json, os, sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

class Refusing(MetaPathFinder, Loader):
    """Whether the packages are there may be asked."""

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.partition(".")[0] in heavy else None

    def exec_module(self, module):
        raise AssertionError(f"{module.__name__} is imported")

commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.meta_path.insert(0, Refusing())
from wsl.cli import run

for name, arguments in commands.items():
    # Nothing but the parser is imported yet, so each command begins as a process of its own would.
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr
        try:
            code = run(["--debug", *arguments])
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        loaded = sorted({module.partition(".")[0] for module in sys.modules})
        print(json.dumps([name, code, loaded]), file=sys.__stdout__, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
'''


def results(commands: dict[str, list[str]], **options: Any) -> dict[str, tuple[Any, set[str]]]:
    """Exit code and imported packages of each command, where the heavy ones cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "POLARS_MAX_THREADS": "1"},
        **options,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(commands), done.stderr
    return {name: (code, set(loaded)) for name, code, loaded in rows}


@pytest.fixture(scope="module")
def copied(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that these tests may alter; its teacher has scored into the states of a selection."""
    root = tmp_path_factory.mktemp("imported") / "workspace"
    shutil.copytree(workspace, root)
    assert run(["index", "build", "-w", str(root)]) == 0
    assert run(["pseudolabel", "--k", "20", "--p", "1", "-w", str(root)]) == 0
    (root / "pseudolabels.parquet").unlink()
    return root


@pytest.fixture(scope="module")
def found(copied: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, set[str]]]:
    """What became of each command."""
    out = tmp_path_factory.mktemp("out")
    for name in ("cat", "dog"):
        (out / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(out / "images" / name / "a.png")
    tags = [["cat", "dog"], ["cat"], ["bird"]] * 20
    pl.DataFrame({"key": [f"k{n}" for n in range(60)], "hashtags": tags}).write_parquet(
        out / "records.parquet"
    )
    pl.DataFrame(
        {"key": [f"k{n}" for n in range(20)], "class": [n % 2 for n in range(20)], "score": [0.5] * 20},
        schema_overrides={"class": pl.UInt32, "score": pl.Float32},
    ).write_parquet(out / "scores.parquet")
    commands = {
        name: [argument.format(root=copied, out=out) for argument in arguments]
        for name, arguments in COMMANDS.items()
    }
    commands |= {"help": ["--help"], "help of a command": ["pseudolabel", "--help"], "version": ["--version"]}
    return results(commands, cwd=out)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_over_data_imports_no_network(found: dict[str, tuple[Any, set[str]]], name: str) -> None:
    code, loaded = found[name]
    assert ENDS[name] in code if name in ENDS else code == 0
    assert not loaded & set(HEAVY)
    assert ("matplotlib" in loaded) == (name in PLOTS)


@pytest.mark.parametrize("name", ["help", "help of a command", "version"])
def test_help_imports_nothing_that_is_not_needed_to_parse(
    found: dict[str, tuple[Any, set[str]]], name: str
) -> None:
    code, loaded = found[name]
    assert code == 0
    assert not loaded & {*HEAVY, "polars", "numpy", "matplotlib", "PIL"}


# The record of states has to be in a module that imports no torch.
APART = (Path(wsl.__file__).parent / "selection" / "states.py").is_file()


@pytest.mark.skipif(not APART, reason="the record of states is in a module that imports torch")
def test_a_selection_whose_states_are_complete_imports_no_network(copied: Path, tmp_path: Path) -> None:
    arguments = ["pseudolabel", "--k", "20", "--p", "1", "-w", str(copied), "--out", f"{tmp_path}/s.parquet"]
    code, loaded = results({COMPLETE: arguments}, cwd=tmp_path)[COMPLETE]
    assert code == 0
    assert (tmp_path / "s.parquet").is_file()
    assert not loaded & {*HEAVY, "matplotlib"}


def test_every_command_is_known_to_run_a_network_or_none() -> None:
    """A new command belongs into COMMANDS above, or among the NETWORKS."""

    def names(group: Any, before: str = "") -> set[str]:
        own = {before.strip()} if before and getattr(group, "invoke_without_command", False) else set()
        for name, command in getattr(group, "commands", {}).items():
            own |= names(command, f"{before} {name}")
        return own or {before.strip()}

    assert names(typer.main.get_command(app)) == NETWORKS | set(COMMANDS)


def test_what_runs_a_network_imports_neither_torchvision_nor_the_compiler(
    copied: Path, tmp_path: Path
) -> None:
    """They cost as many seconds as torch itself, and `narrow` networks need none of them; optimizers load
    one half of the compiler."""
    image = tmp_path / "image.jpg"
    Image.new("L", (28, 28)).save(image)
    teacher, index = str(copied / "runs" / "teacher"), str(copied / "index" / "labelled")
    commands = [
        ["predict", teacher, str(image)],
        ["evaluate", teacher, "--index", index],
        ["score", "--checkpoint", teacher, "--index", index, "--out", str(tmp_path / "scores")],
    ]
    code = (
        "import json, sys; from wsl.cli import run\n"
        "late = {'torchvision', 'torch._dynamo', 'torch._inductor', 'deepspeed', 'tensorboard', 'ray'}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    assert run(command) == 0\n"
        "    assert not late & set(sys.modules), (command, late & set(sys.modules))\n"
        "assert run(json.loads(sys.argv[2])) == 0\n"
        "late = {'torchvision', 'torch._inductor.compile_fx', 'ray'}\n"
        "assert not late & set(sys.modules), ('train', late & set(sys.modules))"
    )
    config = str(copied / "configs" / "stages" / "fashion-mnist-teacher.yaml")
    train = ["train", "--stage", "teacher", "-c", config, "--index", index, "--out", str(tmp_path / "run")]
    train += ["--set", "num_steps=1", "--set", "batch_size=8"]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands), json.dumps(train)],
        capture_output=True,
        text=True,
        check=False,
        # Training in this process, for the fixture, has made it a rank.
        env={name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES},
    )
    assert done.returncode == 0, done.stderr
