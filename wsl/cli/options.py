"""Options that several commands share, each declared once.

Options that belong together are a group: a dataclass whose fields are options. A command under `grouped`
takes a group as one parameter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from wsl._core import UsageError
from wsl.files.sizes import parse_size
from wsl.training.options import Flag

if TYPE_CHECKING:
    from wsl.files.resources import Resources

T = TypeVar("T")

PLOT_SUFFIXES = (".svg", ".png", ".pdf")
NOT_GIVEN = ("DEFAULT", "DEFAULT_MAP")
"""Where the value of an option comes from that the user has not given."""

if TYPE_CHECKING:
    from wsl.files.resources import Resources


def grouped(command: Callable[..., T]) -> Callable[..., T]:
    """Lets a command take groups of options: a parameter that is a dataclass is made of one option a field.

    What Typer sees is a function with all options side by side, in the order of the parameters.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind, [field.name for field in dataclasses.fields(kind)]
        parameters += _parameters_of(kind)

    @functools.wraps(command)
    def called(**values: Any) -> T:
        made = {
            name: kind(**{field: values.pop(field) for field in fields})
            for name, (kind, fields) in groups.items()
        }
        return command(**values, **made)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _parameters_of(group: type[Any]) -> list[inspect.Parameter]:
    """A parameter for each field of a group."""
    hints = get_type_hints(group, include_extras=True)
    empty = inspect.Parameter.empty
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=empty if field.default is dataclasses.MISSING else field.default,
            annotation=_for_typer(hints[field.name]),
        )
        for field in dataclasses.fields(group)
    ]


def _for_typer(annotation: Any) -> Any:
    """A `Flag`, which rooms below the command line declare options with, as Typer has it."""
    kind, *about = get_args(annotation)
    if not about or not isinstance(about[0], Flag):
        return annotation
    flag = about[0]
    return Annotated[kind, typer.Option(*flag.names, help=flag.help, metavar=flag.metavar)]


def flags_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of a command's parameters that the user has given, as they are written: --key-column."""
    flags = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    return [flags[name] for name, source in sources.items() if source and source.name not in NOT_GIVEN]


def refuse(context: typer.Context, names: Iterable[str], reason: str) -> None:
    """UsageError where one of these options is given, which would change nothing, and why it would not."""
    flags = flags_given(context, names)
    if flags:
        raise UsageError(f"{', '.join(flags)}: {reason}; leave {'them' if len(flags) > 1 else 'it'} out")


def parse_bytes(text: str, option: str = "--memory") -> int:
    """``2GiB``, ``512M`` or a plain number as bytes; UsageError that names the option for anything else."""
    size = parse_size(text)
    if size is None:
        raise UsageError(f"{option} {text}: expected a size such as 2GiB, 512MiB or a number of bytes")
    return size


def check_plot(plot: Path | None, overwrite: bool) -> None:
    """UsageError for a plot of an unknown kind, and for one that is there already."""
    if plot is None:
        return
    if plot.suffix not in PLOT_SUFFIXES:
        raise UsageError(f"--plot {plot}: expected a name that ends in .svg, .png or .pdf")
    check_free(plot, overwrite, "--plot")


def check_free(out: Path, overwrite: bool, option: str = "--out") -> None:
    """UsageError where a file to write is there already and may not be replaced."""
    if out.exists() and not overwrite:
        raise UsageError(f"{option} {out}: the file exists already; pass --overwrite to replace it")


def _use_storage_options(options: list[str] | None) -> list[str] | None:
    """KEY=VALUE texts hold from here on, for this process and those it starts."""
    from wsl.files import stores

    chosen = {}
    for option in options or []:
        key, equals, value = option.partition("=")
        if not key or not equals:
            # What is wrong may be a secret, so it is not repeated.
            raise UsageError("--storage-option: expected KEY=VALUE, such as aws_region=eu-west-1")
        chosen[key] = value
    if chosen:
        stores.use(chosen)
    return options


def use_stores_of(context: typer.Context, folder: Path | None) -> Path | None:
    """Stores are reached as the workspace in a folder sets, if it is one, until the command ends."""
    if folder is None or not (folder / "wsl.yaml").is_file():
        return folder
    from wsl.workspace.layout import Workspace

    # A command that needs the workspace reports what is wrong with it.
    with contextlib.suppress(UsageError):
        context.with_resource(Workspace.find(folder).stores())
    return folder


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        callback=use_stores_of,
        help="Folder with the wsl.yaml; default: $WSL_WORKSPACE or the current folder.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every stage, as seed=1."),
]
PlotOption = Annotated[Path | None, typer.Option("--plot", help="Write a plot here (.svg, .png, .pdf).")]
HashtagsColumnOption = Annotated[
    str | None,
    typer.Option(
        "--hashtags-column",
        help="Column with the hashtags: a list, or one delimited string; default: hashtags.",
    ),
]
SeparatorOption = Annotated[
    str | None, typer.Option("--separator", help="Where a text column is split; default: white space.")
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        callback=_use_storage_options,
        help="Option of object stores, such as aws_endpoint_url=URL; may be given several times.",
    ),
]


@dataclass(frozen=True)
class MemoryOptions:
    """How much memory the engine's tables may take, and where the rest goes."""

    memory: Annotated[
        str | None, typer.Option(help="Limit for the engine's tables, such as 2GiB; the rest goes to disk.")
    ] = None
    spill_dir: Annotated[
        Path | None, typer.Option(help="Folder for what does not fit in memory; default: $TMPDIR or /tmp.")
    ] = None

    def resources(self, num_threads: int | None = None) -> Resources:
        """The same in bytes, with a number of threads; UsageError for what is no size."""
        from wsl.files.resources import Resources

        memory_bytes = None if self.memory is None else parse_bytes(self.memory)
        return Resources(memory_bytes, self.spill_dir, num_threads)


@dataclass(frozen=True)
class ThreadOptions:
    """Threads of the engine."""

    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads; default: one for each core.")
    ] = None
    workers: Annotated[int | None, typer.Option("--workers", min=1, hidden=True)] = None
    """What --threads was called."""

    @property
    def number(self) -> int | None:
        """Threads asked for; UsageError where two numbers are."""
        if self.workers is not None and self.threads not in (None, self.workers):
            raise UsageError(
                f"--threads {self.threads} --workers {self.workers}: two names of one option; give --threads"
            )
        return self.workers if self.threads is None else self.threads


@dataclass(frozen=True)
class HashtagOptions:
    """Which records hashtags are counted in, and where those have them."""

    target: Annotated[
        Path | None,
        typer.Argument(
            callback=use_stores_of, help="A workspace, or an index over hashtags; default: the one of -w."
        ),
    ] = None
    records: Annotated[
        list[str] | None,
        typer.Option("--records", help="Glob of hashtag records; may be given several times."),
    ] = None
    hashtags_column: HashtagsColumnOption = None
    separator: SeparatorOption = None
    workspace: WorkspaceOption = None


@dataclass(frozen=True)
class VocabularyOptions:
    """Which hashtags become labels; absent ones are as `VocabularyConfig` has them."""

    min_count: Annotated[
        int | None, typer.Option(min=1, help="Leave out tags on fewer records than this; default: 1.")
    ] = None
    max_labels: Annotated[
        int | None, typer.Option(min=1, help="Keep at most this many labels, the most frequent.")
    ] = None
    wordnet: Annotated[
        Path | None, typer.Option(help="dict folder of WordNet 3.0: tags of one synset become one label.")
    ] = None
    synsets: Annotated[
        Path | None, typer.Option(help="Text file of WNIDs that are chosen before others, one a line.")
    ] = None


@dataclass(frozen=True)
class NetworkOptions:
    """Which network scores which index, and how."""

    checkpoint: Annotated[
        Path | None, typer.Option(help="Run folder of the teacher; default: the newest teacher.")
    ] = None
    index: Annotated[
        Path | None, typer.Option(help="Index to score; default: the workspace's unlabelled one.")
    ] = None
    flip: Annotated[bool, typer.Option(help="Average scores over the image and its mirror image.")] = True
    temperature: Annotated[float, typer.Option(help="Divides the logits before the softmax.")] = 1.0
    num_accelerators: Annotated[int | None, typer.Option(min=1, help="Ranks that score; default: one.")] = (
        None
    )
