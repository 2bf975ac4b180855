"""`wsl cluster`: what has become of the parts of runs; and the options that send a command to a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsl._core import UsageError
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
        metavar="ADDRESS|auto|none",
        help="Run on this Ray cluster, or on none; default: as wsl.yaml has it, or none.",
    ),
]


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster a command runs on, and how its work is divided there."""

    cluster: ClusterOption = None
    cluster_dir: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder for the parts that all nodes see, or its URI in a store; default: by the result.",
        ),
    ] = None
    cluster_group: Annotated[
        str | None,
        typer.Option(help="Files are taken together up to this size; default: 2GiB."),
    ] = None


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="cluster")


def choose_cluster(
    options: ClusterOptions,
    workspace: Path | None,
    *,
    memory_bytes: int | None = None,
    beside: Path | None = None,
    local: Mapping[str, object] | None = None,
) -> ClusterExecutor | None:
    """What the options and `wsl.yaml` choose; None where the command runs on this machine.

    `memory_bytes` is what the engine may take in a task, `beside` the folder where none is named. `local` are
    options that hold on this machine only, by their names.

    UsageError where options of a cluster are given and none is chosen, or one of `local` and one is.
    """
    found = _workspace(workspace)
    known = None if found is None else found.config.cluster
    if options.cluster == HERE or (options.cluster is None and known is None):
        _refuse_without_cluster(options)
        return None
    given = [flag for flag, value in (local or {}).items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]} is for this machine, and the command runs on a cluster, whose tasks have as many "
            f"threads as cluster.num_cpus in wsl.yaml; leave {given[0]} out, or pass --cluster none"
        )
    chosen = cluster_executor(options, found, beside)
    settings = chosen.settings
    if settings.memory_bytes is None and memory_bytes is not None:
        settings.memory_bytes = memory_bytes + BESIDE_BYTES
    return chosen


def cluster_executor(
    options: ClusterOptions, found: Workspace | None, beside: Path | None = None
) -> ClusterExecutor:
    """The cluster of the options and of a workspace, if there is one; it is not called yet."""
    from wsl.cluster.executor import ClusterExecutor
    from wsl.files import stores
    from wsl.workspace.config import ClusterConfig

    known = None if found is None else found.config.cluster
    settings = (known or ClusterConfig()).model_copy()
    if options.cluster is not None:
        settings.address = options.cluster
    if options.cluster_group is not None:
        settings.group_bytes = max(parse_bytes(options.cluster_group, "--cluster-group"), 1)
    chosen = options.cluster_dir or _folder(settings, found) or beside
    if chosen is None:
        chosen = (Path() if found is None else found.root) / "cluster"
    place = os.fspath(chosen)
    return ClusterExecutor(settings, place if stores.is_remote(place) else os.path.abspath(place))


def _refuse_without_cluster(options: ClusterOptions) -> None:
    """UsageError for options that say how a cluster works where none does."""
    given = {"--cluster-dir": options.cluster_dir, "--cluster-group": options.cluster_group}
    for flag, value in given.items():
        if value is not None:
            raise UsageError(
                f"{flag} {value}: the command runs on this machine; name a cluster with --cluster ADDRESS, "
                f"or leave {flag} out"
            )


def _folder(settings: ClusterConfig, found: Workspace | None) -> Path | str | None:
    if settings.folder is None or found is None or "://" in settings.folder:
        return settings.folder
    return found.path(Path(settings.folder))


def _workspace(folder: Path | None) -> Workspace | None:
    """The workspace that is named, which must be one, or the one that a command is started in, if any."""
    from wsl.workspace.layout import ENVIRONMENT, WORKSPACE_FILE, Workspace

    if folder is not None:
        return Workspace.find(folder)
    root = Path(os.environ.get(ENVIRONMENT) or ".")
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
    from wsl.cluster import status
    from wsl.cluster.parts import Parts

    # It has the settings of the store that a folder may be in, too.
    found = _workspace(workspace)
    if folder is None:
        folder = cluster_executor(ClusterOptions(), found).folder
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
