"""Exit codes, and the text of an error: one paragraph, however it was raised."""

from __future__ import annotations

import errno
import os

from wsl._core import DataError, UsageError, WslError

EXIT_FAILURE, EXIT_USAGE, EXIT_DATA, EXIT_INTERRUPTED = 1, 2, 3, 130


def how_to_install(extra: str) -> str:
    """The command that installs an extra of the package.

    The package is not published, and another project has the name `wsl` on the public index, so the clone or
    a wheel's file is named.
    """
    return f"pip install -e '.[{extra}]' in the clone, or pip install 'FILE.whl[{extra}]' with a wheel"


def exit_code(error: BaseException) -> int:
    """1 failure at run time, 2 wrong usage, 3 bad or corrupt data, 130 interrupted."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, UsageError):
        return EXIT_USAGE
    return EXIT_DATA if isinstance(error, DataError) else EXIT_FAILURE


def explain(error: BaseException) -> str:
    """The text that a user sees."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{where}no space is left on the disk; free some and run the same command again"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "torchvision", "deepspeed"):
        return f"this command needs {error.name}: {how_to_install('train')}"
    if isinstance(error, (WslError, OSError, MemoryError)):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error} (this looks like a bug; 'wsl --debug ...' shows where)"
