"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsl.files.sizes import parse_size

if TYPE_CHECKING:
    from wsl.files.resources import Resources


def parse_bytes(text: str) -> int:
    """``2GiB``, ``512M`` or a plain number as bytes; UsageError for anything else."""
    from wsl._core import UsageError

    size = parse_size(text)
    if size is None:
        raise UsageError(f"--memory {text}: expected a size such as 2GiB, 512MiB or a number of bytes")
    return size


def resources_of(memory: str | None, spill_dir: Path | None, num_threads: int | None = None) -> Resources:
    """What the options allow a verb to take of the machine."""
    from wsl.files.resources import Resources

    return Resources(None if memory is None else parse_bytes(memory), spill_dir, num_threads)


def _use_storage_options(options: list[str] | None) -> list[str] | None:
    """KEY=VALUE texts hold from here on, for this process and those it starts."""
    from wsl._core import UsageError
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


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", "-w", help="Folder with the wsl.yaml; default: $WSL_WORKSPACE or the current folder."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Threads; default: one for each core.")
]
KeyColumnOption = Annotated[str, typer.Option("--key-column", help="Column with the record's key.")]
HashtagsColumnOption = Annotated[
    str, typer.Option("--hashtags-column", help="Column with the hashtags: a list, or one delimited string.")
]
MinCountOption = Annotated[
    int, typer.Option("--min-count", min=1, help="Leave out tags on fewer records than this.")
]
MaxLabelsOption = Annotated[
    int | None, typer.Option("--max-labels", min=1, help="Keep at most this many labels, the most frequent.")
]
RecordsOption = Annotated[
    list[str] | None,
    typer.Option("--records", help="Glob of hashtag records; may be given several times."),
]
SeparatorOption = Annotated[
    str | None, typer.Option("--separator", help="Where a text column is split; default: white space.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", help="Limit for the engine's tables, such as 2GiB; the rest goes to disk."),
]
SpillDirOption = Annotated[
    Path | None,
    typer.Option("--spill-dir", help="Folder for what does not fit in memory; default: $TMPDIR or /tmp."),
]
WordNetOption = Annotated[
    Path | None,
    typer.Option("--wordnet", help="dict folder of WordNet 3.0: tags of one synset become one label."),
]
SynsetsOption = Annotated[
    Path | None,
    typer.Option("--synsets", help="Text file of WNIDs that are chosen before others, one a line."),
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
FlipOption = Annotated[bool, typer.Option(help="Average scores over the image and its mirror image.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="Divides the logits before the softmax.")
]
