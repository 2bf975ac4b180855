"""`wsl cluster`: what has become of the parts of runs; and the options that send a command to a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import JsonOption, StorageOption, WorkspaceOption, parse_bytes

if TYPE_CHECKING:
    from wsl.cluster.executor import ClusterExecutor
    from wsl.workspace.config import ClusterConfig
    from wsl.workspace.layout import Workspace

app = typer.Typer(no_args_is_help=True, help="Runs on a Ray cluster.")

HERE = "none"
"""The address that keeps a command on this machine whatever wsl.yaml says."""
BESIDE_BYTES = 512 << 20
"""What Python, Polars and the reader of a source take beside the memory that the engine may."""

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS|auto",
        help="Run on this Ray cluster; default: as wsl.yaml says, or none.",
    ),
]
ClusterDirOption = Annotated[
    str | None,
    typer.Option(
        "--cluster-dir",
        metavar="PLACE",
        help="Folder for the parts that all nodes see, or its URI in a store; default: beside the result.",
    ),
]
ClusterGroupOption = Annotated[
    str | None,
    typer.Option("--cluster-group", help="Files are taken together up to this size; default: 2GiB."),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="cluster")


def choose_cluster(
    address: str | None,
    folder: str | None,
    group: str | None,
    memory_bytes: int | None,
    workspace: Path | None,
    beside: Path | None = None,
) -> ClusterExecutor | None:
    """What the options and `wsl.yaml` say; None where the command runs on this machine.

    `memory_bytes` is what the engine may take in a task, `beside` the folder where none is named.
    """
    found = _workspace(workspace)
    known = None if found is None else found.config.cluster
    if address == HERE or (address is None and known is None):
        return None
    from wsl.cluster.executor import ClusterExecutor
    from wsl.files import stores
    from wsl.workspace.config import ClusterConfig

    settings = (known or ClusterConfig()).model_copy()
    if address is not None:
        settings.address = address
    if group is not None:
        settings.group_bytes = max(parse_bytes(group), 1)
    if settings.memory_bytes is None and memory_bytes is not None:
        settings.memory_bytes = memory_bytes + BESIDE_BYTES
    chosen = folder or _folder(settings, found) or beside
    if chosen is None:
        chosen = (Path() if found is None else found.root) / "cluster"
    place = os.fspath(chosen)
    return ClusterExecutor(settings, place if stores.is_remote(place) else os.path.abspath(place))


def _folder(settings: ClusterConfig, found: Workspace | None) -> Path | str | None:
    if settings.folder is None or found is None or "://" in settings.folder:
        return settings.folder
    return found.path(Path(settings.folder))


def _workspace(folder: Path | None) -> Workspace | None:
    from wsl.workspace.layout import ENVIRONMENT, WORKSPACE_FILE, Workspace

    root = folder or Path(os.environ.get(ENVIRONMENT) or ".")
    return Workspace.find(root) if (root / WORKSPACE_FILE).is_file() else None


@app.command("status")
def status(
    folder: Annotated[
        str | None, typer.Argument(help="Folder of parts, or its URI; default: those of the workspace.")
    ] = None,
    workspace: WorkspaceOption = None,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each run how many of its parts are done, and what failed. Needs no cluster."""
    from wsl._core import UsageError
    from wsl.cluster import status
    from wsl.cluster.parts import Parts

    if folder is None:
        chosen = choose_cluster("auto", None, None, None, workspace)
        assert chosen is not None
        folder = chosen.folder
    runs = status.status(Parts(folder))
    if not runs:
        raise UsageError(
            f"{folder} holds no parts of a run on a cluster; name the folder that was given with "
            f"--cluster-dir"
        )
    if as_json:
        print_json(runs)
        return
    rows = [
        [
            run["command"],
            "complete" if run["complete"] else "open",
            ", ".join(f"{level['kind']} {level['done']:,}/{level['parts']:,}" for level in run["levels"]),
            run["parts"],
            run["done"],
            run["failed"],
        ]
        for run in runs
    ]
    print_table(folder, ["command", "state", "stages", "parts", "done", "failed"], rows)
    for run in runs:
        for name, text in run["failures"].items():
            note(f"{name}: {text}")
