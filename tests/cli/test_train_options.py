"""The options of `train`: one declaration for `wsl train` and for the program that a launcher starts."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from tests.help.commands import refused
from wsl import train as program
from wsl.cli import run
from wsl.training.options import Flag, TrainOptions, arguments_of, parse

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "stages" / "fashion-mnist-student.yaml"
EVERY = TrainOptions(
    stage="student",
    config=Path("c.yaml"),
    settings=["optimizer.lr=0.05", "data.mean=[-1, 2]", "-x=1"],
    resume="-odd",
    init=Path("a b"),
    index=Path("i"),
    evaluate=Path("e"),
    pseudolabels=Path("p=q"),
    predictions=Path("s"),
    out=Path("o"),
    workspace=Path("w"),
    overwrite=True,
    print_config=True,
    debug=True,
)


def flags() -> list[Flag]:
    hints = get_type_hints(TrainOptions, include_extras=True)
    return [hints[field.name].__metadata__[0] for field in dataclasses.fields(TrainOptions)]


def test_ranks_read_the_options_that_the_command_was_given() -> None:
    plain = TrainOptions(stage="teacher")
    assert arguments_of(plain) == ["--stage=teacher"]
    for options in (plain, EVERY, dataclasses.replace(EVERY, overwrite=False, settings=None)):
        assert parse(arguments_of(options)) == options
    assert all(getattr(EVERY, field.name) != field.default for field in dataclasses.fields(EVERY))


def test_the_launchers_rank_is_taken_and_passed_over() -> None:
    assert parse(["--local_rank=1", "-s", "student"]) == TrainOptions(stage="student")
    with pytest.raises(SystemExit) as ended:
        parse(["--stag", "student"])
    assert ended.value.code == 2


def test_both_programs_offer_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    named = {name for flag in flags() for name in flag.names} | {"--help", "-h"}
    found = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
    with pytest.raises(SystemExit):
        program.main(["--help"])
    assert set(found.findall(capsys.readouterr().out)) == named
    assert run(["train", "--help"]) == 0
    assert set(found.findall(capsys.readouterr().out)) >= named | {"--num-accelerators", "--storage-option"}


def test_the_command_hands_over_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[object] = []

    def launch(options: TrainOptions, num_accelerators: int | None) -> int:
        handed.extend([options, num_accelerators])
        return 130

    monkeypatch.setattr(program, "launch", launch)
    assert run(["train", *arguments_of(EVERY), "--num-accelerators", "3"]) == 130
    assert handed == [EVERY, 3]
    handed.clear()
    assert run(["--debug", "train", "-s", "teacher"]) == 130
    assert handed == [TrainOptions(stage="teacher", debug=True), None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "students"], "--stage students: expected one of pretrain, teacher, student, finetune"),
        (["--stage", "teacher", "--pseudolabels", "p"], "--pseudolabels is for the stage student"),
        (["--stage", "finetune", "--predictions", "p"], "--predictions is for the stage student"),
        (["--stage", "student", "--predictions", "p"], "distillation.weight is above 0"),
    ],
)
def test_an_option_that_the_stage_does_not_read_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    config = CONFIG.with_name(f"fashion-mnist-{arguments[1].removesuffix('s')}.yaml")
    code, text = refused(capsys, "train", "-c", config, *arguments)
    assert (code, words in text) == (2, True), text


def test_a_workspace_that_is_none_is_refused_beside_an_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["-s", "student", "-c", CONFIG, "--index", tmp_path, "--out", tmp_path / "o", "-w", tmp_path]
    code, text = refused(capsys, "train", *given, "--num-accelerators", 1)
    assert (code, "is no workspace" in text) == (2, True)


def test_the_program_shows_a_config_and_errors_of_rank_0_without_torch(tmp_path: Path) -> None:
    """As `deepspeed wsl/train.py` starts it: by its path, with a rank in the environment."""
    file = ROOT / "wsl" / "train.py"
    code = (
        "import runpy, sys; sys.argv[0] = 'wsl/train.py'\n"
        f"try:\n    runpy.run_path(r'{file}', run_name='__main__')\n"
        "finally:\n    assert not {'torch', 'typer', 'rich', 'polars'} & set(sys.modules)\n"
    )

    def start(rank: int, *arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-c", code, *arguments, f"--local_rank={rank}"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(ROOT), "RANK": str(rank)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    shown, out, _ = start(0, "-s", "student", "-c", str(CONFIG), "--print-config")
    assert (shown, out.startswith("stage: student\n")) == (0, True)
    assert start(0, "-s", "student", "-c", "none")[0] == 2
    assert "error: --config none" in start(0, "-s", "student", "-c", "none")[2]
    assert start(1, "-s", "student", "-c", "none") == (2, "", "")
