"""The floor plan holds: imports point down, none go in a circle, every room has a floor."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ROOT / "docs" / "floors.md"
PACKAGE = "wsl"


def floors_of(heading: str) -> dict[str, int]:
    """The floor of each room, out of the table under a heading."""
    section = FLOORS.read_text(encoding="utf-8").partition(f"## `{heading}`\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `([\w/]+)` \|", section, re.MULTILINE)
    assert rows, f"{FLOORS} has no floors under {heading}"
    return {room: int(floor) for floor, room in rows}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """What a file imports of the package, wherever in it: dotted names, and the lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known or name == f"{PACKAGE}._core" else node.module for name in inside]
        else:
            continue
        for name in names:
            if name is not None and name.split(".")[0] == PACKAGE:
                yield name, node.lineno


def room_of(name: str) -> str:
    """The room of a module: the first name below the package."""
    return name.split(".")[1] if "." in name else ""


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Nodes that reach one another: what is left when nodes without arrows in, or out, are taken away."""
    left = {node: set(to) for node, to in arrows.items()}
    while True:
        reached = {to for targets in left.values() for to in targets}
        kept = {
            node: {to for to in targets if to in left}
            for node, targets in left.items()
            if node in reached and any(to in left for to in targets)
        }
        if len(kept) == len(left):
            return [sorted(kept)] if kept else []
        left = kept


def test_every_room_has_a_floor_and_every_floor_a_room() -> None:
    rooms = {room_of(name) for name in modules()} - {"", "__main__"}
    assert rooms | {"_core", "configs"} == set(floors_of("wsl/"))


def test_imports_point_down() -> None:
    floors, known = floors_of("wsl/"), modules()
    wrong = []
    for name, path in known.items():
        if name in (PACKAGE, f"{PACKAGE}.__main__"):
            continue
        own = room_of(name)
        for target, line in imports_of(path, known):
            where = f"{path.relative_to(ROOT)}:{line}"
            room = room_of(target)
            if not room:
                wrong.append(f"{where} imports {PACKAGE} itself, the front door")
            elif room != own and floors[room] >= floors[own]:
                wrong.append(f"{where}: {own} is on floor {floors[own]}, {room} on {floors[room]}")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_one_another_in_a_circle() -> None:
    known = modules()
    arrows = {
        name: {target for target, _ in imports_of(path, known) if target != name and target in known}
        for name, path in known.items()
        if name != PACKAGE
    }
    assert not circles(arrows)


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
