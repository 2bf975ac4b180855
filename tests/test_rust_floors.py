"""The engine's rooms: a module uses lower floors alone, files form no circle, every module is on a floor.

`docs/floors.md` lists the floors; the `use` lines and paths of `rust/src` say what is used.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

RUST = Path(__file__).parents[1] / "rust"
FLOORS = RUST.parent / "docs" / "floors.md"

Module = tuple[str, ...]
"""The path of a module from the crate's root, which is ()."""

USE = re.compile(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);")
PATH = re.compile(r"\b(?:crate|super)(?:\s*::\s*\w+)+")
VISIBILITY = re.compile(r"\bpub\([^)]*\)")
LINE = re.compile(r"^\| *(\d+) \| `([\w/]+)` \| \S", re.MULTILINE)


def module_of(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] in ("mod", "lib") else parts


def code_of(text: str) -> str:
    """The code without comments and without the tests at the end of the file."""
    text = re.sub(r"//[^\n]*", "", text)
    tests = re.search(r"^#\[cfg\(test\)\]\n(?=mod )", text, re.MULTILINE)
    return text[: tests.start()] if tests else text


def leaves(tree: str, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`."""
    tree = tree.strip()
    group = re.match(r"((?:\w+\s*::\s*)*)\{(.*)\}$", tree, re.DOTALL)
    if not group:
        name = tuple(part.split(" as ")[0].strip() for part in tree.split("::"))
        yield prefix + name
        return
    base = prefix + tuple(re.findall(r"\w+", group[1]))
    depth, start, inner = 0, 0, group[2] + ","
    for at, letter in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if inner[start:at].strip():
                yield from leaves(inner[start:at], base)
            start = at + 1


@dataclass
class Crate:
    """The modules of a crate, and what each of them uses."""

    code: dict[Module, str]
    exports: dict[tuple[Module, str], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Crate:
        crate = cls({module_of(path, root): code_of(path.read_text()) for path in root.rglob("*.rs")})
        for module, code in crate.code.items():
            for use in USE.finditer(code):
                if use[1]:
                    crate.exports.update({(module, path[-1]): path for path in leaves(use[2])})
        return crate

    def find(self, here: Module, path: tuple[str, ...], depth: int = 0) -> Module | None:
        """The module that a path leads into, through what is exported again; None outside the crate."""
        if path[0] in ("crate", "self"):
            at, path = (() if path[0] == "crate" else here), path[1:]
        elif path[0] == "super":
            num_up = next((n for n, part in enumerate(path) if part != "super"), len(path))
            at, path = here[:-num_up], path[num_up:]
        elif (*here, path[0]) in self.code:
            at = here
        else:
            return None
        while path and (*at, path[0]) in self.code:
            at, path = (*at, path[0]), path[1:]
        if path and (at, path[0]) in self.exports and depth < 8:
            return self.find(at, self.exports[at, path[0]], depth + 1)
        return at

    @functools.cached_property
    def uses(self) -> dict[Module, set[Module]]:
        """The modules that each one uses; what it only exports again is not used."""
        return {module: self._used_by(module) for module in self.code}

    def _used_by(self, module: Module) -> set[Module]:
        code = self.code[module]
        paths = [path for use in USE.finditer(code) if not use[1] for path in leaves(use[2])]
        rest = VISIBILITY.sub("", USE.sub("", code))
        paths += [tuple(re.split(r"\s*::\s*", found)) for found in PATH.findall(rest)]
        found = {self.find(module, path) for path in paths}
        return {other for other in found if other is not None and other != module}


def room_of(module: Module) -> str:
    return "/".join(module[:2] if module[:1] == ("index",) else module[:1])


def floors(text: str) -> dict[str, int]:
    rooms = LINE.findall(text)
    assert len({room for _, room in rooms}) == len(rooms), "a room is listed twice"
    return {room: int(floor) for floor, room in rooms}


def wrong_arrows(crate: Crate, levels: dict[str, int]) -> list[str]:
    """What a module uses that is not below it."""
    wrong = []
    for module in sorted(crate.code):
        own = room_of(module)
        for other in sorted(crate.uses[module]):
            room = room_of(other)
            if room != own and levels.get(room, -1) >= levels.get(own, 99):
                wrong.append(f"{'/'.join(module)} uses {'/'.join(other)}: {own} is not above {room}")
    return wrong


def circle(crate: Crate) -> list[str]:
    """The files of a circle, if there is one; a folder's `mod.rs` and its files may use each other."""
    graph = {
        module: {other for other in used if module[: len(other)] != other}
        for module, used in crate.uses.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["/".join(module) for module in error.args[1]]
    return []


@pytest.fixture(scope="module")
def crate() -> Crate:
    return Crate.read(RUST / "src")


@pytest.fixture(scope="module")
def levels() -> dict[str, int]:
    return floors(FLOORS.read_text(encoding="utf-8").partition("## `rust/src`\n")[2])


def test_every_module_is_on_a_floor_and_every_listed_room_is_there(
    crate: Crate, levels: dict[str, int]
) -> None:
    # The crate's root and `index/mod.rs` export what lies in rooms, and hold nothing.
    rooms = {room_of(module) for module in crate.code} - {"", "index"}
    assert rooms == set(levels), "docs/floors.md lists other rooms than rust/src has"


def test_no_module_uses_one_above_or_beside_it(crate: Crate, levels: dict[str, int]) -> None:
    assert wrong_arrows(crate, levels) == []


def test_no_files_form_a_circle(crate: Crate) -> None:
    assert circle(crate) == []


def test_what_only_exports_holds_nothing(crate: Crate) -> None:
    for module in ((), ("index",)):
        assert not re.search(r"\b(fn|struct|enum|trait|impl)\b", crate.code[module])


def test_index_has_at_most_14_entries() -> None:
    files = (RUST / "src" / "index").rglob("*.rs")
    assert len({path.relative_to(RUST / "src" / "index").parts[0] for path in files}) <= 14


SMALL = {
    ("error",): "pub struct Error;",
    ("store",): "mod remote; use crate::error::Error;",
    ("store", "remote"): "use super::Part; fn read() -> crate::Error { todo!() }",
    (): "mod error; mod store; pub use error::Error;",
}
"""A crate without a fault: `store` uses `error`, once through the crate's root, and its own parent."""


def small(**other: str) -> Crate:
    code: dict[Module, str] = dict(SMALL)
    code.update({tuple(name.split("__")): text for name, text in other.items()})
    exports: dict[tuple[Module, str], tuple[str, ...]] = {((), "Error"): ("error", "Error")}
    return Crate(code, exports)


def test_a_wrong_arrow_is_seen() -> None:
    levels = {"error": 0, "store": 1, "count": 1}
    assert wrong_arrows(small(), levels) == []
    upward = small(error="use crate::{store::{remote, Part}};")
    assert wrong_arrows(upward, levels) == [
        "error uses store: error is not above store",
        "error uses store/remote: error is not above store",
    ]
    beside = small(count="fn count() { crate::store::read() }")
    assert wrong_arrows(beside, levels) == ["count uses store: count is not above store"]


def test_a_circle_is_seen() -> None:
    assert circle(small()) == []
    found = circle(small(store__remote="use super::local::read;", store__local="use super::remote::read;"))
    assert set(found) == {"store/remote", "store/local"}
