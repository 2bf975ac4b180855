"""The command line: one module per group of commands, each of which only parses and prints.

Data goes to standard output, progress and messages to standard error. Exit codes: 0 ok, 1 failure
at run time, 2 wrong usage, 3 bad or corrupt data, 130 interrupted. An error is one paragraph;
`wsl --debug COMMAND` shows the traceback too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from wsl._core import __version__
from wsl.cli import cluster, demo, doctor, hashtags, index, report, selection, study, training, workspace
from wsl.cli.console import print_error
from wsl.cli.options import use_stores_of
from wsl.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, exit_code, explain

app = typer.Typer(
    name="wsl",
    help="Train image classifiers from billions of weakly labelled or unlabelled images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"wsl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = {"debug": debug}
    # The workspace that one is in applies to commands that need no workspace too.
    folder = Path(os.environ.get("WSL_WORKSPACE") or ".")
    file = folder / "wsl.yaml"
    if file.is_file() and b"storage" in file.read_bytes():
        use_stores_of(context, folder)


for group in (demo, workspace, hashtags, index, training, selection, study, report, cluster, doctor):
    group.register(app)


ENVIRONMENT = {
    # Row groups that Polars reads ahead: by default so many that they take more memory than most commands.
    "POLARS_ROW_GROUP_PREFETCH_SIZE": "2",
    # Threads of NumPy's linear algebra, which no command needs: they wait for work at full speed.
    "OPENBLAS_NUM_THREADS": "1",
}
"""What the commands set where the user has not."""


def main() -> None:
    """Runs the command line and ends the process with the exit code."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        result = app(args=arguments, prog_name="wsl", standalone_mode=False)
    except typer.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:
        return _report(error, debug="--debug" in arguments)
    # Typer turns Ctrl-C into its code without a message.
    if result == EXIT_INTERRUPTED:
        print_error(explain(KeyboardInterrupt()))
    return result if isinstance(result, int) else 0


def _report(error: Exception, debug: bool) -> int:
    from typer import rich_utils
    from typer.exceptions import TyperException

    if isinstance(error, TyperException):
        rich_utils.rich_format_error(error)  # type: ignore[arg-type]
        return int(getattr(error, "exit_code", EXIT_USAGE))
    if debug:
        raise error
    print_error(explain(error))
    return exit_code(error)
