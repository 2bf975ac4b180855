"""Runs a command, kills it at each of its writes in turn, and runs it again to the end.

    LD_PRELOAD=kill_at.so KILL_BELOW=FOLDER python tests/help/killed_at_writes.py JOB.json

The job names the command, a `folder` that is put back to how it was before each kill, the `results` in it,
`every`: how many writes lie from one kill to the next, and `first`: how many before the first. Each run is a
fork of this process, which has imported what it needs and done nothing. Ends with an error where a result is
there and not whole, or where going on ends with others. Prints the number of kills and of writes.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import polars.io.plugins  # noqa: F401

import wsl.carried
import wsl.cli
import wsl.scoring.pseudolabels


def run(command: list[str], kill_at: int) -> tuple[int, int]:
    """The code with which a fork that runs the command ended, and its writes (-1 where it was killed)."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        shim = ctypes.CDLL(None)
        shim.kill_at(kill_at)
        code = wsl.cli.run(command)
        os.write(writing, str(shim.num_writes()).encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as said:
        number = said.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, int(number or -1)


def main(job: dict[str, Any]) -> int:
    if job["scores"]:
        import torch

        import wsl.scoring.network
        import wsl.scoring.rank
        import wsl.selection.states

        torch.set_num_threads(1)
        wsl.selection.states.RANGE = job["scores"]
        wsl.scoring.network.SAVING_SHARE = float("inf")
    folder, command = Path(job["folder"]), job["command"]

    def put_back() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "spill").mkdir()

    def results() -> dict[str, bytes]:
        names = (path for pattern in job["results"] for path in folder.glob(pattern))
        return {str(path.relative_to(folder)): path.read_bytes() for path in names}

    put_back()
    code, num_writes = run(command, 0)
    expected = results()
    assert code == 0, code
    assert expected
    kills = 0
    for place in range(1 + job["first"], num_writes + 1, job["every"]):
        put_back()
        code, _ = run(command, place)
        if code != -signal.SIGKILL:
            # Threads write in no order, so that there may be a few writes fewer.
            assert (code, place > num_writes - 3) == (0, True), (code, place, num_writes)
            continue
        kills += 1
        for name, content in results().items():
            assert content == expected[name], f"after a kill at write {place} of {num_writes}: {name}"
        code, _ = run(command, 0)
        assert code == 0, f"going on after a kill at write {place} of {num_writes} ended with {code}"
        assert results() == expected, f"going on after a kill at write {place} of {num_writes}"
        left = [path.name for path in (folder / "spill").iterdir()]
        assert left == [], f"after a kill at write {place} of {num_writes}: {left}"
    print(json.dumps({"kills": kills, "writes": num_writes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
