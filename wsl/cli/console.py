"""What the commands print: tables and JSON to standard output, all else to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_error(message: str) -> None:
    """One paragraph on standard error, without colour where that is no terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=not sys.stderr.isatty())
    console.print(Text.assemble(("error: ", "bold red"), message))


def note(message: str) -> None:
    """A line on standard error."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=not sys.stderr.isatty()).print(message, markup=False, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table on standard output; numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], (int, float)) or row[position] in ("", "-") for row in rows)
        table.add_column(column, justify="right" if rows and numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return str(value).replace("[", r"\[")
