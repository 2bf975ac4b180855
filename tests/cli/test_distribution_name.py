"""The name under which the package is installed: free on the public index, and never typed bare."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from wsl.cli import doctor, run
from wsl.errors import explain

ROOT = Path(__file__).resolve().parents[2]
TAKEN = "wsl"
"""Another project's name on the public index."""
SUFFIXES = {".md", ".py", ".rs", ".toml", ".yaml", ".yml", ".json", ".sh", ".cfg", ".txt", ".html", ""}


def project() -> str:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(content["project"]["name"])


def bare_names(text: str) -> list[str]:
    """Commands that install a package called wsl, or this one, from an index by its name."""
    name = rf"(?:{re.escape(TAKEN)}|{re.escape(project())})"
    found = re.finditer(rf"pip3? install\b[^`&|;\n]*?[\s'\"]{name}(?=\[|[\s'\"`=<>~!]|$)", text, re.MULTILINE)
    return [match.group() for match in found]


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no clone with git")
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix in SUFFIXES]


def test_the_distribution_does_not_have_the_name_of_another_project() -> None:
    assert project() != TAKEN
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["project"]["scripts"] == {"wsl": "wsl.cli:main"}
    assert content["tool"]["maturin"]["python-packages"] == ["wsl"]


def test_no_text_tells_anyone_to_install_the_package_by_its_bare_name() -> None:
    files = tracked_files()
    assert ROOT / "README.md" in files
    # These two hold the old form as an example of what is found.
    examples = {Path(__file__).resolve(), ROOT / "tests" / "test_pages.py"}
    others = [path for path in files if path not in examples]
    found = {str(path): bare_names(path.read_text(encoding="utf-8")) for path in others}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'wsl[ray]'",
        'pip install "wsl"',
        "python -m pip install -U wsl",
        "pip install wsl-vision[train]",
    ],
)
def test_a_bare_name_is_found(text: str) -> None:
    assert bare_names(f"run `{text}` first")
    assert bare_names(text)


@pytest.mark.parametrize(
    "text",
    ["pip install -e '.[train]' && wsl demo", "pip install 'FILE.whl[ray]'", "pip install ninja; wsl doctor"],
)
def test_the_clone_and_a_file_are_no_bare_names(text: str) -> None:
    assert not bare_names(text)


def test_messages_name_the_clone_or_a_wheel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = explain(ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert "pip install -e '.[train]' in the clone" in text
    assert "'FILE.whl[train]'" in text
    find = doctor.importlib.util.find_spec

    def version(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    assert run(["doctor", "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    for name in ("torch", "deepspeed", "accelerator"):
        assert "pip install -e '.[train]'" in checks[name]["remedy"]


def test_ray_that_is_missing_is_asked_for_from_the_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = builtins.__import__

    def without_ray(name: str, *rest: object, **more: object) -> object:
        if name == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return load(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_ray)
    (tmp_path / "r.csv").write_text("hashtags\na\n")
    command = ["counts", "build", "--records", str(tmp_path / "r.csv"), "--out", str(tmp_path / "c")]
    assert run([*command, "--cluster", "127.0.0.1:1"]) == 2
    assert "pip install -e '.[ray]'" in " ".join(capsys.readouterr().err.split())
