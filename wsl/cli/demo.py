"""`wsl demo`: the whole pipeline on the carried data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import JsonOption, SettingsOption


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's two workspaces and report.html.")] = Path(
        "wsl-demo"
    ),
    override: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run both pipelines on the carried data: a few minutes on two cores, no network."""
    from wsl.demo.run import run_demo

    note("wsl demo: both pipelines on the carried data, a few minutes on two cores")
    result = run_demo(out, note=lambda text: note(f"  {text}"), overrides=override)
    if as_json:
        print_json(result.to_dict())
        return
    rows = [
        [o.data, o.what, o.num_parameters, o.num_steps, f"{o.accuracy:.1%}", f"{o.seconds:.0f}"]
        for o in result.outcomes
    ]
    columns = ["data", "network", "parameters", "steps", "accuracy", "seconds"]
    print_table("wsl demo", columns, [list(row) for row in rows])
    note("accuracy: top-1 on Fashion-MNIST, mean over classes on Open Clip Art, both held out")
    note(f"report: {result.report}   ({result.seconds:.0f} s in all)")
