"""Object stores from Python: which options apply, and objects read, written and listed by URI.

Shards, records and results may be at ``s3://``, ``gs://``, ``az://`` or (to be read) ``https://``. How they
are reached is set once: in the `storage` block of ``wsl.yaml``, with ``--storage-option KEY=VALUE``, by
`use` in Python, or in the environment (``AWS_*``, ``GOOGLE_*``, ``AZURE_*``). Options have the names that
Polars and the object_store crate give them, and both get the same. They contain secrets: nothing here prints
or writes them, and no fingerprint depends on them. To processes that wsl starts they go in the environment
variable ``WSL_STORAGE``, as secrets of stores do everywhere.

The verbs take paths too, so that whoever writes to a shared folder or a store needs one way only. An object
or file that is written appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import STORE_LIMITS, UsageError

ENVIRONMENT = "WSL_STORAGE"
MAGIC = re.compile(r"[*?[]")

Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Settings:
    """How stores are reached; `wsl.workspace.config.StorageConfig` explains each field."""

    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = STORE_LIMITS["timeout_s"]
    retry_s: float = STORE_LIMITS["retry_s"]
    request_bytes: int = STORE_LIMITS["request_bytes"]
    gap_bytes: int = STORE_LIMITS["gap_bytes"]
    num_requests: int = STORE_LIMITS["num_requests"]
    cache: str | None = None
    cache_bytes: int | None = None

    def core(self) -> _core.Storage:
        """The engine's form; UsageError for an option that no store knows."""
        limits = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        return _core.Storage(dict(self.options), **limits)


@dataclass(frozen=True)
class Object:
    """An object of a store, or a file, as it was seen."""

    uri: str
    size: int
    etag: str
    """What the store calls this state of it."""
    modified_ms: int
    """When it was changed, in milliseconds since 1970."""


_DEFAULT = Settings()
_workspace: ContextVar[Mapping[str, Any] | None] = ContextVar("stores of a workspace", default=None)
"""What the workspace sets in whose scope this is; fields of `Settings` by name."""
_given: dict[str, Any] | None = None
_listed: dict[str, Object] = {}
"""What was listed last, so that asking for each object again is spared."""


def use(options: Mapping[str, str] | None = None, **limits: Any) -> None:
    """Sets options of stores and other fields of `Settings` for this process and those it starts.

    They come before those of the workspace and are added to those set before; ``use()`` forgets all.
    Raises UsageError for an option that no store knows and for limits that make no sense.
    """
    global _given  # noqa: PLW0603
    merged = _merged(_over(), {"options": dict(options or {}), **limits}) if options or limits else {}
    _settings_of(merged).core()
    _given = merged
    _changed()


@contextmanager
def as_set_by(block: Mapping[str, Any]) -> Iterator[None]:
    """Within it, stores are reached as a workspace sets: fields of `Settings` by name.

    What `use` set comes before it. A scope within another one takes its place.
    """
    token = _workspace.set(dict(block))
    _changed()
    try:
        yield
    finally:
        _workspace.reset(token)
        _changed()


def current() -> Settings:
    """What applies now."""
    return _settings_of(_merged(_workspace.get() or {}, _over()))


def core() -> _core.Storage:
    """The engine's form of what applies now."""
    return _core_of(json.dumps(dataclasses.asdict(current()), sort_keys=True))


def polars_options() -> dict[str, str] | None:
    """What Polars takes as `storage_options`; None where nothing is set."""
    options = dict(current().options)
    endpoints = ("aws_endpoint_url", "aws_endpoint", "endpoint_url", "endpoint")
    if any(options.get(name, "").startswith("http://") for name in endpoints):
        options.setdefault("aws_allow_http", "true")
    return options or None


@functools.lru_cache(maxsize=8)
def _core_of(text: str) -> _core.Storage:
    return Settings(**json.loads(text)).core()


def _settings_of(tree: Mapping[str, Any]) -> Settings:
    names = {f.name for f in dataclasses.fields(Settings)}
    unknown = sorted(set(tree) - names)
    if unknown:
        raise UsageError(f"storage: unknown field {unknown[0]!r}; known are {', '.join(sorted(names))}")
    return dataclasses.replace(_DEFAULT, **tree)


def _merged(first: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    options = {**first.get("options", {}), **over.get("options", {})}
    return {**first, **over} | ({"options": options} if options else {})


def _over() -> dict[str, Any]:
    """What comes before the workspace: what `use` set, here or in the process that started this one."""
    global _given  # noqa: PLW0603
    if _given is None:
        _given = _from_environment()
    return _given


def _from_environment() -> dict[str, Any]:
    text = os.environ.get(ENVIRONMENT)
    if not text:
        return {}
    try:
        tree = json.loads(text)
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise UsageError(f"{ENVIRONMENT}: expected a JSON object, as wsl sets it for processes it starts")
    return tree


def _changed() -> None:
    """What applies from now on, here and in processes that are started."""
    _listed.clear()
    merged = _merged(_workspace.get() or {}, _over())
    if merged:
        os.environ[ENVIRONMENT] = json.dumps(merged)
    else:
        os.environ.pop(ENVIRONMENT, None)


def is_remote(place: Place) -> bool:
    """Whether a path or URI names something in a store."""
    return _core.is_remote(os.fspath(place))


def as_place(text: Place) -> Path | str:
    """A path, or the URI of something in a store as it is."""
    return os.fspath(text) if is_remote(text) else Path(text)


def join(base: Place, *names: str) -> str:
    """A name below a folder or the URI of one."""
    if is_remote(base):
        return "/".join([os.fspath(base).rstrip("/"), *names])
    return os.path.join(base, *names)


def head(place: Place) -> Object | None:
    """What is known of an object or file; None where there is none.

    Raises OSError where the store cannot be asked.
    """
    if is_remote(place):
        found = core().head(os.fspath(place))
        return None if found is None else Object(*found)
    try:
        seen = os.stat(_local(place))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Object(os.fspath(place), seen.st_size, str(seen.st_mtime_ns), seen.st_mtime_ns // 1_000_000)


def exists(place: Place) -> bool:
    """Whether there is such an object or file."""
    return head(place) is not None


def read_bytes(place: Place) -> bytes:
    """The content of an object or file; FileNotFoundError where there is none."""
    if is_remote(place):
        return core().read(os.fspath(place))
    return _local(place).read_bytes()


def write_bytes(place: Place, content: bytes) -> None:
    """Makes `content` the object or file, whole; one that is there is replaced."""
    if is_remote(place):
        core().write(os.fspath(place), content)
        _listed.pop(os.fspath(place), None)
        return
    with publishing(place) as temporary:
        temporary.write_bytes(content)


@contextmanager
def publishing(place: Place) -> Iterator[Path]:
    """The path to write to; at the end it becomes the object or file, whole, and on an error it is removed.

    For an object it is in the folder for temporary files (``TMPDIR``).
    """
    from wsl.files import publish

    if is_remote(place):
        with tempfile.TemporaryDirectory(prefix="wsl-") as folder:
            path = Path(folder) / os.fspath(place).rpartition("/")[2]
            with publish.naming(path):
                yield path
            upload(path, place)
        return
    path = _local(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish.publishing(path) as temporary:
        yield temporary


def delete(place: Place) -> None:
    """Removes an object or file; one that is not there is none."""
    if is_remote(place):
        core().delete(os.fspath(place))
        _listed.pop(os.fspath(place), None)
    else:
        _local(place).unlink(missing_ok=True)


def download(place: Place, path: Place) -> Object:
    """Makes an object the file `path`, whole, and returns what it was."""
    return Object(*core().download(os.fspath(place), path))


def upload(path: Place, place: Place) -> None:
    """Makes the file `path` an object, whole; one that is there is replaced."""
    core().upload(path, os.fspath(place))
    _listed.pop(os.fspath(place), None)


def listing(pattern: Place) -> list[Object]:
    """Objects, or files, in the byte order of their URIs.

    A glob means what it matches (``*`` and ``?`` within a name, ``**`` across folders), anything else
    means all that is below it. Nothing found is an empty list.
    """
    text = os.fspath(pattern)
    if not is_remote(text):
        inside = text if MAGIC.search(text) else os.path.join(glob.escape(text), "**")
        found = [head(path) for path in glob.glob(inside, recursive=True) if os.path.isfile(path)]
        return sorted((one for one in found if one is not None), key=lambda one: os.fsencode(one.uri))
    magic = MAGIC.search(text)
    if magic is None:
        objects = [Object(*one) for one in core().list(text)]
    else:
        folder = text[: text.rindex("/", 0, magic.start()) + 1]
        recursive = "/" in text[magic.start() :]
        fits = _matcher(text)
        objects = [Object(*one) for one in core().list(folder, recursive=recursive) if fits.fullmatch(one[0])]
    _listed.update((one.uri, one) for one in objects)
    return objects


def stamp(place: Place) -> list[Any]:
    """What changes when a file or object does; empty for what is neither here nor in a store.

    An object that was listed is not asked for again. Raises FileNotFoundError where there is none.
    """
    text = os.fspath(place)
    if is_remote(text):
        seen = _listed.get(text) or head(text)
        if seen is None:
            core().read_range(text, 0, 1)
            return []
        # Some stores have quotes around it in one answer and none in another.
        return [seen.size, seen.etag.strip('"')]
    if "://" in text and not text.startswith("file://"):
        return []
    found = os.stat(_local(text))
    return [found.st_size, found.st_mtime_ns]


def _local(place: Place) -> Path:
    return Path(os.fspath(place).removeprefix("file://"))


def _matcher(pattern: str) -> re.Pattern[str]:
    """The expression of a glob."""
    pieces = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    text = ""
    for piece in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern, flags=re.DOTALL):
        if piece.startswith("[") and len(piece) > 2:
            text += piece.replace("[!", "[^", 1)
        else:
            text += pieces.get(piece) or re.escape(piece)
    return re.compile(text)
