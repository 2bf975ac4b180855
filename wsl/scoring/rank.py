"""One rank of scoring, started once for each accelerator; DeepSpeed's launcher can start it too.

    deepspeed --module wsl.scoring.rank JOB.json

The job is written by `wsl score` and `wsl pseudolabel`. A rank scores its share of the ranges of samples;
ranks exchange nothing, so a killed one loses no more than the range it was at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from wsl.errors import exit_code, explain
from wsl.files.locking import shared_by_ranks
from wsl.progress import progress, silent
from wsl.workspace.settings import load
from wsl.workspace.stage import StageConfig

SHARED = ("torch", "safetensors.torch", "wsl.training.models", "wsl.data.augment")
"""What ranks import before they are forked; Polars starts threads then, so each imports it itself."""


def shared(run: Path) -> tuple[str, ...]:
    """What the ranks that score with the network of a run have in common."""
    file = run / "config.yaml"
    # What a run lacks is for the ranks to report.
    narrow = not file.is_file() or load(StageConfig, file).model.name == "narrow"
    return SHARED if narrow else (*SHARED, "torchvision")


def main(arguments: list[str] | None = None) -> int:
    """Scores what is this rank's by the job, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="wsl.scoring.rank", description=__doc__, allow_abbrev=False)
    parser.add_argument("job", type=Path)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    number = int(os.environ.get("RANK", "0"))
    try:
        run(json.loads(options.job.read_text()), number, int(os.environ.get("WORLD_SIZE", "1")))
    except (Exception, KeyboardInterrupt) as error:
        where = f"rank {number}: " if number else ""
        print(f"error: {where}{explain(error)}", file=sys.stderr, flush=True)
        return exit_code(error)
    return 0


def run(job: dict[str, Any], number: int, world_size: int) -> dict[str, Any]:
    """Scores as one rank; the report of `write_predictions` for files, nothing for states."""
    import torch

    from wsl.scoring.network import Scorer, score_into_states, write_predictions
    from wsl.selection.states import Rank, StateJob

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    scorer = Scorer(
        Path(job["run"]),
        Path(job["index"]),
        flip=job["flip"],
        temperature=job["temperature"],
        batch_size=job["batch_size"],
    )

    # The line of progress is about this rank's ranges alone.
    rank = Rank(number, world_size)
    total = sum(len(samples) for samples in rank.ranges(len(scorer.index)))
    name = "score" if world_size == 1 else f"score, rank {number} of {world_size}"
    # One line is enough to watch.
    shown = progress(name, total=total, unit="images") if number == 0 else nullcontext(silent)

    # While a rank writes here no other command takes the folder, even where the launcher has ended.
    folder = Path(job["states"]["folder"] if "states" in job else job["out"])
    with shared_by_ranks(folder), shown as advance:
        if "states" not in job:
            out = Path(job["out"])
            return write_predictions(scorer, out, keep=job["keep"], rank=rank, progress=advance)
        score_into_states(scorer, StateJob.from_json(job["states"]), rank=rank, progress=advance)
    return {}


if __name__ == "__main__":
    sys.exit(main())
