"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
