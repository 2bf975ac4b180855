"""`wsl study`: the papers' figures over a user's data, or any grid written in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import JsonOption, SettingsOption, WorkspaceOption


def register(app: typer.Typer) -> None:
    app.command("study")(study)


def study(
    name: Annotated[
        str, typer.Argument(metavar="noise|sampling|k|shift|FILE", help="A study, or a YAML file of one.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all studies and their steps; default: studies in the workspace, or in the "
            "current folder where a study brings its data along."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A full set in the place of the carried one NAME."),
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=VALUE,VALUE", help="Other values of an axis, as k=100,200 or seed=0,1."),
    ] = None,
    override: SettingsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the steps that are made and that remain, and stop.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep: each step once, the results as a table, plots and report.html; run again, it goes on.

    In a workspace the studies noise, sampling, k and shift are about its data; those whose names begin with
    fashion-mnist or openclipart bring theirs along.
    """
    from wsl.studies.page import REPORT, Study, findings_of, write_study
    from wsl.studies.run import StudyRequest, run_study

    request = StudyRequest(
        study=name,
        out=out,
        workspace=workspace,
        sources=_sources(source or []),
        overrides=override or [],
        axes=axis or [],
        dry_run=dry_run,
    )
    result = run_study(request, note=note)
    if dry_run:
        num_steps = len(result.table) + result.num_missing
        if as_json:
            print_json(
                {"study": result.name, "folder": str(result.folder)}
                | {"num_steps": num_steps, "num_missing": result.num_missing}
            )
        note(f"{result.num_missing:,} of {num_steps:,} steps remain")
        return
    write_study(result.folder, result.config, result.table)
    found = findings_of(Study.of(result.config, result.table))
    if as_json:
        about = {"study": result.name, "folder": str(result.folder)}
        print_json(about | found | {"results": result.table.to_dicts()})
        return
    claims = [*found["findings"], *found["peaks"]]
    print_table(result.config.title, ["verdict", "claim"], [[c["verdict"], c["claim"]] for c in claims])
    note(f"{result.num_new:,} steps made now; report: {result.folder / REPORT}")


def _sources(given: list[str]) -> dict[str, Path]:
    from wsl._core import UsageError

    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise UsageError(
                f"--source {text}: expected NAME=DIR, a name of the study's data and a folder that is there"
            )
        found[name] = Path(folder)
    return found
