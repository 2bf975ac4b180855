"""Running the command line in one process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsl.cli import run


def wsl_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, " ".join(captured.err.replace("│", " ").split())
