"""What people read: the README and the pages, held to the commands, settings and files that they name.

The tests of the whole project run the blocks of commands that are marked with ``walk``; here nothing is run.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.exceptions import TyperException
from typer.main import get_command

import wsl
from wsl.cli import app
from wsl.workspace.config import ClusterConfig, IndexConfig, StageSource, StorageConfig, VocabularyConfig
from wsl.workspace.stage import StageConfig

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
README_LINES = 150
"""A page that is read before anything is installed is short."""


def _navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else _navigation(target)


NAVIGATION = list(_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
"""The pages of docs/, in the order in which they are read and their commands are run."""

PAGES = [
    README,
    *(ROOT / "docs" / name for name in NAVIGATION),
    ROOT / "configs" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
ALL = [*PAGES, ROOT / "CHANGELOG.md"]
NAMES = [str(page.relative_to(ROOT)) for page in ALL]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line before it."""

    language: str
    text: str
    before: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command: continued lines joined, comments left out, `&&` and the like split."""
        found: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), ";"]:
                if word not in ("&&", "||", "|", ";"):
                    words.append(word)
                elif words:
                    found.append(words)
                    words = []
        return found


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    parts = re.finditer(r"(?:^|(?<=\n))(?P<before>[^\n]*)\n```(\w*)\n(.*?)```\n", text, re.DOTALL)
    return [Block(part[2], part[3], part["before"]) for part in parts]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"\n```\w*\n.*?```\n", "\n", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@functools.cache
def command_line() -> Any:
    """The commands, none of whose options acts when it is parsed."""

    def quiet(command: Any) -> Any:
        for parameter in command.params:
            parameter.callback = None
        for inner in getattr(command, "commands", {}).values():
            quiet(inner)
        return command

    return quiet(get_command(app))


def parse(command: Any, words: list[str], parent: Any = None) -> None:
    """Parses the words after a command's name, and those of the commands within it; runs nothing."""
    context = command.make_context(command.name, list(words), parent=parent)
    rest = [*getattr(context, "_protected_args", []), *context.args]
    if rest and hasattr(command, "commands"):
        _, inner, rest = command.resolve_command(context, rest)
        parse(inner, rest, context)


def of_wsl(words: list[str]) -> list[str] | None:
    """What follows `wsl` in a command, or in one of DeepSpeed's for the same program; None for others."""
    if words[0] == "wsl":
        return words[1:]
    for name in ("wsl/train.py", "wsl.train"):
        if name in words:
            return ["train", *words[words.index(name) + 1 :]]
    return None


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_every_block_of_commands_is_marked(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            assert re.fullmatch(r"<!-- (setup|walk|not run): \S.* -->", block.before), block.text


def test_no_two_blocks_have_one_name() -> None:
    marks = [block.before for page in PAGES for block in blocks(page) if "<!-- walk: " in block.before]
    assert len(marks) == len(set(marks)) > 5


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_every_command_of_a_page_parses(page: Path) -> None:
    root = command_line()
    for block in blocks(page):
        for words in block.commands if block.language == "sh" else []:
            ours = of_wsl(words)
            if ours is not None:
                try:
                    parse(root, ours)
                except TyperException as error:
                    pytest.fail(f"{' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_every_command_named_in_a_sentence_is_there_with_its_options(page: Path) -> None:
    for text in re.findall(r"`wsl ([^`]+)`", prose(page)):
        command, words = command_line(), " ".join(text.split()).split(" ")
        options = {"--help", *(name for parameter in command.params for name in parameter.opts)}
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
            options |= {name for parameter in command.params for name in parameter.opts}
            options |= {name for parameter in command.params for name in parameter.secondary_opts}
        is_group = len(getattr(command, "commands", {})) > 1 and not command.invoke_without_command
        first = words[0] if words else ""
        # `wsl COMMAND` and `wsl counts build|merge` stand for several.
        assert not is_group or not first or first[0] == "-" or first.isupper() or "|" in first, text
        assert {word for word in words if word.startswith("--")} <= options, text


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES[:-1])
def test_blocks_of_yaml_and_python_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
        elif block.language == "python":
            compile(block.text, str(page), "exec")
            assert set(re.findall(r"\bwsl\.(\w+)", block.text)) <= set(wsl.__all__)


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_three_commands_stand_in_the_readme_word_for_word() -> None:
    lines = [block.text for block in blocks(README) if block.before == "<!-- walk: fashion-mnist -->"]
    commands = [line.split("#")[0].strip() for line in lines[0].splitlines()]
    wanted = ["wsl index build", "wsl pseudolabel --k 8000 --p 10", "deepspeed wsl/train.py --stage student"]
    assert [command for command in commands if command in wanted] == wanted


def test_every_page_is_in_the_navigation() -> None:
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert there == set(NAVIGATION)
    assert len(NAVIGATION) == len(there)


def test_every_command_has_a_row_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")

    def named(command: Any, name: str) -> Iterator[str]:
        inner = getattr(command, "commands", {})
        if not inner or command.invoke_without_command:
            yield name
        for key, one in inner.items():
            yield from named(one, f"{name} {key}")

    rows = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `wsl"))
    missing = [name for name in named(command_line(), "wsl") if name != "wsl" and f"`{name}`" not in rows]
    assert not missing


def test_every_setting_has_a_row_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    cells = {cell for line in page.splitlines() if line.startswith("| `") for cell in _names(line)}

    def fields(kind: type[BaseModel]) -> Iterator[str]:
        for name, field in kind.model_fields.items():
            group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            if group and kind is StageConfig:
                yield from fields(field.annotation)  # type: ignore[arg-type]
            elif not group:
                yield name

    kinds = (StageConfig, IndexConfig, VocabularyConfig, StageSource, StorageConfig, ClusterConfig)
    assert not {name for kind in kinds for name in fields(kind)} - cells


def _names(row: str) -> list[str]:
    """The names in the first cell of a row."""
    return re.findall(r"`(\w+)`", row.split("|")[1])
